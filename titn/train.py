"""`python -m titn.train`: train a student, distilled from a teacher, from data to report."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from torch import nn

from titn.cli import parse
from titn.config import AugmentationSettings, Config, RunConfig, ScheduleSettings, TrainConfig, flag
from titn.data.dataset import Dataset, explain_difference, load_dataset
from titn.errors import Interrupted, UserError, command
from titn.metrics import classification_metrics
from titn.network import NetworkSpec
from titn.pipelines import Augmentation
from titn.profile import count_macs
from titn.provenance import source_commit
from titn.report import write_report
from titn.teachers.architectures import load_initial_weights
from titn.teachers.find import Teacher, TeacherSource, find_teacher, load_teacher
from titn.training.average import WeightAverage
from titn.training.captured import CapturedStep, take_kernels
from titn.training.optimizers import build_optimizer, check_optimizer
from titn.training.result import Result, show_result
from titn.training.run import Run, RunInUse
from titn.training.schedule import Schedule
from titn.training.step import TrainStep, compile_network, distillation_objective
from titn.training.switches import Switches, describe, native_bfloat16, select
from titn.training.targets import CachedTeacher, CacheFiller, LiveTeacher, TeacherTargets
from titn.training.teacher_cache import (
    REFILL,
    TeacherCache,
    cache_identity,
    epochs_in_words,
    kept_targets,
    other_caches,
)
from titn.training.trainer import Trainer

MAY_CHANGE = {"resume", "runs_dir", "device", "data_dir", "lr", "amp", "teacher_cache"}
"""Settings that may be given with --resume."""

TRAINING_SETTINGS = {*ScheduleSettings.__annotations__, *AugmentationSettings.__annotations__} - {"epochs"}
"""Settings that a teacher has of its own."""


@torch.enable_grad()
def train(config: RunConfig, *, console: Console | None = None, dataset: Dataset | None = None) -> Result:
    """Train a student or a teacher; a student's teacher that is given by name is trained first, unless it is there.

    Whatever can be checked is checked before anything is written, and the run has its folder before anything long
    begins.

    Args:
        config: a TrainConfig or a TeacherConfig; `resume` continues a run folder.
        console: where progress goes (default: standard output).
        dataset: the data set, where it is loaded already.

    Raises:
        UserError: a mistake in the configuration, the data or the run folder.
        Interrupted: SIGINT or SIGTERM came; the run can be resumed.
    """
    _check_surroundings()
    console = console or Console()
    config, run = open_run(config)
    switches = select(config)
    use_device(switches.device)
    dataset = load_data(config, dataset)
    schedule = Schedule.of(config, len(dataset.train_labels), switches.device.type)
    torch.manual_seed(config.seed)
    spec = NetworkSpec.of(config, dataset)
    module = spec.build(switches.kernels)
    random_state = torch.get_rng_state()
    macs = count_macs(module, dataset.channels, dataset.image_size)
    can_distil = getattr(module, "distilled", False)
    source = find_teacher(config, dataset) if config.distils_from != "none" and can_distil else None
    if source is not None and config.distillation_term["kind"] == "standardized" and dataset.num_classes < 3:
        raise UserError(
            f"{dataset.name} has {dataset.num_classes} classes, and two standardised logits are 1 and -1 in any image: "
            "choose another --distillation"
        )
    teacher = load_teacher(source.path, dataset) if source and not source.to_train else None
    if source is not None and source.to_train and config.stored_answers == "only":
        raise UserError(f"--teacher-cache only: the teacher {source.path} is still to be trained; {REFILL} first")
    targets = teacher_targets(config, switches, schedule, dataset, teacher, console) if teacher else None
    announce(config, switches, dataset, schedule, source, console)
    check_batch(schedule, module, config)
    check_optimizer(config.optimizer, module, switches.device)
    settled = config.changed(batch_size=schedule.batch_size, lr=schedule.peak)
    resumed = run is not None
    if run is None:
        if config.initial_weights is not None:
            console.print(Text(load_initial_weights(module, config.network, Path(config.initial_weights))))
        check_room(config, module)
        run = Run.create(settled, dataset.identity())
    else:
        check_same_data(run, dataset)

    with run:
        if resumed:
            run.reconfigure(settled)
        run.note({"commit": source_commit(), "device": describe(switches.device), "lr": schedule.peak})
        if source is not None and teacher is None:
            again = f"{config.program} --resume {shlex.quote(str(run.folder))}"
            teacher = load_teacher(trained(source, config, dataset, again, console), dataset)
            targets = teacher_targets(config, switches, schedule, dataset, teacher, console)
        if isinstance(targets, CachedTeacher):
            there = epochs_in_words(set(cached_epochs(config, schedule)) & set(targets.cache.epochs()))
            console.print(Text(f"Teacher cache: {targets.cache.folder}, with epochs: {there}"), soft_wrap=True)
        torch.set_rng_state(random_state)
        trainer = Trainer(
            run,
            build_step(config, switches, schedule, module, distils=targets is not None),
            schedule,
            dataset,
            augmentation_of(config, schedule.batch_size),
            seed=config.seed,
            spec=spec,
            targets=targets,
            device=switches.device,
            console=console,
            program=config.program,
            plan_epoch=config.plan_epoch,
        )
        trainer.resume()
        try:
            logits = trainer.fit()
        except (Interrupted, UserError):
            write_report(run.folder, dataset, trainer.logits)
            raise
        if isinstance(targets, CachedTeacher):
            console.print(Text(targets.summary()), soft_wrap=True)
        progress = trainer.progress
        result = Result(
            run=str(run.folder),
            **classification_metrics(logits, torch.from_numpy(dataset.test_labels)),
            best_top1=progress.best_top1,
            best_epoch=progress.best_epoch,
            average_top1=(run.metrics() or [{}])[-1].get("test_top1_average"),
            teacher=teacher.name if teacher else None,
            teacher_top1=teacher.top1 if teacher else None,
            dataset=dataset.name,
            classes=dataset.num_classes,
            train_images=len(dataset.train_labels),
            test_images=len(dataset.test_labels),
            model=spec.name,
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            macs=macs,
            epochs=schedule.epochs,
            batch_size=schedule.batch_size,
            seed=config.seed,
            images_per_second=progress.timed_images / max(progress.timed_seconds, 1e-9),
            wall_seconds=progress.wall_seconds,
            amp=str(switches.amp).removeprefix("torch.") if switches.amp else "off",
            compile=switches.compile,
            kernels=switches.kernels,
            device=describe(switches.device),
            torch=torch.__version__,
            commit=source_commit(),
        )
        run.finish({name: value for name, value in asdict(result).items() if name != "run"})
        write_report(run.folder, dataset, logits)
    return result


def use_device(device: torch.device) -> None:
    """Make `device` the current one; float32 means float32, in convolutions as in products."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False


