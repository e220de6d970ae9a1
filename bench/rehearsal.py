"""How many epochs fit into the time there is, by a rehearsal of student and teacher.

A rehearsal is some steps and one end of an epoch of the real trainer, in a folder that is thrown away.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from torch import nn

from bench.rounds import free, synchronize
from titn.config import RunConfig, TeacherConfig, TrainConfig, resolve, settle_batch
from titn.data.dataset import Dataset
from titn.errors import UserError
from titn.network import NetworkSpec
from titn.pipelines import EpochPlan
from titn.teacher import load_teacher
from titn.teachers.architectures import TEACHERS
from titn.training.checkpoint import Position
from titn.training.meters import Tally
from titn.training.run import Run
from titn.training.switches import Parts, select
from titn.training.targets import LiveTeacher, TeacherTargets
from titn.training.trainer import Trainer, augmentation_of

LONGEST_SECONDS = 15.0
MOST_STEPS = 40
WARM_UPS = 3
EVERY = 8
"""Steps between two looks at the clock, which wait for the device."""
RESERVE = 0.1
"""Share of the time that is left unplanned."""


@dataclass(frozen=True)
class Deadline:
    """The end of the time there is, on the clock of `time.perf_counter`; None: no end."""

    at: float | None

    @classmethod
    def after(cls, minutes: float | None) -> Deadline:
        """So many minutes from now."""
        return cls(None if minutes is None else time.perf_counter() + 60 * minutes)

    @property
    def left(self) -> float:
        """Seconds left."""
        return math.inf if self.at is None else self.at - time.perf_counter()


@dataclass(frozen=True)
class Cost:
    """Seconds of a training: once (building, compiling with warm caches) and for every epoch, evaluation included."""

    once: float
    epoch: float


def rehearse(
    config: RunConfig, parts: Parts, dataset: Dataset, module: nn.Module, targets: TeacherTargets | None
) -> Cost:
    """Train for some steps and end the epoch, on two trainers one after the other; the second one is timed.

    The first trainer takes a single step, which fills the compiler's caches. `module` is changed. The epoch's seconds
    are those of its steps at the rate of the steps taken, with drawing the plan, evaluation and checkpoint added.
    """
    torch.compiler.reset()
    if parts.compile:
        _train(config, parts, dataset, module, targets, most=1)
        torch.compiler.reset()
    cost = _train(config, parts, dataset, module, targets, most=MOST_STEPS)
    torch.compiler.reset()
    free(parts.device)
    return cost


def _train(
    config: RunConfig, parts: Parts, dataset: Dataset, module: nn.Module, targets: TeacherTargets | None, most: int
) -> Cost:
    assert config.batch_size is not None
    with tempfile.TemporaryDirectory(prefix="titn-rehearsal-") as folder:
        began = time.perf_counter()
        run = Run.create(replace(config, runs_dir=folder, name="rehearsal"))
        spec = NetworkSpec.of(config, dataset)
        trainer = Trainer(config, parts, dataset, run, spec, module, targets, Console(quiet=True))
        trainer.began = began
        run.rewind(0)
        drawing = time.perf_counter()
        plan = EpochPlan.draw(
            augmentation_of(config, config.batch_size),
            size=len(dataset.train_labels),
            image_size=dataset.image_size,
            seed=config.seed,
            epoch=0,
        )
        drawn = time.perf_counter() - drawing
        module.train()
        tally, times, taken = Tally.start(parts.device, None), [time.perf_counter()], [0]
        for batch in itertools.islice(trainer.pipeline.epoch(plan, config.batch_size), most):
            trainer.train_step(batch, tally)
            step = trainer.position.step + 1
            trainer.position = Position(0, step)
            if step <= WARM_UPS or step % EVERY == 0 or step == min(most, trainer.steps):
                synchronize(parts.device)
                times.append(time.perf_counter())
                taken.append(step)
                if times[-1] - times[1] > LONGEST_SECONDS:
                    break
        # a CUDA graph is captured in the second step, so the steady rate begins behind the warm-up
        start = min(WARM_UPS, len(times) - 2)
        steady = (times[-1] - times[start]) / (taken[-1] - taken[start])
        first_step = times[1] - times[0]
        ending = time.perf_counter()
        trainer.end_epoch(tally, 0.0, trainer.evaluate())
        ended = time.perf_counter()
        run.close()
    once = drawing - began + max(0.0, first_step - steady)
    return Cost(once=once, epoch=drawn + trainer.steps * steady + ended - ending)


def shortened(recipe: TrainConfig, epochs: int) -> TrainConfig:
    """The recipe with so many epochs, its teacher's shortened in proportion."""
    teacher = recipe.teacher_epochs or recipe.epochs
    return replace(recipe, epochs=epochs, teacher_epochs=max(1, round(teacher * epochs / recipe.epochs)))


