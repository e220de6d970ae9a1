"""Teacher targets: what the student is asked to reproduce, for each batch exactly as the student sees it."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from titn.pipelines import Batch


class TeacherTargets(Protocol):
    """Gives the teacher's answer to a batch: labels int64 [B] (hard) or logits [B, K] (every other kind)."""

    def __call__(self, batch: Batch) -> Tensor: ...


class LiveTeacher:
    """Runs the teacher on every batch: the very images the student sees (arXiv 2502.16762, section 3)."""

    def __init__(
        self,
        teacher: nn.Module,
        kind: Literal["hard", "soft", "standardized", "decoupled"],
        amp: torch.dtype | None,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.kind = kind
        self.amp = amp

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        device = batch.images.device
        with torch.autocast(device.type, self.amp, enabled=self.amp is not None):
            logits: Tensor = self.teacher(batch.images)
        return logits.argmax(1) if self.kind == "hard" else logits.float()
