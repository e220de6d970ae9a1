"""The `triton` pipeline: a batch is one upload and one launch of `kernels.augment`.

What is uploaded for a batch is known for all batches of an epoch: where it lies on the device already (`rows`), a CUDA
graph makes the batch itself (`from_rows`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from titn.kernels.augment import augment, augment_reasons
from titn.pipelines.augmentation import Augmentation
from titn.pipelines.batch import Batch
from titn.pipelines.image_files import Images
from titn.pipelines.pipeline import Indices, Pipeline
from titn.pipelines.plan import EpochPlan
from titn.pipelines.policies import Operation, OperationRows
from titn.pipelines.upload import upload

FACTORS = (Operation.BRIGHTNESS, Operation.COLOR, Operation.CONTRAST, Operation.SHARPNESS)
PLAIN = Augmentation(crop_padding=0, flip=False)


class TritonPipeline(Pipeline):
    """Augmented batches of a data set that lies on `device` as uint8, the same bit for bit as `TorchPipeline`'s.

    Arguments: see `Pipeline`; here the images lie on `device`, a CUDA device (with Triton's interpreter a CPU).

    Raises:
        BackendUnavailable: the kernel cannot run on the device or on images of this size; on the first batch.
    """

    @classmethod
    def reasons(cls, device: torch.device, image_size: int) -> list[str]:
        return augment_reasons(device, image_size)

    def _store(self, images: Images, labels: np.ndarray) -> None:
        self._images = torch.from_numpy(np.ascontiguousarray(np.asarray(images).transpose(0, 3, 1, 2))).to(self.device)
        self._labels = labels
        self._scale, self._offset = (torch.from_numpy(values).to(self.device) for values in (self.scale, self.offset))

    def batch(self, plan: EpochPlan, positions: Indices) -> Batch:
        self.check_plan(plan)
        places = self.indices(positions, "positions")
        ids = plan.order[places]
        partners = plan.order[plan.partners(places)] if plan.mixes else ids
        stack, found = np.unique(np.stack([ids, partners], axis=1), return_inverse=True)
        given = self._given(plan, ids, partners, _choices(plan, stack), found.reshape(-1, 2))
        return self.from_rows(upload(given, self.device), plan.augmentation)

    def rows(self, plan: EpochPlan, batch_size: int) -> list[np.ndarray]:
        """What `from_rows` makes every batch of `epoch` of, as arrays [steps, ...].

        Raises:
            ValueError: as of `epoch`.
        """
        places = np.stack(list(self.parts(plan, batch_size, 0, 0, 1)))
        ids = plan.order[places]
        partners = plan.order[plan.partners(places)] if plan.mixes else ids
        beside = int(plan.mixes)  # the partner of the last image of a batch has a row of its own
        choices = _choices(plan, plan.order[np.arange(places.size + beside) % self.size])
        pairs = np.arange(batch_size)[:, None] + np.array([0, beside])
        return self._given(
            plan, ids, partners, choices[places[:, :1] + np.arange(batch_size + beside)],
            np.broadcast_to(pairs, (*ids.shape, 2)),
        )  # fmt: skip

    def from_rows(self, rows: Sequence[Tensor], augmentation: Augmentation) -> Batch:
        """The batch of a step: its part of each array of `rows`, on the device. Waits for nothing and may be captured.

        Args:
            rows: as `rows` gives them for one step.
            augmentation: of the plan.
        """
        ids, labels_a, labels_b, choices, pairs, box, lam = rows
        mix = augmentation.mix
        images = augment(
            self._images, choices, pairs, scale=self._scale, offset=self._offset, padding=augmentation.crop_padding,
            box=box if mix in ("cutmix", "cutmix_batch") else None, lam=lam if mix == "mixup" else None,
        )  # fmt: skip
        return Batch(images, ids, labels_a, labels_b, lam)

    def plain(self, ids: Indices) -> Batch:
        chosen = self.indices(ids, "ids")
        rows = np.zeros((len(chosen), 4), dtype=np.int32)
        rows[:, 0] = chosen
        pairs = np.arange(len(chosen), dtype=np.int32).repeat(2).reshape(-1, 2)
        labels, box = self._labels[chosen], np.zeros((0, 4), dtype=np.int32)
        lam = np.ones(len(chosen), dtype=np.float32)
        return self.from_rows(upload([chosen, labels, labels, rows, pairs, box, lam], self.device), PLAIN)

    def _given(
        self, plan: EpochPlan, ids: np.ndarray, partners: np.ndarray, choices: np.ndarray, pairs: np.ndarray
    ) -> list[np.ndarray]:
        """What `from_rows` takes."""
        labels, box = (self._labels[ids], self._labels[partners]), plan.box[ids].astype(np.int32)
        return [ids, *labels, choices, pairs.astype(np.int32), box, plan.lam[ids]]


def _choices(plan: EpochPlan, ids: np.ndarray) -> np.ndarray:
    """The table of the kernel: a row for each image, int32 [n, 4 + 7 slots]."""
    head = np.column_stack([ids, plan.crop[ids], plan.flip[ids]]).astype(np.int32)
    return np.concatenate([head, _slots(plan.operations(ids), len(ids))], axis=1)


def _slots(operations: OperationRows | None, images: int) -> np.ndarray:
    """Codes and parameters as the kernel reads them, int32 [images, 7 slots]; factors are the bits of float32."""
    if operations is None:
        return np.zeros((images, 0), dtype=np.int32)
    parameters = operations.parameters.astype(np.int32)
    factors = operations.parameters[:, :, 0].astype(np.float32).view(np.int32)
    parameters[:, :, 0] = np.where(np.isin(operations.codes, FACTORS), factors, parameters[:, :, 0])
    codes = operations.codes[:, :, None].astype(np.int32)
    return np.concatenate([codes, parameters], axis=2).reshape(images, -1)
