"""`python -m titn.runs`: all runs of a folder side by side, with the settings in which they differ."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from titn.errors import OneLineParser, UserError, command
from titn.settings import FolderSettings
from titn.training import checkpoint
from titn.training.run import Run

SCORES = ("top1", "top5", "best_top1", "images_per_second", "wall_seconds")
_NO_CHOICE = {*FolderSettings.__annotations__, "data_dir", "device", "teacher_settings"} - {"init"} | {"seeds"}


@dataclass(frozen=True)
class Row:
    """One run: how far it is, its scores where it is finished (else those of its last epoch), and its settings."""

    name: str
    model: str
    dataset: str
    epochs: str
    scores: dict[str, float | None]
    settings: dict[str, Any]


def rows(folder: str, dataset: str | None = None) -> tuple[list[Row], list[str]]:
    """Every run in `folder`, the oldest first, and for each that cannot be read a line that says why.

    Raises:
        UserError: there is no such folder.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"--runs-dir {folder} is no folder")
    found, unread = [], []
    for path in sorted(root.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime):
        try:
            row = _row(Run(path.parent))
        except UserError as error:
            unread.append(f"{path.parent.name}: {error}")
        else:
            if dataset in (None, row.dataset):
                found.append(row)
    return found, unread


def _row(run: Run) -> Row:
    config, metrics, result = run.config(), run.metrics(), run.result() or {}
    last = metrics[-1] if metrics else {}
    scores = {name: result.get(name) for name in SCORES}
    if not result:
        scores |= {"top1": last.get("test_top1"), "top5": last.get("test_top5")}
    newest = checkpoint.newest(run.checkpoints)
    done = len(metrics) if newest is not None else 0
    settings = {name: value for name, value in asdict(config).items() if name not in _NO_CHOICE}
    settings["role"] = config.role
    epochs, dataset = f"{done}/{config.epochs}", Path(config.dataset).name
    return Row(run.folder.name, config.network, dataset, epochs, scores, settings)


def differing(found: list[Row]) -> list[str]:
    """Names of the settings that not all of the runs share."""
    names = dict.fromkeys(name for row in found for name in row.settings)
    shown = {"dataset", "model", "epochs"}
    return [
        name
        for name in names
        if name not in shown and len({json.dumps(row.settings.get(name), default=str) for row in found}) > 1
    ]


def _flat(row: Row, settings: list[str]) -> dict[str, Any]:
    fixed = {"run": row.name, "model": row.model, "dataset": row.dataset, "epochs": row.epochs}
    return fixed | row.scores | {name: row.settings.get(name) for name in settings}


def _table(found: list[Row]) -> Table:
    """As narrow as it can be: what differs between the settings is one column."""
    table = Table()
    for heading, right in (("run", 0), ("model", 0), ("data", 0), ("epochs", 1), ("top-1", 1), ("differs in", 0)):
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    settings = differing(found)
    for row in found:
        top1 = row.scores["top1"]
        words = (f"{name} {row.settings[name]}" for name in settings if row.settings.get(name) is not None)
        cells = (row.name, row.model, row.dataset, row.epochs, "" if top1 is None else f"{top1:.2%}", ", ".join(words))
        table.add_row(*map(Text, cells))
    return table


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m titn.runs", description=__doc__)
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--dataset", help="only runs of this data set")
    parser.add_argument("--sort", choices=SCORES, help="the highest first (default: the oldest first)")
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--json", dest="style", action="store_const", const="json", help="print a JSON list")
    style.add_argument("--csv", dest="style", action="store_const", const="csv", help="print CSV")
    given = parser.parse_args(argv)
    found, unread = rows(given.runs_dir, given.dataset)
    if given.sort:
        found.sort(key=lambda row: row.scores[given.sort] or 0.0, reverse=True)
    flat = [_flat(row, differing(found)) for row in found]
    if given.style == "json":
        print(json.dumps(flat, indent=1, default=str))
    elif given.style == "csv":
        writer = csv.DictWriter(sys.stdout, flat[0] if flat else ["run"])
        writer.writeheader()
        writer.writerows(flat)
    elif flat:
        Console().print(_table(found))
    else:
        Console().print(f"no runs in {given.runs_dir}")
    for text in unread:
        Console(stderr=True).print(Text(text), soft_wrap=True)


if __name__ == "__main__":
    main()
