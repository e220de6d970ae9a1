"""Teacher targets: what the student is asked to reproduce, for each batch exactly as the student sees it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor, nn

from titn.config import RunConfig
from titn.data.dataset import Dataset
from titn.errors import UserError, count
from titn.pipelines import Augmentation, Batch, EpochPlan, Pipeline
from titn.provenance import source_commit
from titn.teachers.answers import Agreement, TeacherAnswers
from titn.teachers.find import AnyTeacher
from titn.training.plans import EpochPlans
from titn.training.switches import Switches, native_bfloat16
from titn.training.teacher_cache import (
    REFILL,
    DamagedRecords,
    MissingRecords,
    Records,
    TeacherCache,
    cache_identity,
    epochs_in_words,
    kept_targets,
    other_caches,
)

Show = Callable[[int], None]
"""Told how many images of an epoch the teacher has answered so far; may raise to stop."""

_MEASURED_IMAGES = 256


class TeacherTargets(Protocol):
    """Gives the teacher's answer to a batch: labels int64 [B] (hard) or logits float32 [B, K] (every other kind)."""

    def begin_epoch(self, plan: EpochPlan, pipeline: Pipeline, show: Show) -> None:
        """Called before the batches of `plan`, which `pipeline` makes."""
        ...

    def __call__(self, batch: Batch) -> Tensor: ...

    @property
    def stored(self) -> StoredAnswers | None:
        """All answers to the images of the epoch that was begun; None: the teacher has to be asked."""
        ...

    def summary(self) -> str:
        """Where the answers came from, in words."""
        ...


class LiveTeacher:
    """Runs the teacher on every batch: the very images the student sees (arXiv 2502.16762, section 3).

    In float32 on a CPU its decisions do not depend on the batch (`titn.teachers.answers`). Under autocast they may, and
    on a GPU, where looking for close calls would make every step wait for the host.
    """

    def __init__(
        self,
        teacher: nn.Module,
        kind: Literal["hard", "soft", "standardized", "decoupled"],
        amp: torch.dtype | None,
        device: torch.device,
    ) -> None:
        self.answers = TeacherAnswers(teacher, device)
        self.kind = kind
        self.amp = amp

    def begin_epoch(self, plan: EpochPlan, pipeline: Pipeline, show: Show) -> None:
        """Nothing has to be prepared."""

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        if self.kind == "hard" and self.amp is None and batch.images.device.type == "cpu":
            return self.answers.decisions(batch.images)
        with torch.autocast(batch.images.device.type, self.amp, enabled=self.amp is not None):
            logits: Tensor = self.answers.network(batch.images)
        return logits.argmax(1) if self.kind == "hard" else logits.float()

    @property
    def stored(self) -> None:
        """Nothing is."""

    def summary(self) -> str:
        """That nothing was stored, in words."""
        return "Teacher: asked about every batch"


class CachedTeacher:
    """Reads the teacher's answers from a cache, epoch by epoch.

    Args:
        cache: read from, whatever the epochs.
        filler: fills an epoch that is missing or damaged, before it begins; None: that is an error.
    """

    def __init__(self, cache: TeacherCache, filler: CacheFiller | None) -> None:
        self.cache = cache
        self.filler = filler
        self.stored: StoredAnswers | None = None
        self._read = 0

    def begin_epoch(self, plan: EpochPlan, pipeline: Pipeline, show: Show) -> None:
        """Read the answers of the plan's epoch.

        Raises:
            MissingRecords, DamagedRecords: there is nothing to fill them with.
        """
        try:
            records = self.cache.read(plan.epoch)
            self._read += 1
        except (MissingRecords, DamagedRecords):
            if self.filler is None:
                raise
            records = self.filler.fill(plan, pipeline, show)
        self.stored = StoredAnswers(records, self.cache.num_classes, pipeline.device)

    def __call__(self, batch: Batch) -> Tensor:
        assert self.stored is not None, "begin_epoch comes first"
        return self.stored(batch.ids)

    def summary(self) -> str:
        """How many epochs were read and filled, in words."""
        words = f"Teacher cache: {count(self._read, 'epoch')} read"
        if self.filler is not None and self.filler.epochs:
            words += f", {self.filler.epochs} filled in {self.filler.seconds:.0f} s"
        return words


