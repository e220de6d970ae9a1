"""The pictures of bench/RESULTS.md and of a harvest, as SVG.

Each drawing takes a mapping with "device", in words, and the section or sections it draws, in the format of the module
that measured them, and returns a figure, or None where there is nothing to draw. Bars and points are medians, whiskers
the extremes of the repeats. The bytes of an SVG differ between versions of matplotlib; its metadata therefore hold a
`fingerprint` of the data and of this file, by which `python -m bench.report --check` sees whether it is up to date.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.sections import fastest, is_ours, kernel_us, timed

Data = Mapping[str, Any]

_INK, _GREY = "#1f2937", "#9ca3af"
_OURS = ("#1d4ed8", "#3b82f6", "#93c5fd", "#0f766e", "#14b8a6", "#5eead4")
_THEIRS = ("#c2410c", "#f97316", "#fdba74", "#a16207", "#eab308", "#fde047")
_MARKERS = "osD^vP*X"
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 9,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "titn",
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def fingerprint(name: str, data: Data) -> str:
    """16 hexadecimal digits that change with the data of a picture and with the code that draws it."""
    drawn = json.dumps([name, data], sort_keys=True, allow_nan=False)
    return hashlib.sha256(drawn.encode() + Path(__file__).read_bytes()).hexdigest()[:16]


def svg(name: str, data: Data) -> str | None:
    """The picture `name` (a key of DRAWINGS) of `data`, its fingerprint in the metadata; None: nothing to draw."""
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE}):
        figure = DRAWINGS[name](data)
        if figure is None:
            return None
        buffer = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Description": f"data {fingerprint(name, data)}"}
        figure.savefig(buffer, format="svg", metadata=metadata)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def drawable(name: str, data: Data) -> bool:
    """Whether there is anything to draw."""
    return DRAWINGS[name](data) is not None


def throughput(data: Data) -> Figure | None:
    """Images per second of every contender, grouped by batch size."""
    rows = [row for row in data["throughput"]["rows"] if "images_per_second" in row]
    if not rows:
        return None
    batches = sorted({row["batch_size"] for row in rows})
    names = list(dict.fromkeys(row["contender"] for row in rows))
    colours = _two_families(names)
    figure, axes = _figure(8.0, 3.6)
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        mine = {row["batch_size"]: row["images_per_second"] for row in rows if row["contender"] == name}
        places = [batches.index(batch) + (index - (len(names) - 1) / 2) * width for batch in mine]
        axes.bar(places, [stat["median"] for stat in mine.values()], width * 0.92, color=colours[name], label=name)
        _whiskers(axes, places, list(mine.values()))
    axes.set_xticks(range(len(batches)), [f"{batch:,}" for batch in batches])
    axes.set(xlabel="images a step", ylabel="training images per second", title=f"Training, {data['device']}")
    axes.yaxis.set_major_formatter(_thousands())
    axes.grid(axis="y")
    axes.legend(
        ncols=2 if len(names) > 3 else 1, loc="upper left", bbox_to_anchor=(1.0, 1.0) if len(names) < 4 else (0, -0.18)
    )
    return figure


def waterfall(data: Data) -> Figure | None:
    """Images per second after each switch, from top to bottom."""
    rows = [row for row in data["waterfall"]["rows"] if "images_per_second" in row]
    if not rows:
        return None
    figure, axes = _figure(8.0, 0.9 + 0.42 * len(rows))
    stats = [row["images_per_second"] for row in rows]
    for place, (row, stat) in enumerate(zip(rows, stats, strict=True)):
        colour = _THEIRS[1] if not is_ours(row["name"]) else _GREY if place == 0 else _OURS[1]
        axes.barh(place, stat["median"], 0.7, color=colour)
        gain = f"  {stat['median']:,.0f}  ({stat['median'] / stats[0]['median']:.2f}x)"
        axes.text(max(stat["median"], stat["high"]), place, gain, va="center")
    axes.errorbar(
        [stat["median"] for stat in stats], range(len(rows)), xerr=_reach(stats), fmt="none", color=_INK, elinewidth=1
    )
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(stat["high"] for stat in stats))
    title = f"One switch after another, {data['waterfall']['batch_size']:,} images a step, {data['device']}"
    axes.set(xlabel="training images per second", title=title)
    axes.xaxis.set_major_formatter(_thousands())
    axes.grid(axis="x")
    return figure


AXES = {
    "batch": "images a step",
    "depth": "blocks",
    "image_size": "image height and width",
    "patch_size": "patch height and width",
}


def scaling(data: Data) -> Figure | None:
    """Images per second (above) and peak memory (below, where it was measured) along each axis."""
    rows = [row for row in data["scaling"]["rows"] if "images_per_second" in row]
    axes_found = [axis for axis in AXES if any(row["axis"] == axis for row in rows)]
    if not axes_found:
        return None
    memory = any(row.get("peak_bytes") for row in rows)
    figure = Figure(figsize=(2.5 * max(len(axes_found), 2), 4.6 if memory else 2.7), layout="constrained")
    panels = figure.subplots(1 + memory, len(axes_found), squeeze=False, sharex="col")
    for column, axis in enumerate(axes_found):
        own = sorted((row for row in rows if row["axis"] == axis), key=lambda row: row["value"])
        values, stats = [row["value"] for row in own], [row["images_per_second"] for row in own]
        upper = panels[0][column]
        upper.errorbar(
            values, [stat["median"] for stat in stats], yerr=_reach(stats), color=_OURS[1], marker="o", markersize=4
        )
        if memory:
            kept = [(row["value"], row["peak_bytes"] / 2**30) for row in own if row.get("peak_bytes")]
            panels[1][column].plot(*zip(*kept, strict=True), color=_THEIRS[1], marker="o", markersize=4)
        for panel in panels[:, column]:
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(values, [f"{value:,}" for value in values], rotation=45 if len(values) > 4 else 0)
            panel.xaxis.set_minor_locator(NullLocator())
            low, high = panel.get_ylim()
            steps = (1,) if high / low > 100 else (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 4, 5, 7)
            panel.yaxis.set_major_locator(LogLocator(subs=steps))
            panel.yaxis.set_major_formatter(_thousands())
            panel.yaxis.set_minor_locator(NullLocator())
            panel.grid()
        panels[-1][column].set_xlabel(AXES[axis])
    panels[0][0].set_ylabel("images per second")
    if memory:
        panels[1][0].set_ylabel("peak memory, GiB")
    figure.suptitle(f"Scaling, {data['device']}", x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def roofline(data: Data) -> Figure | None:
    """Arithmetic rate of our kernels (filled) and of the fastest rival (hollow), in one precision, under the roofs."""
    points = []
    for key, candidates in timed(data["kernels"]).items():
        mine, rival = fastest(candidates, ours=True), fastest(candidates, ours=False)
        if mine is not None and mine.get("flops") and mine.get("bytes"):
            points.append((key, mine, rival))
    if not points:
        return None
    dtype = min({key[2] for key, _, _ in points}, key=("bf16", "fp16", "fp32").index)
    points = [point for point in points if point[0][2] == dtype]
    figure, axes = _figure(8.0, 4.6)
    operations = list(dict.fromkeys(key[0] for key, _, _ in points))
    intensities = []
    for (operation, _, _, mode), mine, rival in points:
        x = mine["flops"] / mine["bytes"]
        intensities.append(x)
        place = operations.index(operation)
        colour = (*_OURS[:2], *_THEIRS[:2], *_OURS[3:5], *_THEIRS[3:5])[place % 8]
        marker = "o" if mode == "forward" else "s"
        y = mine["flops"] / kernel_us(mine) / 1e6
        if rival is not None:
            other = mine["flops"] / kernel_us(rival) / 1e6
            axes.plot([x, x], [other, y], color=colour, linewidth=0.8, alpha=0.6)
            axes.plot(x, other, marker, color=colour, markerfacecolor="white", markersize=6)
        axes.plot(x, y, marker, color=colour, markersize=6)
    ceilings = data.get("ceilings") or {}
    if "copy_gb_per_s" in ceilings:
        _roofs(axes, ceilings, min(intensities) / 2, max(intensities) * 4)
    for place, operation in enumerate(operations):
        colour = (*_OURS[:2], *_THEIRS[:2], *_OURS[3:5], *_THEIRS[3:5])[place % 8]
        axes.plot([], [], "o", color=colour, label=operation)
    axes.plot([], [], "o", color=_GREY, label="forward")
    axes.plot([], [], "s", color=_GREY, label="forward and backward")
    axes.plot([], [], "o", color=_GREY, markerfacecolor="white", label="fastest rival")
    axes.set(xscale="log", yscale="log", xlabel="floating-point operations a byte", ylabel="TFLOP/s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_thousands())
    axes.set_title(f"Kernels in {dtype} under the measured ceilings, {data['device']}")
    axes.grid(which="major")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def step_profile(data: Data) -> Figure | None:
    """The twelve kernels that take most of a step."""
    rows = data["step_profile"]["rows"][:12]
    if not rows:
        return None
    figure, axes = _figure(8.0, 0.9 + 0.28 * len(rows))
    axes.barh(range(len(rows)), [row["percent"] for row in rows], 0.7, color=_OURS[1])
    for place, row in enumerate(rows):
        axes.text(row["percent"], place, f"  {row['percent']:.1f}%  {row['us']:,.0f} us", va="center")
    axes.set_yticks(range(len(rows)), [shorten(row["name"], 44) for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(row["percent"] for row in rows))
    axes.set(xlabel="percent of the step", title=f"One training step, {data['device']}")
    axes.grid(axis="x")
    return figure


def accuracy(data: Data) -> Figure | None:
    """Top-1 of every seed, their mean and 95% interval, and the target, one line a data set and split."""
    found = [section for section in data["accuracy"] if section["runs"]]
    if not found:
        return None
    figure, axes = _figure(8.0, 1.1 + 0.5 * len(found))
    for place, section in enumerate(found):
        top1 = [100 * run["top1"] for run in section["runs"]]
        axes.plot(top1, [place] * len(top1), "o", color=_OURS[2])
        axes.plot(100 * section["mean"], place, "|", color=_OURS[0], markersize=16, markeredgewidth=2)
        if section["interval95"] is not None:
            axes.plot([100 * end for end in section["interval95"]], [place, place], color=_OURS[0], linewidth=2)
        if section.get("target") is not None:
            axes.plot(100 * section["target"], place, "D", color=_THEIRS[1], markersize=5)
    axes.plot([], [], "o", color=_OURS[2], label="one seed")
    axes.plot([], [], "-", color=_OURS[0], linewidth=2, label="95% interval of the mean")
    if any(section.get("target") is not None for section in found):
        axes.plot([], [], "D", color=_THEIRS[1], markersize=5, label="target")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set_yticks(range(len(found)), [f"{section['dataset']}, {section['split']}" for section in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set(xlabel="top-1, percent", title=f"Accuracy, {data['device']}")
    axes.grid(axis="x")
    return figure


DRAWINGS: dict[str, Callable[[Data], Figure | None]] = {
    "throughput": throughput,
    "waterfall": waterfall,
    "scaling": scaling,
    "roofline": roofline,
    "step_profile": step_profile,
    "accuracy": accuracy,
}


def shorten(name: str, length: int) -> str:
    """`name`, cut to `length` characters with an ellipsis where it is longer."""
    return name if len(name) <= length else name[: length - 1] + "…"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _two_families(names: Sequence[str]) -> dict[str, str]:
    """A colour a name: blues for this project's, oranges for the others'."""
    counts = {True: 0, False: 0}
    colours = {}
    for name in names:
        ours = is_ours(name)
        colours[name] = (_OURS if ours else _THEIRS)[counts[ours] % len(_OURS)]
        counts[ours] += 1
    return colours


def _reach(stats: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """Whiskers for `errorbar`: from the median to the extremes."""
    return [[stat["median"] - stat["low"] for stat in stats], [stat["high"] - stat["median"] for stat in stats]]


def _whiskers(axes: Axes, places: Sequence[float], stats: Sequence[Mapping[str, float]]) -> None:
    axes.errorbar(places, [s["median"] for s in stats], yerr=_reach(stats), fmt="none", color=_INK, elinewidth=1)


def _roofs(axes: Axes, ceilings: Mapping[str, Any], low: float, high: float) -> None:
    """The copy bandwidth as a slope and the product rate of each precision as a flat roof."""
    slope = ceilings["copy_gb_per_s"]["median"] / 1e3  # TFLOP/s at one operation a byte
    products = {name: stat["median"] for name, stat in ceilings.get("product_tflops", {}).items() if "median" in stat}
    highest = max(products.values(), default=slope * high)
    low, right = min(low, highest / slope / 4), max(high, 2 * highest / slope)
    axes.plot([low, highest / slope], [slope * low, highest], color=_INK, linewidth=1.2)
    copied = f"copy {slope * 1e3:,.0f} GB/s"
    axes.annotate(copied, (low, slope * low), (12, 0), textcoords="offset points", va="top", ha="left", fontsize=8)
    for name, rate in products.items():
        style = "-" if rate == highest else ":"
        axes.plot([rate / slope, right], [rate, rate], color=_INK, linewidth=1.2, linestyle=style)
        axes.text(right, rate, f"{name} product {rate:,.3g} TFLOP/s", va="bottom", ha="right", fontsize=8)


def _thousands() -> FuncFormatter:
    return FuncFormatter(lambda value, _: f"{value:,g}")
