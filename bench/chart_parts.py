"""What the pictures of bench/RESULTS.md share: style, colours, whiskers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.sections import is_ours
from titn.report.style import style

Data = Mapping[str, Any]
"""A picture's facts: "device", in words, and the sections it draws."""

INK, GREY = "#1f2937", "#9ca3af"
OURS = ("#1d4ed8", "#3b82f6", "#93c5fd", "#0f766e", "#14b8a6", "#5eead4")
THEIRS = ("#c2410c", "#f97316", "#fdba74", "#a16207", "#eab308", "#fde047")
STYLE = style(INK) | {"axes.axisbelow": True, "axes.edgecolor": GREY, "grid.alpha": 0.25, "svg.hashsalt": "titn"}


def new_figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    head(figure, title)
    return figure, figure.subplots()


def head(figure: Figure, title: str) -> None:
    """The title, beginning at the left edge, so that long labels of an axis do not push it out."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")


def two_families(names: Sequence[str]) -> dict[str, str]:
    """A colour a name: blues for this project's, oranges for the others'."""
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
