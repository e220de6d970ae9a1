"""The `torch` pipeline: applies plan rows to resident images with plain tensor code, on any device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from titn.pipelines.batch import Batch
from titn.pipelines.operations import OPERATIONS, crop_and_flip, paste_boxes
from titn.pipelines.plan import EpochPlan, Mix
from titn.pipelines.policies.operation_rows import Operation, OperationRows

Indices = np.ndarray | Tensor | Sequence[int]
"""Integers on the host: an array, a CPU tensor or a list."""


class TorchPipeline:
    """Augmented batches of a data set that lies on `device` as uint8.

    The image of (seed, epoch, id) is the same bit for bit whatever the batch it comes in: all pixel work up to CutMix
    is on integers or in Pillow's precision, and normalisation is byte * (1 / (255 std)) - mean / std with both
    coefficients rounded to float32 once.

    Args:
        images: uint8 [N, S, S, C], C = 1 or 3.
        labels: integers [N].
        mean: per channel, 0..1 scale.
        std: per channel, 0..1 scale, above 0.
        device: where the images are kept and batches are made.

    Raises:
        ValueError: a shape, type or value does not fit.
    """

    def __init__(
        self,
        images: np.ndarray,
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
        self._images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(self.device)
        self._labels = torch.from_numpy(labels.astype(np.int64)).to(self.device)
        deviation = np.asarray(std, dtype=np.float64)
        self._scale = self._per_channel(1.0 / (255.0 * deviation))
        self._offset = self._per_channel(np.asarray(mean, dtype=np.float64) / deviation)

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

    def epoch(
        self, plan: EpochPlan, batch_size: int, *, first_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on, `batch_size` images each.

        Step s covers batch_size * world_size consecutive positions; process `rank` takes its contiguous slice.

        Raises:
            ValueError: the plan is for other images, there is no complete step, or a number is out of range.
        """
        steps = self.steps(batch_size, world_size)
        self._check_plan(plan)
        if not steps:
            raise ValueError(f"{self.size} images do not fill one step of {batch_size * world_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to {world_size - 1}, not {rank}")
        if not 0 <= first_step <= steps:
            raise ValueError(f"first_step must be from 0 to {steps}, not {first_step}")
        starts = ((step * world_size + rank) * batch_size for step in range(first_step, steps))
        return (self.batch(plan, np.arange(start, start + batch_size)) for start in starts)

    def batch(self, plan: EpochPlan, positions: Indices) -> Batch:
        """The images at `positions`, integers [B], of the epoch's order, augmented and mixed with their partners.

        Raises:
            ValueError: the plan is for other images, or a position is out of range.
        """
        self._check_plan(plan)
        places = self._indices(positions, "positions")
        own = other = np.arange(len(places))
        if plan.mixes:
            places, found = np.unique(np.concatenate([places, plan.partners(places)]), return_inverse=True)
            own, other = np.split(found, 2)
        stack = plan.order[places]  # ids to augment: B + 1 of them where B consecutive positions are mixed
        steps = _steps(plan.operations(stack))
        arguments = [array for _, rows, parameters in steps for array in (rows, parameters)]
        ids = stack[own]
        fixed = [stack, plan.crop[stack], plan.flip[stack].astype(np.int64), own, other, ids, plan.box[ids]]
        lam, *tensors = self._upload([plan.lam[ids].astype(np.float64), *fixed, *arguments])
        device_stack, crop, flip, device_own, device_other, device_ids, box = tensors[:7]

        images = self._images.index_select(0, device_stack)
        images = crop_and_flip(images, crop, flip.to(torch.bool), plan.augmentation.crop_padding)
        for (operation, *_), rows, parameters in zip(steps, tensors[7::2], tensors[8::2], strict=True):
            images.index_copy_(0, rows, OPERATIONS[operation](images.index_select(0, rows), parameters))
        labels = self._labels.index_select(0, device_stack)
        lam = lam.to(torch.float32)
        return Batch(
            self._mixed(plan.augmentation.mix, images, device_own, device_other, box, lam),
            device_ids,
            labels.index_select(0, device_own),
            labels.index_select(0, device_other),
            lam,
        )

    def plain(self, ids: Indices) -> Batch:
        """The images `ids`, integers [B], normalised only: labels_b = labels_a and lam = 1.

        Raises:
            ValueError: an id is out of range.
        """
        (rows,) = self._upload([self._indices(ids, "ids")])
        labels = self._labels.index_select(0, rows)
        lam = torch.ones(len(rows), device=self.device)
        return Batch(self._normalize(self._images.index_select(0, rows)), rows, labels, labels, lam)

    def _mixed(self, mix: Mix, images: Tensor, own: Tensor, other: Tensor, box: Tensor, lam: Tensor) -> Tensor:
        """Normalised images `own` mixed with their partners `other`, float32 [B, C, H, W]."""
        chosen = images.index_select(0, own)
        if mix == "none":
            return self._normalize(chosen)
        partners = images.index_select(0, other)
        if mix != "mixup":
            return self._normalize(paste_boxes(chosen, partners, box))
        weight = lam.view(-1, 1, 1, 1)
        return self._normalize(chosen).mul_(weight).add_(self._normalize(partners).mul_(1 - weight))

    def _normalize(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).mul_(self._scale).sub_(self._offset)

    def _per_channel(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).view(1, -1, 1, 1).to(self.device)

    def _check_plan(self, plan: EpochPlan) -> None:
        if (plan.size, plan.image_size) != (self.size, self.image_size):
            raise ValueError(
                f"the plan is for {plan.size} images of {plan.image_size} pixels, "
                f"the pipeline has {self.size} of {self.image_size}"
            )

    def _indices(self, values: Indices, name: str) -> np.ndarray:
        indices = np.asarray(values)
        if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
            raise ValueError(f"{name} must be a list of integers, not {indices.dtype} {list(indices.shape)}")
        if not indices.size or indices.min() < 0 or indices.max() >= self.size:
            raise ValueError(f"{name} must be one or more integers from 0 to {self.size - 1}")
        return indices.astype(np.int64)

    def _upload(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        """int64 and float64 arrays on the device: for CUDA one copy from pinned memory, which waits for nothing."""
        if self.device.type != "cuda":
            return [torch.from_numpy(np.ascontiguousarray(array)).to(self.device) for array in arrays]
        words = torch.from_numpy(
            np.concatenate([np.ascontiguousarray(array).view(np.int64).ravel() for array in arrays])
        )
        parts = words.pin_memory().to(self.device, non_blocking=True).split([array.size for array in arrays])
        return [
            part.view(torch.float64 if array.dtype == np.float64 else torch.int64).view(array.shape)
            for part, array in zip(parts, arrays, strict=True)
        ]


def _steps(rows: OperationRows | None) -> list[tuple[Operation, np.ndarray, np.ndarray]]:
    """What to do, slot by slot: an operation, the images it is for, int64 [n], and parameters, float64 [n, 6]."""
    if rows is None:
        return []
    steps = []
    for slot in range(rows.codes.shape[1]):
        for operation in OPERATIONS:
            chosen = np.flatnonzero(rows.codes[:, slot] == operation)
            if chosen.size:
                steps.append((operation, chosen, rows.parameters[chosen, slot]))
    return steps
