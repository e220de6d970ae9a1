"""How long a training takes to an accuracy: `--fast` beside the plain reference, of one recipe, in one run.

    python -m bench.time_to_accuracy --dataset cifar10 --target 0.90 [--data-dir D] [--minutes M] [--seeds 1]

Both train the recipe with the same seeds, images and teacher, which is trained first; they take turns, the order turned
round from seed to seed. The reference is eager float32 that asks the teacher about every batch; the other has what
`--fast` switches on here. Its cache of the teacher's answers is empty at the start: filling it is in the time.

The target is watched for on a tenth of the training images, held out; the test images are scored once, with the last
epoch's weights. Seconds begin with the first step, and hold compiling, batches, the teacher's answers and steps;
evaluation and checkpoints are not in them, nor the teacher's own training, which is stated.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from bench import options
from bench.options import Setting
from bench.record import statistic
from bench.report.pictures import svg
from bench.report.results import describe
from bench.timing import synchronize
from bench.training.accuracy import MACHINE, TARGETS, TOY, fit_epochs, shared_teacher, shortened
from titn.config import RunConfig, TrainConfig
from titn.data.dataset import Dataset, load_dataset, validation_split
from titn.errors import UserError, command
from titn.files import write_atomic
from titn.pipelines import Batch
from titn.train import train
from titn.training.callbacks import Callback
from titn.training.run import Run
from titn.training.schedule import Schedule
from titn.training.switches import select

HELD_OUT = 0.1
SEEDS = 1
POINTS = 24
"""On a CPU, where an evaluation takes as long as an epoch, a training is evaluated about so often."""
TOY_TARGET = 0.12
PATHS = {"reference": False, "titn --fast": True}
"""Names, and whether `--fast` is on."""

Section = dict[str, Any]


class Clock(Callback):
    """Seconds of training and images seen at the end of every epoch that is evaluated, with the accuracy there.

    Attributes:
        points: "epoch", "images" (that the student has taken steps on), "seconds" and "top1" on the held-out images.
        first_step: seconds to the end of the first step.
    """

    def __init__(self, steps: int, device: torch.device) -> None:
        self.points: list[dict[str, Any]] = []
        self.first_step = 0.0
        self._steps, self._device = steps, device
        self._seconds, self._images, self._began = 0.0, 0, 0.0

    def on_begin(self, run: Run, config: RunConfig, epoch: int) -> None:
        self._began = time.perf_counter()

    def on_step(self, step: int, batch: Batch, sums: Tensor) -> None:
        self._images += len(batch.ids)
        if step == 1 or step % self._steps == 0:
            synchronize(self._device)
            now = time.perf_counter()
            self._seconds += now - self._began
            self._began = now
            self.first_step = self.first_step or self._seconds

    def on_epoch(self, line: dict[str, Any]) -> None:
        if line["val_top1"] is not None:
            point = {"epoch": line["epoch"], "images": self._images, "seconds": self._seconds}
            self.points.append(point | {"top1": line["val_top1"]})
        self._began = time.perf_counter()


def measure(
    at: Setting,
    config: TrainConfig,
    target: float,
    *,
    minutes: float | None = None,
    epochs: int | None = None,
    seeds: int = SEEDS,
) -> Section:
    """The section "time_to_accuracy", saved after every training.

    Args:
        at: where; the trainings print to its console where that is a terminal.
        config: the student's training, but for seed, name and what `--fast` decides.
        target: top-1 on the held-out images, 0 to 1.
        minutes: time for all trainings, by which a rehearsal of the reference shortens them; None: the recipe's length.
        epochs: of the student instead; a teacher's are shortened in proportion.
        seeds: how many, from 0.

    Returns:
        "dataset", "target", "train_images", "held_out_images", "epochs", "batch_size", "planned_seeds", "teacher"
        ("name", "top1", "epochs" and "seconds" of its training, or None), "settings" (the student's TrainConfig but for
        folders, device and what --fast decides), "paths", one each of PATHS: "name", "switches" (as decided here, by
        name) and "runs" ("seed", "points" as of `Clock`, "first_step_seconds", "to_target" (the first point that
        reaches it, or None) and "test_top1" of the last epoch), and "ratio", how many times as long the reference
        takes as --fast, seed by seed as `statistic`: "to_target" (None where no seed of both has reached it) and
        "in_all" (None before the first pair).

    Raises:
        UserError: a mistake in the configuration or the data, or too little time for one epoch.
    """
    ends = math.inf if minutes is None else time.perf_counter() + 60 * minutes
    quiet = at.console if at.console.is_terminal else Console(quiet=True)
    data = load_dataset(config.dataset, config.data_dir, image_size=config.image_size, limit_train=config.limit_train)
    config = config.changed(limit_train=None, **({} if data.validates else {"validation": HELD_OUT}))
    data = data if data.validates else validation_split(data, HELD_OUT)
    assert data.val_labels is not None
    if epochs is not None:
        config = shortened(config, epochs)
    elif minutes is not None:
        config, _ = fit_epochs(config.changed(fast=False), data, len(PATHS) * seeds, ends, at)
    if at.device.type == "cpu":
        config = config.changed(eval_every=math.ceil(config.epochs / POINTS))
    config, teacher = shared_teacher(config, data, quiet)
    schedule = Schedule.of(config, len(data.train_labels), at.device.type)
    decided = {*MACHINE, "fast", "amp", "compile", "pipeline", "cuda_graph", "kernels", "teacher_cache"}
    settings = {name: value for name, value in asdict(config).items() if name not in decided}
    paths = {name: config.changed(fast=fast) for name, fast in PATHS.items()}
    runs: dict[str, list[Section]] = {name: [] for name in PATHS}
    section: Section = {
        "dataset": data.name,
        "target": target,
        "train_images": len(data.train_labels),
        "held_out_images": len(data.val_labels),
        "epochs": config.epochs,
        "batch_size": schedule.batch_size,
        "planned_seeds": seeds,
        "teacher": teacher,
        "settings": settings | {"teacher": "none" if teacher is None else teacher["name"]},
        "paths": [
            {"name": name, "switches": {row.name: row.value for row in select(path).rows}, "runs": runs[name]}
            for name, path in paths.items()
        ],
        "ratio": {},
    }
    for seed in range(seeds):
        for name in list(PATHS)[:: -1 if seed % 2 else 1]:
            path = paths[name].changed(seed=seed)
            runs[name].append({"seed": seed, **one(path, data, target, Clock(schedule.steps, at.device), quiet)})
            at.say(f"{name}, seed {seed}: {in_words(runs[name][-1], target)}")
            section["ratio"] = ratios(runs["reference"], runs["titn --fast"])
            at.save("time_to_accuracy", section)
    return section


def one(config: TrainConfig, data: Dataset, target: float, clock: Clock, console: Console) -> Section:
    """A training from start to end with nothing stored or compiled by an earlier one of this process."""
    torch.compiler.reset()
    root = Path(config.runs_dir).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".time-to-accuracy-") as folder:
        result = train(config.changed(runs_dir=folder), console=console, dataset=data, callbacks=[clock])
    return {
        "points": clock.points,
        "first_step_seconds": clock.first_step,
        "to_target": next((point for point in clock.points if point["top1"] >= target), None),
        "test_top1": result.top1,
    }


def ratios(reference: Sequence[Section], fast: Sequence[Section]) -> Section:
    """The section's "ratio"."""
    pairs = [(ours, one) for ours in fast for one in reference if one["seed"] == ours["seed"]]
    whole = [slow["points"][-1]["seconds"] / ours["points"][-1]["seconds"] for ours, slow in pairs]
    reached = [
        slow["to_target"]["seconds"] / ours["to_target"]["seconds"]
        for ours, slow in pairs
        if slow["to_target"] and ours["to_target"]
    ]
    return {"to_target": statistic(reached) if reached else None, "in_all": statistic(whole) if whole else None}


