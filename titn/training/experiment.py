"""What a student's and a teacher's run have in common: opening the run, training, and its result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from titn.config import RunConfig, resolve, settle_batch
from titn.data.dataset import Dataset, load_dataset
from titn.errors import UserError
from titn.metrics import classification_metrics
from titn.network import NetworkSpec
from titn.profile import count_macs
from titn.provenance import source_commit
from titn.report import write_report
from titn.training.interrupt import Interrupted
from titn.training.run import Run
from titn.training.switches import Parts, describe
from titn.training.targets import TeacherTargets
from titn.training.trainer import Trainer

Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True)
class Result:
    """What a finished run achieved, as in its result.json; accuracies are of the last epoch on the whole test set.

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
    teacher: str | None
    teacher_top1: float | None
    dataset: str
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


def open_run(config: Config) -> tuple[Config, Run | None]:
    """The resolved configuration, and the locked run folder if an earlier run is to be continued.

    Raises:
        UserError: a value is out of range, or the run to continue is missing, in use or of the other kind.
    """
    if config.resume is None:
        return resolve(config), None
    run = Run.find(config.resume, config.runs_dir)
    saved = run.config()
    if not isinstance(saved, type(config)):
        raise UserError(f"{run.folder} is a run of {saved.program}: {saved.program} --resume {run.folder} continues it")
    run.lock()
    device = saved.device if config.device == "auto" else config.device
    return replace(saved, device=device, runs_dir=str(run.folder.parent)), run


def load_data(config: Config, console: Console, dataset: Dataset | None = None) -> tuple[Dataset, Config]:
    """The configured data set, unless it is given, and the configuration with batch size and rate settled for it."""
    if dataset is None:
        dataset = load_dataset(
            config.dataset, config.data_dir, image_size=config.image_size, limit_train=config.limit_train
        )
        console.print(
            f"{dataset.name}: {len(dataset.train_labels):,} training and {len(dataset.test_labels):,} test images, "
            f"{dataset.num_classes} classes, {dataset.channels}x{dataset.image_size}x{dataset.image_size}",
            highlight=False,
        )
    config = settle_batch(config, len(dataset.train_labels))
    console.print(
        f"{config.epochs} epochs, batch size {config.batch_size}, learning rate {config.lr:.3g}", highlight=False
    )
    return dataset, config


def run_to_result(
    config: RunConfig,
    parts: Parts,
    dataset: Dataset,
    run: Run,
    module: nn.Module,
    console: Console,
    *,
    targets: TeacherTargets | None = None,
    teacher: str | None = None,
    teacher_top1: float | None = None,
) -> Result:
    """Train (or go on training) in `run`, then write result.json and report.html.

    Raises:
        Interrupted: the run was asked to stop and has saved its state.
        UserError: the loss is no longer finite, or the newest checkpoint is damaged.
    """
    assert config.batch_size is not None and config.lr is not None
    spec = NetworkSpec.of(config, dataset)
    macs = count_macs(module, dataset.channels, dataset.image_size)
    trainer = Trainer(config, parts, dataset, run, spec, module, targets, console)
    trainer.resume()
    try:
        logits = trainer.fit()
    except Interrupted as stopped:
        message = f"stopped {stopped}, everything is saved; continue with: {config.program} --resume {run.folder}"
        raise Interrupted(stopped.signal_number, message) from None
    scores = classification_metrics(logits, torch.from_numpy(dataset.test_labels))
    progress = trainer.progress
    result = Result(
        run=str(run.folder),
        **scores,
        best_top1=progress["best_top1"],
        best_epoch=progress["best_epoch"],
        teacher=teacher,
        teacher_top1=teacher_top1,
        dataset=dataset.name,
        train_images=len(dataset.train_labels),
        test_images=len(dataset.test_labels),
        model=spec.name,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        macs=macs,
        epochs=trainer.epochs,
        batch_size=config.batch_size,
        seed=config.seed,
        images_per_second=progress["timed_images"] / max(progress["timed_seconds"], 1e-9),
        wall_seconds=progress["wall_seconds"],
        amp=str(parts.amp).removeprefix("torch.") if parts.amp else "off",
        compile=parts.compile,
        kernels=parts.kernels,
        device=describe(parts.device),
        torch=torch.__version__,
        commit=source_commit(),
    )
    run.finish({name: value for name, value in asdict(result).items() if name != "run"})
    write_report(run.folder, dataset, logits)
    run.close()
    return result


def show_result(result: Result, console: Console, *next_commands: tuple[str, str]) -> None:
    """The table a person reads at the end, where the run lies and what to type next."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("top-1 (last epoch)", f"[bold]{result.top1:.2%}[/]")
    table.add_row("top-5", f"{result.top5:.2%}")
    table.add_row("precision / recall / F1", f"{result.precision:.4f} / {result.recall:.4f} / {result.f1:.4f}")
    table.add_row("best epoch", f"{result.best_top1:.2%} in epoch {result.best_epoch}")
    if result.teacher is not None:
        known = f" ({result.teacher_top1:.2%})" if result.teacher_top1 is not None else ""
        table.add_row("teacher", f"{result.teacher}{known}")
    table.add_row("network", f"{result.model}: {result.parameters:,} parameters, {result.macs / 1e6:.2f} M MACs")
    table.add_row("speed", f"{result.images_per_second:,.0f} images/s, {result.wall_seconds:.0f} s in all")
    console.print(table, highlight=False)
    console.print(
        f"Run folder: {result.run}   report: {Path(result.run) / 'report.html'}", highlight=False, soft_wrap=True
    )
    for purpose, line in next_commands:
        console.print(f"{purpose}: {line}", highlight=False, soft_wrap=True)


def check_name(kind: str, name: str, known: tuple[str, ...], also: str = "") -> None:
    """Raise UserError unless `name` is one of `known`."""
    if name not in known:
        raise UserError(f"unknown {kind} {name!r}; choose from {', '.join(known)}{also}")
