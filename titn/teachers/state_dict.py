"""Other people's state dicts: read without executing anything in them, and compared with a module."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from titn.errors import UserError

_SHOWN = 3


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file or a file of `torch.save`, on the CPU.

    The latter is read with weights_only=True: a pickle of anything but tensors is refused, never executed.

    Raises:
        UserError: the file is missing or damaged, or holds no state dict.
    """
    advice = "save one with torch.save(model.state_dict(), path)"
    try:
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                return load_file(path)
            try:
                with warnings.catch_warnings(action="ignore"):  # torch warns of pickles that it then refuses
                    weights = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # damaged archives and foreign pickles raise many types
                raise UserError(f"{path} is no state dict or is damaged ({type(error).__name__}); {advice}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file or is damaged ({error}); fetch it again") from None
    if not isinstance(weights, dict) or not weights:
        raise UserError(f"{path} is no state dict (it holds a {type(weights).__name__}); {advice}")
    for key, tensor in weights.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{path} is no state dict ({key!r} is a {type(tensor).__name__}); {advice}")
    return dict(weights)


def check_fit(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str, path: Path) -> None:
    """Raise UserError unless `weights` has the names and shapes of `own`, the state dict of network `name`.

    Batch normalisation's counters may be missing: files older than torch 0.4.1 have none.
    """
    missing = [key for key in own if key not in weights and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in weights if key not in own]
    shapes = [
        f"{key} is {tuple(weights[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    problems = [
        what + ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")
        for what, keys in (("missing ", missing), ("unexpected ", unexpected), ("", shapes))
        if keys
    ]
    if problems:
        raise UserError(f"{path} does not fit {name}: {'; '.join(problems)}")
