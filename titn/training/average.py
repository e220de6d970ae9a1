"""Exponential moving average of the weights."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn


class WeightAverage:
    """A copy of `module` whose parameters and buffers follow it slowly; with integer buffers it takes the last.

    Update n, counted from 0, keeps the share min(decay, (1 + n) / (10 + n)) of the average, so that early weights are
    soon forgotten (the rule of TensorFlow's ExponentialMovingAverage).

    Args:
        module: on its device; not compiled yet.
        decay: share of the average that a later update keeps, at least 0 and below 1.

    Attributes:
        module: the copy, which takes no gradients.
        updates: how many there were. A resumed run sets it.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.decay, self.updates = decay, 0
        own, other = (chain(each.parameters(), each.buffers()) for each in (self.module, module))
        pairs = list(zip(own, other, strict=True))
        self._followed = [pair for pair in pairs if pair[0].is_floating_point()]
        self._taken = [pair for pair in pairs if not pair[0].is_floating_point()]

    def share(self, update: int) -> float:
        """Share of the present weights in an update, counted from 0."""
        return 1 - min(self.decay, (1 + update) / (10 + update))

    def next_share(self) -> float:
        """Share of the present weights in the next update, which is counted as done."""
        self.updates += 1
        return self.share(self.updates - 1)

    def update(self) -> None:
        """Move towards the module's present weights."""
        self.move(self.next_share())

    @torch.no_grad()
    def move(self, share: float | Tensor) -> None:
        """Give the module's present weights this share in the average; a tensor is a scalar on their device."""
        averages, present = zip(*self._followed, strict=True)
        steps = torch._foreach_sub(present, averages)
        torch._foreach_mul_(steps, share)
        torch._foreach_add_(averages, steps)
        for own, other in self._taken:
            own.copy_(other)
