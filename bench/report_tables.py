"""Markdown tables of the sections of result files; every function returns lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.sections import FAST, Row, arithmetic, choices, elsewhere, fastest, kernel_times, kernel_us, timed
from titn.report.style import shorten

NONE = "–"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table without the columns that hold nothing; a heading that ends in ":" is one of numbers, aligned right."""
    body = [list(map(cell, row)) for row in rows]
    if not body:
        return ["Nothing was measured here."]
    kept = [i for i in range(len(headings)) if any(row[i] != NONE for row in body)]
    marks = ["---:" if headings[i].endswith(":") else "---" for i in kept]
    lines = [[headings[i].rstrip(":") for i in kept], *([row[i] for i in kept] for row in body)]
    return [_line(lines[0]), "|" + "|".join(marks) + "|", *map(_line, lines[1:])]


def cell(text: str) -> str:
    """Text that stays within its cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def number(value: float) -> str:
    """Three significant digits, or all before the decimal point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:#.3g}"


def spread(stat: Row, low: str = "low", high: str = "high") -> str:
    """ "512 (498 to 530)": the median and the extremes, or other quantiles."""
    return f"{number(stat['median'])} ({number(stat[low])} to {number(stat[high])})"


def gibibytes(size: int | None) -> str:
    return NONE if size is None else f"{size / 2**30:.2f}"


def seconds(value: float | None) -> str:
    return NONE if value is None else f"{value:,.1f}"


def percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}%"


def ceilings(data: Mapping[str, Any]) -> list[str]:
    rows = [["copy, GB/s", *_stat_cells(data["copy_gb_per_s"])]]
    rows += [[f"{name} product, TFLOP/s", *_stat_cells(stat)] for name, stat in data["product_tflops"].items()]
    return table(["ceiling", "median:", "lowest:", "highest:", "repeats:"], rows)


def _stat_cells(stat: Row) -> list[str]:
    if "median" not in stat:
        return [str(stat.get("error") or stat.get("reason")), NONE, NONE, NONE]
    return [number(stat["median"]), number(stat["low"]), number(stat["high"]), str(stat["repetitions"])]


def correctness(data: Sequence[Row]) -> list[str]:
    dtypes = list(dict.fromkeys(row["dtype"] for row in data))
    cases: dict[tuple[str, str], dict[str, str]] = {}
    for row in data:
        cases.setdefault((row["operation"], row["case"]), {})[row["dtype"]] = _verdict(row)
    rows = [[*case, *(verdicts.get(dtype, NONE) for dtype in dtypes)] for case, verdicts in cases.items()]
    left = ((f"{row['operation']}, {row['case']}, {row['dtype']}", row.get("skipped")) for row in data)
    return [*table(["operation", "case", *dtypes], rows), *reasons("Skipped", left)]


def _verdict(row: Row) -> str:
    if "skipped" in row:
        return "skipped"
    if "error" in row:
        return f"**failed**: {row['error']}"
    largest = max((error for error in row["errors"] if error is not None), default=None)
    words = "right" if row["ok"] else "**wrong**" if row["runs_equal"] else "**two runs differ**"
    return words + ("" if largest is None else f", {largest:.1e}")


def kernels(data: Sequence[Row]) -> list[str]:
    """One line a case: ours against the fastest rival; every row and every refusal folded away below."""
    rows = []
    for (operation, case, dtype, mode), candidates in timed(data).items():
        mine, rival = fastest(candidates, ours=True), fastest(candidates, ours=False)
        eager = next((row for row in candidates if row["provider"] == "torch"), None)
        rows.append(
            [
                operation, f"{case}, {dtype}", _mode(mode),
                *([mine["provider"], spread(kernel_times(mine), "p10", "p90")] if mine else [NONE, NONE]),
                percent(mine.get("percent_of_floor")) if mine else NONE,
                *([rival["provider"], spread(kernel_times(rival), "p10", "p90")] if rival else [NONE, NONE]),
                number(kernel_us(eager)) if eager else NONE,
                f"{kernel_us(rival) / kernel_us(mine):.2f}" if mine and rival else NONE,
            ]
        )  # fmt: skip
    headings = [
        "operation", "case", "pass", "ours", "us:", "of the floor:", "fastest rival", "us:", "plain PyTorch us:",
        "rival / ours:",
    ]  # fmt: skip
    return [*table(headings, rows), "", *_all_kernels(data)]


def _mode(mode: str) -> str:
    return mode.replace("_", " and ")