def build_step(
    config: RunConfig, switches: Switches, schedule: Schedule, module: nn.Module, *, distils: bool
) -> TrainStep:
    """The training step of `config`; `module` goes to the device and is compiled as the switches say."""
    module.to(switches.device)
    optimizer = build_optimizer(config.optimizer, module, schedule.peak, config.weight_decay)
    average = WeightAverage(module, config.average) if config.average else None
    if switches.compile:
        compile_network(module, "graph" if switches.cuda_graph else "blocks")
    if switches.captured:
        take_kernels(module)
    term: dict[str, Any] = config.distillation_term if distils else {"kind": "none"}
    objective = distillation_objective(**term, label_smoothing=config.label_smoothing, backend=switches.kernels)
    scaler = torch.amp.GradScaler(switches.device.type, enabled=switches.amp is torch.float16)
    return (CapturedStep if switches.captured else TrainStep)(
        module,
        optimizer,
        objective,
        amp=switches.amp,
        scaler=scaler,
        cuda_graph=switches.cuda_graph and switches.compile,
        accumulate=config.accumulate,
        average=average,
    )


def augmentation_of(config: RunConfig, batch_size: int) -> Augmentation:
    """The augmentation that the configuration describes; the paper's CutMix needs to know the batch."""
    return Augmentation(
        crop_padding=config.crop_padding,
        flip=config.flip,
        policy=config.augmentation,
        mix=config.mix,
        mix_alpha=config.mix_alpha,
        mix_batch=batch_size,
    )


