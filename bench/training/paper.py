"""The paper's tables, trained: every row beside the numbers that the paper prints for it.

    python -m bench.paper --table students|teachers|optimisers|patch|mixup [--minutes M | --epochs E] [--data-dir D]

Each row is `python -m titn.train --fast` (of a teacher `titn.teacher`) with the data set's recipe and what the row
changes, over the same seeds; students share one teacher. Scores are the last epoch's on the whole test set, which is
evaluated once, at the end; only a teacher of the recipe's own length is watched on it. `--split development` evaluates
on a tenth of the training images instead, for choices.

Without `--minutes` rows have the recipe's own length: a matter of hours on a GPU. With it, a rehearsal of every network
decides once how many images and epochs all rows get (`shares`), which is remembered in --runs-dir. The same command
goes on where it was stopped, reads what is finished, and says of the other rows that they are not run.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import options
from bench.options import Setting
from bench.training import accuracy
from bench.training.accuracy import MACHINE, RESERVE, shared_teacher, shortened
from bench.training.paired import digest_of, part_of, trained
from bench.training.paper_tables import DATASETS, TABLES, Entry
from titn.config import RunConfig, TrainConfig
from titn.data.dataset import Dataset, development_split, load_dataset
from titn.errors import UserError, command
from titn.files import read_json, write_atomic
from titn.metrics import confidence_interval
from titn.network import NetworkSpec
from titn.profile import profile
from titn.teachers.find import find_teachers
from titn.train import train
from titn.training import rehearsal
from titn.training.run import Run
from titn.training.schedule import Schedule

SEEDS = 1
FEWEST_EPOCHS = 8
"""Of a shortened training: where time is short for that, it learns from fewer images."""
REHEARSED_STEPS = 6
"""On a CPU; a GPU takes more in less time."""
FORWARD = 1 / 3
"""Of a training step's time, what an image that is only evaluated takes: a backward pass is two forward ones."""
CURVE_POINTS = 100
SCORES = ("top1", "top5", "precision", "recall", "f1")
TOY_ENTRIES = 2
TOY = {**accuracy.TOY, "dataset": "digits", "teacher": "small_cnn"}

Section = dict[str, Any]


@dataclass(frozen=True)
class Share:
    """How long the rows of a data set are trained: on so many images (None: all) for so many epochs (None: recipe)."""

    images: int | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class Training:
    """An entry on a data set with a seed; `config` is a student's, also for a teacher's row."""

    entry: Entry
    config: TrainConfig
    seed: int = 0


def measure(
    at: Setting,
    table: str,
    configs: Mapping[str, TrainConfig],
    *,
    share: Share | None = None,
    minutes: float | None = None,
    seeds: int = SEEDS,
    split: str = "test",
) -> Section:
    """The section "paper" of one table, saved after every training.

    Args:
        at: where.
        table: a key of TABLES.
        configs: by the data sets of the table that are trained, the settings of every row but for network and seed.
        share: how long; None: see `minutes`.
        minutes: time for what is not finished yet, rehearsals included; None: as long as it takes.
        seeds: how many, from 0.
        split: what is evaluated on, "test" or "development".

    Returns:
        "table", "split", "planned_seeds" and "rows", in the paper's order, data set by data set: "dataset", "label",
        "network", "is_teacher", "changes", "images", "epochs", "parameters", "macs" and "gflops" (in the paper's
        counting, of 1024 images), "paper" (its numbers as `Facts`), "settings" (the TrainConfig, but for folders and
        device), "runs" ("seed", "run", the scores, "seconds", "commit"), "mean" of each score and "interval95" of top-1
        (None for fewer than one or two runs), "curve" of the first run (pairs of epoch and training top-1) and "reason"
        why runs are missing ("" where none is).
    """
    quiet = at.console if at.console.is_terminal else Console(quiet=True)
    ends = math.inf if minutes is None else time.perf_counter() + 60 * minutes
    section: Section = {"table": table, "split": split, "planned_seeds": seeds, "rows": []}
    pending: list[tuple[Section, Training, Dataset]] = []
    for name, config in configs.items():
        entries = [entry for entry in TABLES[table] if name in entry.paper]
        entries = [toy_of(entry) for entry in entries[:TOY_ENTRIES]] if at.small else entries
        whole = data_of(config, split, config.limit_train)
        given = share
        if given is None and minutes is not None:
            given = remembered(at, config, entries, whole, 60 * minutes / len(configs), seeds, split)
        own, data = cut(config, whole, given or Share(), split)
        for entry in entries:
            training = Training(entry, of_entry(own, entry))
            row = row_of(training, name, data)
            section["rows"].append(row)
            pending += [(row, dataclasses.replace(training, seed=seed), data) for seed in range(seeds)]
    for row, training, data in sorted(pending, key=lambda each: each[1].seed):
        name = f"{row['dataset']}, {row['label']}, seed {training.seed}"
        try:
            run = finished(training, data, quiet, over=time.perf_counter() > ends)
        except UserError as error:
            row["reason"] = str(error)
            at.say(f"{name}: {error}")
        else:
            add(row, run, training.seed)
            at.say(f"{name}: {row['runs'][-1]['top1']:.2%}")
        at.save("paper", section)
    return section


