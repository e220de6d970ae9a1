"""The optimisers by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, fused=True),
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "rmsprop": partial(torch.optim.RMSprop, foreach=True),
}
"""Those of the paper's comparison (arXiv 2502.16762, section 4); AdamW decouples the decay."""


def build_optimizer(name: str, module: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """The optimiser `name`, a key of `OPTIMIZERS`, over all parameters of `module`."""
    return OPTIMIZERS[name](module.parameters(), lr=lr, weight_decay=weight_decay)
