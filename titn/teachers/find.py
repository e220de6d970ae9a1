"""Where a student's run gets its teacher from: a run, a file of weights, or a teacher still to be trained."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from titn.config import RunConfig, TeacherConfig
from titn.data.dataset import Dataset
from titn.errors import UserError
from titn.network import load_network, read_spec, weights_digest
from titn.own_parts import code_of
from titn.settings import flag
from titn.teachers.answers import MeanOfLogits
from titn.teachers.architectures import TEACHERS, create_teacher, is_teacher
from titn.training import checkpoint
from titn.training.run import Run, plain_name
from titn.training.teacher_cache import MANIFEST, read_manifest

_SAME_TEACHER_ANYWHERE = {
    *("dataset", "data_dir", "device", "runs_dir", "fast", "compile", "amp", "cuda_graph", "name", "resume", "config"),
    *("average", "overwrite", "import_", "tracker", "seeds", "minutes"),
}
"""Settings that do not make another teacher: where it was trained, on which data, whose contents count, and what is
only recorded beside it."""
_NOTES = 3


@dataclass(frozen=True)
class TeacherSource:
    """Where the teacher lies, or will lie once `to_train`, if any, is trained; `notes` are worth telling the user."""

    path: Path
    to_train: TeacherConfig | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingCost:
    """What a finished training took: seconds on its own machine, and image passes, of every epoch together."""

    seconds: float
    image_passes: int

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> TrainingCost | None:
        """From what result.json holds; None where that says too little."""
        try:
            return cls(float(result["wall_seconds"]), int(result["epochs"]) * int(result["train_images"]))
        except (KeyError, TypeError, ValueError):
            return None

    @classmethod
    def together(cls, costs: Iterable[TrainingCost | None]) -> TrainingCost | None:
        """Of several; None where one is unknown."""
        known = list(costs)
        if None in known:
            return None
        found = [cost for cost in known if cost is not None]
        return cls(sum(cost.seconds for cost in found), sum(cost.image_passes for cost in found))


@dataclass(frozen=True)
class Teacher:
    """A trained teacher.

    Attributes:
        weights: safetensors file of the network, or a teacher cache, which has its answers only.
        name: of its architecture.
        top1: test accuracy, where its run is finished.
        cost: of its training, where its run is finished.
    """

    weights: Path
    name: str
    top1: float | None
    cost: TrainingCost | None = None

    @property
    def answers(self) -> Path | None:
        """Folder of the teacher cache, where that is all there is of it."""
        return self.weights if self.weights.is_dir() else None

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Its "architecture", and a hash of its "weights" (`titn.network.weights_digest`)."""
        if self.answers is not None:
            return dict(read_manifest(self.answers / MANIFEST)["identity"]["teacher"])
        return {"architecture": self.name, "weights": weights_digest(self.weights)}

    @functools.cached_property
    def network(self) -> nn.Module:
        """The network on the CPU, read when first asked for; torch's random generators stay as they are.

        Raises:
            UserError: the weights are damaged, or are not there.
        """
        if self.answers is not None:
            raise UserError(f"--teacher {self.weights} holds a teacher's answers, not its network")
        with torch.random.fork_rng(devices=[]):
            return load_network(self.weights)[0]


@dataclass(frozen=True)
class AveragedTeachers:
    """Several trained teachers, of which the mean of the logits teaches (`MeanOfLogits`); their order does not matter.

    Attributes:
        teachers: two or more, in the order of the hashes of their weights.
    """

    teachers: tuple[Teacher, ...]
    top1: ClassVar[float | None] = None
    answers: ClassVar[Path | None] = None

    @property
    def name(self) -> str:
        """Names of the architectures, a plus between them."""
        return "+".join(teacher.name for teacher in self.teachers)

    @property
    def cost(self) -> TrainingCost | None:
        """Of the training of all of them."""
        return TrainingCost.together(teacher.cost for teacher in self.teachers)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """As of one teacher, and under "mean_of" the identity of each."""
        each = [teacher.identity for teacher in self.teachers]
        together = hashlib.sha256("\n".join(identity["weights"] for identity in each).encode()).hexdigest()
        return {"architecture": self.name, "weights": together, "mean_of": each}

    @functools.cached_property
    def network(self) -> nn.Module:
        """All of them in one, on the CPU, as of one teacher."""
        return MeanOfLogits(teacher.network for teacher in self.teachers)


AnyTeacher = Teacher | AveragedTeachers


def find_teachers(config: RunConfig, dataset: Dataset) -> tuple[TeacherSource, ...]:
    """What each name in `config.teachers` means: a folder or file, a run's name, or a teacher's name.

    A teacher given by name has a run with the hash of its settings and data in its name, so that it is found again, and
    taken up again if it was interrupted. Its seed is not the student's.

    Raises:
        UserError: there is no such teacher, or one is named twice.
    """
    sources = tuple(_find(name, config, dataset) for name in config.teachers)
    paths = [source.path.absolute() for source in sources]
    for name, path in zip(config.teachers, paths, strict=True):
        if paths.count(path) > 1:
            raise UserError(
                f"--teacher {config.distils_from} names {name} twice: train another one with {TeacherConfig.program} "
                "--seed 1 --name NAME, and give both runs"
            )
    return sources


