"""What all pictures of the project share, and how any text is made fit to be shown."""

from __future__ import annotations

import re
from typing import Any

_UNDECODABLE = re.compile("[\udc80-\udcff]")  # bytes of a file name that are not UTF-8, as Python keeps them (PEP 383)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


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


def printable(text: str) -> str:
    r"""`text` as valid UTF-8 on one line: undecodable bytes and control characters become escapes such as `\xe9`."""
    text = _UNDECODABLE.sub(lambda byte: rf"\x{ord(byte[0]) - 0xDC00:02x}", text)
    text = _CONTROL.sub(lambda character: rf"\x{ord(character[0]):02x}", text)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def shorten(name: str, length: int = 18) -> str:
    """`name`, printable and cut to `length` characters with an ellipsis where it is longer."""
    name = printable(name)
    return name if len(name) <= length else name[: length - 1] + "…"
