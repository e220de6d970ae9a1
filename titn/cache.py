"""Fill, verify, show and move caches of teachers' answers.

fill    ask the teacher ahead of a training with the same flags; goes on where it was stopped
verify  check every byte, and ask the teacher again about some of the stored answers
info    what is there and how large
export  one cache as one file; import brings it into a runs folder
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from titn.cli import parse
from titn.config import FillConfig, TrainConfig, VerifyConfig
from titn.data.dataset import Dataset
from titn.errors import OneLineParser, UserError, command, count
from titn.pipelines import Augmentation, EpochPlan, Pipeline, make_pipeline
from titn.settings import fields_of
from titn.teachers.answers import TeacherAnswers
from titn.teachers.find import AnyTeacher, find_teachers, load_teachers
from titn.train import trained
from titn.training.cache_archive import export_cache, import_cache
from titn.training.plans import EpochPlans
from titn.training.preparation import open_run, prepare
from titn.training.schedule import Schedule
from titn.training.switches import describe
from titn.training.targets import CacheFiller, StoredAnswers, kept_answers, teacher_caches
from titn.training.teacher_cache import FOLDER, MANIFEST, TeacherCache, epochs_in_words

PROGRAM = "python -m titn.cache"


@dataclass(frozen=True)
class Work:
    """One of a training's caches and what it takes to fill or to verify it.

    Attributes:
        cache: of all epochs with `augmentation`.
        augmentation: of its plans.
        epochs: numbers of the plans that the training has, from 0.
        teacher: answers.
        pipeline: makes the images that it is asked about.
        seed: of the plans.
    """

    cache: TeacherCache
    augmentation: Augmentation
    epochs: list[int]
    teacher: AnyTeacher
    pipeline: Pipeline
    seed: int

    @classmethod
    def of(cls, config: TrainConfig, console: Console, dataset: Dataset | None = None) -> list[Work]:
        """From the flags of the training; a teacher that is still to be trained is trained first.

        Raises:
            UserError: a mistake in the configuration, the data or the teacher, or there is none.
        """
        config, *_ = open_run(config)
        if config.minutes is not None:
            raise UserError("--minutes is for a training, which says how many epochs it chose: give these as --epochs")
        if not config.teachers:
            raise UserError("--teacher none has no answers to store")
        switches, dataset = prepare(config, dataset)
        schedule = Schedule.of(config, len(dataset.train_labels), switches.device.type)
        sources = find_teachers(config, dataset)
        teacher = load_teachers(trained(sources, config, dataset, "the same command", console), dataset)
        plans = EpochPlans.of(config, schedule, dataset)
        pipeline = make_pipeline(dataset, backend=switches.pipeline, device=switches.device)
        return [
            cls(cache, augmentation, plans.numbers[augmentation], teacher, pipeline, config.seed)
            for augmentation, cache in teacher_caches(config, switches, plans, dataset, teacher).items()
        ]

    def plan(self, epoch: int) -> EpochPlan:
        """The plan with this number."""
        pipeline = self.pipeline
        return EpochPlan.draw(
            self.augmentation, size=pipeline.size, image_size=pipeline.image_size, seed=self.seed, epoch=epoch
        )


def fill(
    config: TrainConfig,
    *,
    console: Console | None = None,
    dataset: Dataset | None = None,
    teacher_batch: int | None = None,
) -> list[TeacherCache]:
    """Fill the cache of a training with `config`, epoch by epoch; several processes share the work.

    Plain epochs at the end (`plain_share`) have a cache of their own, the second in the list.

    Args:
        config: of the training.
        console: where progress goes (default: standard output).
        dataset: the data set, where it is loaded already.
        teacher_batch: images per forward pass of the teacher; None: what suits the device.

    Raises:
        UserError: a mistake in the configuration, the data or the teacher.
    """
    console = console or Console()
    parts = Work.of(config, console, dataset)
    for work in parts:
        _fill_one(work, console, teacher_batch)
    return [work.cache for work in parts]


def _fill_one(work: Work, console: Console, teacher_batch: int | None) -> None:
    cache, pipeline = work.cache, work.pipeline
    line(console, f"{cache.folder}: {epochs_in_words(work.epochs)} wanted, {epochs_in_words(cache.epochs())} there")
    filler = CacheFiller(cache, lambda: work.teacher.network, lambda text: line(console, text), teacher_batch)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, expand=True, transient=True) as bar:
        task = bar.add_task(work.teacher.name, total=len(work.epochs) * pipeline.size)
        missing = [epoch for epoch in work.epochs if not cache.holds(epoch)]
        done = len(work.epochs) - len(missing)

        def show(images: int) -> None:
            bar.update(task, completed=done * pipeline.size + images)

        others = []
        for epoch in missing:
            if filler.fill_unless_claimed(work.plan(epoch), pipeline, show) is None:
                others.append(epoch)
            else:
                done += 1
        for epoch in others:
            filler.fill(work.plan(epoch), pipeline, show)
            done += 1
    if filler.epochs:
        rate = filler.epochs * pipeline.size / filler.seconds
        line(console, f"{filler.epochs} filled on {describe(pipeline.device)}, {rate:,.0f} images/s")


@dataclass(frozen=True)
class Verified:
    """Of `records` stored answers asked for again: how many decisions are the same, and how far logits are apart.

    `largest_difference` is None for hard labels.
    """

    records: int
    same_decision: int
    largest_difference: float | None


def verify(
    config: TrainConfig, sample: int, *, console: Console | None = None, dataset: Dataset | None = None
) -> Verified:
    """Read every stored epoch and ask the teacher, in plain float32, again about `sample` records chosen at random.

    The choice is the same each time for the same cache and number.

    Raises:
        UserError: there is no such cache, a file is damaged, or a mistake in the configuration.
    """
    parts = Work.of(config, console or Console(), dataset)
    cache, pipeline = parts[0].cache, parts[0].pipeline
    epochs = [(work, epoch) for work in parts for epoch in work.cache.epochs()]
    if not epochs:
        raise UserError(f"{cache.folder} holds nothing to verify")
    generator = np.random.default_rng([int(cache.digest[:8], 16), sample])
    chosen = generator.choice(len(epochs) * pipeline.size, min(sample, len(epochs) * pipeline.size), replace=False)
    answers = TeacherAnswers(parts[0].teacher.network, pipeline.device)
    same, largest = 0, None
    for number, (work, epoch) in enumerate(epochs):
        cache = work.cache
        stored = StoredAnswers(cache.read(epoch), cache.num_classes, pipeline.device)
        plan = work.plan(epoch)
        positions = np.sort(chosen[chosen // pipeline.size == number] % pipeline.size)
        for part in np.split(positions, range(64, len(positions), 64)):
            if not len(part):
                continue
            batch = pipeline.batch(plan, part)
            asked = kept_answers(answers, batch.images, cache.targets, cache.num_classes)
            new = StoredAnswers(asked, cache.num_classes, pipeline.device)(torch.arange(len(part)).to(pipeline.device))
            old = stored(batch.ids)
            if old.ndim == 2:
                largest = max(largest or 0.0, (old - new).abs().max().item())
                old, new = old.argmax(1), new.argmax(1)
            same += int((old == new).sum())
    return Verified(len(chosen), same, largest)


def line(console: Console, text: str) -> None:
    """Print a line as it is, whatever the console's width."""
    console.print(Text(text), soft_wrap=True)