def in_words(run: Section, target: float) -> str:
    """What a training achieved, in a line."""
    last, reached = run["points"][-1], run["to_target"]
    words = f"{target:.2%} after {reached['seconds']:,.1f} s" if reached else f"{target:.2%} not reached"
    return f"{words}; {last['top1']:.2%} after {last['seconds']:,.1f} s, test {run['test_top1']:.2%}"


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("time_to_accuracy", __doc__)
    parser.add_argument("--dataset", default="digits", help="as in titn.train (default: digits)")
    parser.add_argument("--target", type=float, help="top-1 to reach, 0 to 1 (default: the paper's for that data set)")
    parser.add_argument("--minutes", type=float, help="time for everything (default: as long as the recipe takes)")
    parser.add_argument("--epochs", type=int, help="instead of as many as fit into --minutes")
    parser.add_argument("--data-dir", default="data", help="where data sets are read from")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"number of seeds (default: {SEEDS})")
    parser.add_argument("--config", help="YAML file with settings that differ from the recipe")
    parser.add_argument("--runs-dir", default="runs", help="folder where the teacher lies or is trained")
    given, at = options.start(parser, argv)
    target = given.target or (TOY_TARGET if at.small else TARGETS.get(given.dataset))
    if target is None:
        raise UserError(f"the paper has no accuracy for {given.dataset}: say which one with --target")
    if target >= 1:
        raise UserError(f"--target must be below 1, not {target:g}: 0.9 is 90 %")
    config = TrainConfig(
        dataset=given.dataset,
        data_dir=given.data_dir,
        runs_dir=given.runs_dir,
        device=str(at.device),
        tracker="none",
        **({"config": given.config} if given.config else {}),
        **(TOY if at.small else {}),
    )
    section = measure(at, config, target, minutes=given.minutes, epochs=given.epochs, seeds=given.seeds)
    at.show("time_to_accuracy", section)
    at.finish()
    assert at.record is not None
    picture = at.record.path.with_suffix(".svg")
    words = {"device": describe(at.record.content["device"]), "time_to_accuracy": section}
    write_atomic(picture, svg("time_to_accuracy", words) or "")
    at.say(f"drawn in {picture}")


if __name__ == "__main__":
    main()
