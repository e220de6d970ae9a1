"""What a training needs before it begins: the run to go on with, the data, checks, what is said, the step."""

from __future__ import annotations

import difflib
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor, nn

from titn.config import Config, RunConfig
from titn.data.dataset import Dataset, explain_difference, load_dataset, validation_split
from titn.data.splits import listing
from titn.errors import UserError, count
from titn.kernels.inner_block.op import LARGEST_LENGTH
from titn.kernels.short_attention.op import MAX_TOKENS
from titn.models.tnt import TransformerInTransformer
from titn.own_parts import load_parts
from titn.pipelines import DaliPipeline
from titn.settings import AugmentationSettings, ScheduleSettings, fields_of, flag
from titn.teachers.architectures import is_teacher
from titn.teachers.find import TeacherSource
from titn.training import checkpoint
from titn.training.average import WeightAverage
from titn.training.captured import CapturedStep, take_kernels
from titn.training.captured_epochs import CapturedEpochs
from titn.training.optimizers import build_optimizer, check_optimizer
from titn.training.phases import Phases
from titn.training.plans import augmentation_of
from titn.training.run import Run
from titn.training.schedule import Schedule
from titn.training.step import TrainStep, compile_network, distillation_objective
from titn.training.switches import Switches, select
from titn.training.teacher_cache import REFILL

MAY_CHANGE = {
    "resume",
    "runs_dir",
    "device",
    "data_dir",
    "lr",
    "amp",
    "teacher_cache",
    "epochs",
    "patience",
    "import_",
    "tracker",
}
"""Settings that may be given with --resume, `epochs` only if they are more."""

TRAINING_SETTINGS = {*ScheduleSettings.__annotations__, *AugmentationSettings.__annotations__} - {"epochs"}
"""Settings that a teacher has of its own."""


def check_surroundings() -> None:
    """Raise UserError where torchrun or a changed default of torch would lead a training astray."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1":
        raise UserError(
            f"{count} processes were started (WORLD_SIZE), but a run is one process: start it without torchrun"
        )
    if torch.get_default_dtype() != torch.float32:
        raise UserError(f"torch's default dtype is {torch.get_default_dtype()}: set it back to torch.float32 to train")


def use_device(device: torch.device) -> None:
    """Make `device` the current one; float32 means float32, in convolutions as in products."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False


def open_run(config: Config) -> tuple[Config, Run | None, Path | None]:
    """The configuration to train with, and if an earlier run is to be continued, its folder and perhaps the checkpoint.

    Raises:
        UserError: the run to continue is missing or of the other kind, or settings are given that it has already.
    """
    load_parts(config.import_)
    if config.resume is None:
        return config, None, None
    start = checkpoint.of_run(Path(config.resume).expanduser())
    run = Run(start.parent.parent) if start else Run.find(config.resume, config.runs_dir)
    stored = run.config(config.data_dir if "data_dir" in config.said else None)
    if not isinstance(stored, type(config)):
        raise UserError(
            f"{run.folder} is a run of {stored.program}: {stored.program} --resume {run.folder} continues it"
        )
    load_parts(stored.import_ if config.import_ is None else config.import_)
    for name in sorted(config.said - MAY_CHANGE):
        has = getattr(stored, name)
        if getattr(config, name) not in (None, "auto", has):
            raise UserError(f"--resume goes on with the run's own configuration ({has}): drop {flag(name)}")
    changes = {name: getattr(config, name) for name in config.said & MAY_CHANGE - {"resume", "runs_dir", "data_dir"}}
    if "epochs" in changes and config.epochs < stored.epochs:
        raise UserError(f"--resume may add epochs to the run's {stored.epochs}, not take any: drop --epochs")
    for name in {"small_share", "shallow_share"} & fields_of(type(stored)).keys() if "epochs" in changes else ():
        changes[name] = round(getattr(stored, name) * stored.epochs) / config.epochs  # it ends where it ended
    to_train = [name for name in stored.teachers if is_teacher(name)]
    if "epochs" in changes and to_train:  # teachers, which have as many epochs as their student once had
        changes["teacher_epochs"] = stored.teacher_training(to_train[0]).epochs
    return stored.changed(**changes, runs_dir=str(run.folder.parent)), run, start