def caches(runs_dir: str) -> list[TeacherCache]:
    """All caches in a runs folder that can be read."""
    return [
        TeacherCache.open(path.parent) for path in sorted((Path(runs_dir).expanduser() / FOLDER).glob(f"*/{MANIFEST}"))
    ]


def one_cache(name: str | None, runs_dir: str) -> TeacherCache:
    """The cache with this folder or name, or the only one there is.

    Raises:
        UserError: there is none, or several and no name.
    """
    if name is not None:
        folders = (Path(name).expanduser(), Path(runs_dir).expanduser() / FOLDER / name)
        return TeacherCache.open(next((each for each in folders if each.is_dir()), folders[0]))
    found = caches(runs_dir)
    if len(found) != 1:
        names = ", ".join(cache.folder.name for cache in found) or "none"
        raise UserError(f"--cache must name one of the caches in {runs_dir}: {names}")
    return found[0]


def size(cache: TeacherCache) -> int:
    """Bytes of its epochs' files."""
    return sum(cache.path(epoch).stat().st_size for epoch in cache.epochs())


def table_of(found: list[TeacherCache]) -> Table:
    """A row for each cache: epochs and sizes."""
    table = Table()
    for heading in ("cache", "images", "epochs", "size", "per epoch"):
        table.add_column(heading, justify="left" if heading == "cache" else "right", overflow="fold")
    for cache in found:
        epochs, total = cache.epochs(), size(cache)
        images = cache.identity["data"]["train"]["images"]
        per_epoch = decimal(total // len(epochs)) if epochs else ""
        table.add_row(Text(cache.folder.name), f"{images:,}", epochs_in_words(epochs), decimal(total), per_epoch)
    return table


def show_cache(cache: TeacherCache, console: Console) -> None:
    """What the answers belong to, and how they were computed."""
    manifest = cache.manifest()
    identity, measured = manifest["identity"], manifest["measured"]
    agreement = measured["agreement_with_plain_float32"]
    rows = {
        "targets": identity["targets"],
        "teacher": "; ".join(
            f"{one['architecture']}, weights {one['weights'][:12]}"
            for one in identity["teacher"].get("mean_of", [identity["teacher"]])
        ),
        "precision": identity["precision"],
        "same decision": f"{agreement['same_decision']:.2%} of {agreement['images']} images as in plain float32",
        "logits": f"up to {agreement['largest_difference']:.1e} of the largest apart from plain float32",
        "computed on": f"{measured['device']}, {measured['batch_size']} images at a time, torch {measured['torch']}",
        "seed": identity["seed"],
        "augmentation": ", ".join(f"{name} {value}" for name, value in identity["augmentation"].items()),
        "folder": cache.folder,
    }
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, Text(str(value), overflow="fold"))
    console.print(table)


