"""Numbers in words, as the tables of results have them."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.render import NONE, Row


def number(value: float) -> str:
    """Three significant digits, or all before the decimal point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:#.3g}"


def spread(stat: Row, low: str = "low", high: str = "high") -> str:
    """ "512 (498 to 530)": the median and the extremes, or other quantiles."""
    return f"{number(stat['median'])} ({number(stat[low])} to {number(stat[high])})"


def percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}%"


def gibibytes(size: int | None) -> str:
    return NONE if size is None else f"{size / 2**30:.2f}"


def seconds(value: float | None) -> str:
    return NONE if value is None else f"{value:,.1f}"


def times(ratio: Row | None) -> str:
    """How many times as fast, with its interval; where that spans 1 no difference is claimed."""
    if ratio is None:
        return NONE
    interval = f"({ratio['low']:.2f} to {ratio['high']:.2f})"
    return (
        f"no clear difference {interval}" if ratio["low"] <= 1 <= ratio["high"] else f"{ratio['median']:.2f} {interval}"
    )


def quotient(over: Row, under: Row, low: str = "low", high: str = "high") -> dict[str, float]:
    """Of two statistics that were not taken in pairs: of their medians, between those of their opposite extremes."""
    return {
        "median": over["median"] / under["median"], "low": over[low] / under[high], "high": over[high] / under[low],
    }  # fmt: skip


def interval95(ends: Sequence[float] | None) -> str:
    """In percent, within what a share can be."""
    return "one seed: none" if ends is None else f"{100 * max(ends[0], 0):.2f}% to {100 * min(ends[1], 1):.2f}%"
