"""Sections about whole trainings as tables; see `bench.report.sections`."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.numbers import interval95, number, spread
from bench.report.render import NONE, Block, Columns, LeftOut, Row, Table


def time_to_accuracy(data: Row) -> list[Block]:
    pairs = [(path, run) for path in data["paths"] for run in path["runs"]]

    def reached(pair: tuple[Row, Row], key: str) -> str:
        point = pair[1]["to_target"]
        return "not reached" if point is None else f"{point[key]:,.0f}" if key == "images" else number(point[key])

    target = f"{100 * data['target']:g}%"
    columns: Columns = [
        ("training", lambda pair: pair[0]["name"]),
        ("seed:", lambda pair: str(pair[1]["seed"])),
        (f"seconds to {target}:", lambda pair: reached(pair, "seconds")),
        (f"images to {target}:", lambda pair: reached(pair, "images")),
        ("seconds in all:", lambda pair: number(pair[1]["points"][-1]["seconds"])),
        ("first step, s:", lambda pair: number(pair[1]["first_step_seconds"])),
        ("held-out top-1, last epoch:", lambda pair: f"{100 * pair[1]['points'][-1]['top1']:.2f}%"),
        ("test top-1, last epoch:", lambda pair: f"{100 * pair[1]['test_top1']:.2f}%"),
    ]
    settings, teacher = data["settings"], data["teacher"]
    words = [
        f"{data['dataset']}: {data['train_images']:,} training images, {data['held_out_images']:,} held out, "
        f"{data['epochs']} epochs, {settings['model']}, {settings['optimizer']}, {data['batch_size']} images per step.",
        *(
            f"{path['name']}: {', '.join(f'{name} {on}' for name, on in path['switches'].items())}."
            for path in data["paths"]
        ),
        *(f"{words} {text}." for key, words in RATIOS.items() if (text := as_long(data["ratio"].get(key)))),
    ]
    if teacher is not None:
        took = "" if teacher["seconds"] is None else f"; it trained for {number(teacher['seconds'])} seconds"
        top1 = "" if teacher["top1"] is None else f", {100 * teacher['top1']:.2f}%"
        words.append(f"Teacher: {teacher['name']}{top1}{took}.")
    blocks: list[Block] = [Table.of(pairs, columns)]
    return [*words[:1], *blocks, *words[1:]]


RATIOS = {
    "to_target": "To the target the reference takes",
    "in_all": "For the whole training the reference takes",
}


def as_long(ratio: Row | None) -> str:
    """How many times as long the reference takes; several seeds with their extremes."""
    if ratio is None:
        return ""
    if ratio["repetitions"] == 1:
        return f"{number(ratio['median'])} times as long, one seed"
    return f"{spread(ratio)} times as long, {ratio['repetitions']} seeds"


def paper(sections: Sequence[Row]) -> list[Block]:
    """A table of the paper each."""
    return [block for section in sections for block in _paper_table(section)]


def _paper_table(section: Row) -> list[Block]:
    def share(value: float | None, digits: int = 2) -> str:
        return NONE if value is None else f"{100 * value:.{digits}f}"

    def top1(row: Row) -> str:
        if row["interval95"] is None:
            return share(row["mean"]["top1"])
        return f"{share(row['mean']['top1'])} ({interval95(row['interval95'])})"

    def macro(scores: Row) -> str:
        return " / ".join(share(scores[name], 0) for name in ("precision", "recall", "f1"))

    def printed(value: str) -> str:
        return NONE if not value.strip(f"/ {NONE}") else f"*{value}*"

    columns: Columns = [
        ("data set", lambda row: row["dataset"]),
        ("network", lambda row: row["label"]),
        ("top-1, %:", top1),
        ("paper:", lambda row: printed(share(row["paper"]["top1"]))),
        ("top-5, %:", lambda row: share(row["mean"]["top5"])),
        ("paper:", lambda row: printed(share(row["paper"]["top5"]))),
        ("P / R / F1, %:", lambda row: macro(row["mean"]) if row["runs"] else NONE),
        ("paper:", lambda row: printed(macro(row["paper"]))),
        ("parameters:", lambda row: f"{row['parameters']:,}"),
        ("paper:", lambda row: printed(_millions(row["paper"]["parameters"]))),
        ("MACs:", lambda row: _millions(row["macs"] / 1e6)),
        ("GFLOPs:", lambda row: f"{row['gflops']:.2f}"),
        ("paper:", lambda row: printed(NONE if row["paper"]["gflops"] is None else f"{row['paper']['gflops']:.2f}")),
        ("images:", lambda row: f"{row['images']:,}"),
        ("epochs:", lambda row: str(row["epochs"])),
        ("seeds:", lambda row: f"{len(row['runs'])} of {section['planned_seeds']}"),
    ]
    runs = [(row, run) for row in section["rows"] for run in row["runs"]]
    run_columns: Columns = [
        ("data set", lambda pair: pair[0]["dataset"]),
        ("network", lambda pair: pair[0]["label"]),
        ("seed:", lambda pair: str(pair[1]["seed"])),
        ("top-1, %:", lambda pair: share(pair[1]["top1"])),
        ("seconds:", lambda pair: number(pair[1]["seconds"])),
        ("run", lambda pair: f"`{pair[1]['run']}`"),
        ("commit", lambda pair: f"`{pair[1]['commit']}`"),
    ]
    left = ((f"{row['dataset']}, {row['label']}", row["reason"]) for row in section["rows"])
    return [
        f"**{section['table'].capitalize()}**, {section['split']} split.",
        Table.of(section["rows"], columns),
        Table.of(runs, run_columns, f"All {len(runs)} runs"),
        LeftOut.of("Not complete", left),
    ]


def _millions(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f} M"