class TargetsInPhases:
    """The targets of a training whose epochs are not all augmented alike: each of them from a cache of its own.

    Args:
        phases: what gives the answers to epochs of an augmentation.
    """

    def __init__(self, phases: Mapping[Augmentation, CachedTeacher]) -> None:
        self.phases = phases
        self._now: CachedTeacher | None = None

    def begin_epoch(self, plan: EpochPlan, pipeline: Pipeline, show: Show) -> None:
        """As `CachedTeacher.begin_epoch`."""
        self._now = self.phases[plan.augmentation]
        self._now.begin_epoch(plan, pipeline, show)

    def __call__(self, batch: Batch) -> Tensor:
        assert self._now is not None, "begin_epoch comes first"
        return self._now(batch)

    @property
    def stored(self) -> StoredAnswers | None:
        """Those of the phase."""
        return None if self._now is None else self._now.stored

    def summary(self) -> str:
        """A line of each phase."""
        return "\n".join(phase.summary() for phase in self.phases.values())


class CacheFiller:
    """Asks the teacher about whole epochs and stores what it says.

    Args:
        cache: to fill; its folder is made with the first epoch.
        network: gives the teacher, when it is first needed.
        say: told in a line what a user should know.
        batch_size: images per forward pass; None: `best_batch_size`.
    """

    def __init__(
        self,
        cache: TeacherCache,
        network: Callable[[], nn.Module],
        say: Callable[[str], None],
        batch_size: int | None = None,
    ) -> None:
        self.cache, self.say, self.batch_size = cache, say, batch_size
        self.epochs, self.seconds = 0, 0.0
        self._network = network
        self._answers: TeacherAnswers | None = None
        self._agreement: Agreement | None = None

    def fill(self, plan: EpochPlan, pipeline: Pipeline, show: Show) -> Records:
        """The answers of the plan's epoch, which are in the cache afterwards; another process's work is waited for."""
        records = self.fill_unless_claimed(plan, pipeline, show)
        if records is None:
            self.say(f"waiting for another process that fills epoch {plan.epoch + 1} of {self.cache.folder}")
            with self.cache.claim(plan.epoch, wait=True):
                records = self._fill(plan, pipeline, show)
        return records

    def fill_unless_claimed(self, plan: EpochPlan, pipeline: Pipeline, show: Show) -> Records | None:
        """Like `fill`, but None where another process is filling this epoch."""
        if not self.cache.exists:
            self.cache.create(self._measure(plan, pipeline))
        with self.cache.claim(plan.epoch, wait=False) as mine:
            return self._fill(plan, pipeline, show) if mine else None

    def _fill(self, plan: EpochPlan, pipeline: Pipeline, show: Show) -> Records:
        try:
            return self.cache.read(plan.epoch)
        except MissingRecords:
            pass
        except DamagedRecords:
            self.say(f"{self.cache.path(plan.epoch)} was damaged: it is filled again")
        began = time.perf_counter()
        records = answer_epoch(
            self._teacher(plan, pipeline),
            plan,
            pipeline,
            self.cache.targets,
            self.cache.num_classes,
            self.batch_size or best_batch_size(pipeline),
            show,
        )
        self.cache.write(plan.epoch, records)
        self.epochs += 1
        self.seconds += time.perf_counter() - began
        return records

    def _teacher(self, plan: EpochPlan, pipeline: Pipeline) -> TeacherAnswers:
        """The teacher, calibrated on the first images of the first epoch that is filled."""
        if self._answers is None:
            bfloat16 = self.cache.identity["precision"] == "bfloat16"
            self._answers = TeacherAnswers(self._network(), pipeline.device, bfloat16=bfloat16, fast=True, say=self.say)
            positions = np.arange(min(_MEASURED_IMAGES, pipeline.size))
            self._agreement = self._answers.calibrate(pipeline.batch(plan, positions).images)
        return self._answers

    def _measure(self, plan: EpochPlan, pipeline: Pipeline) -> dict[str, object]:
        """How the filler's way of computing agrees with the plain one, and where that was found."""
        self._teacher(plan, pipeline)
        assert self._agreement is not None
        return {
            "agreement_with_plain_float32": asdict(self._agreement),
            "batch_size": self.batch_size or best_batch_size(pipeline),
            "device": pipeline.device.type,
            "torch": torch.__version__,
            "commit": source_commit(),
        }


