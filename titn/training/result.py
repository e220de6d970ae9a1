"""What a finished run achieved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from titn.metrics import classification_metrics
from titn.provenance import source_commit
from titn.teachers.find import AnyTeacher
from titn.training.switches import Switches, describe
from titn.training.trainer import Trainer


@dataclass(frozen=True)
class Result:
    """As in result.json; accuracies are of the last epoch on the whole test set.

    `best_top1` is the highest at the end of an epoch on the validation split where there is one, and `best_test_top1`
    that of the same weights on the test set; without one it is chosen on the test set itself.

    `average_top1` is that of the averaged weights, where a run has them; all others are of the weights themselves.
    `images_per_second` counts training steps after the first of each epoch, with batches made and a live teacher asked;
    what a cached teacher takes ahead of an epoch's steps, above all to fill a missing one, is not in it but in
    `teacher_seconds` (None without a teacher), and `images_per_second_filled` is the rate with both. `macs` are those
    of one forward pass of one image; `wall_seconds` include evaluation and checkpoints.

    `teacher_training_seconds` and `teacher_training_passes`, in images, are what the teacher's own training took, of
    several teachers all together, and `seconds_with_teacher` is the sum of both trainings; None where it is unknown.
    """

    run: str
    top1: float
    top5: float
    precision: float
    recall: float
    f1: float
    best_top1: float
    best_epoch: int
    best_test_top1: float | None
    average_top1: float | None
    teacher: str | None
    teacher_top1: float | None
    teacher_training_seconds: float | None
    teacher_training_passes: int | None
    dataset: str
    classes: int
    train_images: int
    val_images: int
    test_images: int
    model: str
    parameters: int
    macs: int
    epochs: int
    batch_size: int
    seed: int
    images_per_second: float
    images_per_second_filled: float
    teacher_seconds: float | None
    wall_seconds: float
    seconds_with_teacher: float | None
    amp: str
    compile: bool
    kernels: str
    device: str
    torch: str
    commit: str | None


def result_of(trainer: Trainer, logits: Tensor, switches: Switches, macs: int, teacher: AnyTeacher | None) -> Result:
    """The result of a training that has come to its end with these test logits, float32 [N, K]."""
    run, dataset, schedule, progress = trainer.run, trainer.dataset, trainer.schedule, trainer.progress
    lines = run.metrics() or [{}]
    rate = progress.timed_images / max(progress.timed_seconds, 1e-9)
    ahead = sum(line.get("teacher_seconds") or 0.0 for line in lines)
    images = trainer.steps_done * schedule.batch_size
    cost = teacher.cost if teacher else None
    scores = classification_metrics(logits, torch.from_numpy(dataset.test_labels))
    return Result(
        run=str(run.folder),
        **scores,
        best_top1=progress.best_top1 if progress.best_epoch else scores["top1"],
        best_epoch=progress.best_epoch,
        best_test_top1=trainer.score_best(),
        average_top1=lines[-1].get("test_top1_average"),
        teacher=teacher.name if teacher else None,
        teacher_top1=teacher.top1 if teacher else None,
        teacher_training_seconds=cost.seconds if cost else None,
        teacher_training_passes=cost.image_passes if cost else None,
        dataset=dataset.name,
        classes=dataset.num_classes,
        train_images=len(dataset.train_labels),
        val_images=len(dataset.val_labels) if dataset.validates and dataset.val_labels is not None else 0,
        test_images=len(dataset.test_labels),
        model=trainer.spec.name,
        parameters=sum(parameter.numel() for parameter in trainer.step.module.parameters()),
        macs=macs,
        epochs=progress.epoch,
        batch_size=schedule.batch_size,
        seed=trainer.plans.seed,
        images_per_second=rate,
        images_per_second_filled=images / max(images / max(rate, 1e-9) + ahead, 1e-9),
        teacher_seconds=ahead if teacher else None,
        wall_seconds=progress.wall_seconds,
        seconds_with_teacher=progress.wall_seconds + cost.seconds if cost else None,
        amp=str(switches.amp).removeprefix("torch.") if switches.amp else "off",
        compile=switches.compile,
        kernels=switches.backend,
        device=describe(switches.device),
        torch=torch.__version__,
        commit=source_commit(),
    )


def show_result(result: Result, console: Console, *next_commands: tuple[str, str]) -> None:
    """The table a person reads at the end, where the run lies and what to type next."""
    rows = [("top-1 (last epoch)", f"{result.top1:.2%}")]
    if result.classes > 5:
        rows.append(("top-5", f"{result.top5:.2%}"))
    rows.append(("P / R / F1 (macro)", f"{result.precision:.4f} / {result.recall:.4f} / {result.f1:.4f}"))
    best = f"{result.best_top1:.2%} in epoch {result.best_epoch}"
    if result.best_test_top1 is not None:
        best = f"{result.best_test_top1:.2%}, epoch {result.best_epoch}, best on validation ({result.best_top1:.2%})"
    rows.append(("best top-1", best))
    if result.average_top1 is not None:
        rows.append(("averaged weights", f"{result.average_top1:.2%} top-1 (last epoch)"))
    if result.teacher is not None:
        accuracy = "" if result.teacher_top1 is None else f" ({result.teacher_top1:.2%})"
        took = ""
        if result.teacher_training_seconds is not None:
            passes = f"{result.teacher_training_passes:,} image passes"
            took = f", itself trained in {_duration(result.teacher_training_seconds)}, {passes}"
        rows.append(("teacher", f"{result.teacher}{accuracy}{took}"))
    rows.append((result.model, f"{result.parameters:,} parameters, {result.macs / 1e6:.1f} M multiply-accumulates"))
    speed = f"{result.images_per_second:,.0f} images/s"
    if result.images_per_second_filled < 0.99 * result.images_per_second:
        speed += f" ({result.images_per_second_filled:,.0f} with the teacher's answers stored meanwhile)"
    speed += f", {_duration(result.wall_seconds)} in all"
    if result.seconds_with_teacher is not None:
        speed += f", {_duration(result.seconds_with_teacher)} with the teacher's training"
    rows.append(("speed", speed))
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name), Text(value, "bold" if name.startswith("top-1") else ""))
    console.print(table)
    for purpose, line in (("Report", f"{result.run}/report.html"), *next_commands):
        console.print(Text(f"{purpose}: {line}"), soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