def toy_of(entry: Entry) -> Entry:
    """The entry with the smallest teacher in place of its own."""
    return dataclasses.replace(entry, network=TOY["teacher"] if entry.is_teacher else entry.network)


def data_of(config: TrainConfig, split: str, images: int | None) -> Dataset:
    """The data set of so many training images; of a "development" split with a tenth of the others as test images."""
    if split == "test":
        return load_dataset(config.dataset, config.data_dir, image_size=config.image_size, limit_train=images)
    whole = development_split(load_dataset(config.dataset, config.data_dir, image_size=config.image_size))
    return part_of(whole, images or len(whole.train_labels), len(whole.test_labels))


def cut(config: TrainConfig, whole: Dataset, share: Share, split: str) -> tuple[TrainConfig, Dataset]:
    """The configuration and data of so many images and epochs; students are evaluated once, after the last epoch.

    So is a teacher whose training is shortened; one with the recipe's own length is the one that titn.train has.
    """
    if share.images is not None and share.images < len(whole.train_labels):
        config, whole = config.changed(limit_train=share.images), data_of(config, split, share.images)
    if share.epochs is not None:
        config = shortened(config, share.epochs)
        once = config.teacher_settings | {"eval_every": config.teacher_epochs}
        config = config.changed(teacher_settings=once)
    return config.changed(eval_every=config.epochs), whole


def of_entry(config: TrainConfig, entry: Entry) -> TrainConfig:
    """The student's training of an entry; of a teacher's, one that asks for that teacher."""
    if entry.is_teacher:
        return config.changed(teacher=entry.network, teacher_settings=config.teacher_settings | entry.settings)
    return config.changed(model=entry.network, **entry.settings)


