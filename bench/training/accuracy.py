"""Last-epoch accuracy of a data set's recipe over several seeds, shortened to fit the time there is.

    python -m bench.accuracy --dataset cifar100 --minutes M [--data-dir D] [--seeds 5] [--split development|test]
    python -m bench.accuracy --dataset digits --seeds 5

Seed S is the training of `python -m titn.train --dataset D --fast --epochs E --seed S`. One teacher, of seed 0, is
trained first and shared. A stopped command goes on where it was if it is given the number of epochs that it had.

Accuracy is plain: the last epoch's weights, every image once, as it is. The test set serves for the final number only;
`--split development` evaluates on a tenth of the training images and leaves it alone.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import asdict
from typing import Any, Literal

from rich.console import Console

from bench import options
from bench.options import Setting
from bench.training.paired import digest_of
from bench.training.paired import trained as trained_run
from titn.config import TrainConfig
from titn.data.dataset import Dataset, development_split, load_dataset
from titn.errors import Interrupted, UserError, command
from titn.metrics import confidence_interval
from titn.network import NetworkSpec
from titn.teachers.architectures import TEACHERS
from titn.teachers.find import find_teachers, load_teachers
from titn.train import train, trained
from titn.training.rehearsal import RESERVE, Cost, rehearse
from titn.training.run import Run
from titn.training.schedule import Schedule

TARGETS = {"cifar100": 0.7471, "cifar10": 0.9203, "mnist": 0.9956}
"""Test top-1 of TITN in arXiv 2502.16762: the best epoch there, the last one here."""
SEEDS = 5
TOY: dict[str, Any] = {
    "depth": 1, "limit_train": 96, "epochs": 2, "teacher_epochs": 2, "batch_size": 32, "compile": "off",
}  # fmt: skip
MACHINE = {"data_dir", "device", "runs_dir", "name", "resume", "config", "seed"}
"""Settings that a training does not depend on, and the seed."""

Split = Literal["test", "development"]
Section = dict[str, Any]


def measure(
    at: Setting,
    config: TrainConfig,
    *,
    minutes: float | None = None,
    seeds: int = SEEDS,
    split: Split = "test",
    epochs: int | None = None,
) -> Section:
    """The section "accuracy", saved after every seed.

    Args:
        at: where; the trainings print to its console where that is a terminal.
        config: the student's training, but for seed and name.
        minutes: time for everything, teacher included; None: as long as the recipe takes. Without `epochs` a rehearsal
            decides how many epochs fit; with it, only seeds that no longer fit are left out.
        seeds: how many, from 0.
        split: what is evaluated on.
        epochs: of the student; a teacher's are shortened in proportion.

    Returns:
        "dataset", "split", "epochs", "target" (the paper's test top-1, or None), "runs" ("seed", "run" (its name),
        "commit" (of the checkout that trained it), "top1" of the last epoch, 0 to 1, "seconds" with evaluation and
        checkpoints, "seconds_to_target" at the end of the first epoch that reaches the target, or None), "mean" and
        "interval95" over the runs (Student's t; None for fewer than one or two runs), "planned_seeds", "note" (what was
        shortened, left out or failed), "teacher" ("name", "top1", "epochs" and "seconds" of its training, or None) and
        "settings" (the student's TrainConfig, but for folders and device).

    Raises:
        UserError: a mistake in the configuration or the data, or too little time for one epoch of every seed.
    """
    ends = math.inf if minutes is None else time.perf_counter() + 60 * minutes
    quiet = at.console if at.console.is_terminal else Console(quiet=True)
    data = load_dataset(config.dataset, config.data_dir, image_size=config.image_size, limit_train=config.limit_train)
    if split == "development":
        data = development_split(data)
    recipe, notes, student = config.changed(limit_train=None), [], Cost()
    distilled = getattr(NetworkSpec.of(recipe, data).build(), "distilled", False)
    recipe = recipe if distilled else recipe.changed(teacher="none")
    given_teacher = recipe.teacher not in (*TEACHERS, "none")
    config = shortened(recipe, epochs) if epochs is not None else recipe
    if epochs is None and minutes is not None:
        config, student = fit_epochs(recipe, data, seeds, ends, at)
    if config.epochs != recipe.epochs:
        notes.append(f"the recipe's {recipe.epochs} epochs shortened to {config.epochs}")
    config, teacher = shared_teacher(config, data, quiet)
    if epochs is None and minutes is not None:
        left = (1 - RESERVE) * (ends - time.perf_counter())
        affordable = math.floor(left / seeds / (student.epoch + student.answers))
        if affordable < 1:
            raise UserError(f"the teacher left no time for one epoch of {seeds} seeds: give more --minutes")
        if affordable < config.epochs:
            notes.append(f"shortened further to {affordable}, since the teacher took longer than rehearsed")
            config = config.changed(epochs=affordable)
    if split == "development" and given_teacher:
        notes.append("the teacher was given: nothing says that it has not learned from the development images")
    named = "none" if teacher is None else teacher["name"]
    at.say(f"{data.name}: {config.epochs} epochs, {seeds} seeds, {split} split, teacher {named}")
    section: Section = {
        "dataset": data.name,
        "split": split,
        "epochs": config.epochs,
        "target": None if at.small else TARGETS.get(config.dataset),
        "runs": [],
        "mean": None,
        "interval95": None,
        "planned_seeds": seeds,
        "note": "",
        "teacher": teacher,
        "settings": {
            name: value for name, value in asdict(config).items() if name not in MACHINE
        } | {"teacher": named},
    }  # fmt: skip
    digest = digest_of(section["settings"], data.identity(), teacher and teacher["top1"])
    for seed in range(seeds):
        runs = section["runs"]
        if runs and ends - time.perf_counter() < runs[-1]["seconds"]:
            notes.append(f"seeds from {seed} on left out: the time was over")
        else:
            name = f"accuracy-{data.name}-{split}-{digest}-seed{seed}"
            try:
                runs.append(train_seed(config.changed(seed=seed, name=name), data, quiet, section["target"]))
                at.say(f"seed {seed}: {runs[-1]['top1']:.2%} after {runs[-1]['seconds']:.0f} s")
            except UserError as error:
                notes.append(f"seed {seed} failed: {error}")
                at.say(notes[-1])
        values = [run["top1"] for run in runs]
        section |= {"mean": statistics.fmean(values) if values else None, "interval95": confidence_interval(values)}
        section["note"] = "; ".join(notes)
        at.save("accuracy", section)
        if notes and "left out" in notes[-1]:
            break
    return section


def shared_teacher(config: TrainConfig, data: Dataset, console: Console) -> tuple[TrainConfig, Section | None]:
    """The configuration with the teacher that all seeds share, trained if it has to be, and what is known of it.

    Of several teachers, epochs and seconds are those of all together.
    """
    if config.teacher == "none":
        return config, None
    paths = trained(find_teachers(config, data), config, data, "the same command", console)
    teacher = load_teachers(paths, data)
    results = [(Run(path).result() or {}) if (path / "config.yaml").is_file() else {} for path in paths]
    known: Section = {"name": teacher.name, "top1": teacher.top1}
    for name, of_a_run in (("epochs", "epochs"), ("seconds", "wall_seconds")):
        values = [result.get(of_a_run) for result in results]
        known[name] = None if None in values else sum(values)
    return config.changed(teacher=",".join(map(str, paths))), known


def train_seed(config: TrainConfig, data: Dataset, console: Console, target: float | None) -> Section:
    """Train one seed on data at hand, or go on with it; returns the entry of "runs".

    What the seed before compiled is used again, and a finished run is read.

    Raises:
        UserError: the training diverged.
    """
    try:
        run = trained_run(config, data, console)
    except Interrupted as stopped:
        epochs = f"--epochs {config.epochs}"
        message = f"stopped in seed {config.seed}, everything is saved; go on with {epochs} and the same other flags"
        raise Interrupted(stopped.signal_number, message) from None
    result, lines = run.result() or {}, run.metrics()
    reached = [line["seconds"] for line in lines if target is not None and (line["test_top1"] or 0.0) >= target]
    return {
        "seed": config.seed,
        "run": run.folder.name,
        "commit": result["commit"],
        "top1": result["top1"],
        "seconds": result["wall_seconds"],
        "seconds_to_target": reached[0] if reached else None,
    }


# How many epochs fit into the time there is


def shortened(recipe: TrainConfig, epochs: int) -> TrainConfig:
    """The recipe with so many epochs, its teacher's shortened in proportion; a warm-up is at most half of them."""
    teacher_epochs = max(1, round((recipe.teacher_epochs or recipe.epochs) * epochs / recipe.epochs))
    settings = dict(recipe.teacher_settings)
    if recipe.teacher in TEACHERS and recipe.teacher_training(recipe.teacher).warmup_epochs > teacher_epochs / 2:
        settings["warmup_epochs"] = teacher_epochs / 2
    return recipe.changed(
        epochs=epochs,
        warmup_epochs=min(recipe.warmup_epochs, epochs / 2),
        teacher_epochs=teacher_epochs,
        teacher_settings=settings,
    )


def fit_epochs(recipe: TrainConfig, data: Dataset, seeds: int, ends: float, at: Setting) -> tuple[TrainConfig, Cost]:
    """The recipe with as many epochs as fit before `ends` (of time.perf_counter), and what a student costs.

    A shorter training has smaller batches, so that a second rehearsal may be needed.

    Raises:
        UserError: not one epoch fits.
    """
    config, rehearsed = recipe, 0
    for _ in range(2):
        batch_size = Schedule.of(config, len(data.train_labels)).batch_size
        if batch_size == rehearsed:
            break
        rehearsed = batch_size
        teachers, student = rehearse(config, data, train)
        teacher_epoch = sum(cost.epoch for cost in teachers)
        share = (recipe.teacher_epochs or recipe.epochs) / recipe.epochs if recipe.teacher in TEACHERS else 0.0
        each = seeds * (student.epoch + student.answers) + share * teacher_epoch
        left = (1 - RESERVE) * (ends - time.perf_counter())
        epochs = math.floor(left / each)
        if epochs < 1:
            needed = (each - left) / 60
            raise UserError(f"too little time for one epoch of {seeds} seeds: give about {needed:.1f} --minutes more")
        config = shortened(recipe, min(recipe.epochs, epochs))
        at.say(
            f"rehearsal at batch {batch_size}: {student.epoch:.2f} s per epoch (teacher {teacher_epoch:.2f} s), "
            f"{config.epochs} of {recipe.epochs} epochs"
        )
    return config, student


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("accuracy", __doc__)
    parser.add_argument("--dataset", default="digits", help="as in titn.train (default: digits)")
    parser.add_argument("--minutes", type=float, help="time for everything (default: as long as the recipe takes)")
    parser.add_argument("--data-dir", default="data", help="where data sets are read from")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"number of seeds (default: {SEEDS})")
    parser.add_argument("--split", choices=("test", "development"), default="test", help="what is evaluated on")
    parser.add_argument("--epochs", type=int, help="instead of as many as fit into --minutes")
    parser.add_argument("--config", help="YAML file with settings that differ from the recipe")
    parser.add_argument("--runs-dir", default="runs", help="folder of the run folders")
    parser.add_argument("--reference", action="store_true", help="train without --fast")
    given, at = options.start(parser, argv)
    config = TrainConfig(
        dataset=given.dataset,
        data_dir=given.data_dir,
        runs_dir=given.runs_dir,
        device=str(at.device),
        fast=not given.reference,
        **({"config": given.config} if given.config else {}),
        **(TOY if at.small else {}),
    )
    section = measure(
        at, config, minutes=given.minutes, seeds=given.seeds, split=given.split, epochs=given.epochs
    )  # fmt: skip
    at.show("accuracy", section)
    at.finish()


if __name__ == "__main__":
    main()
