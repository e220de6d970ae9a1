"""What a finished run achieved."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Result:
    """As in result.json; accuracies are of the last epoch on the whole test set.

    `average_top1` is that of the averaged weights, where a run has them; all others are of the weights themselves.
    `images_per_second` counts training steps after the first of each epoch; `macs` are those of one forward pass of one
    image; `wall_seconds` include evaluation and checkpoints.
    """

    run: str
    top1: float
    top5: float
    precision: float
    recall: float
    f1: float
    best_top1: float
    best_epoch: int
    average_top1: float | None
    teacher: str | None
    teacher_top1: float | None
    dataset: str
    classes: int
    train_images: int
    test_images: int
    model: str
    parameters: int
    macs: int
    epochs: int
    batch_size: int
    seed: int
    images_per_second: float
    wall_seconds: float
    amp: str
    compile: bool
    kernels: str
    device: str
    torch: str
    commit: str | None


def show_result(result: Result, console: Console, *next_commands: tuple[str, str]) -> None:
    """The table a person reads at the end, where the run lies and what to type next."""
    rows = [("top-1 (last epoch)", f"{result.top1:.2%}")]
    if result.classes > 5:
        rows.append(("top-5", f"{result.top5:.2%}"))
    rows.append(("P / R / F1 (macro)", f"{result.precision:.4f} / {result.recall:.4f} / {result.f1:.4f}"))
    rows.append(("best top-1", f"{result.best_top1:.2%} in epoch {result.best_epoch}"))
    if result.average_top1 is not None:
        rows.append(("averaged weights", f"{result.average_top1:.2%} top-1 (last epoch)"))
    if result.teacher is not None:
        accuracy = "" if result.teacher_top1 is None else f" ({result.teacher_top1:.2%})"
        rows.append(("teacher", f"{result.teacher}{accuracy}"))
    rows.append((result.model, f"{result.parameters:,} parameters, {result.macs / 1e6:.1f} M multiply-accumulates"))
    rows.append(("speed", f"{result.images_per_second:,.0f} images/s, {_duration(result.wall_seconds)} in all"))
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name), Text(value, "bold" if name.startswith("top-1") else ""))
    console.print(table)
    for purpose, line in (("Report", f"{result.run}/report.html"), *next_commands):
        console.print(Text(f"{purpose}: {line}"), soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
