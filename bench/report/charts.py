"""Drawings of speeds, kernels and accuracy, and what all drawings share; `bench.report.pictures` lists and writes them.

Each drawing takes a mapping with "device", in words, and the section or sections it draws, in the format of the module
that measured them, and returns a figure, or None where there is nothing to draw. Bars and points are medians, whiskers
the extremes of the repeats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.report.sections import KINDS, choices, fastest, is_ours, kernel_us, timed
from titn.report.style import shorten, style

Data = Mapping[str, Any]
"""A picture's facts: "device", in words, and the sections it draws."""

INK, GREY = "#1f2937", "#9ca3af"
OURS = ("#1d4ed8", "#3b82f6", "#93c5fd", "#0f766e", "#14b8a6", "#5eead4")
THEIRS = ("#c2410c", "#f97316", "#fdba74", "#a16207", "#eab308", "#fde047")
STYLE = style(INK) | {"axes.axisbelow": True, "axes.edgecolor": GREY, "grid.alpha": 0.25, "svg.hashsalt": "titn"}
AXES = {
    "batch": "images per step",
    "depth": "blocks",
    "image_size": "image height and width",
    "patch_size": "patch height and width",
}
KIND_COLOURS = dict(zip(KINDS, (OURS[0], OURS[2], OURS[4], THEIRS[1], THEIRS[5], GREY), strict=True))


def new_figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    head(figure, title)
    return figure, figure.subplots()


def head(figure: Figure, title: str) -> None:
    """The title, beginning at the left edge, so that long labels of an axis do not push it out."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")


def two_families(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name: blues for this project's, oranges for the others'."""
    counts = {True: 0, False: 0}
    colours = {}
    for name in names:
        ours = is_ours(name)
        colours[name] = (OURS if ours else THEIRS)[counts[ours] % len(OURS)]
        counts[ours] += 1
    return colours


def reach(stats: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """Whiskers for `errorbar`: from the median to the extremes."""
    return [[stat["median"] - stat["low"] for stat in stats], [stat["high"] - stat["median"] for stat in stats]]


def whiskers(axes: Axes, places: Sequence[float], stats: Sequence[Mapping[str, float]]) -> None:
    axes.errorbar(places, [s["median"] for s in stats], yerr=reach(stats), fmt="none", color=INK, elinewidth=1)


def thousands() -> FuncFormatter:
    return FuncFormatter(lambda value, _: f"{value:,g}")


def throughput(data: Data) -> Figure | None:
    """Images per second of every contender, grouped by batch size."""
    rows = [row for row in data["throughput"]["rows"] if "images_per_second" in row]
    if not rows:
        return None
    batches = sorted({row["batch_size"] for row in rows})
    names = list(dict.fromkeys(row["contender"] for row in rows))
    colours = two_families(names)
    figure, axes = new_figure(8.0, 3.6, f"Training, {data['device']}")
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        mine = {row["batch_size"]: row["images_per_second"] for row in rows if row["contender"] == name}
        places = [batches.index(batch) + (index - (len(names) - 1) / 2) * width for batch in mine]
        axes.bar(places, [stat["median"] for stat in mine.values()], width * 0.92, color=colours[name], label=name)
        whiskers(axes, places, list(mine.values()))
    axes.set_xticks(range(len(batches)), [f"{batch:,}" for batch in batches])
    axes.set(xlabel="images per step", ylabel="training images per second")
    axes.yaxis.set_major_formatter(thousands())
    axes.grid(axis="y")
    axes.legend(
        ncols=2 if len(names) > 3 else 1, loc="upper left", bbox_to_anchor=(1.0, 1.0) if len(names) < 4 else (0, -0.18)
    )
    return figure


def waterfall(data: Data) -> Figure | None:
    """Images per second after each switch, from top to bottom, with the loss that the training came to."""
    rows = [row for row in data["waterfall"]["rows"] if "images_per_second" in row]
    if not rows:
        return None
    title = f"One switch after another, {data['waterfall']['batch_size']:,} images per step, {data['device']}"
    figure, axes = new_figure(8.0, 0.9 + 0.42 * len(rows), title)
    stats = [row["images_per_second"] for row in rows]
    for place, (row, stat) in enumerate(zip(rows, stats, strict=True)):
        colour = THEIRS[1] if not is_ours(row["name"]) else GREY if place == 0 else OURS[1]
        axes.barh(place, stat["median"], 0.7, color=colour)
        gain = f"  {stat['median']:,.0f}  ({stat['median'] / stats[0]['median']:.2f}x), loss {row['loss']:.4f}"
        axes.text(max(stat["median"], stat["high"]), place, gain, va="center")
    axes.errorbar(
        [stat["median"] for stat in stats], range(len(rows)), xerr=reach(stats), fmt="none", color=INK, elinewidth=1
    )
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.4 * max(stat["high"] for stat in stats))
    axes.set_xlabel("training images per second")
    axes.xaxis.set_major_formatter(thousands())
    axes.grid(axis="x")
    return figure


