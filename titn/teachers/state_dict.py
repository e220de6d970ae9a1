"""Other people's state dicts: read without executing anything in them, and compared with a module."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor

from titn.errors import UserError

_SHOWN = 3
_INSIDE = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")
"""Where training programs keep the weights in their checkpoints."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file or a file of `torch.save`, on the CPU.

    The latter is read with weights_only=True: a pickle of anything but tensors, plain values and argparse's namespaces
    is refused, never executed. A checkpoint that keeps the state dict under `state_dict` or `model` beside other things
    is understood; the prefixes of DataParallel and torch.compile (`module.`, `_orig_mod.`) are taken off.

    Raises:
        UserError: the file is missing or damaged, or holds no state dict.
    """
    advice = "save one with torch.save(model.state_dict(), path)"
    try:
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                return dict(clean_state_dict(load_file(path)))
            try:
                with (
                    warnings.catch_warnings(action="ignore"),  # torch warns of pickles that it then refuses
                    torch.serialization.safe_globals([argparse.Namespace]),
                ):
                    weights = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # damaged archives and foreign pickles raise many types
                raise UserError(f"{path} is no state dict or is damaged ({type(error).__name__}); {advice}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file or is damaged ({error}); fetch it again") from None
    if isinstance(weights, dict):
        inside = (weights[name] for name in _INSIDE if isinstance(weights.get(name), dict))
        weights = next(inside, weights)
    if not isinstance(weights, dict) or not weights:
        raise UserError(f"{path} is no state dict (it holds a {type(weights).__name__}); {advice}")
    for key, tensor in weights.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{path} is no state dict ({key!r} is a {type(tensor).__name__}); {advice}")
    return dict(clean_state_dict(weights))


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
