"""What is counted while training: sums over an epoch and images per second."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Tally:
    """Sums over the images of an epoch, float64 on the device until they are shown."""

    images: int
    sums: Tensor  # [3]: loss, correct against labels_a, agreed with the teacher

    @classmethod
    def start(cls, device: torch.device, saved: dict[str, Any] | None) -> Tally:
        saved = saved or {"images": 0, "sums": [0.0, 0.0, 0.0]}
        return cls(saved["images"], torch.tensor(saved["sums"], dtype=torch.float64, device=device))

    def means(self) -> list[float]:
        return (self.sums / max(self.images, 1)).tolist()


class Throughput:
    """Images per second of an epoch; its first lap, which may compile, counts only where it is the only one."""

    def __init__(self, images: int) -> None:
        self.from_images, self.began, self.laps = images, time.perf_counter(), 0
        self.images, self.seconds = 0, 0.0

    def lap(self, images: int) -> float:
        """The rate so far; `images` is the epoch's count of finished images."""
        now = time.perf_counter()
        self.images, self.seconds = images - self.from_images, now - self.began
        self.laps += 1
        if self.laps == 1:
            self.from_images, self.began = images, now
        return self.images / self.seconds
