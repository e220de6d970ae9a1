"""Last-epoch accuracy of a data set's recipe over several seeds, shortened to fit the time there is.

    python -m bench.accuracy --dataset cifar100 --minutes M [--data-dir D] [--seeds 5] [--split development|test]
    python -m bench.accuracy --dataset digits --seeds 5

Seed S is the training of `python -m titn.train --dataset D --fast --epochs E --seed S`. One teacher, of seed 0, is
trained first and shared. Accuracy is plain: the last epoch's weights, every image once, as it is. The test set serves
for the final number only; `--split development` evaluates on a tenth of the training images and leaves it alone.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student_t  # type: ignore[import-untyped]

from bench import options
from bench.rehearsal import RESERVE, Deadline, fit_epochs, shortened
from titn.config import TrainConfig, resolve
from titn.data.dataset import Dataset, development_split, load_dataset
from titn.errors import UserError, command
from titn.models import MODELS
from titn.network import NetworkSpec
from titn.teacher import find_or_train_teacher, load_teacher
from titn.teachers.architectures import TEACHERS
from titn.train import train
from titn.training.experiment import check_name
from titn.training.interrupt import Interrupted
from titn.training.run import Run
from titn.training.switches import describe

TARGETS = {"cifar100": 0.7471, "cifar10": 0.9203, "mnist": 0.9956}
"""Test top-1 of TITN in arXiv 2502.16762: the best epoch there, the last one here."""
SEEDS = 5
TOY: dict[str, Any] = {
    "depth": 1, "limit_train": 96, "epochs": 2, "teacher_epochs": 1, "batch_size": 32, "compile": "off",
}  # fmt: skip

Split = Literal["test", "development"]
Result = dict[str, Any]


def measure(
    dataset: str,
    minutes: float | None,
    device: torch.device,
    *,
    data_dir: str | Path,
    seeds: int = SEEDS,
    console: Console,
    split: Split = "test",
    epochs: int | None = None,
    runs_dir: str | Path = "runs",
    fast: bool = True,
    small: bool = False,
    settings: Mapping[str, Any] | None = None,
    save: Callable[[Result], None] | None = None,
) -> Result:
    """The section "accuracy".

    Args:
        dataset: as `--dataset` of titn.train.
        minutes: time for everything, teacher included; None: as long as the recipe takes. Without `epochs` a rehearsal
            decides how many epochs fit; with it, only seeds that no longer fit are left out.
        device: where to train.
        data_dir: where data sets are read from.
        seeds: how many, from 0.
        console: what is done is printed here; the trainings print to it where it is a terminal.
        split: what is evaluated on.
        epochs: of the student; a teacher's are shortened in proportion.
        runs_dir: folder of the run folders; a teacher that is there already is taken again.
        fast: train with `--fast`.
        small: toy sizes, whose accuracy means nothing.
        settings: other fields of TrainConfig that differ from the recipe.
        save: called with the result so far after every seed.

    Returns:
        "dataset", "split", "epochs", "target" (the paper's test top-1, or None), "runs" ("seed", "top1" of the last
        epoch, 0 to 1, "seconds" with evaluation and checkpoints, "seconds_to_target" at the end of the first epoch that
        reaches the target, or None), "mean" and "interval95" over the runs (Student's t; None for fewer than one or two
        runs), "planned_seeds", "note" (what was shortened, left out or failed), "teacher" ("name", "top1", "epochs" and
        "seconds" of its training, or None) and "settings" (the student's TrainConfig, but for folders and device).

    Raises:
        UserError: a mistake in the configuration or the data, or too little time for one epoch of every seed.
    """
    deadline = Deadline.after(minutes)
    quiet = console if console.is_terminal else Console(quiet=True)
    config = resolve(
        TrainConfig(
            dataset=dataset,
            data_dir=str(data_dir),
            device=str(device),
            fast=fast,
            runs_dir=str(runs_dir),
            **((TOY if small else {}) | dict(settings or {})),
        )
    )
    check_name("model", config.network, MODELS)
    data = load_dataset(config.dataset, config.data_dir, image_size=config.image_size, limit_train=config.limit_train)
    if split == "development":
        data = development_split(data)
    notes = []
    recipe, student = config, None
    if epochs is not None:
        config = shortened(recipe, epochs)
    elif minutes is not None:
        config, student = fit_epochs(recipe, data, seeds, deadline, console)
    if config.epochs != recipe.epochs:
        notes.append(f"the recipe's {recipe.epochs} epochs shortened to {config.epochs}")
    config, teacher = _teacher(config, data, quiet)
    if student is not None:
        affordable = math.floor(((1 - RESERVE) * deadline.left / seeds - student.once) / student.epoch)
        if affordable < 1:
            raise UserError(f"the teacher left no time for one epoch of {seeds} seeds: give more --minutes")
        if affordable < config.epochs:
            notes.append(f"shortened further to {affordable}, since the teacher took longer than rehearsed")
            config = replace(config, epochs=affordable)
    if split == "development" and teacher is not None and recipe.teacher not in TEACHERS:
        notes.append("the teacher was given: nothing says that it has not learned from the development images")
    told = "none" if teacher is None else teacher["name"]
    console.print(f"{data.name}: {config.epochs} epochs, {seeds} seeds, {split} split, teacher {told}", highlight=False)
    target = None if small else TARGETS.get(dataset)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    runs: list[dict[str, Any]] = []

    def so_far() -> Result:
        values = [run["top1"] for run in runs]
        return {
            "dataset": data.name,
            "split": split,
            "epochs": config.epochs,
            "target": target,
            "runs": list(runs),
            "mean": statistics.fmean(values) if values else None,
            "interval95": interval(values),
            "planned_seeds": seeds,
            "note": "; ".join(notes),
            "teacher": teacher,
            "settings": _settings(config, teacher),
        }

    for seed in range(seeds):
        if runs and deadline.left < runs[-1]["seconds"]:
            notes.append(f"seeds from {seed} on left out: the time was over")
            break
        try:
            name = f"accuracy-{data.name}-{split}-{stamp}-seed{seed}"
            runs.append(train_seed(replace(config, seed=seed, name=name), data, quiet, target))
            told = f"seed {seed}: {runs[-1]['top1']:.2%} after {runs[-1]['seconds']:.0f} s"
        except UserError as error:
            told = f"seed {seed} failed: {error}"
            notes.append(told)
        console.print(told, highlight=False, markup=False)
        if save is not None:
            save(so_far())
    return so_far()


def interval(values: list[float]) -> list[float] | None:
    """The 95 % interval of the mean by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    half = float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return [mean - half, mean + half]


def _teacher(config: TrainConfig, data: Dataset, console: Console) -> tuple[TrainConfig, dict[str, Any] | None]:
    """The configuration with the run folder of the one teacher that all seeds share, and what is known of it."""
    if config.teacher == "none" or not getattr(NetworkSpec.of(config, data).build(), "distilled", False):
        return replace(config, teacher="none"), None
    path = find_or_train_teacher(replace(config, seed=0), data, console)
    torch.compiler.reset()
    _, name, top1 = load_teacher(path, data)
    result = (Run(Path(path)).result() or {}) if (Path(path) / "config.yaml").is_file() else {}
    known = {"name": name, "top1": top1, "epochs": result.get("epochs"), "seconds": result.get("wall_seconds")}
    return replace(config, teacher=path), known


def _settings(config: TrainConfig, teacher: dict[str, Any] | None) -> dict[str, Any]:
    """The fields that a training depends on."""
    machine = ("data_dir", "device", "runs_dir", "name", "resume", "config", "seed")
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in machine}
    return values | {"teacher": "none" if teacher is None else teacher["name"]}