def step_profile(data: Data) -> Figure | None:
    """The twelve kernels that take most of a step."""
    rows = data["step_profile"]["rows"][:12]
    if not rows:
        return None
    figure, axes = new_figure(8.0, 0.9 + 0.28 * len(rows), f"One training step, {data['device']}")
    axes.barh(range(len(rows)), [row["percent"] for row in rows], 0.7, color=OURS[1])
    for place, row in enumerate(rows):
        axes.text(row["percent"], place, f"  {row['percent']:.1f}%  {row['us']:,.0f} us", va="center")
    axes.set_yticks(range(len(rows)), [shorten(row["name"], 44) for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(row["percent"] for row in rows))
    axes.set_xlabel("percent of the step")
    axes.grid(axis="x")
    return figure


def accuracy(data: Data) -> Figure | None:
    """Top-1 of every seed, their mean and 95% interval, and the target, one line a data set, split and choice."""
    found = [section for section in data["accuracy"] if section["runs"]]
    if not found:
        return None
    figure, axes = new_figure(8.0, 1.1 + 0.5 * len(found), f"Accuracy, {data['device']}")
    for place, section in enumerate(found):
        top1 = [100 * run["top1"] for run in section["runs"]]
        axes.plot(top1, [place] * len(top1), "o", color=OURS[2])
        axes.plot(100 * section["mean"], place, "|", color=OURS[0], markersize=16, markeredgewidth=2)
        if section["interval95"] is not None:
            low, high = section["interval95"]
            axes.plot([100 * max(low, 0), 100 * min(high, 1)], [place, place], color=OURS[0], linewidth=2)
        if section.get("target") is not None:
            axes.plot(100 * section["target"], place, "D", color=THEIRS[1], markersize=5)
    axes.plot([], [], "o", color=OURS[2], label="one seed")
    axes.plot([], [], "-", color=OURS[0], linewidth=2, label="95% interval of the mean")
    if any(section.get("target") is not None for section in found):
        axes.plot([], [], "D", color=THEIRS[1], markersize=5, label="target")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    places = [
        (section["dataset"], section["split"], choice) for section, choice in zip(found, choices(found), strict=True)
    ]
    axes.set_yticks(range(len(found)), [", ".join(filter(None, words)) for words in places])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel("top-1, percent")
    axes.grid(axis="x")
    return figure


def scaling(data: Data) -> Figure | None:
    """Along each axis, from above: images per second, peak memory and, where profiled, what a step's time goes into."""
    rows = [row for row in data["scaling"]["rows"] if "images_per_second" in row]
    axes_found = [axis for axis in AXES if any(row["axis"] == axis for row in rows)]
    if not axes_found:
        return None
    kinds = [kind for kind in KINDS if any(row["percent_by_kind"] and row["percent_by_kind"][kind] for row in rows)]
    heights = [2.3, 1.9, *([1.9] if kinds else [])]
    figure = Figure(figsize=(2.5 * max(len(axes_found), 2), 0.4 + sum(heights)), layout="constrained")
    panels = figure.subplots(
        len(heights), len(axes_found), squeeze=False, sharex="col", gridspec_kw={"height_ratios": heights}
    )
    for column, axis in enumerate(axes_found):
        own = sorted((row for row in rows if row["axis"] == axis), key=lambda row: row["value"])
        values, stats = [row["value"] for row in own], [row["images_per_second"] for row in own]
        curves = panels[:2, column]
        curves[0].errorbar(
            values, [stat["median"] for stat in stats], yerr=reach(stats), color=OURS[1], marker="o", markersize=4
        )
        curves[1].plot(values, [row["peak_bytes"] / 2**30 for row in own], color=THEIRS[1], marker="o", markersize=4)
        if kinds:
            profiled = [row for row in own if row["percent_by_kind"]]
            shares = [[row["percent_by_kind"][kind] for row in profiled] for kind in kinds]
            colours = [KIND_COLOURS[kind] for kind in kinds]
            panels[-1][column].stackplot([row["value"] for row in profiled], shares, colors=colours, labels=kinds)
            panels[-1][column].set_ylim(0, 100)
        for panel in curves:
            panel.set_yscale("log")
            low, high = panel.get_ylim()
            steps = (1,) if high / low > 100 else (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 4, 5, 7)
            panel.yaxis.set_major_locator(LogLocator(subs=steps))
            panel.yaxis.set_major_formatter(thousands())
            panel.yaxis.set_minor_locator(NullLocator())
            panel.grid()
        lowest = panels[-1][column]
        lowest.set_xscale("log", base=2)
        lowest.set_xticks(values, [f"{value:,}" for value in values], rotation=45 if len(values) > 4 else 0)
        lowest.xaxis.set_minor_locator(NullLocator())
        lowest.set_xlabel(AXES[axis])
    titles = "images per second", "peak memory, GiB", "percent of a step"
    for panel, title in zip(panels[:, 0], titles, strict=False):
        panel.set_ylabel(title)
    if kinds:
        panels[-1][-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=True)
    head(figure, f"Scaling, {data['device']}")
    return figure


def roofline(data: Data) -> Figure | None:
    """Arithmetic rate of our kernels (filled) and of the fastest rival (hollow), in one precision, under the roofs."""
    points = []
    for key, candidates in timed(data["kernels"]).items():
        if candidates[0].get("flops") and candidates[0].get("bytes"):
            points.append((key, fastest(candidates, ours=True), fastest(candidates, ours=False)))
    if not points:
        return None
    dtype = min({key[2] for key, _, _ in points}, key=("bf16", "fp16", "fp32").index)
    points = [point for point in points if point[0][2] == dtype]
    figure, axes = new_figure(8.0, 4.6, f"Kernels in {dtype} under the measured ceilings, {data['device']}")
    operations = list(dict.fromkeys(key[0] for key, _, _ in points))
    colours = dict(zip(operations, (*OURS[:2], *THEIRS[:2], *OURS[3:5], *THEIRS[3:5]), strict=False))
    intensities = []
    for (operation, _, _, mode), mine, rival in points:
        known = {"white": rival, colours[operation]: mine}
        rates = {face: row["flops"] / kernel_us(row) / 1e6 for face, row in known.items() if row is not None}
        x = next(row["flops"] / row["bytes"] for row in known.values() if row is not None)
        intensities.append(x)
        axes.plot([x] * len(rates), [*rates.values()], color=colours[operation], linewidth=0.8, alpha=0.6)
        for face, rate in rates.items():
            axes.plot(
                x, rate, "o" if mode == "forward" else "s", color=colours[operation], markerfacecolor=face, markersize=6
            )
    ceilings = data.get("ceilings") or {}
    if "median" in ceilings.get("copy_gb_per_s", {}):
        _roofs(axes, ceilings, dtype, min(intensities) / 2, max(intensities) * 4)
    for operation in operations:
        axes.plot([], [], "o", color=colours[operation], label=operation)
    axes.plot([], [], "o", color=GREY, label="forward")
    axes.plot([], [], "s", color=GREY, label="forward and backward")
    axes.plot([], [], "o", color=GREY, markerfacecolor="white", label="fastest rival")
    axes.set(xscale="log", yscale="log", xlabel="floating-point operations per byte", ylabel="TFLOP/s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(thousands())
    axes.grid(which="major")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _roofs(axes: Axes, ceilings: Mapping[str, Any], dtype: str, low: float, high: float) -> None:
    """The copy bandwidth as a slope, the product rates of this precision and of float32 as flat roofs."""
    slope = ceilings["copy_gb_per_s"]["median"] / 1e3  # TFLOP/s at one operation a byte
    rates = ceilings.get("product_tflops", {})
    products = {name: stat["median"] for name, stat in rates.items() if name in (dtype, "fp32") and "median" in stat}
    highest = max(products.values(), default=slope * high)
    low, right = min(low, highest / slope / 4), max(high, 2 * highest / slope)
    axes.plot([low, highest / slope], [slope * low, highest], color=INK, linewidth=1.2)
    copied = f"copy {slope * 1e3:,.0f} GB/s"
    axes.annotate(copied, (low, slope * low), (12, 0), textcoords="offset points", va="top", ha="left", fontsize=8)
    for name, rate in products.items():
        line = "-" if rate == highest else ":"
        axes.plot([rate / slope, right], [rate, rate], color=INK, linewidth=1.2, linestyle=line)
        axes.text(right, rate, f"{name} product {rate:,.3g} TFLOP/s", va="bottom", ha="right", fontsize=8)