def prepare(config: RunConfig, dataset: Dataset | None) -> tuple[Switches, Dataset]:
    """What is on, with its device made the current one, and the data set: the configured one, or the one given.

    Images of a folder stay in their files where --pipeline dali asks for it, or where they do not fit into memory and
    DALI can run: then it makes the batches.

    Raises:
        UserError: something that was asked for cannot run here, or as of `load_data`.
    """
    switches = select(config)
    use_device(switches.device)
    in_files = None if config.pipeline == "auto" and not DaliPipeline.reasons(switches.device, 0) else False
    dataset = load_data(config, dataset, in_files=True if config.pipeline == "dali" else in_files)
    if dataset.in_files and switches.pipeline != "dali":
        if config.pipeline != "auto":
            raise UserError(f"--pipeline {config.pipeline} needs the images in memory; use --pipeline dali")
        switches = select(config.changed(pipeline="dali"))
    return switches, dataset


def load_data(config: RunConfig, dataset: Dataset | None, *, in_files: bool | None = False) -> Dataset:
    """The configured data set, or the one given; `in_files` as of `load_dataset`.

    Raises:
        UserError: it cannot be read, or the configuration asks for another than the one given.
    """
    if dataset is None:
        return stored_data(config, in_files=in_files)
    if config.validation and not dataset.validation:
        dataset = validation_split(dataset, config.validation)
    images = len(dataset.train_labels)
    if config.image_size != dataset.image_size or config.limit_train not in (None, images):
        raise UserError(
            f"the data set given has {images} training images of {dataset.image_size} pixels, the configuration asks "
            f"for {config.limit_train or 'all'} of {config.image_size}: leave limit_train out, and give image_size"
        )
    return dataset


def stored_data(config: RunConfig, *, in_files: bool | None = False) -> Dataset:
    """The configured data set; `in_files` as of `load_dataset`.

    Raises:
        UserError: it cannot be read.
    """
    return load_dataset(
        config.dataset,
        config.data_dir,
        image_size=config.image_size,
        limit_train=config.limit_train,
        skip_bad_images=config.skip_bad_images,
        validation=config.validation,
        in_files=in_files,
    )


def announce(
    config: RunConfig,
    switches: Switches,
    dataset: Dataset,
    schedule: Schedule,
    module: nn.Module,
    teachers: Sequence[TeacherSource],
    console: Console,
) -> None:
    """Say what is about to be done, and what of the settings does nothing."""
    console.print(Text.assemble("Training ", (config.network, "bold")))
    switches.show(console)
    lines = [
        f"{dataset.name}: {_counts(dataset)} images, {dataset.num_classes} classes, "
        f"{dataset.channels}x{dataset.image_size}x{dataset.image_size}",
        f"{count(schedule.epochs, 'epoch')}, batch size {schedule.batch_size}, learning rate {schedule.peak:.3g}",
    ]
    if config.batch_size != "auto" and config.batch_size > schedule.batch_size:
        lines.append(f"--batch-size {config.batch_size} is more than all training images: {schedule.batch_size} it is")
    if config.teachers and not teachers:
        lines.append(f"{config.network} has no distillation token: it trains without a teacher")
    lines += Phases.of(config, schedule).words(module)
    if plain := round(config.plain_share * schedule.epochs):
        lines.append(f"The last {count(plain, 'epoch')} with crop and flip alone")
    lines += [*dataset.notes, *config.without_effect]
    for teacher in teachers:
        lines.append(f"Teacher: {teacher.path}" + (", to be trained first" if teacher.to_train else ""))
        lines += teacher.notes
    if len(teachers) > 1:
        lines.append(f"The mean of the logits of {len(teachers)} teachers teaches")
    own = sorted(config.said & TRAINING_SETTINGS)
    if own and any(teacher.to_train for teacher in teachers):
        lines.append(f"{', '.join(map(flag, own))} of the student: its teacher's are set by --teacher-settings")
    if switches.compile:
        lines.append("The first step compiles: about a minute where this network was never compiled before")
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _counts(dataset: Dataset) -> str:
    """How many images each split has."""
    counts = [f"{len(dataset.train_labels):,} training"]
    if dataset.validates and dataset.val_labels is not None:
        counts.append(f"{len(dataset.val_labels):,} validation")
    return ", ".join(counts) + f" and {len(dataset.test_labels):,} test"


def check_fit(
    config: RunConfig,
    switches: Switches,
    schedule: Schedule,
    dataset: Dataset,
    module: nn.Module,
    teachers: Sequence[TeacherSource],
) -> None:
    """Raise UserError for settings that do not go together: batch, optimiser, distillation, cached teacher."""
    check_optimizer(config.optimizer, module, switches.device)
    augmentation_of(config, schedule.batch_size)
    Phases.of(config, schedule).check(module)
    if config.patience is not None and not dataset.validates:
        raise UserError(
            f"--patience needs a validation split, which {dataset.name} has not: test images decide nothing; take "
            "--validation 0.1 of the training images"
        )
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
    if switches.kernels != "torch" and isinstance(module, TransformerInTransformer):
        _check_kernels(config, module)
    if not teachers:
        return
    if config.distillation_term["kind"] == "standardized" and dataset.num_classes < 3:
        raise UserError(
            f"{dataset.name} has {dataset.num_classes} classes, and two standardised logits are 1 and -1 in any image: "
            "choose another --distillation"
        )
    for teacher in teachers:
        if teacher.to_train and config.stored_answers == "only":
            raise UserError(f"--teacher-cache only: the teacher {teacher.path} is still to be trained; {REFILL} first")


