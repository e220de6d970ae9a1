"""The configuration table of the kernels as `bench.tune` changes it: one row for a moment, or its source for good."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from titn.errors import UserError
from titn.kernels.common.configurations import CONFIGURATIONS
from titn.provenance import ROOT

TABLE = ROOT / "kernels" / "common" / "configurations.py"
BEGIN, END = "    # Tuned rows, written by bench.tune: begin\n", "    # Tuned rows: end\n"

Settings = Mapping[str, int]
Key = tuple[str, str, int]


@contextmanager
def installed_row(key: Key, settings: Settings) -> Iterator[None]:
    """Within, the table holds `settings` under `key`."""
    before = CONFIGURATIONS.get(key)
    CONFIGURATIONS[key] = settings
    try:
        yield
    finally:
        if before is None:
            del CONFIGURATIONS[key]
        else:
            CONFIGURATIONS[key] = before


def source(rows: Mapping[Key, Settings]) -> str:
    """Table entries as Python, in the formatter's layout."""
    lines = []
    for (kernel, widths, architecture), settings in sorted(rows.items()):
        items = [f'"{name}": {value}' for name, value in settings.items()]
        head = f'    ("{kernel}", "{widths}", {architecture}): {{'
        line = f"{head}{', '.join(items)}}},\n"
        lines.append(line if len(line) <= 121 else head + "\n" + "".join(f"        {i},\n" for i in items) + "    },\n")
    return "".join(lines)


def with_rows(text: str, rows: Mapping[Key, Settings]) -> str:
    """The table's source with `rows` between its markers, beside the rows of other keys that are there already.

    Raises:
        UserError: it has no markers.
    """
    head, begin, rest = text.partition(BEGIN)
    between, end, tail = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{TABLE} has no markers {BEGIN.strip()!r} and {END.strip()!r}; see bench/tune_rows.py")
    return head + begin + source({**ast.literal_eval(f"{{{between}}}"), **rows}) + end + tail
