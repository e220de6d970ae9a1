"""The optimisers by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from titn.errors import UserError
from titn.models.layers import PixelLayer
from titn.training.muon import MuonWithAdamW

SMALLEST_MATRIX = 64
"""Rows and columns that a matrix needs for Muon; a smaller one has too few directions to make orthogonal."""
FEWEST_FILTERS = 16
"""Filters that a convolution needs for Muon, and weights that each filter needs."""
COLOURS = 3
"""A convolution of so few channels sees the image itself, not features."""

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, fused=True),
    "adam": partial(torch.optim.Adam, fused=True, capturable=True),
    "adamw": partial(torch.optim.AdamW, fused=True, capturable=True),
    "rmsprop": partial(torch.optim.RMSprop, foreach=True),
}
"""Those of the paper's comparison (arXiv 2502.16762, section 4); AdamW decouples the decay."""


def build_optimizer(
    name: str,
    module: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """The optimiser `name` over all parameters of `module`: a key of `OPTIMIZERS`, "muon" or "apex_sgd".

    "muon" is Muon for `muon_matrices` and AdamW for all other parameters; "apex_sgd" is NVIDIA apex's form of "sgd".
    `momentum` is that of "sgd" and "apex_sgd", `betas` are those of "adam", "adamw" and the AdamW in "muon".
    """
    if name == "muon":
        matrices, packed = muon_matrices(module)
        chosen = {id(param) for param in (*matrices, *packed)}
        others = [param for param in module.parameters() if id(param) not in chosen]
        return MuonWithAdamW([{"params": matrices}, {"params": packed, "maps": 3}], others, lr, weight_decay, betas)
    if name == "apex_sgd":
        from apex.optimizers import FusedSGD

        optimizer: torch.optim.Optimizer = FusedSGD(
            module.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay
        )
        return optimizer
    own: dict[str, Any] = {"sgd": {"momentum": momentum}, "rmsprop": {}}.get(name, {"betas": betas})
    return OPTIMIZERS[name](module.parameters(), lr=lr, weight_decay=weight_decay, **own)


def check_optimizer(name: str, module: nn.Module, device: torch.device) -> None:
    """Raise UserError for an optimiser that cannot train `module` on `device`."""
    if name == "muon" and not any(muon_matrices(module)):
        raise UserError(
            f"--optimizer muon is for matrices of at least {SMALLEST_MATRIX}x{SMALLEST_MATRIX} in the blocks of a "
            f"Transformer and for the filters of convolutions, and {type(module).__name__} has none: use adamw or sgd"
        )
    if name == "apex_sgd" and (reasons := apex_reasons(device)):
        raise UserError(f"--optimizer apex_sgd cannot run here: {'; '.join(reasons)}; use sgd, its PyTorch equal")


def muon_matrices(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The weights that Muon is for: filters of convolutions, and a Transformer's blocks but for the pixels' stream.

    Rows and columns of a linear layer are at least `SMALLEST_MATRIX`. Filters [out, in, h, w] count as a matrix
    [out, in * h * w] of at least `FEWEST_FILTERS` rows and columns; those of the colours and of single channels are not
    among them. Tables, biases, norms, heads and the pixels' embedding and layers are for AdamW.

    Returns:
        Weights of one map each, and weights that pack the maps of queries, keys and values by rows.
    """
    matrices: list[Tensor] = [
        layer.weight
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and layer.in_channels > COLOURS
        and min(layer.weight.flatten(1).shape) >= FEWEST_FILTERS
    ]
    packed: list[Tensor] = []
    blocks = getattr(module, "blocks", nn.ModuleList())
    pixels = {each for layer in blocks.modules() if isinstance(layer, PixelLayer) for each in layer.modules()}
    for name, layer in blocks.named_modules():
        if isinstance(layer, nn.Linear) and layer not in pixels and min(layer.weight.shape) >= SMALLEST_MATRIX:
            (packed if name.endswith(".qkv") else matrices).append(layer.weight)
    return matrices, packed


def apex_reasons(device: torch.device) -> list[str]:
    """Why NVIDIA apex's FusedSGD cannot run on `device`; nothing is imported to find out."""
    reasons = [] if device.type == "cuda" else ["no GPU"]
    package = importlib.util.find_spec("apex")
    if package is None:
        return [*reasons, "NVIDIA apex is not installed (it is built from source; apex on PyPI is something else)"]
    if not any(
        (Path(each) / "optimizers" / "fused_sgd.py").is_file() for each in package.submodule_search_locations or ()
    ):
        return [*reasons, "the installed package apex is not NVIDIA's, but another one of that name"]
    if importlib.util.find_spec("amp_C") is None:
        return [*reasons, "NVIDIA apex was built without its CUDA extensions"]
    return reasons
