"""Text of any kind, made fit to be shown."""

from __future__ import annotations

import re

_UNDECODABLE = re.compile("[\udc80-\udcff]")  # bytes of a file name that are not UTF-8, as Python keeps them (PEP 383)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    r"""`text` as valid UTF-8 on one line: undecodable bytes and control characters become escapes such as `\xe9`."""
    text = _UNDECODABLE.sub(lambda byte: rf"\x{ord(byte[0]) - 0xDC00:02x}", text)
    text = _CONTROL.sub(lambda character: rf"\x{ord(character[0]):02x}", text)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
