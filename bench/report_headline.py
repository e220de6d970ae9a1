"""The headline table: the one that the README and RESULTS.md begin with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.report_tables import NONE, fast_throughput, interval, number, table
from bench.sections import Device, Found, fastest, kernel_us, timed

NO_GPU = "Nothing has been timed on a GPU yet."
TIMED = ("ceilings", "kernels", "throughput", "waterfall", "scaling", "step_profile")


def headline(devices: Sequence[Device], results: str) -> list[str]:
    """Markdown lines; `results` is the way from the page to the folder of result files."""
    rows = [[*row, device.name, _by(found, results)] for device in devices for row, found in _rows(device)]
    lines = table(["", "measured", "on", "by"], rows) if rows else ["Not measured yet."]
    on_gpu = any(
        name in TIMED and not found.empty
        for device in devices
        if device.is_gpu
        for name, found in device.sections.items()
    )
    return lines if on_gpu else [*lines, "", NO_GPU]


def _by(found: Found, results: str) -> str:
    content = found.content
    versions = ", ".join(f"{name} {content['versions'].get(name) or NONE}" for name in ("torch", "timm"))
    data = f"[{content['utc'][:10]}]({results}/{found.path.parent.name}/{found.path.name})"
    return f"`{content['command']}`, {data}, commit `{content['commit']}`, {versions}"


def _rows(device: Device) -> Iterator[tuple[list[str], Found]]:
    for name, row in (("throughput", _throughput), ("kernels", _kernels)):
        found = device.sections.get(name)
        if found is not None and not found.empty and (cells := row(found, device)):
            yield cells, found
    for found in device.accuracy:
        if found.data["runs"] and found.data["split"] == "test":
            yield _accuracy(found), found


def _throughput(found: Found, device: Device) -> list[str] | None:
    best = fast_throughput(found.data)
    if best is None:
        return None
    ratio = best["ratio_to_timm"]
    precision = best.get("precision", found.data["precision"])
    name = best["contender"] if precision in best["contender"] else f"{best['contender']}, {precision}"
    return [
        f"training, {name}, {best['batch_size']:,} images a step",
        f"{number(best['images_per_second']['median'])} images a second, {ratio['median']:.2f} times timm's fastest "
        f"TNT ({ratio['low']:.2f} to {ratio['high']:.2f} over {ratio['repetitions']} interleaved rounds)",
    ]


def _kernels(found: Found, device: Device) -> list[str] | None:
    """How our kernels compare with the fastest rival of each case; only of a GPU, and only where ours were timed."""
    pairs = [(fastest(group, ours=True), fastest(group, ours=False)) for group in timed(found.data).values()]
    gains = [kernel_us(rival) / kernel_us(mine) for mine, rival in pairs if mine is not None and rival is not None]
    if not device.is_gpu or not gains:
        return None
    checked = device.sections.get("correctness")
    words = ""
    if checked is not None and not checked.empty:
        done = [row for row in checked.data if "skipped" not in row]
        words = f"{sum(bool(row.get('ok')) for row in done)} of {len(done)} checks right; "
    faster = sum(gain > 1 for gain in gains)
    return [
        "fused kernels against the fastest alternative of each case",
        f"{words}faster in {faster} of {len(gains)} cases, {min(gains):.2f} to {max(gains):.2f} times",
    ]


def _accuracy(found: Found) -> list[str]:
    data = found.data
    seeds = f"{len(data['runs'])} seed{'s' if len(data['runs']) > 1 else ''}"
    spread = f"95% interval of the mean {interval(data['interval95'])}" if data["interval95"] else "no interval"
    return [
        f"accuracy, {data['dataset']}, {data['split']} split, {data['epochs']} epochs",
        f"top-1 {100 * data['mean']:.2f}%, last epoch, {seeds}, {spread}",
    ]
