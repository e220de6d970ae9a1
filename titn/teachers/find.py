"""Where a student's run gets its teacher from: a run, a file of weights, or a teacher still to be trained."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from titn.config import RunConfig, TeacherConfig
from titn.data.dataset import Dataset
from titn.errors import UserError
from titn.network import load_network, read_spec, weights_digest
from titn.own_parts import code_of
from titn.settings import flag
from titn.teachers.architectures import TEACHERS, create_teacher, is_teacher
from titn.training import checkpoint
from titn.training.run import Run, plain_name
from titn.training.teacher_cache import MANIFEST, read_manifest

_SAME_TEACHER_ANYWHERE = {
    *("dataset", "data_dir", "device", "runs_dir", "fast", "compile", "amp", "cuda_graph", "name", "resume", "config"),
    *("average", "overwrite", "import_", "tracker", "seeds"),
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
class Teacher:
    """A trained teacher.

    Attributes:
        weights: safetensors file of the network, or a teacher cache, which has its answers only.
        name: of its architecture.
        top1: test accuracy, where its run is finished.
    """

    weights: Path
    name: str
    top1: float | None

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """Its architecture, and a hash of its weights."""
        if self.weights.is_dir():
            return dict(read_manifest(self.weights / MANIFEST)["identity"]["teacher"])
        return {"architecture": self.name, "weights": weights_digest(self.weights)}

    @functools.cached_property
    def network(self) -> nn.Module:
        """The network on the CPU, read when first asked for; torch's random generators stay as they are.

        Raises:
            UserError: the weights are damaged, or are not there.
        """
        if self.weights.is_dir():
            raise UserError(f"--teacher {self.weights} holds a teacher's answers, not its network")
        with torch.random.fork_rng(devices=[]):
            return load_network(self.weights)[0]


def find_teacher(config: RunConfig, dataset: Dataset) -> TeacherSource:
    """What `config.teacher` means: a folder or file, a run's name, or a teacher's name.

    A teacher given by name has a run with the hash of its settings and data in its name, so that it is found again, and
    taken up again if it was interrupted. Its seed is not the student's.

    Raises:
        UserError: there is no such teacher.
    """
    name = config.distils_from
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
    wanted = config.teacher_training()
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


def load_teacher(path: Path, dataset: Dataset) -> Teacher:
    """The teacher in a run folder, a checkpoint folder, a model.safetensors or a teacher cache.

    Its network is read when it is first asked for.

    Raises:
        UserError: nothing usable is there, or it was trained for other images or classes than `dataset` has.
    """
    if (path / MANIFEST).is_file():
        return Teacher(path, read_manifest(path / MANIFEST)["identity"]["teacher"]["architecture"], None)
    weights, top1 = path, None
    if (path / "config.yaml").is_file():
        run = Run(path)
        result = run.result()
        top1 = None if result is None else result.get("top1")
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
    return Teacher(weights, spec.name, top1)


def _identity(config: RunConfig, dataset: dict[str, Any]) -> dict[str, Any]:
    """What makes a teacher this one: its settings but for those of the machine, and its training images."""
    settings = {name: value for name, value in asdict(config).items() if name not in _SAME_TEACHER_ANYWHERE}
    if not config.plain_share:
        del settings["plain_share"]  # teachers from before it are found
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