def _all_kernels(data: Sequence[Row]) -> list[str]:
    rows = [
        [
            operation, f"{case}, {dtype}", _mode(mode), row["provider"], spread(row["us"], "p10", "p90"),
            spread(row["graph_us"], "p10", "p90") if "median" in (row.get("graph_us") or {}) else NONE,
            percent(row.get("percent_of_floor")),
            NONE if row.get("peak_bytes") is None else f"{row['peak_bytes'] / 2**20:,.1f}",
            NONE if row.get("error_fp64") is None else f"{row['error_fp64']:.1e}",
        ]
        for (operation, case, dtype, mode), candidates in timed(data).items()
        for row in sorted(candidates, key=kernel_us)
    ]  # fmt: skip
    headings = [
        "operation", "case", "pass", "provider", "us, launched:", "us, in a graph:", "of the floor:", "peak MiB:",
        "error:",
    ]  # fmt: skip
    refused = [(f"{row['provider']}: {row['operation']}, {row['case']}, {row['dtype']}", row) for row in data]
    return [
        *folded(f"All {len(rows)} timed rows", table(headings, rows)),
        *reasons("Not timed", ((what, row.get("reason") or row.get("error")) for what, row in refused)),
    ]


def throughput(data: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            f"{row['batch_size']:,}", row["contender"], spread(row["images_per_second"]),
            ratio(row["ratio_to_timm"]), gibibytes(row["peak_bytes"]),
            seconds(row["first_step_seconds"]), seconds(row["warm_start_seconds"]),
        ]
        for row in data["rows"] if "images_per_second" in row
    ]  # fmt: skip
    headings = [
        "images a step:", "contender", "images a second:", "times timm's fastest:", "peak GiB:", "first step, s:",
        "again, warm caches, s:",
    ]  # fmt: skip
    left = ((f"{row['contender']}, {row['batch_size']} images a step", row.get("reason")) for row in data["rows"])
    return [*table(headings, rows), *reasons("Not measured", left)]


def ratio(stat: Row | None) -> str:
    return NONE if stat is None else f"{stat['median']:.2f} ({stat['low']:.2f} to {stat['high']:.2f})"


def waterfall(data: Mapping[str, Any]) -> list[str]:
    measured = [row for row in data["rows"] if "images_per_second" in row]
    rows = []
    for index, row in enumerate(measured):
        speed = row["images_per_second"]["median"]
        first, before = (measured[i]["images_per_second"]["median"] for i in (0, max(index - 1, 0)))
        rows.append(
            [
                row["name"], f"`{row['switch']}`" if row["switch"] else "", spread(row["images_per_second"]),
                number(speed / before), number(speed / first), gibibytes(row["peak_bytes"]),
            ]
        )  # fmt: skip
    headings = ["step", "switch", "images a second:", "times the step before:", "times the first:", "peak GiB:"]
    left = ((row["name"], row.get("reason")) for row in data["rows"])
    return [*table(headings, rows), *reasons("Not measured", left)]


def scaling(data: Mapping[str, Any]) -> list[str]:
    measured = [row for row in data["rows"] if "images_per_second" in row]
    rows = [
        [
            _axis(row), f"{row['value']:,}", f"{row['batch_size']:,}", spread(row["images_per_second"]),
            gibibytes(row["peak_bytes"]), number(row["gflops_per_image"]), percent(row["percent_of_product_ceiling"]),
            percent(arithmetic(row["percent_by_kind"]) if row["percent_by_kind"] else None),
            percent(row["percent_of_ceiling_in_arithmetic"]),
            "{}, {:.0f}%".format(*elsewhere(row["percent_by_kind"])) if row["percent_by_kind"] else NONE,
        ]
        for row in measured
    ]  # fmt: skip
    headings = [
        "axis", "value:", "images a step:", "images a second:", "peak GiB:", "GFLOP an image:",
        "of the product ceiling:", "time in products:", "their share of the ceiling:", "most other time",
    ]  # fmt: skip
    left = ((f"{_axis(row)} {row['value']}", row.get("reason")) for row in data["rows"])
    return [*table(headings, rows), *_why(measured), *reasons("Not measured", left)]


def _axis(row: Row) -> str:
    return str(row["axis"]).replace("_", " ")


def _why(rows: Sequence[Row]) -> list[str]:
    """Where the steps are nearest to the product ceiling and where farthest, and what the time goes into there."""
    known = [row for row in rows if row["percent_by_kind"] and row["percent_of_product_ceiling"]]
    if not known:
        return []
    ordered = sorted(known, key=lambda row: float(row["percent_of_product_ceiling"]))
    told = []
    for word, row in (("Farthest from", ordered[0]), ("Nearest to", ordered[-1])):
        kinds = row["percent_by_kind"]
        within = percent(row["percent_of_ceiling_in_arithmetic"])
        told.append(
            f"{word} the ceiling, at {percent(row['percent_of_product_ceiling'])}: {_axis(row)} {row['value']:,}. "
            f"Products take {arithmetic(kinds):.0f}% of that step and run at {within} of the ceiling; of the rest most "
            "is {}, {:.0f}% of the step.".format(*elsewhere(kinds))
        )
    return ["", *told]