def row_of(training: Training, dataset: str, data: Dataset) -> Section:
    """A row without runs."""
    entry, config = training.entry, training.config
    counts = profile(entry.network, data.num_classes, data.channels, data.image_size)
    return {
        "dataset": dataset,
        "label": entry.label,
        "network": entry.network,
        "is_teacher": entry.is_teacher,
        "changes": entry.settings,
        "images": len(data.train_labels),
        "epochs": config.teacher_training(entry.network).epochs if entry.is_teacher else config.epochs,
        "parameters": counts.parameters,
        "macs": counts.macs_forward,
        "gflops": counts.paper_gflops,
        "paper": dataclasses.asdict(entry.paper[dataset]),
        "settings": settings_of(config),
        "runs": [],
        "mean": dict.fromkeys(SCORES),
        "interval95": None,
        "curve": [],
        "reason": "",
    }


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """What a training depends on, but for its seed."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in MACHINE}


def add(row: Section, run: Run, seed: int) -> None:
    """Put a finished run into its row."""
    result = run.result() or {}
    kept = {name: result[name] for name in SCORES} | {"seconds": result["wall_seconds"], "commit": result["commit"]}
    row["runs"].append({"seed": seed, "run": run.folder.name, **kept})
    row["mean"] = {name: statistics.fmean(each[name] for each in row["runs"]) for name in SCORES}
    row["interval95"] = confidence_interval([each["top1"] for each in row["runs"]])
    if not row["curve"]:
        lines = run.metrics()
        every = math.ceil(len(lines) / CURVE_POINTS)
        row["curve"] = [[line["epoch"], line["train_top1"]] for line in lines[::-every][::-1]]


def finished(training: Training, data: Dataset, console: Console, *, over: bool) -> Run:
    """The run of a training: read where it is finished, else trained now.

    Args:
        training: what to train.
        data: on what.
        console: where progress goes.
        over: whether the time is over, so that nothing is trained.

    Raises:
        UserError: it is not finished and the time is over, another process trains it, or it diverged.
        Interrupted: stopped; the same command goes on.
    """
    entry, config, seed = training.entry, training.config, training.seed
    not_run = UserError("not run: the time was over")
    if entry.is_teacher:
        config = config.changed(teacher_settings=config.teacher_settings | ({"seed": seed} if seed else {}))
    elif not getattr(NetworkSpec.of(config, data).build(), "distilled", False):
        config = config.changed(teacher="none")
    if over and any(source.to_train for source in find_teachers(config, data)):
        raise not_run
    config, _ = shared_teacher(config, data, console)
    if entry.is_teacher:
        return Run(Path(config.teacher))
    own = settings_of(config) | {"teacher": Path(config.teacher).name}
    name = f"paper-{data.name}-{config.model}-{digest_of(own, data.identity())}-seed{seed}"
    run = Run(Path(config.runs_dir).expanduser() / name)
    if over and not ((run.folder / "config.yaml").is_file() and run.result() is not None):
        raise not_run
    return trained(config.changed(name=name, seed=seed), data, console)


# How many images and epochs fit


def remembered(
    at: Setting, config: TrainConfig, entries: Sequence[Entry], whole: Dataset, seconds: float, seeds: int, split: str
) -> Share:
    """What the first such command has decided: see `shares`."""
    names = [[entry.label, entry.network, entry.settings] for entry in entries]
    digest = digest_of(settings_of(config), names, whole.identity(), seconds, seeds, split, at.device.type)
    path = Path(config.runs_dir).expanduser() / f"paper-{whole.name}-{digest}.json"
    if path.is_file():
        return Share(**read_json(path))
    share = shares(config, entries, whole, seconds, seeds)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(dataclasses.asdict(share)) + "\n")
    at.say(f"{whole.name}: {share.images or len(whole.train_labels):,} images, {share.epochs} epochs")
    return share


def shares(config: TrainConfig, entries: Sequence[Entry], whole: Dataset, seconds: float, seeds: int) -> Share:
    """How many images and epochs every row gets, so that all trainings fit into `seconds`, rehearsal included.

    That gives what an image costs each network. All rows see the same number of images in all: all images of
    the data set at least FEWEST_EPOCHS times, or else fewer images so often.

    Raises:
        UserError: not even a batch of each row fits.
    """
    began = time.perf_counter()
    costs = rehearsed(config, entries, whole)
    seconds -= time.perf_counter() - began
    each = seeds * sum(costs[entry.network] for entry in entries)
    if config.teacher in costs and config.teacher not in [entry.network for entry in entries]:
        each += costs[config.teacher]
    evaluated = FORWARD * len(whole.test_labels) * each
    passes = math.floor(((1 - RESERVE) * seconds - evaluated) / each)
    images = min(len(whole.train_labels), passes // FEWEST_EPOCHS)
    fewest = Schedule.of(config, len(whole.train_labels)).batch_size if config.batch_size != "auto" else 32
    if images < max(fewest, whole.num_classes):
        needed = (each * max(fewest, whole.num_classes) * FEWEST_EPOCHS + evaluated) / (1 - RESERVE) / 60
        raise UserError(f"too little time for {whole.name}: its rows need about {needed:.0f} --minutes at least")
    epochs = min(config.epochs, passes // images)
    return Share(None if images == len(whole.train_labels) else images, epochs)


def rehearsed(config: TrainConfig, entries: Sequence[Entry], whole: Dataset) -> dict[str, float]:
    """Seconds that one image of training takes each network, and the teacher; what is stored of it is thrown away."""
    batch = 64 if config.batch_size == "auto" and config.device == "cpu" else Schedule.of(config, 10**6).batch_size
    steps = REHEARSED_STEPS if config.device == "cpu" else rehearsal.REHEARSED_STEPS
    images = min(len(whole.train_labels), steps * batch)
    some = dataclasses.replace(
        whole, train_images=whole.train_images[:images], train_labels=whole.train_labels[:images], train_keys=None,
        test_images=whole.test_images[:batch], test_labels=whole.test_labels[:batch], fingerprint="",
    )  # fmt: skip
    short: dict[str, Any] = {"epochs": 2, "warmup_epochs": 0.0, "batch_size": min(batch, images), "limit_train": None}
    costs: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="titn-rehearsal-") as folder:

        def cost(own: RunConfig, name: str) -> float:
            train(own.changed(**short, runs_dir=folder, name=name), console=Console(quiet=True), dataset=some)
            first, second = Run(Path(folder) / name).metrics()
            seconds: float = second["seconds"] - first["seconds"]
            return seconds / images

        students = [entry for entry in entries if not entry.is_teacher]
        teachers = {entry.network: of_entry(config, entry) for entry in entries if entry.is_teacher}
        if students and config.teacher != "none":
            teachers = {config.teacher: config} | teachers
        for network, own in teachers.items():
            costs[network] = cost(own.teacher_training(network), f"teacher-{network}")
        taught = config.changed(teacher=f"{folder}/teacher-{config.teacher}") if students else config
        for entry in students:
            costs[entry.network] = cost(taught.changed(model=entry.network, **entry.settings), entry.network)
    return costs


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("paper", __doc__)
    parser.add_argument("--table", choices=tuple(TABLES), default="students", help="of the paper (default: students)")
    parser.add_argument("--dataset", choices=DATASETS, action="append", help="only this one; repeatable (default: all)")
    parser.add_argument("--minutes", type=float, help="time for everything (default: as long as the recipes take)")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's, or of as many as fit into --minutes")
    parser.add_argument("--images", type=int, help="training images (default: all, or as many as fit into --minutes)")
    parser.add_argument("--data-dir", default="data", help="where data sets are read from")
    parser.add_argument("--runs-dir", default="runs", help="folder of the run folders")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"number of seeds (default: {SEEDS})")
    parser.add_argument("--split", choices=("test", "development"), default="test", help="what is evaluated on")
    parser.add_argument("--config", help="YAML file with settings of every row that differ from the recipe")
    given, at = options.start(parser, argv)
    printed = {name for entry in TABLES[given.table] for name in entry.paper}
    datasets = [name for name in given.dataset or DATASETS if name in printed]
    if not datasets:
        raise UserError(f"the paper's table of {given.table} has no {given.dataset[0]}: it has {', '.join(printed)}")
    configs = {
        name: TrainConfig(
            **{"dataset": name, "data_dir": given.data_dir, "runs_dir": given.runs_dir, "device": str(at.device)}
            | {"fast": True}
            | ({"config": given.config} if given.config else {})
            | (TOY if at.small else {})
        )
        for name in datasets
    }
    share = Share(given.images, given.epochs) if given.images or given.epochs else None
    section = measure(
        at, given.table, configs, share=share, minutes=given.minutes, seeds=given.seeds, split=given.split
    )
    at.show("paper", section)
    if missing := len(section["rows"]) * given.seeds - sum(len(row["runs"]) for row in section["rows"]):
        at.say(f"{missing} trainings are not run: the same command goes on")
        return
    at.finish()


if __name__ == "__main__":
    main()
