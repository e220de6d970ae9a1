"""The pictures of bench/RESULTS.md as SVG, each with a fingerprint of what it shows.

The bytes of an SVG differ between versions of matplotlib; its metadata therefore hold a `fingerprint` of data and
drawing code, by which `python -m bench.report --check` sees whether it is up to date.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from bench.report import charts, curves
from bench.report.charts import STYLE, Data

DRAWINGS: dict[str, Callable[[Data], Figure | None]] = {
    drawing.__name__: drawing
    for drawing in (
        charts.throughput,
        charts.waterfall,
        charts.scaling,
        charts.roofline,
        charts.step_profile,
        charts.accuracy,
        curves.time_to_accuracy,
        curves.paper,
    )
}
"""By name."""


def fingerprint(name: str, data: Data) -> str:
    """16 hexadecimal digits that change with the data of a picture and with the files that draw it."""
    drawn = json.dumps([name, data], sort_keys=True, allow_nan=False)
    files = sorted({charts.__file__, inspect.getfile(DRAWINGS[name])})
    return hashlib.sha256(drawn.encode() + b"".join(Path(file).read_bytes() for file in files)).hexdigest()[:16]


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
