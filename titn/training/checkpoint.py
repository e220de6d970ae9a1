"""Checkpoints: model in safetensors; optimiser, random generators and progress beside it; no pickle anywhere.

`checkpoints/epoch-0003` is the state after three epochs, `checkpoints/epoch-0003-step-000012` after twelve steps of the
fourth. The last two are kept, and the one that was best. A `Snapshot` is the state at one moment; `Writer` writes it in
a thread while training goes on.
"""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from titn.errors import UserError
from titn.files import HostCopies, folder_atomic, sha256, write_safetensors
from titn.network import NetworkSpec, load_weights

MODEL = "model.safetensors"
AVERAGE = "average.safetensors"
"""The averaged weights of a run that has them, as MODEL."""
_STATE = "state.safetensors"
_MANIFEST = "state.json"
_FORMAT = 2
_KEPT = 2
_NAME = re.compile(r"epoch-(\d{4,})(?:-step-(\d{6,}))?")


@dataclass
class Progress:
    """How far a training is, and what it needs to go on besides tensors.

    Attributes:
        epoch: completed epochs.
        step: completed steps of the epoch after them.
        best_top1: highest accuracy at the end of an epoch; -1 before the first.
        best_epoch: where it was reached; 0 before the first.
        wall_seconds: of all of the training so far.
        timed_seconds, timed_images: of the steps that count for images per second.
        epoch_images, epoch_sums: of the epoch begun; see `TrainStep`.
        scaler: state of the gradient scaler, empty without one.
    """

    epoch: int = 0
    step: int = 0
    best_top1: float = -1.0
    best_epoch: int = 0
    wall_seconds: float = 0.0
    timed_seconds: float = 0.0
    timed_images: int = 0
    epoch_images: int = 0
    epoch_sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    scaler: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Name of the checkpoint of this state."""
        return f"epoch-{self.epoch:04d}" + (f"-step-{self.step:06d}" if self.step else "")

    def to_json(self) -> dict[str, Any]:
        """As stored in a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Progress:
        """As `to_json` gave it.

        Raises:
            KeyError: a field is missing.
        """
        return cls(**{each.name: stored[each.name] for each in fields(cls)})


def folders(root: Path) -> list[Path]:
    """All complete checkpoints under `root`, oldest first; folders with other names are not ours."""
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        name = _NAME.fullmatch(path.name)
        if name and path.is_dir() and not path.is_symlink():
            found.append((int(name[1]), int(name[2] or 0), path))
    return [path for _, _, path in sorted(found)]


def of_run(folder: Path) -> Path | None:
    """The folder, if it is a checkpoint among those of a run."""
    run = folder.parent.parent
    found = folder.parent.name == "checkpoints" and (run / "config.yaml").is_file() and _NAME.fullmatch(folder.name)
    return folder if found and (folder / _MANIFEST).is_file() else None


def newest(root: Path) -> Path | None:
    """The latest checkpoint under `root`, if there is one."""
    found = folders(root)
    return found[-1] if found else None


class Snapshot:
    """A training's state at this moment, in memory of its own: the training may go on before it is written.

    `average` has the averaged weights of `module`, where there are any.
    """

    def __init__(
        self,
        progress: Progress,
        module: nn.Module,
        spec: NetworkSpec,
        optimizer: torch.optim.Optimizer,
        average: nn.Module | None = None,
    ) -> None:
        tensors = {f"rng.{name}": value for name, value in _rng_state().items()}
        scalars: dict[str, Any] = {}
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
                elif value is not None:
                    scalars[f"{index}.{key}"] = value
        averaged = {} if average is None else {AVERAGE: HostCopies(average.state_dict())}
        self._networks = {MODEL: HostCopies(module.state_dict()), **averaged}
        self._state = HostCopies(tensors)
        self._spec = spec.to_metadata()
        self._folder, self._best_epoch = progress.folder, progress.best_epoch
        self._manifest = {
            "format": _FORMAT,
            "optimizer": type(optimizer).__name__,
            "optimizer_scalars": scalars,
            "progress": progress.to_json(),
        }

    def write(self, root: Path) -> Path:
        """Write it under `root` as one checkpoint, atomically, and remove the ones no longer kept.

        Raises:
            OSError: it cannot be written; the checkpoints there were stay as they are.
        """
        target = root / self._folder
        if not target.exists():
            with folder_atomic(target) as folder:
                for name, weights in self._networks.items():
                    write_safetensors(folder / name, weights.tensors, self._spec)
                write_safetensors(folder / _STATE, self._state.tensors)
                digests = {path.name: sha256(path) for path in sorted(folder.iterdir())}
                (folder / _MANIFEST).write_text(json.dumps(self._manifest | {"sha256": digests}, indent=1))
        _prune(root, self._best_epoch)
        return target


class Writer:
    """Writes snapshots under `root` in a thread, one at a time; leaving it as a context waits for the last one.

    What a write raises (OSError) is raised by the next call of any method, or on leaving.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written: Future[Path] | None = None

    def write(self, snapshot: Snapshot) -> None:
        """Begin to write, once the snapshot before is written."""
        self.wait()
        self._written = self._thread.submit(snapshot.write, self.root)

    def check(self) -> None:
        """Raise what the last write raised, if it has ended."""
        if self._written is not None and self._written.done():
            self.wait()

    def wait(self) -> None:
        """Return when everything is written."""
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.wait()


def load(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None
) -> Progress:
    """Restore the model, its average if asked for, the optimiser and the random generators.

    Raises:
        UserError: the checkpoint is damaged or belongs to another model or optimiser.
    """
    manifest = verify(folder)
    load_weights(folder / MODEL, module)
    if average is not None:
        load_weights(folder / AVERAGE, average)
    if manifest["optimizer"] != type(optimizer).__name__:
        raise UserError(f"{folder} was written with {manifest['optimizer']}, not {type(optimizer).__name__}")
    tensors = load_file(folder / _STATE)
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            index, key = rest.split(".", 1)
            state.setdefault(int(index), {})[key] = value
    for name, value in manifest["optimizer_scalars"].items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    _set_rng_state({name[4:]: value for name, value in tensors.items() if name.startswith("rng.")})
    return Progress.from_json(manifest["progress"])


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files match it.

    Raises:
        UserError: a file is missing, damaged or foreign.
    """
    if not (folder / _MANIFEST).is_file():
        raise UserError(f"{folder} is no run and no checkpoint: it has neither config.yaml nor {_MANIFEST}")
    mend = "move it elsewhere to go on from the checkpoint before it"
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_bytes())
        if manifest["format"] != _FORMAT:
            raise UserError(f"{folder} has checkpoint format {manifest['format']}, this version reads {_FORMAT}")
        Progress.from_json(manifest["progress"])
        for name, digest in manifest["sha256"].items():
            if sha256(folder / name) != digest:
                raise UserError(f"{folder / name} is damaged (its checksum differs); {mend}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        raise UserError(f"{folder} is not a complete checkpoint; {mend}") from None
    return manifest


def _rng_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"cuda{index}": value for index, value in enumerate(torch.cuda.get_rng_state_all())}
    return state


def _set_rng_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    for index in range(torch.cuda.device_count()):
        if f"cuda{index}" in state:
            torch.cuda.set_rng_state(state[f"cuda{index}"], index)


def _prune(root: Path, best_epoch: int) -> None:
    best = Progress(best_epoch).folder
    for path in folders(root)[:-_KEPT]:
        if path.name != best:
            doomed = path.with_name(f".{path.name}.removed")
            path.rename(doomed)
            shutil.rmtree(doomed)
