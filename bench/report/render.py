"""Tables of results, described once and rendered for a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

Row = Mapping[str, Any]
Columns = Sequence[tuple[str, Callable[[Any], str]]]
"""Headings, each with what stands below it for a row; one that ends in ":" is of numbers."""
NONE = "–"


@dataclass(frozen=True)
class Table:
    """Cells by column; `folded`: the line under which Markdown hides it."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: str = ""

    @classmethod
    def of(cls, rows: Iterable[Any], columns: Columns, folded: str = "") -> Table:
        """The columns of the rows, without those that hold nothing."""
        body = [[value(row) for _, value in columns] for row in rows]
        kept = [i for i in range(len(columns)) if any(cells[i] != NONE for cells in body)]
        return cls(tuple(columns[i][0] for i in kept), tuple(tuple(cells[i] for i in kept) for cells in body), folded)


@dataclass(frozen=True)
class LeftOut:
    """What was left out, by reason, under a title such as "Not measured"."""

    title: str
    by_reason: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, title: str, items: Iterable[tuple[str, str | None]]) -> LeftOut:
        """Of pairs (what, why); what has no reason was not left out."""
        by_reason: dict[str, list[str]] = {}
        for what, why in items:
            if why and what not in by_reason.setdefault(why, []):
                by_reason[why].append(what)
        return cls(title, by_reason)


Block = Table | LeftOut | str
"""A part of a section; a string is a line of text."""


def show(blocks: Iterable[Block], console: Console) -> None:
    """Print the blocks."""
    for block in blocks:
        if isinstance(block, str):
            console.print(_plain(block), highlight=False, soft_wrap=True)
        elif isinstance(block, LeftOut):
            for reason, items in block.by_reason.items():
                text = f"{block.title.lower()}: {'; '.join(items)}: {reason}"
                console.print(text, markup=False, highlight=False, style="dim", soft_wrap=True)
        elif block.rows:
            table = RichTable(title=block.folded or None, title_justify="left")
            for heading in block.headings:
                table.add_column(heading.rstrip(":"), justify="right" if heading.endswith(":") else "left")
            for row in block.rows:
                table.add_row(*map(_plain, row))
            console.print(table, highlight=False)


def _plain(text: str) -> Text:
    return Text(text.replace("**", "").replace("`", ""))


def markdown(blocks: Iterable[Block]) -> list[str]:
    """The blocks as lines of Markdown."""
    parts: list[list[str]] = []
    for block in blocks:
        if isinstance(block, str):
            lines = [block]
        elif isinstance(block, Table):
            lines = _table(block)
            lines = _folded(block.folded, lines) if block.folded else lines
        elif block.by_reason:
            listed = [f"* {cell(why)}: {cell('; '.join(what))}" for why, what in block.by_reason.items()]
            count = sum(map(len, block.by_reason.values()))
            lines = _folded(f"{block.title}: {count}, with the reasons", listed)
        else:
            continue
        parts.append(lines)
    return [line for index, lines in enumerate(parts) for line in ([""] if index else []) + lines]


def _table(table: Table) -> list[str]:
    if not table.rows:
        return ["Nothing was measured here."]
    marks = ["---:" if heading.endswith(":") else "---" for heading in table.headings]
    lines = [[heading.rstrip(":") for heading in table.headings], *(map(cell, row) for row in table.rows)]
    written = ["| " + " | ".join(cells) + " |" for cells in lines]
    return [written[0], "|" + "|".join(marks) + "|", *written[1:]]


def _folded(summary: str, lines: Sequence[str]) -> list[str]:
    """Lines that a reader unfolds."""
    return [f"<details><summary>{summary}</summary>", "", *lines, "", "</details>"]


def cell(text: str) -> str:
    """Text that stays within its cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