def step_profile(data: Mapping[str, Any]) -> list[str]:
    rows = [
        [f"`{shorten(row['name'], 80)}`", number(row["us"]), f"{row['calls']:,}", percent(row["percent"])]
        for row in data["rows"]
    ]
    told = f"One step of {data['batch_size']:,} images: {number(data['device_us'])} us on the device."
    return [told, "", *table(["kernel", "us:", "calls:", "of the step:"], rows)]


def launches(data: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            row["case"],
            row["way"],
            *(f"{n:,}" for n in (row["forward"], row["backward"], row["forward"] + row["backward"])),
        ]
        for row in data["rows"]
    ]
    return table(["of", "as", "forward:", "backward:", "together:"], rows)


def accuracy(sections: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [
            data["dataset"], data["split"], choice or NONE, _teacher(data.get("teacher")), str(data["epochs"]),
            f"{len(data['runs'])} of {data['planned_seeds']}",
            *([f"{100 * data['mean']:.2f}%", interval(data["interval95"])] if data["runs"] else [NONE, NONE]),
            *([NONE, NONE] if data["target"] is None else [f"{100 * data['target']:.2f}%", _reached(data["runs"])]),
            data["note"] or "",
        ]
        for data, choice in zip(sections, choices(sections), strict=True)
    ]  # fmt: skip
    headings = [
        "data set", "split", "choice", "teacher", "epochs:", "seeds:", "top-1, last epoch:",
        "95% interval of the mean:", "target:", "seconds to target", "note",
    ]  # fmt: skip
    runs = [
        [data["dataset"], data["split"], choice or NONE, str(run["seed"]), f"{100 * run['top1']:.2f}%",
         seconds(run["seconds"]), seconds(run["seconds_to_target"])]
        for data, choice in zip(sections, choices(sections), strict=True) for run in data["runs"]
    ]  # fmt: skip
    every = table(["data set", "split", "choice", "seed:", "top-1:", "seconds:", "seconds to target:"], runs)
    return [*table(headings, rows), "", *folded(f"All {len(runs)} runs", every)]


def _teacher(teacher: Row | None) -> str:
    return NONE if teacher is None else f"{teacher['name']}, {100 * teacher['top1']:.2f}%"


def interval(ends: Sequence[float] | None) -> str:
    """In percent, within what a share can be."""
    return "one seed: none" if ends is None else f"{100 * max(ends[0], 0):.2f}% to {100 * min(ends[1], 1):.2f}%"


def _reached(runs: Sequence[Row]) -> str:
    times = [run["seconds_to_target"] for run in runs if run["seconds_to_target"] is not None]
    if not times:
        return "not reached"
    return f"{min(times):,.0f} to {max(times):,.0f}, in {len(times)} of {len(runs)} runs"


def fast_throughput(data: Mapping[str, Any]) -> Row | None:
    """What `--fast` reaches, at the batch size where it is fastest of those that have a rival in timm."""
    rows = [row for row in data["rows"] if row["contender"] == FAST and row.get("ratio_to_timm")]
    return max(rows, key=lambda row: float(row["images_per_second"]["median"]), default=None)


def folded(summary: str, lines: Sequence[str]) -> list[str]:
    """Lines that a reader unfolds."""
    return [f"<details><summary>{summary}</summary>", "", *lines, "", "</details>"]


def reasons(title: str, left_out: Iterable[tuple[str, str | None]]) -> list[str]:
    """What was left out and why, folded away, one line a reason."""
    by_reason: dict[str, list[str]] = {}
    for what, why in left_out:
        if why:
            by_reason.setdefault(cell(why), []).append(what)
    if not by_reason:
        return []
    count = sum(map(len, by_reason.values()))
    lines = [f"* {why}: {'; '.join(dict.fromkeys(what))}" for why, what in by_reason.items()]
    return ["", *folded(f"{title}: {count}, with the reasons", lines)]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


TABLES: dict[str, Callable[[Any], list[str]]] = {
    "throughput": throughput,
    "waterfall": waterfall,
    "scaling": scaling,
    "ceilings": ceilings,
    "correctness": correctness,
    "kernels": kernels,
    "step_profile": step_profile,
    "launches": launches,
}
