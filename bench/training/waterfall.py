"""From the reference to `--fast`, one switch at a time: what a whole training does per second, and what it learns.

    python -m bench.waterfall [--dataset cifar100 --data-dir D] [--batch-size B] [--rounds 9] [--out DIR]

Every row is a short training of its own, from the same seed on the same real images: the pipeline makes the batch, the
teacher answers it, the step is taken, all by the parts that `titn.train` trains with. What `titn.train` does beside
them (evaluation, checkpoints, a plan drawn ahead) is left out. Every switch is decided by `titn.training.switches` as
with `--fast`, and stays on for those that follow; one that does not run here is listed with its reason. Rounds are
interleaved A B A B, so all have taken the same number of steps, and their losses over the last round can be compared.

One epoch of augmentation is repeated in turn (`--bank 1`), so the cached teacher's is filled once, in the first step,
which is not timed; what filling costs is reported apart. The teacher is the recipe's with fresh weights and the
statistics of one batch: a trained one takes as long.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from bench import options
from bench.options import Setting
from bench.record import described
from bench.timing import laps, require_answer
from bench.training.race import EARLY_ROUNDS, Ready, free, fresh_compiler, images_per_second, ratio, take_turns
from titn.config import TrainConfig
from titn.data.dataset import Dataset, load_dataset
from titn.errors import UserError, command
from titn.kernels.common.backend import interpreting
from titn.network import NetworkSpec, save_network
from titn.pipelines import Batch, TorchPipeline, make_pipeline
from titn.settings import flag
from titn.teachers.architectures import create_teacher
from titn.teachers.find import Teacher
from titn.training.plans import EpochPlans
from titn.training.preparation import build_step
from titn.training.schedule import Schedule
from titn.training.step import Epoch
from titn.training.switches import Switches, select
from titn.training.targets import CachedTeacher, teacher_targets

BATCH_SIZE = {"cuda": 1024, "cpu": 256}
EPOCH_STEPS = {"cuda": 16, "cpu": 4}
ROUND_STEPS = {"cuda": 10, "cpu": 1}
WARM_UPS = 2
TOY: dict[str, Any] = {"depth": 1, "image_size": 16}
TOY_BATCH_SIZE = 2
ROUNDS = 9
REFERENCE: dict[str, Any] = {
    "amp": "off",
    "compile": "off",
    "kernels": "torch",
    "pipeline": "torch",
    "teacher_cache": "off",
    "cuda_graph": "off",
}
"""What `--fast` switches on, in this order."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Planned:
    """A row to come: its name, the switch as on the command line, and the training or why the switch is off here."""

    name: str
    switch: str
    config: TrainConfig | None
    reason: str = ""


