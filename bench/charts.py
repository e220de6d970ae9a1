"""The pictures of bench/RESULTS.md and of a harvest, as SVG.

Each drawing takes a mapping with "device", in words, and the section or sections it draws, in the format of the module
that measured them, and returns a figure, or None where there is nothing to draw. Bars and points are medians, whiskers
the extremes of the repeats. The bytes of an SVG differ between versions of matplotlib; its metadata therefore hold a
`fingerprint` of data and drawing code, by which `python -m bench.report --check` sees whether it is up to date.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from bench import chart_parts, charts_ceilings
from bench.chart_parts import GREY, INK, OURS, STYLE, THEIRS, Data, new_figure, reach, thousands, two_families, whiskers
from bench.charts_ceilings import roofline, scaling
from bench.sections import choices, is_ours
from titn.report import style
from titn.report.style import shorten

_DRAWN_BY = tuple(Path(str(module.__file__)) for module in (chart_parts, charts_ceilings, style))


def fingerprint(name: str, data: Data) -> str:
    """16 hexadecimal digits that change with the data of a picture and with the code that draws it."""
    drawn = json.dumps([name, data], sort_keys=True, allow_nan=False)
    code = b"".join(path.read_bytes() for path in (Path(__file__), *_DRAWN_BY))
    return hashlib.sha256(drawn.encode() + code).hexdigest()[:16]


def svg(name: str, data: Data) -> str | None:
    """The picture `name` (a key of DRAWINGS) of `data`, its fingerprint in the metadata; None: nothing to draw."""
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        figure = DRAWINGS[name](data)
        if figure is None:
            return None
        _settle(figure)
        buffer = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Description": f"data {fingerprint(name, data)}"}
        figure.savefig(buffer, format="svg", metadata=metadata)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _settle(figure: Figure) -> None:
    """Fix the layout, rounded: the last bits that its solver finds differ from run to run."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(number, 5) for number in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height))


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
    colours = two_families(names)
    figure, axes = new_figure(8.0, 3.6, f"Training, {data['device']}")
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        mine = {row["batch_size"]: row["images_per_second"] for row in rows if row["contender"] == name}
        places = [batches.index(batch) + (index - (len(names) - 1) / 2) * width for batch in mine]
        axes.bar(places, [stat["median"] for stat in mine.values()], width * 0.92, color=colours[name], label=name)
        whiskers(axes, places, list(mine.values()))
    axes.set_xticks(range(len(batches)), [f"{batch:,}" for batch in batches])
    axes.set(xlabel="images a step", ylabel="training images per second")
    axes.yaxis.set_major_formatter(thousands())
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
    title = f"One switch after another, {data['waterfall']['batch_size']:,} images a step, {data['device']}"
    figure, axes = new_figure(8.0, 0.9 + 0.42 * len(rows), title)
    stats = [row["images_per_second"] for row in rows]
    for place, (row, stat) in enumerate(zip(rows, stats, strict=True)):
        colour = THEIRS[1] if not is_ours(row["name"]) else GREY if place == 0 else OURS[1]
        axes.barh(place, stat["median"], 0.7, color=colour)
        gain = f"  {stat['median']:,.0f}  ({stat['median'] / stats[0]['median']:.2f}x)"
        axes.text(max(stat["median"], stat["high"]), place, gain, va="center")
    axes.errorbar(
        [stat["median"] for stat in stats], range(len(rows)), xerr=reach(stats), fmt="none", color=INK, elinewidth=1
    )
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(stat["high"] for stat in stats))
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


DRAWINGS: dict[str, Callable[[Data], Figure | None]] = {
    "throughput": throughput,
    "waterfall": waterfall,
    "scaling": scaling,
    "roofline": roofline,
    "step_profile": step_profile,
    "accuracy": accuracy,
}
