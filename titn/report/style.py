"""What all pictures of the project share."""

from __future__ import annotations

from typing import Any


def style(ink: str) -> dict[Any, Any]:
    """Settings for `matplotlib.rc_context`; `ink` is the colour of text, ticks and edges."""
    return {
        "axes.edgecolor": ink,
        "axes.labelcolor": ink,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "font.size": 9,
        "legend.frameon": False,
        "text.color": ink,
        "text.parse_math": False,
        "xtick.color": ink,
        "ytick.color": ink,
    }


def shorten(name: str, length: int = 18) -> str:
    """`name`, cut to `length` characters with an ellipsis where it is longer."""
    return name if len(name) <= length else name[: length - 1] + "…"
