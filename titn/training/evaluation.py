"""The forward pass of an evaluation as one CUDA graph: whole batches are copied in and replayed, any other is eager."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from titn.training.captured import capture, warm_up


class CapturedForward:
    """`module` in float32 on batches of `batch_size` images in one CUDA graph, captured at the first of them.

    The graph reads the weights where they lie, so that it holds for every epoch of a training. Batches of another size,
    as the last of a data set, are computed call by call.

    Args:
        module: in evaluation mode, on a CUDA device, where its parameters stay.
        batch_size: images of a whole batch, B.
    """

    def __init__(self, module: nn.Module, batch_size: int) -> None:
        self.module, self.batch_size = module, batch_size
        self.device = next(module.parameters()).device
        self._images, self._logits = torch.empty(0), torch.empty(0)
        self._replay: Callable[[], None] | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] to logits [n, K]; those of a whole batch are overwritten by the next."""
        if len(images) != self.batch_size:
            logits: Tensor = self.module(images)
            return logits
        if self._replay is None:
            self._images = images.clone()
            warm_up(self._body, self.device)
            self._replay = capture(self._body, self.device).replay
        self._images.copy_(images)
        self._replay()
        return self._logits

    def _body(self) -> None:
        self._logits = self.module(self._images)
