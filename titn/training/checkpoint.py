"""Checkpoints: model in safetensors; optimiser, random generators and plan position beside it; no pickle anywhere.

`checkpoints/epoch-0003` is the state after three epochs, `checkpoints/epoch-0003-step-000012` after twelve steps of the
fourth. The last two are kept, and the one that the link `best` names.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from titn.errors import UserError
from titn.files import folder_atomic, sha256
from titn.network import NetworkSpec, load_weights, save_network

MODEL = "model.safetensors"
_STATE = "state.safetensors"
_MANIFEST = "state.json"
_FORMAT = 1
_KEPT = 2


@dataclass(frozen=True)
class Position:
    """Completed epochs, and steps completed of the epoch after them."""

    epoch: int
    step: int = 0

    @property
    def folder(self) -> str:
        return f"epoch-{self.epoch:04d}" + (f"-step-{self.step:06d}" if self.step else "")


def folders(root: Path) -> list[Path]:
    """All complete checkpoints under `root`, oldest first."""
    found = (path for path in root.glob("epoch-*") if path.is_dir() and not path.is_symlink())
    return sorted(found, key=lambda path: path.name)


def save(
    root: Path,
    position: Position,
    module: nn.Module,
    spec: NetworkSpec,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
    *,
    best: bool = False,
) -> Path:
    """Write one checkpoint atomically, mark it as best if told, and remove the ones no longer kept.

    `progress` is JSON: what the trainer needs besides tensors.
    """
    target = root / position.folder
    if not target.exists():
        state = optimizer.state_dict()
        tensors = {f"rng.{name}": value for name, value in _rng_state().items()}
        scalars: dict[str, Any] = {}
        for index, values in state["state"].items():
            for key, value in values.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value.detach().contiguous().cpu()
                elif value is not None:
                    scalars[f"{index}.{key}"] = value
        with folder_atomic(target) as folder:
            save_network(folder / MODEL, module, spec)
            save_file(tensors, folder / _STATE)
            manifest = {
                "format": _FORMAT,
                "epoch": position.epoch,
                "step": position.step,
                "optimizer": type(optimizer).__name__,
                "optimizer_scalars": scalars,
                "progress": progress,
                "sha256": {name: sha256(folder / name) for name in (MODEL, _STATE)},
            }
            (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    if best:
        _link(root / "best", target.name)
    _prune(root)
    return target


def load(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> tuple[Position, dict[str, Any]]:
    """Restore the model and, if given, the optimiser and the random generators; returns position and `progress`.

    Raises:
        UserError: the checkpoint is damaged or belongs to another model or optimiser.
    """
    manifest = verify(folder)
    load_weights(folder / MODEL, module)
    if optimizer is not None:
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
    return Position(manifest["epoch"], manifest["step"]), manifest["progress"]


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files match it.

    Raises:
        UserError: a file is missing, damaged or foreign.
    """
    mend = f"remove {folder} to go on from the checkpoint before it"
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if manifest["format"] != _FORMAT:
            raise UserError(f"{folder} has checkpoint format {manifest['format']}, this version reads {_FORMAT}")
        for name, digest in manifest["sha256"].items():
            if sha256(folder / name) != digest:
                raise UserError(f"{folder / name} is damaged (its checksum differs); {mend}")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        raise UserError(f"{folder} is not a complete checkpoint; {mend}") from None
    return manifest


def newest(root: Path) -> Path | None:
    """The latest checkpoint under `root`, if there is one."""
    found = folders(root)
    return found[-1] if found else None


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


def _link(link: Path, target: str) -> None:
    temporary = link.with_name(f".{link.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def _prune(root: Path) -> None:
    best = (root / "best").resolve()
    for path in folders(root)[:-_KEPT]:
        if path != best and path.resolve() != best:
            doomed = path.with_name(f".{path.name}.removed")
            path.rename(doomed)
            shutil.rmtree(doomed)