def _find(name: str, config: RunConfig, dataset: Dataset) -> TeacherSource:
    """What the name of a teacher means."""
    if not name:
        raise UserError(f"--teacher {config.distils_from}: a name is missing before or after a comma")
    if not is_teacher(name):
        runs = Path(config.runs_dir).expanduser()
        for path in (Path(name).expanduser(), runs / name, runs / Path(name).name):  # the last: the runs were moved
            if path.exists():
                unused = sorted({"teacher_epochs", "teacher_settings"} & config.said)
                return TeacherSource(
                    path, None, tuple(f"{flag(each)} has no effect: the teacher is trained already" for each in unused)
                )
        close = difflib.get_close_matches(name, TEACHERS, 1)
        hint = f"did you mean {close[0]}?" if close else f"use none, {', '.join(TEACHERS)}"
        raise UserError(f"--teacher {name} is neither a file, a folder nor a run in {config.runs_dir}; {hint}")
    wanted = config.teacher_training(name)
    with torch.device("meta"):  # whether such a network takes such images, in no time
        create_teacher(name, dataset.num_classes, dataset.channels, dataset.image_size)
    identity = _identity(wanted, dataset.identity())
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    prefix = plain_name("teacher", dataset.name, name)
    folder = Path(config.runs_dir).expanduser() / f"{prefix}-{digest}"
    if not (folder / "config.yaml").is_file():
        return TeacherSource(folder, wanted.changed(name=folder.name), _differing(folder, prefix, identity))
    if Run(folder).result() is None:
        return TeacherSource(folder, TeacherConfig(resume=str(folder), device=config.device))
    return TeacherSource(folder)


def load_teachers(paths: Sequence[Path], dataset: Dataset) -> AnyTeacher:
    """The teacher in `paths`, or the mean of several; see `load_teacher`.

    Raises:
        UserError: as of `load_teacher`; one of several is a cache, or has the weights of another.
    """
    teachers = [load_teacher(path, dataset) for path in paths]
    if len(teachers) == 1:
        return teachers[0]
    paths_of: dict[str, Path] = {}
    for path, teacher in zip(paths, teachers, strict=True):
        if teacher.answers is not None:
            raise UserError(f"--teacher {path} holds a teacher's answers; only networks are averaged: name its run")
        other = paths_of.setdefault(teacher.identity["weights"], path)
        if other != path:
            raise UserError(f"--teacher {other},{path}: both have the same weights, which are their own mean")
    return AveragedTeachers(tuple(sorted(teachers, key=lambda teacher: str(teacher.identity["weights"]))))


def load_teacher(path: Path, dataset: Dataset) -> Teacher:
    """The teacher in a run folder, a checkpoint folder, a model.safetensors or a teacher cache.

    Its network is read when it is first asked for.

    Raises:
        UserError: nothing usable is there, or it was trained for other images or classes than `dataset` has.
    """
    if (path / MANIFEST).is_file():
        return Teacher(path, read_manifest(path / MANIFEST)["identity"]["teacher"]["architecture"], None)
    weights, top1, cost = path, None, None
    if (path / "config.yaml").is_file():
        run = Run(path)
        result = run.result()
        top1 = None if result is None else result.get("top1")
        cost = None if result is None else TrainingCost.of(result)
        weights = run.newest_checkpoint()
    if weights.is_dir():
        checkpoint.verify(weights)
        weights = weights / checkpoint.MODEL
    elif weights.suffix in (".pth", ".pt", ".bin"):
        raise UserError(
            f"--teacher {path}: only safetensors are read; start from it with {TeacherConfig.program} --init {path}"
        )
    spec = read_spec(weights)
    for what, has, needed in (
        ("number of classes", spec.num_classes, dataset.num_classes),
        ("number of channels", spec.in_channels, dataset.channels),
        ("image size", spec.image_size, dataset.image_size),
        ("list of classes", spec.class_names, dataset.class_names),
        ("normalisation mean", spec.mean, dataset.mean),
        ("normalisation std", spec.std, dataset.std),
    ):
        if has != needed:
            raise UserError(
                f"--teacher {path} was trained with another {what} ({has}) than {dataset.name} has ({needed})"
            )
    return Teacher(weights, spec.name, top1, cost)


def _identity(config: RunConfig, dataset: dict[str, Any]) -> dict[str, Any]:
    """What makes a teacher this one: its settings but for those of the machine, and its training images."""
    settings = {name: value for name, value in asdict(config).items() if name not in _SAME_TEACHER_ANYWHERE}
    for name, unused in (("plain_share", 0.0), ("recipe", "paper")):
        if settings[name] == unused:
            del settings[name]  # teachers from before it are found
    code = code_of(config.network)
    return settings | {"data": dataset["train"]} | ({} if code is None else {"code": code})


def _differing(folder: Path, prefix: str, identity: dict[str, Any]) -> tuple[str, ...]:
    """A line for each other run of such a teacher beside `folder`: in what it is another one."""
    notes = []
    for other in sorted(folder.parent.glob(f"{prefix}-*")):
        run = Run(other)
        try:
            has = _identity(run.config(), run.dataset())
        except (UserError, KeyError):
            continue
        pairs = {name: (has.get(name), identity.get(name)) for name in (*identity, *has)}
        differs = [f"{name} {old}, not {wanted}" for name, (old, wanted) in pairs.items() if old != wanted]
        words = ["other training images" if each.startswith("data ") else each for each in differs]
        notes.append(f"{other} is another teacher: {'; '.join(words)}")
    return tuple(notes[:_NOTES])