def teacher_cache(
    config: RunConfig, switches: Switches, schedule: Schedule, dataset: Dataset, teacher: Teacher
) -> TeacherCache:
    """The cache that a student of `config` reads: where bfloat16 answers will do, those in float32 are better.

    Raises:
        UserError: its folder is damaged or of another identity.
    """
    kept = kept_targets(config.distillation_term["kind"], config.stored_logits, dataset.num_classes)
    if config.distillation_term["kind"] == "standardized" and kept.startswith("top-"):
        raise UserError("--distillation standardized needs the spread of all logits: leave --cache-top-k out")
    rough = switches.amp is not None and native_bfloat16(switches.device)
    identities = [
        cache_identity(
            dataset,
            augmentation_of(config, schedule.batch_size),
            config.seed,
            teacher=teacher.identity,
            precision=precision,
            targets=kept,
        )
        for precision in ("float32", *["bfloat16"] * rough)
    ]
    if teacher.weights.is_dir():
        stored = TeacherCache.open(teacher.weights).identity["precision"]
        fitting = [identity for identity in identities if identity["precision"] == stored]
        cache = TeacherCache(teacher.weights, (fitting or identities)[0])
        cache.check()
        return cache
    root = Path(config.runs_dir).expanduser()
    caches = [TeacherCache.at(root, identity, dataset.name) for identity in identities]
    return next((cache for cache in caches if cache.exists), caches[-1])


def cached_epochs(config: RunConfig, schedule: Schedule) -> range:
    """The epochs, from 0, whose plans the training has."""
    return range(min(schedule.epochs, config.epochs_in_turn or schedule.epochs))


def teacher_targets(
    config: RunConfig, switches: Switches, schedule: Schedule, dataset: Dataset, teacher: Teacher, console: Console
) -> TeacherTargets:
    """Where the student's targets come from.

    Raises:
        UserError: they have to come from the cache alone, which is incomplete, damaged or not there.
    """
    if config.stored_answers == "off":
        return LiveTeacher(teacher.network, config.distillation_term["kind"], switches.amp, switches.device)
    cache = teacher_cache(config, switches, schedule, dataset, teacher)
    if config.stored_answers == "auto":
        return CachedTeacher(
            cache, CacheFiller(cache, lambda: teacher.network, lambda line: console.print(Text(line), soft_wrap=True))
        )
    if not cache.exists:
        others = other_caches(Path(config.runs_dir).expanduser(), cache.identity)
        near = f"; the nearest, {others[0][0]}, differs in {', '.join(others[0][1])}" if others else ""
        raise UserError(f"--teacher-cache only: {cache.folder} is not there{near}: {REFILL}")
    cache.require(cached_epochs(config, schedule))
    return CachedTeacher(cache, None)


def open_run(config: Config) -> tuple[Config, Run | None]:
    """The configuration to train with, and the run folder if an earlier run is to be continued.

    Raises:
        UserError: the run to continue is missing or of the other kind, or settings are given that it has already.
    """
    if config.resume is None:
        return config, None
    run = Run.find(config.resume, config.runs_dir)
    stored = run.config(config.data_dir if "data_dir" in config.said else None)
    if not isinstance(stored, type(config)):
        raise UserError(
            f"{run.folder} is a run of {stored.program}: {stored.program} --resume {run.folder} continues it"
        )
    for name in sorted(config.said - MAY_CHANGE):
        has = getattr(stored, name)
        if getattr(config, name) not in (None, "auto", has):
            raise UserError(f"--resume goes on with the run's own configuration ({has}): drop {flag(name)}")
    changes = {name: getattr(config, name) for name in config.said & MAY_CHANGE - {"resume", "runs_dir", "data_dir"}}
    return stored.changed(**changes, runs_dir=str(run.folder.parent)), run


def load_data(config: RunConfig, dataset: Dataset | None) -> Dataset:
    """The configured data set, or the one given.

    Raises:
        UserError: it cannot be read, or the configuration asks for another than the one given.
    """
    if dataset is None:
        return load_dataset(
            config.dataset, config.data_dir, image_size=config.image_size, limit_train=config.limit_train
        )
    images = len(dataset.train_labels)
    if config.image_size != dataset.image_size or config.limit_train not in (None, images):
        raise UserError(
            f"the data set given has {images} training images of {dataset.image_size} pixels, the configuration asks "
            f"for {config.limit_train or 'all'} of {config.image_size}: leave limit_train out, and give image_size"
        )
    return dataset


