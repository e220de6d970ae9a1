"""The report's drawings as SVG text for an HTML page, drawn in the page's own text colour."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from titn.report.style import shorten, style
from titn.report.text import printable

MOST_TICK_LABELS = 20
_INK = "#0a0b0c"  # stands for the page's text colour until the SVG is written
_RIGHT, _WRONG = (37, 99, 235), (220, 38, 38)
_COLOURS = ("#3b82f6", "#f97316", "#10b981", "#64748b", "#a855f7", "#ec4899", "#0891b2")
_STYLE = style(_INK) | {
    "axes.grid": True,
    "grid.alpha": 0.15,
    "grid.color": _INK,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "curves",
}
_PANELS: tuple[tuple[str, float, tuple[tuple[str, str], ...]], ...] = (
    ("Loss", 1.0, (("loss", "training, augmented"), ("test_loss", "test"), ("val_loss", "validation"))),
    (
        "Accuracy (%)",
        100.0,
        (
            ("train_top1", "training, augmented"),
            ("test_top1", "test top-1"),
            ("test_top5", "test top-5"),
            ("val_top1", "validation top-1"),
            ("teacher_agreement", "agreement with the teacher"),
            ("test_top1_average", "test top-1, averaged weights"),
            ("val_top1_average", "validation top-1, averaged weights"),
        ),
    ),
    ("Learning rate", 1.0, (("lr", ""),)),
    ("Images per second", 1.0, (("images_per_second", ""),)),
)


def curves(history: Sequence[Mapping[str, Any]]) -> str:
    """Loss, accuracy, learning rate and images per second over epochs, as one SVG.

    Args:
        history: one mapping per epoch with `epoch` and any of the plotted quantities; one that is absent or no
            finite number leaves a gap.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10.4, 6.2), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        for axes, (title, scale, lines) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
            for (key, label), colour in zip(lines, _COLOURS, strict=False):
                _line(axes, history, key, scale, label, colour)
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            if title == "Images per second":
                axes.set_ylim(bottom=0)
            if axes.get_legend_handles_labels()[1]:
                axes.legend()
        return _svg(figure, "Loss, accuracy, learning rate and images per second over epochs")


def confusion(matrix: NDArray[np.int64], class_names: Sequence[str]) -> str:
    """Confusion matrix `[K, K]` (rows true, columns predicted) as SVG: right answers blue, wrong ones red.

    A cell's opacity is the square root of its share of the row, so that one image in a hundred still shows. Up to 20
    classes are named and every count is written into its cell.
    """
    classes = len(matrix)
    strength = np.sqrt(matrix / np.maximum(matrix.sum(1, keepdims=True), 1))  # [K, K], 0..1
    picture = np.empty((classes, classes, 4), dtype=np.uint8)
    picture[..., :3] = np.where(np.eye(classes, dtype=bool)[..., None], _RIGHT, _WRONG)
    picture[..., 3] = np.rint(255 * strength)
    with matplotlib.rc_context(_STYLE | {"axes.grid": False, "svg.hashsalt": "confusion"}):
        side = 5.0 + 0.13 * min(classes, MOST_TICK_LABELS)
        figure = Figure(figsize=(side, side), layout="constrained", dpi=200)
        axes = figure.subplots()
        axes.imshow(picture, interpolation="nearest")
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.spines[:].set(visible=True, alpha=0.3)
        if classes <= MOST_TICK_LABELS:
            names = [printable(shorten(name)) for name in class_names]
            turn = 0 if max(map(len, names)) <= 2 else 45
            axes.set_xticks(
                range(classes), names, rotation=turn, ha="right" if turn else "center", rotation_mode="anchor"
            )
            axes.set_yticks(range(classes), names)
            for row, column in np.argwhere(matrix):
                colour = "white" if strength[row, column] > 0.6 else _INK
                text = str(matrix[row, column])
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9 if classes <= 12 else 7)
        return _svg(figure, f"Confusion matrix of {classes} classes")


def _line(axes: Axes, history: Sequence[Mapping[str, Any]], key: str, scale: float, label: str, colour: str) -> None:
    numbers = [epoch.get(key) for epoch in history]
    values = [scale * number if isinstance(number, int | float) else math.nan for number in numbers]
    if not any(map(math.isfinite, values)):
        return
    marker = "o" if len(values) <= 20 else ""
    epochs = [epoch["epoch"] for epoch in history]
    axes.plot(epochs, values, color=colour, label=label or None, marker=marker, markersize=3.5)


def _svg(figure: Figure, description: str) -> str:
    """The figure as an `<svg>` element that scales with the page, without the names of XML's namespaces."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # text stays text: the browser has the glyphs
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        if element.tag == "g":
            attributes.pop("id", None)
        element.attrib.clear()
        element.attrib.update({name: value.replace(_INK, "currentColor") for name, value in attributes.items()})
    size = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": size, "role": "img", "aria-label": description})
    return ElementTree.tostring(root, encoding="unicode")