def best_batch_size(pipeline: Pipeline) -> int:
    """Images per forward pass of a teacher: at 32 pixels 256 on a CPU and 2048 on a GPU, fewer of larger images."""
    pixels = 2**21 if pipeline.device.type == "cuda" else 2**18
    return max(8, pixels // pipeline.image_size**2)


def answer_epoch(
    answers: TeacherAnswers,
    plan: EpochPlan,
    pipeline: Pipeline,
    targets: str,
    num_classes: int,
    batch_size: int,
    show: Show = lambda done: None,
) -> Records:
    """What the teacher says to every image of an epoch, by image id; see `kept_answers`.

    Raises:
        UserError: a logit is not finite.
    """
    records: Records = {}
    for start in range(0, plan.size, batch_size):
        stop = min(start + batch_size, plan.size)
        batch = pipeline.batch(plan, np.arange(start, stop))
        ids = batch.ids.cpu().numpy()
        for name, values in kept_answers(answers, batch.images, targets, num_classes).items():
            if name not in records:
                records[name] = np.zeros((plan.size, *values.shape[1:]), values.dtype)
            records[name][ids] = values
        show(stop)
    return records


def kept_answers(answers: TeacherAnswers, images: Tensor, targets: str, num_classes: int) -> Records:
    """What a cache of these `targets` (`kept_targets`) keeps of the teacher's answer to B images.

    hard: `labels` [B]. top-k: `classes` [B, k], `logits` float16 [B, k], `rest` float16 [B], the logarithm of the mean
    of the other classes' exp(logit). logits: `logits` float16 [B, K]. Classes are uint8, above 256 classes uint16.
    """
    if targets == "hard":
        return {"labels": _small(answers.decisions(images), num_classes)}
    logits = answers.logits(images)
    logits = logits - logits.amax(1, keepdim=True)
    if targets == "logits":
        return {"logits": _half(logits)}
    kept, classes = logits.topk(int(targets.removeprefix("top-")), dim=1)
    others = logits.scatter(1, classes, -math.inf).logsumexp(1) - math.log(num_classes - kept.shape[1])
    return {"classes": _small(classes, num_classes), "logits": _half(kept), "rest": _half(others)}


class StoredAnswers:
    """The answers of an epoch as targets on a device, by image id: labels int64 [B] or logits float32 [B, K].

    Of top-k records each class that was not kept has the same logit: the kept probabilities are the teacher's, the rest
    is shared equally.
    """

    def __init__(self, records: Records, num_classes: int, device: torch.device) -> None:
        self.num_classes, self.device = num_classes, device
        self._records = {
            name: array.astype(np.int64 if name == "labels" else np.int32 if array.dtype == np.uint16 else array.dtype)
            for name, array in sorted(records.items())
        }

    def __call__(self, ids: Tensor) -> Tensor:
        return self.from_rows([values.index_select(0, ids) for values in self._on_device])

    @cached_property
    def _on_device(self) -> list[Tensor]:
        return [torch.from_numpy(array).to(self.device) for array in self._records.values()]

    def rows(self, ids: np.ndarray) -> list[np.ndarray]:
        """What `from_rows` makes targets of, for images of any shape [...]: arrays [..., k]."""
        return [array[ids] for array in self._records.values()]

    def from_rows(self, rows: Sequence[Tensor]) -> Tensor:
        """The targets of B images: `rows` of them, on the device. Waits for nothing and may be captured."""
        found = dict(zip(self._records, rows, strict=True))
        if "labels" in found:
            return found["labels"]
        logits = found["logits"].float()
        if "rest" not in found:
            return logits
        dense = found["rest"].float()[:, None].expand(-1, self.num_classes)
        return dense.scatter(1, found["classes"].long(), logits)


def _small(classes: Tensor, num_classes: int) -> np.ndarray:
    if num_classes > 2**16:
        raise UserError(f"the teacher cache holds classes up to {2**16:,}, not {num_classes:,}")
    return classes.cpu().numpy().astype(np.uint8 if num_classes <= 2**8 else np.uint16)


def _half(logits: Tensor) -> np.ndarray:
    return logits.clamp_min(torch.finfo(torch.float16).min).half().cpu().numpy()


def teacher_caches(
    config: RunConfig, switches: Switches, plans: EpochPlans, dataset: Dataset, teacher: AnyTeacher
) -> dict[Augmentation, TeacherCache]:
    """The caches that a student of `config` reads, by augmentation: where bfloat16 answers will do, those in float32
    are better. A cache that is given as the teacher is that of the first epoch.

    Raises:
        UserError: a folder is damaged or of another identity.
    """
    first, *others = plans.numbers
    found = {first: _cache(config, switches, first, dataset, teacher, given=teacher.answers)}
    return found | {each: _cache(config, switches, each, dataset, teacher, given=None) for each in others}


def _cache(
    config: RunConfig,
    switches: Switches,
    augmentation: Augmentation,
    dataset: Dataset,
    teacher: AnyTeacher,
    given: Path | None,
) -> TeacherCache:
    """The cache of epochs with this augmentation, in the folder that is `given`, or else in the runs folder."""
    kept = kept_targets(config.distillation_term["kind"], config.stored_logits, dataset.num_classes)
    if config.distillation_term["kind"] == "standardized" and kept.startswith("top-"):
        raise UserError("--distillation standardized needs the spread of all logits: leave --cache-top-k out")
    rough = switches.amp is not None and native_bfloat16(switches.device)
    identities = [
        cache_identity(
            dataset,
            augmentation,
            config.seed,
            teacher=teacher.identity,
            precision=precision,
            targets=kept,
            pipeline=switches.pipeline,
        )
        for precision in ("float32", *["bfloat16"] * rough)
    ]
    if given is not None:
        stored = TeacherCache.open(given).identity["precision"]
        fitting = [identity for identity in identities if identity["precision"] == stored]
        cache = TeacherCache(given, (fitting or identities)[0])
        cache.check()
        return cache
    root = Path(config.runs_dir).expanduser()
    caches = [TeacherCache.at(root, identity, dataset.name) for identity in identities]
    return next((cache for cache in caches if cache.exists), caches[-1])


def teacher_targets(
    config: RunConfig, switches: Switches, plans: EpochPlans, dataset: Dataset, teacher: AnyTeacher, console: Console
) -> TeacherTargets:
    """Where the student's targets come from.

    Raises:
        UserError: they have to come from the cache alone, which is incomplete, damaged or not there.
    """
    if config.stored_answers == "off":
        return LiveTeacher(teacher.network, config.distillation_term["kind"], switches.amp, switches.device)
    phases = {
        augmentation: _cached_teacher(config, cache, plans.numbers[augmentation], teacher, console)
        for augmentation, cache in teacher_caches(config, switches, plans, dataset, teacher).items()
    }
    first, *others = phases.values()
    return TargetsInPhases(phases) if others else first


def _cached_teacher(
    config: RunConfig, cache: TeacherCache, epochs: list[int], teacher: AnyTeacher, console: Console
) -> CachedTeacher:
    there = epochs_in_words(set(epochs) & set(cache.epochs()))
    console.print(Text(f"Teacher cache: {cache.folder}, with epochs: {there}"), soft_wrap=True)
    if config.stored_answers == "auto":
        return CachedTeacher(
            cache, CacheFiller(cache, lambda: teacher.network, lambda line: console.print(Text(line), soft_wrap=True))
        )
    if not cache.exists:
        others = other_caches(Path(config.runs_dir).expanduser(), cache.identity)
        near = f"; the nearest, {others[0][0]}, differs in {', '.join(others[0][1])}" if others else ""
        raise UserError(f"--teacher-cache only: {cache.folder} is not there{near}: {REFILL}")
    cache.require(epochs)
    return CachedTeacher(cache, None)