def _check_kernels(config: RunConfig, module: TransformerInTransformer) -> None:
    """Raise UserError where patches or pixels that were asked for are more than the fused operations take."""
    for name, found, what, most in (
        ("pixel_size", module.sizes.num_pixels, "pixels of a patch", LARGEST_LENGTH),
        ("patch_size", module.num_tokens, "tokens of an image", MAX_TOKENS),
    ):
        if config.said & {"patch_size", "pixel_size"} and found > most:
            raise UserError(
                f"{found} {what} are more than the fused operations take, {most}: choose another {flag(name)}, or "
                "--kernels torch"
            )


def check_room(config: RunConfig, module: nn.Module) -> None:
    """Raise UserError unless the disk has room for the checkpoints, up to three of weights and optimiser state."""
    place = Path(config.runs_dir).expanduser().resolve()
    folder = next(each for each in (place, *place.parents) if each.exists())
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


def check_same_data(run: Run, dataset: Dataset) -> None:
    """Raise UserError where the data set is not the one that the run was begun with."""
    difference = explain_difference(run.dataset(), dataset.identity())
    if difference is not None:
        raise UserError(
            f"{dataset.name} is not what it was when {run.folder} was begun ({difference}): bring the data back as it "
            "was, or begin a new run"
        )


def class_weights(asked: str, labels: np.ndarray, class_names: Sequence[str]) -> Tensor | None:
    """Weight of each class in the cross-entropy, float32 [K]; None where all are 1.

    "balanced" is inverse to the number of training images, so that the mean over these is 1. Weights that are given are
    taken as they are.

    Raises:
        UserError: no such class, or a weight is no number of at least 0.
    """
    if asked == "none":
        return None
    counts = np.bincount(labels, minlength=len(class_names))
    if asked == "balanced":
        present = counts > 0
        found = np.where(present, len(labels) / (present.sum() * np.maximum(counts, 1)), 0.0)
        return torch.from_numpy(found.astype(np.float32))
    weights = torch.ones(len(class_names))
    for pair in asked.split(","):
        name, equals, value = pair.strip().rpartition("=")
        if not equals:
            raise UserError(f"--class-weights takes none, balanced or NAME=WEIGHT,..., not {asked!r}")
        if name not in class_names:
            close = difflib.get_close_matches(name, class_names, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {listing(class_names)}"
            raise UserError(f"--class-weights: there is no class {name!r}; {hint}")
        try:
            weights[list(class_names).index(name)] = weight = float(value)
        except ValueError:
            weight = math.nan
        if not 0 <= weight < math.inf:
            raise UserError(f"--class-weights {name}={value}: a weight is a number of at least 0")
    return weights


def build_step(
    config: RunConfig,
    switches: Switches,
    schedule: Schedule,
    module: nn.Module,
    *,
    distils: bool,
    class_weights: Tensor | None = None,
) -> TrainStep:
    """The training step of `config`; `module` goes to the device and is compiled as the switches say."""
    module.to(switches.device)
    optimizer = build_optimizer(
        config.optimizer,
        module,
        schedule.peak,
        config.weight_decay,
        momentum=config.momentum,
        betas=(config.beta1, config.beta2),
    )
    Phases.of(config, schedule).begin(module, optimizer)
    average = WeightAverage(module, config.average) if config.average else None
    if switches.compile:
        compile_network(module, "graph" if switches.cuda_graph else "blocks")
    if switches.captured:
        take_kernels(module)
    term: dict[str, Any] = config.distillation_term if distils else {"kind": "none"}
    if class_weights is not None:
        class_weights = class_weights.to(switches.device)
    objective = distillation_objective(
        **term, label_smoothing=config.label_smoothing, class_weights=class_weights, backend=switches.kernels
    )
    scaler = torch.amp.GradScaler(switches.device.type, enabled=switches.amp is torch.float16)
    captured = CapturedEpochs if switches.captured_epochs else CapturedStep
    return (captured if switches.captured else TrainStep)(
        module,
        optimizer,
        objective,
        amp=switches.amp,
        scaler=scaler,
        cuda_graph=switches.cuda_graph and switches.compile,
        accumulate=config.accumulate,
        clip_grad=config.clip_grad,
        average=average,
    )
