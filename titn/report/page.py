"""The report's page: its style, and small builders of HTML in which every text is escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #667085; --paper: #f6f7f9; --card: #ffffff; --line: #e3e6eb;
        --right: #2563eb; --wrong: #dc2626; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #98a2b3; --paper: #0f1319; --card: #171c24; --line: #2a313c;
          --right: #6b9bff; --wrong: #ff7b72; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
       font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .25rem; }
p { margin: 0 0 1rem; color: var(--soft); max-width: 75ch; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.25rem 1.5rem;
          margin-top: 1.25rem; overflow-x: auto; }
svg { display: block; width: 100%; height: auto; color: var(--ink); }
svg text { font-family: inherit !important; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
         overflow-wrap: anywhere; }
th { font-weight: 600; color: var(--soft); white-space: nowrap; }
tr > th:only-of-type { width: 16rem; }
details > summary { cursor: pointer; color: var(--soft); margin: 1rem 0 .5rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: .75rem; margin-top: 1.25rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.2; }
.tile span { color: var(--soft); font-size: .85rem; }
.pair { display: grid; grid-template-columns: 2fr 1fr; gap: 1rem 2.5rem; align-items: start; }
@media (max-width: 800px) { .pair { grid-template-columns: 1fr; } }
td:has(.bar) { width: 50%; }
td:has(.bar) ~ td { white-space: nowrap; }
.bar { height: .6rem; min-width: 90px; margin-top: .42rem; border-radius: 4px; background: var(--line);
       overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--right); }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: 1rem .75rem; }
figure { margin: 0; }
figure img { width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated; border-radius: 6px;
             background: #000; display: block; }
figcaption { font-size: .8rem; line-height: 1.35; margin-top: .3rem; overflow-wrap: anywhere; }
.right { color: var(--right); } .wrong { color: var(--wrong); } .soft { color: var(--soft); }
"""


class Html(str):
    """A text that is HTML already; every other text is escaped where it enters the page."""


def tag(name: str, *children: str, **attributes: str) -> Html:
    """An element; `class_` is spelt so because `class` is a keyword."""
    pairs = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{pairs}>{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """The parts one after another, each escaped unless it is HTML."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """A table; with an empty head, the first cell of each row is its heading."""
    if head:
        top = tag("thead", tag("tr", *(tag("th", cell) for cell in head)))
        body = (tag("tr", *(tag("td", cell) for cell in row)) for row in rows)
        return tag("table", top, tag("tbody", *body))
    return tag("table", *(tag("tr", tag("th", row[0]), *(tag("td", cell) for cell in row[1:])) for row in rows))


def section(title: str, explanation: str, *children: str) -> Html:
    """A card with a heading, a sentence on how to read it, and its content."""
    return tag("section", tag("h2", title), tag("p", explanation), *children)


def bar(share: float) -> Html:
    """A bar filled to `share`, 0..1."""
    return tag("div", tag("i", style=f"width:{100 * share:.1f}%"), class_="bar")


def picture(pixels: NDArray[np.uint8], description: str) -> Html:
    """uint8 `[H, W, C]`, C = 1 or 3, as an embedded PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, format="PNG")
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Html(f'<img src="{source}" alt="{html.escape(description)}">')


def page(title: str, *children: str) -> Html:
    """The whole document."""
    head = Html(
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    )
    return Html(
        "<!doctype html>\n" + tag("html", tag("head", head), tag("body", tag("main", *children)), lang="en") + "\n"
    )
