"""How many epochs of a training fit into a time: a rehearsal of a few steps measures what each part of it costs."""

from __future__ import annotations

import bisect
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.text import Text

from titn.config import RunConfig, TrainConfig
from titn.data.dataset import Dataset
from titn.errors import UserError, count
from titn.network import NetworkSpec
from titn.teachers.find import find_teachers
from titn.training.phases import Phases
from titn.training.run import Run
from titn.training.schedule import Schedule

REHEARSED_STEPS = 40
RESERVE = 0.1
"""Share of the time that is left unplanned."""

Training = Callable[..., object]
"""Trains a configuration, as `titn.train.train` does."""
Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True)
class Cost:
    """Seconds of a training.

    Attributes:
        once: building and compiling.
        steps: all steps of an epoch, by its phase (`_phase`).
        ending: the end of an epoch, with evaluation and checkpoint.
        answers: a stored teacher's answers to an epoch, where they have to be computed.
    """

    once: float = 0.0
    steps: dict[tuple[bool, bool], float] = field(default_factory=dict)
    ending: float = 0.0
    answers: float = 0.0

    @property
    def epoch(self) -> float:
        """Of an epoch of the whole network with evaluation and checkpoint, all answers at hand."""
        return self.steps.get((False, False), 0.0) + self.ending

    def seconds(self, config: RunConfig, schedule: Schedule) -> float:
        """Of a training with `config`, whose `schedule` has so many epochs."""
        epochs, phases = schedule.epochs, Phases.of(config, schedule)
        steps = sum(self.steps[_phase(phases, epoch)] for epoch in range(epochs))
        plain = round(config.plain_share * epochs)
        plans = sum(min(part, config.epochs_in_turn or part) for part in (epochs - plain, plain))
        evaluations = -(-epochs // config.eval_every)
        return self.once + steps + evaluations * self.ending + plans * self.answers


def _phase(phases: Phases, epoch: int) -> tuple[bool, bool]:
    """Whether images are small, and whether blocks wait."""
    return epoch < phases.small, epoch < phases.shallow


def fit_epochs(config: Config, dataset: Dataset, train: Training, console: Console, device: str = "cpu") -> Config:
    """The configuration with as many epochs as fit into `config.minutes` from now on, at most its own.

    A teacher that is still to be trained is in the time, evaluation and checkpoints too. A shorter training has smaller
    batches, so that a second rehearsal may be needed. A recipe's warm-up shrinks in proportion.

    Raises:
        UserError: not one epoch fits.
    """
    began, minutes, images = time.perf_counter(), config.minutes or math.inf, len(dataset.train_labels)
    longest = config
    if config.role == "student" and not getattr(NetworkSpec.of(config, dataset).build(), "distilled", False):
        longest = config.changed(teacher="none")

    def schedule(of: RunConfig) -> Schedule:
        return Schedule.of(of, images, device)

    def seconds(epochs: int) -> float:
        shorter = shortened(longest, epochs)
        trainings = zip(_teachers(shorter, dataset), teachers, strict=True)
        of_teachers = [cost.seconds(each, schedule(each)) for each, cost in trainings if isinstance(each, RunConfig)]
        return student.seconds(shorter, schedule(shorter)) + sum(of_teachers)

    epochs, rehearsed = longest.epochs, 0
    for _ in range(2):
        batch_size = schedule(shortened(longest, epochs)).batch_size
        if batch_size == rehearsed:
            break
        rehearsed = batch_size
        teachers, student = rehearse(longest.changed(batch_size=batch_size), dataset, train, device)
        left = (1 - RESERVE) * 60 * minutes - (time.perf_counter() - began)
        epochs = bisect.bisect_right(range(1, longest.epochs + 1), left, key=seconds)
        if epochs == 0:
            missing = (seconds(1) - left) / (1 - RESERVE) / 60
            raise UserError(f"--minutes {minutes:g} is too little for one epoch: give {missing:.1f} more")
    words = f"--minutes {minutes:g}: {count(epochs, 'epoch')}"
    if epochs == longest.epochs:
        words += ", all that --epochs asks for"
    console.print(Text(words), soft_wrap=True)
    return shortened(config, epochs)


def shortened(config: Config, epochs: int) -> Config:
    """The configuration with so many epochs; its warm-up in proportion, unless it was given."""
    share = 1.0 if "warmup_epochs" in config.said else epochs / config.epochs
    return config.changed(epochs=epochs, warmup_epochs=config.warmup_epochs * share)


def _teachers(config: RunConfig, dataset: Dataset) -> list[RunConfig | Path]:
    """For each teacher the training that it needs, or where it lies."""
    return [
        source.path.absolute() if source.to_train is None else config.teacher_training(name)
        for name, source in zip(config.teachers, find_teachers(config, dataset), strict=True)
    ]


def rehearse(
    config: RunConfig, dataset: Dataset, train: Training, device: str = "cpu"
) -> tuple[tuple[Cost, ...], Cost]:
    """What each teacher and the student cost: two short epochs by `train`, in a folder that is thrown away.

    A teacher that needs no training costs nothing. The student's epochs are measured in each of its phases.
    """
    with tempfile.TemporaryDirectory(prefix="titn-rehearsal-") as folder:
        costs, places = [], []
        for number, teacher in enumerate(_teachers(config, dataset)):
            if isinstance(teacher, RunConfig):
                costs.append(_rehearsed(teacher, dataset, train, folder, f"teacher{number}", device))
                teacher = Path(folder) / f"teacher{number}"
            else:
                costs.append(Cost())
            places.append(str(teacher))
        if config.stored_answers == "only":
            config = config.changed(teacher="none")
        elif places:
            config = config.changed(teacher=",".join(places))
        return tuple(costs), _rehearsed(config, dataset, train, folder, "student", device)


def _rehearsed(config: RunConfig, dataset: Dataset, train: Training, folder: str, name: str, device: str) -> Cost:
    full = Schedule.of(config, len(dataset.train_labels), device)
    images = min(len(dataset.train_labels), REHEARSED_STEPS * full.batch_size)
    labels = dataset.train_labels[:images]
    some = replace(dataset, train_images=dataset.train_images[:images], train_labels=labels, train_keys=None)
    short: dict[str, Any] = {
        "epochs": 2, "warmup_epochs": 0.0, "batch_size": full.batch_size, "lr": full.peak, "plain_share": 0.0,
        "minutes": None, "limit_train": None, "bank": None, "eval_every": 1, "patience": None, "name": name,
        "runs_dir": folder, "overwrite": True, "tracker": "none",
    }  # fmt: skip
    if not isinstance(config, TrainConfig):
        del short["bank"]
    phases, steps = Phases.of(config, full), {}
    cost = Cost()
    for small, shallow in dict.fromkeys([(False, False), *(_phase(phases, epoch) for epoch in range(full.epochs))]):
        if small or shallow:
            short |= {"small_share": float(small), "shallow_share": float(shallow)}
        elif isinstance(config, TrainConfig):
            short |= {"small_share": 0.0, "shallow_share": 0.0}
        train(config.changed(**short), console=Console(quiet=True), dataset=some)
        first, second = Run(Path(folder) / name).metrics()
        step = full.batch_size / second["images_per_second"]
        steps[small, shallow] = full.steps * step
        if not (small or shallow):
            epoch, answers = second["seconds"] - first["seconds"], second["teacher_seconds"] or 0.0
            ending = max(0.0, epoch - answers - images // full.batch_size * step)
            answers *= len(dataset.train_labels) / images
            cost = Cost(max(0.0, first["seconds"] - epoch), steps, ending, answers)
    return cost
