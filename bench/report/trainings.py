"""Sections about whole trainings as tables; see `bench.report.sections`."""

from __future__ import annotations

from bench.report.numbers import number, spread
from bench.report.render import Block, Columns, Row, Table


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
