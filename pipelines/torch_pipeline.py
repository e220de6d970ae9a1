"""The `torch` pipeline: applies plan rows to resident images with plain tensor code, on any device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from titn.pipelines.augmentation import Mix
from titn.pipelines.batch import Batch
from titn.pipelines.image_files import Images
from titn.pipelines.operations import OPERATIONS, crop_and_flip, paste_boxes
from titn.pipelines.pipeline import Indices, Pipeline
from titn.pipelines.plan import EpochPlan
from titn.pipelines.policies import Operation, OperationRows
from titn.pipelines.upload import upload


class TorchPipeline(Pipeline):
    """Augmented batches of a data set that lies on `device` as uint8.

    The image of (seed, epoch, id) is the same bit for bit whatever the batch it comes in: all pixel work up to CutMix
    is on integers or in Pillow's precision.

    Arguments: see `Pipeline`; here the images lie on `device`.
    """

    @classmethod
    def reasons(cls, device: torch.device, image_size: int) -> list[str]:
        return []

    def _store(self, images: Images, labels: np.ndarray) -> None:
        self._images = torch.from_numpy(np.ascontiguousarray(np.asarray(images).transpose(0, 3, 1, 2))).to(self.device)
        self._labels = torch.from_numpy(labels).to(self.device)
        self._scale, self._offset = (
            torch.from_numpy(values).view(1, -1, 1, 1).to(self.device) for values in (self.scale, self.offset)
        )

    def batch(self, plan: EpochPlan, positions: Indices) -> Batch:
        self.check_plan(plan)
        places = self.indices(positions, "positions")
        own = other = np.arange(len(places))
        if plan.mixes:
            places, found = np.unique(np.concatenate([places, plan.partners(places)]), return_inverse=True)
            own, other = np.split(found, 2)
        stack = plan.order[places]  # ids to augment: B + 1 of them where B consecutive positions are mixed
        steps = _steps(plan.operations(stack))
        arguments = [array for _, rows, parameters in steps for array in (rows, parameters)]
        ids = stack[own]
        fixed = [stack, plan.crop[stack], plan.flip[stack].astype(np.int64), own, other, ids, plan.box[ids]]
        lam, *tensors = upload([plan.lam[ids].astype(np.float64), *fixed, *arguments], self.device)
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
        (rows,) = upload([self.indices(ids, "ids")], self.device)
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
