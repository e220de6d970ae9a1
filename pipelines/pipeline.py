"""What every pipeline is: augmented batches of a data set, by the rows of an epoch's plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from titn.pipelines.batch import Batch
from titn.pipelines.image_files import Images
from titn.pipelines.plan import EpochPlan

Indices = np.ndarray | Tensor | Sequence[int]
"""Integers on the host: an array, a CPU tensor or a list."""


def normalization(mean: Sequence[float], std: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """1 / (255 std) and mean / std, float32 [C]: a byte becomes byte * scale - offset."""
    deviation = np.asarray(std, dtype=np.float64)
    scale, offset = 1.0 / (255.0 * deviation), np.asarray(mean, dtype=np.float64) / deviation
    return scale.astype(np.float32), offset.astype(np.float32)


class Pipeline(ABC):
    """Augmented batches of N images; the image of (seed, epoch, id) is the same whatever the batch it comes in.

    Normalisation is byte * (1 / (255 std)) - mean / std with both coefficients rounded to float32 once.

    Args:
        images: uint8 [N, S, S, C], C = 1 or 3; `ImageFiles` are decoded at once where they are kept as an array.
        labels: integers [N].
        mean: per channel, 0..1 scale.
        std: per channel, 0..1 scale, above 0.
        device: where batches are made.

    Attributes:
        size: number of images N.
        image_size: their height and width S, in pixels.
        scale: 1 / (255 std), float32 [C].
        offset: mean / std, float32 [C].
        exact: whether batches are those of the torch pipeline to the last bit.

    Raises:
        ValueError: a shape, type or value does not fit.
    """

    exact: ClassVar[bool] = True

    def __init__(
        self,
        images: Images,
        labels: np.ndarray,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
    ) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or not images.size:
            raise ValueError(f"images must be uint8 [N, S, S, C], not {images.dtype} {list(images.shape)}")
        if images.shape[3] not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels, not {images.shape[3]}")
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"labels must be {len(images)} integers, not {labels.dtype} {list(labels.shape)}")
        if len(mean) != images.shape[3] or len(std) != images.shape[3]:
            raise ValueError(f"mean and std must have {images.shape[3]} values each, not {len(mean)} and {len(std)}")
        if not all(np.isfinite(mean)) or not all(np.isfinite(std)) or min(std) <= 0:
            raise ValueError(f"mean must be finite and std finite and above 0, not {list(mean)} and {list(std)}")
        self.device = torch.device(device)
        self.size = len(images)
        self.image_size = images.shape[1]
        self.scale, self.offset = normalization(mean, std)
        self._store(images, labels.astype(np.int64))

    @classmethod
    @abstractmethod
    def reasons(cls, device: torch.device, image_size: int) -> list[str]:
        """Why this backend cannot make batches of such images on `device`; empty: it can."""

    @classmethod
    def notes(cls, device: torch.device) -> list[str]:
        """What it does in another way on other machines, and why in this one here; for runs and benchmarks to tell."""
        return []

    @abstractmethod
    def _store(self, images: Images, labels: np.ndarray) -> None:
        """Keep the checked images, uint8 [N, S, S, C], and labels, int64 [N], where batches are made of them."""

    @abstractmethod
    def batch(self, plan: EpochPlan, positions: Indices) -> Batch:
        """The images at `positions`, integers [B], of the epoch's order, augmented and mixed with their partners.

        Raises:
            ValueError: the plan is for other images, or a position is out of range.
        """

    @abstractmethod
    def plain(self, ids: Indices) -> Batch:
        """The images `ids`, integers [B], normalised only: labels_b = labels_a and lam = 1.

        Raises:
            ValueError: an id is out of range.
        """

    def epoch(
        self, plan: EpochPlan, batch_size: int, *, first_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on, `batch_size` images each.

        Step s covers batch_size * world_size consecutive positions; process `rank` takes its contiguous slice.

        Raises:
            ValueError: the plan is for other images, there is no complete step, or a number is out of range.
        """
        return (self.batch(plan, part) for part in self.parts(plan, batch_size, first_step, rank, world_size))

    def __len__(self) -> int:
        """Number of images."""
        return self.size

    def steps(self, batch_size: int, world_size: int = 1) -> int:
        """Steps of an epoch with `batch_size` images per process; an incomplete last one is dropped.

        Raises:
            ValueError: batch_size or world_size is below 1.
        """
        if batch_size < 1 or world_size < 1:
            raise ValueError(f"batch_size and world_size must be at least 1, not {batch_size} and {world_size}")
        return self.size // (batch_size * world_size)

    def parts(
        self, plan: EpochPlan, batch_size: int, first_step: int, rank: int, world_size: int
    ) -> Iterator[np.ndarray]:
        """The positions, int64 [batch_size], of every batch of `epoch`; raises what that raises."""
        steps = self.steps(batch_size, world_size)
        self.check_plan(plan)
        if not steps:
            raise ValueError(f"{self.size} images do not fill one step of {batch_size * world_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to {world_size - 1}, not {rank}")
        if not 0 <= first_step <= steps:
            raise ValueError(f"first_step must be from 0 to {steps}, not {first_step}")
        starts = ((step * world_size + rank) * batch_size for step in range(first_step, steps))
        return (np.arange(start, start + batch_size) for start in starts)

    def levels(self, images: Tensor) -> np.ndarray:
        """Normalised images, [B, C, S, S], in units of a byte again, float64; whole but for rounding, unless mixed."""
        scale, offset = (values.reshape(1, -1, 1, 1) for values in (self.scale, self.offset))
        found: np.ndarray = (images.double().cpu().numpy() + offset) / scale
        return found

    def check_plan(self, plan: EpochPlan) -> None:
        """Raises ValueError if the plan is for other images."""
        if (plan.size, plan.image_size) != (self.size, self.image_size):
            raise ValueError(
                f"the plan is for {plan.size} images of {plan.image_size} pixels, "
                f"the pipeline has {self.size} of {self.image_size}"
            )

    def indices(self, values: Indices, name: str) -> np.ndarray:
        """`values` as int64 [B]; raises ValueError, with `name`, if one is no index of an image."""
        indices = np.asarray(values)
        if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
            raise ValueError(f"{name} must be a list of integers, not {indices.dtype} {list(indices.shape)}")
        if not indices.size or indices.min() < 0 or indices.max() >= self.size:
            raise ValueError(f"{name} must be one or more integers from 0 to {self.size - 1}")
        return indices.astype(np.int64)
