"""What of the network the first epochs train: smaller images and fewer blocks, which make them cheap.

Sources: EfficientNetV2 (arXiv 2104.00298) for growing images, AutoProg (arXiv 2203.14509) for growing depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from titn.config import RunConfig
from titn.errors import UserError, count
from titn.models.base import ImageTransformer
from titn.training.schedule import Schedule
from titn.training.step import TrainStep


@dataclass(frozen=True)
class Phases:
    """Which part of the network each epoch trains; evaluation computes all of it in every epoch.

    Attributes:
        small: number of epochs, the first ones, whose images are shrunk to `small_grid` patches per side.
        shallow: number of epochs, the first ones, that run the first `half` of the blocks.
    """

    small: int
    shallow: int

    @classmethod
    def of(cls, config: RunConfig, schedule: Schedule) -> Self:
        """The phases of a training with `config`."""
        small, shallow = (round(share * schedule.epochs) for share in config.growing_shares)
        return cls(small, shallow)

    def check(self, module: nn.Module) -> None:
        """Raise UserError where `module` cannot grow so."""
        if not isinstance(module, ImageTransformer):
            for flag, epochs in (("--small-share", self.small), ("--shallow-share", self.shallow)):
                if epochs:
                    raise UserError(f"{flag} is for this project's models, not for {type(module).__name__}: drop it")
            return
        if self.small and small_grid(module) < 2:
            raise UserError("--small-share needs images of three patches a side or more: take a smaller --patch-size")
        if self.shallow and half(module) == module.sizes.depth:
            raise UserError("--shallow-share needs two blocks or more")

    def begin(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Make the blocks that wait pass on what they are given, so that switching them on changes nothing.

        Every momentum begins at zero, where it is after no step: PyTorch's fused SGD begins all of a group at once.
        """
        if not self.shallow or not isinstance(module, ImageTransformer):
            return
        module.silence_blocks(half(module))
        for group in optimizer.param_groups:
            for param in group["params"] if group.get("momentum") else ():
                optimizer.state[param]["momentum_buffer"] = torch.zeros_like(param)

    def enter(self, epoch: int, step: TrainStep) -> None:
        """Let the steps train what `epoch`, counted from 0, trains."""
        module = step.module
        if not isinstance(module, ImageTransformer):
            return
        grid = small_grid(module) if epoch < self.small else None
        blocks = half(module) if epoch < self.shallow else None
        if (grid, blocks) != (module.training_grid, module.training_blocks):
            module.train_in_part(grid=grid, blocks=blocks)
            step.module_changed()

    def words(self, module: Any) -> list[str]:
        """The phases in words, a line each."""
        lines = []
        if self.small:
            side = small_grid(module) * module.sizes.patch_size
            lines.append(f"The first {count(self.small, 'epoch')} with images of {side}x{side} pixels")
        if self.shallow:
            depth = module.sizes.depth
            lines.append(f"The first {count(self.shallow, 'epoch')} with {half(module)} of {depth} blocks")
        return lines


def small_grid(module: Any) -> int:
    """Patches per side of a shrunk image: three quarters of a whole one's, rounded down."""
    grid: int = module.image_size // module.sizes.patch_size
    return grid * 3 // 4


def half(module: Any) -> int:
    """Number of blocks of the first half."""
    depth: int = module.sizes.depth
    return -(-depth // 2)