def fit_epochs(
    recipe: TrainConfig, data: Dataset, seeds: int, deadline: Deadline, console: Console
) -> tuple[TrainConfig, Cost]:
    """The recipe with as many epochs as fit before the deadline, at most its own; and what a student costs.

    Raises:
        UserError: not one epoch fits.
    """
    config, batch_size = recipe, 0
    teacher, teacher_share = Cost(0.0, 0.0), 0.0
    if recipe.teacher in TEACHERS:
        teacher = _rehearse_teacher(recipe, data)
        teacher_share = (recipe.teacher_epochs or recipe.epochs) / recipe.epochs
    for _ in range(2):
        settled = settle_batch(config, len(data.train_labels))
        if settled.batch_size == batch_size:
            break
        assert settled.batch_size is not None
        batch_size = settled.batch_size
        student = _rehearse_student(settled, data)
        each = seeds * student.epoch + teacher_share * teacher.epoch
        once = seeds * student.once + teacher.once
        epochs = math.floor(((1 - RESERVE) * deadline.left - once) / each)
        if epochs < 1:
            needed = (once + each - (1 - RESERVE) * deadline.left) / 60
            raise UserError(f"too little time for one epoch of {seeds} seeds: give about {needed:.1f} --minutes more")
        config = shortened(recipe, min(recipe.epochs, epochs))
        console.print(
            f"rehearsal at batch {batch_size}: {student.epoch:.2f} s an epoch (teacher {teacher.epoch:.2f} s), "
            f"{config.epochs} of {recipe.epochs} epochs",
            highlight=False,
        )
    return config, student


def _rehearse_student(config: TrainConfig, data: Dataset) -> Cost:
    parts = select(config)
    module = NetworkSpec.of(config, data).build(parts.kernels)
    targets = None
    if config.teacher in TEACHERS and getattr(module, "distilled", False):
        network = NetworkSpec.of(_teacher_config(config), data).build()
        targets = LiveTeacher(network.to(parts.device), config.distillation, parts.amp)
    elif config.teacher != "none" and getattr(module, "distilled", False):
        network = load_teacher(config.teacher, data)[0]
        targets = LiveTeacher(network.to(parts.device), config.distillation, parts.amp)
    return rehearse(config, parts, data, module, targets)


def _rehearse_teacher(recipe: TrainConfig, data: Dataset) -> Cost:
    config = settle_batch(_teacher_config(recipe), len(data.train_labels))
    return rehearse(config, select(config), data, NetworkSpec.of(config, data).build(), None)


def _teacher_config(recipe: TrainConfig) -> TeacherConfig:
    """The teacher's training as far as its speed depends on it."""
    return resolve(
        TeacherConfig(
            dataset=recipe.dataset,
            image_size=recipe.image_size,
            teacher=recipe.teacher,
            epochs=recipe.teacher_epochs or recipe.epochs,
            device=recipe.device,
            fast=recipe.fast,
            amp=recipe.amp,
        )
    )