def _fill(argv: list[str], console: Console) -> None:
    found = fill(_training(parse(FillConfig, argv)), console=console)
    console.print(table_of(found))
    for cache in found:
        show_cache(cache, console)


def _verify(argv: list[str], console: Console) -> None:
    config = parse(VerifyConfig, argv)
    found = verify(_training(config), config.sample, console=console)
    text = f"{found.same_decision} of {found.records} decisions are the same"
    if found.largest_difference is not None:
        text += f"; logits are up to {found.largest_difference:.2g} apart"
    line(console, f"every file is intact; {text}")
    if found.same_decision < found.records:
        raise SystemExit(1)


def _info(argv: list[str], console: Console) -> None:
    parser = _parser("info", "What is there, and how large.")
    parser.add_argument("cache", nargs="?", help="folder or name of one cache, for more about it")
    given = parser.parse_args(argv)
    if given.cache is None:
        found = caches(given.runs_dir)
        console.print(table_of(found) if found else Text(f"no teacher cache in {given.runs_dir}"))
        return
    cache = one_cache(given.cache, given.runs_dir)
    console.print(table_of([cache]))
    show_cache(cache, console)


def _export(argv: list[str], console: Console) -> None:
    parser = _parser("export", "One cache as one file.")
    parser.add_argument("file", type=Path, help="archive to write, a tar")
    parser.add_argument("--cache", help="folder or name of the cache (default: the only one there is)")
    given = parser.parse_args(argv)
    cache = one_cache(given.cache, given.runs_dir)
    epochs = export_cache(cache, given.file)
    line(
        console, f"{given.file}: {count(epochs, 'epoch')} of {cache.folder.name}, {decimal(given.file.stat().st_size)}"
    )


def _import(argv: list[str], console: Console) -> None:
    parser = _parser("import", "Bring an exported cache into a runs folder.")
    parser.add_argument("file", type=Path, help="archive that export wrote")
    given = parser.parse_args(argv)
    cache, new = import_cache(given.file, Path(given.runs_dir).expanduser())
    line(console, f"{cache.folder}: {new} new epochs, now {epochs_in_words(cache.epochs())}")


_COMMANDS = {"fill": _fill, "verify": _verify, "info": _info, "export": _export, "import": _import}


def _parser(name: str, description: str) -> OneLineParser:
    parser = OneLineParser(prog=f"{PROGRAM} {name}", description=description)
    parser.add_argument("--runs-dir", default="runs", help="folder of all run folders, which has the caches (runs)")
    return parser


def _training(config: TrainConfig) -> TrainConfig:
    """The training with these flags."""
    return TrainConfig(**{name: getattr(config, name) for name in config.said & fields_of(TrainConfig).keys()})


@command
def main(argv: list[str] | None = None) -> None:
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # on a CPU: that there is no CUDA
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in _COMMANDS:
        _COMMANDS[name](rest, Console())
        return
    parser = OneLineParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("command", choices=_COMMANDS, help="each has a --help of its own")
    parser.parse_args([name])


if __name__ == "__main__":
    main()
