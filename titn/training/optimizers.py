"""Optimisers and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from titn.config import RunConfig


def build_optimizer(config: RunConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The configured optimiser over all parameters (arXiv 2502.16762, section 4: SGD with momentum 0.9)."""
    assert config.lr is not None
    parameters, lr, decay = list(module.parameters()), config.lr, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=decay, fused=True)
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr, weight_decay=decay, fused=True)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=decay, fused=True)
    return torch.optim.RMSprop(parameters, lr, weight_decay=decay, foreach=True)


def learning_rate(config: RunConfig, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then a cosine to zero; a closed form of the global `step`, so a resumed run needs no state."""
    assert config.lr is not None
    total = config.epochs * steps_per_epoch
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