def train_seed(config: TrainConfig, data: Dataset, console: Console, target: float | None) -> dict[str, Any]:
    """Train one seed on data at hand; returns the entry of "runs".

    Raises:
        UserError: the training diverged.
    """
    torch.compiler.reset()  # as in a process of its own: a compilation left over counts towards dynamo's limit
    try:
        result = train(config, console=console, dataset=data)
    except Interrupted as stopped:
        # titn.train would go on with the whole training split
        raise Interrupted(stopped.signal_number, f"stopped in seed {config.seed}; start again") from None
    lines = Run(Path(result.run)).metrics()
    reached = [line["seconds"] for line in lines if target is not None and line["test_top1"] >= target]
    return {
        "seed": config.seed,
        "top1": result.top1,
        "seconds": result.wall_seconds,
        "seconds_to_target": reached[0] if reached else None,
    }


def show(found: Result, device: torch.device, console: Console) -> None:
    """The section as a table, with mean and interval below it."""
    table = Table(title=f"{found['dataset']} on {describe(device)}: {found['epochs']} epochs, {found['split']} split")
    for heading in ("seed", "top-1, last epoch", "seconds", "seconds to target"):
        table.add_column(heading, justify="right")
    for run in found["runs"]:
        reached = run["seconds_to_target"]
        table.add_row(
            str(run["seed"]),
            f"{run['top1']:.2%}",
            f"{run['seconds']:.0f}",
            "" if reached is None else f"{reached:.0f}",
        )
    console.print(table, highlight=False)
    if found["interval95"] is not None:
        low, high = found["interval95"]
        console.print(f"mean {found['mean']:.2%}, 95% interval {low:.2%} to {high:.2%}", highlight=False)
    if found["target"] is not None:
        console.print(f"target {found['target']:.2%} (test top-1 in arXiv 2502.16762)", highlight=False)
    if found["note"]:
        console.print(found["note"], highlight=False, markup=False)


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("accuracy", __doc__)
    parser.add_argument("--dataset", default="digits", help="as in titn.train (default: digits)")
    parser.add_argument("--minutes", type=float, help="time for everything (default: as long as the recipe takes)")
    parser.add_argument("--data-dir", default="data", help="where data sets are read from")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"number of seeds (default: {SEEDS})")
    parser.add_argument("--split", choices=("test", "development"), default="test", help="what is evaluated on")
    parser.add_argument("--epochs", type=int, help="instead of as many as fit into --minutes")
    parser.add_argument("--config", type=Path, help="YAML file with settings that differ from the recipe")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="folder of the run folders")
    parser.add_argument("--reference", action="store_true", help="train without --fast")
    given = options.parse(parser, argv)
    if given.minutes is not None and not given.minutes > 0:
        raise UserError(f"--minutes must be above 0, not {given.minutes}")
    at = options.setting(parser, given, argv)
    found = measure(
        given.dataset,
        given.minutes,
        at.device,
        data_dir=given.data_dir,
        seeds=given.seeds,
        console=at.console,
        split=given.split,
        epochs=given.epochs,
        runs_dir=given.runs_dir,
        fast=not given.reference,
        small=given.dry_run,
        settings={"config": str(given.config)} if given.config else None,
        save=lambda result: at.record.add("accuracy", result),
    )
    show(found, at.device, at.console)
    options.write(at, "accuracy", found)


if __name__ == "__main__":
    main()
