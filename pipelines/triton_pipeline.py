"""The `triton` pipeline: a batch is one upload and one launch of `kernels.augment`."""

from __future__ import annotations

import numpy as np
import torch

from titn.kernels.augment import augment, augment_reasons
from titn.pipelines.batch import Batch
from titn.pipelines.image_files import Images
from titn.pipelines.pipeline import Indices, Pipeline
from titn.pipelines.plan import EpochPlan
from titn.pipelines.policies import Operation, OperationRows
from titn.pipelines.upload import upload

FACTORS = (Operation.BRIGHTNESS, Operation.COLOR, Operation.CONTRAST, Operation.SHARPNESS)


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
        head = np.column_stack([stack, plan.crop[stack], plan.flip[stack]]).astype(np.int32)
        rows = np.concatenate([head, _slots(plan.operations(stack), len(stack))], axis=1)
        return self._made(
            ids, partners, rows, found.reshape(-1, 2), plan.box[ids], plan.lam[ids],
            mix=plan.augmentation.mix, padding=plan.augmentation.crop_padding,
        )  # fmt: skip

    def plain(self, ids: Indices) -> Batch:
        chosen = self.indices(ids, "ids")
        rows = np.zeros((len(chosen), 4), dtype=np.int32)
        rows[:, 0] = chosen
        pairs = np.arange(len(chosen)).repeat(2).reshape(-1, 2)
        lam = np.ones(len(chosen), dtype=np.float32)
        return self._made(chosen, chosen, rows, pairs, np.zeros((0, 4)), lam, mix="none", padding=0)

    def _made(
        self, ids: np.ndarray, partners: np.ndarray, rows: np.ndarray, pairs: np.ndarray, box: np.ndarray,
        lam: np.ndarray, *, mix: str, padding: int,
    ) -> Batch:  # fmt: skip
        narrow = rows, pairs.astype(np.int32), box.astype(np.int32)
        device_ids, labels_a, labels_b, device_rows, device_pairs, device_box, device_lam = upload(
            [ids, self._labels[ids], self._labels[partners], *narrow, lam], self.device
        )
        images = augment(
            self._images, device_rows, device_pairs, scale=self._scale, offset=self._offset, padding=padding,
            box=device_box if mix in ("cutmix", "cutmix_batch") else None, lam=device_lam if mix == "mixup" else None,
        )  # fmt: skip
        return Batch(images, device_ids, labels_a, labels_b, device_lam)


def _slots(operations: OperationRows | None, images: int) -> np.ndarray:
    """Codes and parameters as the kernel reads them, int32 [images, 7 slots]; factors are the bits of float32."""
    if operations is None:
        return np.zeros((images, 0), dtype=np.int32)
    parameters = operations.parameters.astype(np.int32)
    factors = operations.parameters[:, :, 0].astype(np.float32).view(np.int32)
    parameters[:, :, 0] = np.where(np.isin(operations.codes, FACTORS), factors, parameters[:, :, 0])
    codes = operations.codes[:, :, None].astype(np.int32)
    return np.concatenate([codes, parameters], axis=2).reshape(images, -1)