class Training:
    """A training of `config` without its evaluation and checkpoints; calling it takes one step.

    Attributes:
        losses: of every step so far, float64 scalars on the device.
        targets: where the teacher's answers come from.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset, teacher: Teacher) -> None:
        switches = select(config)
        self.device, self.losses = switches.device, list[Tensor]()
        self._backend = switches.pipeline
        self._schedule = Schedule.of(config, len(dataset.train_labels), self.device.type)
        torch.manual_seed(config.seed)
        module = NetworkSpec.of(config, dataset).build(switches.kernels).train()
        self.step = build_step(config, switches, self._schedule, module, distils=True)
        self._plans = EpochPlans.of(config, self._schedule, dataset)
        self.targets = teacher_targets(config, switches, self._plans, dataset, teacher, Console(quiet=True))
        self._steps = self._epochs(dataset)

    def _epochs(self, dataset: Dataset) -> Iterator[tuple[Batch, Tensor]]:
        pipeline = make_pipeline(dataset, backend=self._backend, device=self.device)
        plan, batch_size = self._plans.draw(0), self._schedule.batch_size
        rows = self.step.rows(pipeline, plan, batch_size)
        while True:
            self.targets.begin_epoch(plan, pipeline, lambda images: None)
            rates = [self._schedule.rate(len(self.losses) + step) for step in range(self._schedule.steps)]
            yield from self.step.epoch(Epoch(pipeline, plan, batch_size, rates, self.targets, rows=rows))

    def __call__(self) -> None:
        batch, sums = next(self._steps)
        self.losses.append(sums[0] / len(batch.ids))

    def release(self) -> None:
        """Free the gradients, which are of no use after the step."""
        self.step.optimizer.zero_grad(set_to_none=True)

    def loss(self, steps: int) -> float:
        """Mean over the last `steps` steps."""
        return float(torch.stack(self.losses[-steps:]).mean())


def measure(at: Setting, config: TrainConfig, rounds: int) -> dict[str, Any]:
    """The section "waterfall", saved whenever a training has been timed.

    Args:
        at: where, and how long.
        config: data set, batch size and, where they are not the recipe's, sizes.
        rounds: repeats.

    Returns:
        "batch_size", "dataset", "train_images", "teacher" (its architecture), "steps" (that every training has taken),
        "round_steps" (the last of them, over which losses are means) and "rows", in order: "name", "switch" (as on the
        command line, empty for the reference), and either "images_per_second", "ratio_to_last" and "ratio_to_first"
        (round by round; None for the first), "loss", "peak_bytes" (of a GPU, else None) and
        "fill_images_per_second" (of the training that filled the cache, else None), or "reason" (why the switch is off
        here). `low` and `high` are the extremes of the rounds.
    """
    with tempfile.TemporaryDirectory(prefix="titn-waterfall-") as folder:
        config = config.changed(runs_dir=folder, bank=1, device=str(at.device))
        dataset = some_images(config, at)
        config = config.changed(limit_train=len(dataset.train_labels))
        count = 1 if at.small else ROUND_STEPS[at.device.type]
        section: dict[str, Any] = {
            "batch_size": config.batch_size,
            "dataset": dataset.name,
            "train_images": len(dataset.train_labels),
            "teacher": config.teacher,
            "steps": 0,
            "round_steps": count,
            "rows": [],
        }
        planned = steps(config, at.small)
        teacher = fresh_teacher(config, dataset, Path(folder) / "teacher.safetensors")
        ready: dict[str, Ready[Training]] = {}
        reasons = {one.name: one.reason for one in planned if one.config is None}

        def take(repeats: int) -> None:
            seconds, failed = take_turns(ready, repeats, at.device)
            for name in failed:
                del ready[name]
            reasons.update(failed)
            section["steps"] = max((len(one.step.losses) for one in ready.values()), default=0)
            section["rows"] = rows_of(planned, ready, seconds, reasons, section)
            at.save("waterfall", section)

        with fresh_compiler(at.device):
            for one in planned:
                if one.config is None:
                    continue
                outcome = at.budget.refusal() or prepare(one.config, dataset, teacher, at, section["steps"], count)
                if isinstance(outcome, Ready):
                    ready[one.name] = outcome
                else:
                    reasons[one.name] = outcome
                    require_answer(at.device)
                at.say(f"{one.name}: {reasons.get(one.name, 'ready')}")
                if at.budget.seconds is not None and one.name in ready:
                    take(EARLY_ROUNDS)
            take(rounds)
            ready.clear()
            free(at.device)
    return section


def some_images(config: TrainConfig, at: Setting) -> Dataset:
    """The data set with as many training images as an epoch of the measurement has, whole batches of them.

    Raises:
        UserError: it has not enough for one.
    """
    whole = load_dataset(config.dataset, config.data_dir, image_size=config.image_size)
    assert isinstance(config.batch_size, int)
    batches = min(EPOCH_STEPS[at.device.type], len(whole.train_labels) // config.batch_size)
    if batches == 0:
        raise UserError(
            f"{config.dataset} has {len(whole.train_labels):,} training images, less than a batch of "
            f"{config.batch_size:,}: give a smaller --batch-size, or another --dataset"
        )
    images = batches * config.batch_size
    return load_dataset(config.dataset, config.data_dir, image_size=config.image_size, limit_train=images)


def fresh_teacher(config: TrainConfig, dataset: Dataset, path: Path) -> Teacher:
    """The recipe's teacher, untrained, its batch norms with the statistics of one batch; stored in `path`."""
    torch.manual_seed(config.seed)
    spec = NetworkSpec.of(config.teacher_training(config.teacher), dataset)
    network = create_teacher(config.teacher, dataset.num_classes, dataset.channels, dataset.image_size)
    pipeline = TorchPipeline(
        dataset.train_images, dataset.train_labels, mean=dataset.mean, std=dataset.std, device=torch.device("cpu")
    )
    for norm in (each for each in network.modules() if isinstance(each, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(pipeline.plain(range(min(256, pipeline.size))).images)
    save_network(path, network, spec)
    return Teacher(path, config.teacher, None)


def prepare(
    config: TrainConfig, dataset: Dataset, teacher: Teacher, at: Setting, steps: int, count: int
) -> Ready[Training] | str:
    """A training that has taken `steps` steps, at least WARM_UPS, so that it is compiled; or why it cannot run."""
    cuda = at.device.type == "cuda"
    before = torch.cuda.memory_allocated(at.device) if cuda else 0
    try:
        if cuda:
            torch.cuda.reset_peak_memory_stats(at.device)
        training = Training(config, dataset, teacher)
        laps(training, at.device, max(steps, WARM_UPS))
        peak = torch.cuda.max_memory_allocated(at.device) - before if cuda else None
        training.release()
    except UserError as error:
        return str(error)
    except Exception as error:
        reason = described(error)
    else:
        return Ready(training, peak, count)
    free(at.device)
    return reason


def rows_of(
    planned: list[Planned],
    ready: dict[str, Ready[Training]],
    seconds: dict[str, list[float]],
    reasons: dict[str, str],
    section: dict[str, Any],
) -> list[Row]:
    """The rows of what is timed or has a reason; what is still to come is left out."""
    rows, first, last = list[Row](), list[float](), list[float]()
    for one in planned:
        row: Row = {"name": one.name, "switch": one.switch}
        if one.name in reasons:
            rows.append(row | {"reason": reasons[one.name]})
        elif one.name in seconds:
            training, own = ready[one.name].step, seconds[one.name]
            filler = training.targets.filler if isinstance(training.targets, CachedTeacher) else None
            filling = section["train_images"] / filler.seconds if filler is not None and filler.epochs else None
            rows.append(
                row
                | {
                    "images_per_second": images_per_second(section["batch_size"], own),
                    "ratio_to_last": ratio(last, own) if last else None,
                    "ratio_to_first": ratio(first, own) if first else None,
                    "loss": training.loss(section["round_steps"]),
                    "peak_bytes": ready[one.name].peak_bytes,
                    "fill_images_per_second": filling,
                }
            )
            first, last = first or own, own
    return rows


def steps(config: TrainConfig, small: bool = False) -> list[Planned]:
    """The reference and what each switch adds."""
    settings = dict(REFERENCE)
    planned = [Planned("reference", "", config.changed(fast=True, **settings))]
    interpreted = small and interpreting()
    for switch in REFERENCE:
        tried = settings | {switch: "triton" if interpreted and switch == "kernels" else "auto"}
        candidate = config.changed(fast=True, **tried)
        name, decided = f"+ {switch.replace('_', ' ')}", decision(select(candidate), switch)
        if decided.value == REFERENCE[switch]:
            planned.append(
                Planned(name, flag(switch), None, "; ".join(decided.reasons) or f"{decided.value} is best here")
            )
        else:
            settings = tried
            planned.append(Planned(name, f"{flag(switch)} {decided.value}", candidate))
    return planned


def decision(switches: Switches, name: str) -> Any:
    """What was decided about the setting `name`."""
    return next(row for row in switches.rows if flag(row.name) == flag(name))


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("waterfall", __doc__, rounds=ROUNDS)
    parser.add_argument("--dataset", default="digits", help="as in titn.train (default: digits, always at hand)")
    parser.add_argument("--data-dir", default="data", help="where data sets are read from")
    default = f"{BATCH_SIZE['cuda']}, on a CPU {BATCH_SIZE['cpu']}"
    parser.add_argument("--batch-size", type=int, help=f"images per step (default: {default})")
    given, at = options.start(parser, argv, interpret=True)
    batch_size = given.batch_size or (TOY_BATCH_SIZE if at.small else BATCH_SIZE[at.device.type])
    config = TrainConfig(
        dataset=given.dataset, data_dir=given.data_dir, batch_size=batch_size, **(TOY if at.small else {})
    )
    at.show("waterfall", measure(at, config, given.rounds))
    at.finish()


if __name__ == "__main__":
    main()
