"""Pictures of how far training steps and kernels stay below what the device can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from bench.chart_parts import GREY, INK, OURS, THEIRS, Data, head, new_figure, reach, thousands
from bench.sections import KINDS, fastest, kernel_us, timed

AXES = {
    "batch": "images a step",
    "depth": "blocks",
    "image_size": "image height and width",
    "patch_size": "patch height and width",
}
_KIND_COLOURS = dict(zip(KINDS, (OURS[0], OURS[2], OURS[4], THEIRS[1], THEIRS[5], GREY), strict=True))


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
            colours = [_KIND_COLOURS[kind] for kind in kinds]
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
    if "copy_gb_per_s" in ceilings:
        _roofs(axes, ceilings, dtype, min(intensities) / 2, max(intensities) * 4)
    for operation in operations:
        axes.plot([], [], "o", color=colours[operation], label=operation)
    axes.plot([], [], "o", color=GREY, label="forward")
    axes.plot([], [], "s", color=GREY, label="forward and backward")
    axes.plot([], [], "o", color=GREY, markerfacecolor="white", label="fastest rival")
    axes.set(xscale="log", yscale="log", xlabel="floating-point operations a byte", ylabel="TFLOP/s")
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
        style = "-" if rate == highest else ":"
        axes.plot([rate / slope, right], [rate, rate], color=INK, linewidth=1.2, linestyle=style)
        axes.text(right, rate, f"{name} product {rate:,.3g} TFLOP/s", va="bottom", ha="right", fontsize=8)