def announce(
    config: RunConfig,
    switches: Switches,
    dataset: Dataset,
    schedule: Schedule,
    teacher: TeacherSource | None,
    console: Console,
) -> None:
    """Say what is about to be done, and what of the settings does nothing."""
    console.print(Text.assemble("Training ", (config.network, "bold")))
    switches.show(console)
    lines = [
        f"{dataset.name}: {len(dataset.train_labels):,} training and {len(dataset.test_labels):,} test images, "
        f"{dataset.num_classes} classes, {dataset.channels}x{dataset.image_size}x{dataset.image_size}",
        f"{schedule.epochs} epoch{'s' * (schedule.epochs > 1)}, batch size {schedule.batch_size}, "
        f"learning rate {schedule.peak:.3g}",
    ]
    if config.batch_size != "auto" and config.batch_size > schedule.batch_size:
        lines.append(f"--batch-size {config.batch_size} is more than all training images: {schedule.batch_size} it is")
    if teacher is None and config.distils_from != "none":
        lines.append(f"{config.network} has no distillation token: it trains without a teacher")
    lines += [*dataset.notes, *config.without_effect]
    if teacher is not None:
        lines.append(f"Teacher: {teacher.path}" + (", to be trained first" if teacher.to_train else ""))
        lines += teacher.notes
        own = sorted(config.said & TRAINING_SETTINGS)
        if teacher.to_train and own:
            lines.append(f"{', '.join(map(flag, own))} of the student: its teacher's are set by --teacher-settings")
    if switches.compile:
        lines.append("The first step compiles: about a minute where this network was never compiled before")
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def check_batch(schedule: Schedule, module: nn.Module, config: RunConfig) -> None:
    """Raise UserError for a batch that cannot be cut as asked, or that batch normalisation cannot normalise."""
    smallest = schedule.batch_size // config.accumulate
    if smallest == 0:
        raise UserError(f"--accumulate {config.accumulate} is more than the {schedule.batch_size} images of a batch")
    normalises = any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in module.modules())
    if smallest == 1 and normalises:
        raise UserError(
            f"{config.network} normalises over the batch and needs --batch-size 2 or more, not 1"
            if config.accumulate == 1
            else f"{config.network} normalises over the batch: --accumulate {config.accumulate} leaves it one image"
        )


def check_room(config: RunConfig, module: nn.Module) -> None:
    """Raise UserError unless the disk has room for the checkpoints, up to three of weights and optimiser state."""
    folder = next(each for each in (Path(config.runs_dir).expanduser().resolve(), *_parents(config)) if each.exists())
    moments = 2 if config.optimizer in ("adam", "adamw", "muon") else 1
    needed = (
        3
        * (1 + moments + bool(config.average))
        * sum(value.numel() * value.element_size() for value in module.state_dict().values())
    )
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"--runs-dir {config.runs_dir} has {free / 2**20:,.0f} MiB free, the checkpoints of this run need about "
            f"{needed / 2**20:,.0f} MiB; free some space or choose another folder"
        )


def trained(teacher: TeacherSource, config: RunConfig, dataset: Dataset, again: str, console: Console) -> Path:
    """Path of the teacher, trained now if it has to be; one that another process is training is waited for.

    Raises:
        Interrupted: the training was stopped; `again` is the command that goes on.
    """
    while teacher.to_train is not None:
        try:
            train(teacher.to_train, console=console, dataset=dataset)
        except RunInUse:
            _wait_for(teacher.path, console)
        except Interrupted as stopped:
            message = f"stopped while training the teacher, everything is saved; continue with: {again}"
            raise Interrupted(stopped.signal_number, message) from None
        teacher = find_teacher(config, dataset)
    return teacher.path


def _wait_for(folder: Path, console: Console) -> None:
    """Wait until no other process holds the run in `folder`."""
    run = Run.find(str(folder))
    run.lock(waiting=lambda: console.print(Text(f"waiting for another process that trains {folder}"), soft_wrap=True))
    run.close()


def check_same_data(run: Run, dataset: Dataset) -> None:
    """Raise UserError where the data set is not the one that the run was begun with."""
    difference = explain_difference(run.dataset(), dataset.identity())
    if difference is not None:
        raise UserError(
            f"{dataset.name} is not what it was when {run.folder} was begun ({difference}): bring the data back as it "
            "was, or begin a new run"
        )


def _parents(config: RunConfig) -> tuple[Path, ...]:
    return tuple(Path(config.runs_dir).expanduser().resolve().parents)


def _check_surroundings() -> None:
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1":
        raise UserError(
            f"{count} processes were started (WORLD_SIZE), but a run is one process: start it without torchrun"
        )
    if torch.get_default_dtype() != torch.float32:
        raise UserError(f"torch's default dtype is {torch.get_default_dtype()}: set it back to torch.float32 to train")


@command
def main(argv: list[str] | None = None) -> None:
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # on a CPU: that there is no CUDA
    console = Console()
    result = train(parse(TrainConfig, argv), console=console)
    folder = shlex.quote(result.run)
    show_result(
        result,
        console,
        ("Evaluate it again", f"python -m titn.evaluate {folder}"),
        ("Learning curves", f"tensorboard --logdir {folder}/tensorboard"),
    )


if __name__ == "__main__":
    main()
