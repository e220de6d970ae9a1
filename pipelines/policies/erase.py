"""Random erasing: a black rectangle in some of the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from titn.pipelines.counter_random import Stream, uniforms
from titn.pipelines.policies.operation_rows import PARAMETERS, Operation, OperationRows

if TYPE_CHECKING:
    from titn.pipelines.augmentation import Augmentation

AREA = (0.02, 0.33)
RATIO = (0.3, 3.3)
ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class EraseRows:
    """Random erasing's draws, indexed by image id, as torchvision's `RandomErasing` on stored bytes makes them.

    Source: Zhong et al., "Random Erasing Data Augmentation", AAAI 2020.

    Attributes:
        box: top, bottom, left, right (bottom and right excluded), int64 [N, 4]; empty where nothing is erased.
    """

    box: np.ndarray

    @classmethod
    def draw(cls, augmentation: Augmentation, seed: int, epoch: int, size: int, image_size: int) -> EraseRows:
        """A rectangle with the augmentation's probability: of ten the first that is smaller than the image."""
        draws = uniforms(seed, epoch, Stream.ERASE, size, 1 + 4 * ATTEMPTS)
        area, ratio, top, left = np.split(draws[:, 1:], 4, axis=1)  # [N, attempts] each
        area = (AREA[0] + area * (AREA[1] - AREA[0])) * image_size**2
        ratio = np.exp(np.log(RATIO[0]) + ratio * np.log(RATIO[1] / RATIO[0]))
        sides = np.rint(np.sqrt([area * ratio, area / ratio])).astype(np.int64)  # height and width, [2, N, attempts]
        fits = np.all(sides < image_size, axis=0)
        first = np.arange(size), fits.argmax(1)
        height, width = sides[:, *first]
        top, left = ((place[first] * (image_size - side + 1)).astype(np.int64)
                     for place, side in ((top, height), (left, width)))  # fmt: skip
        box = np.stack([top, top + height, left, left + width], axis=1)
        return cls(np.where(((draws[:, 0] < augmentation.erase) & np.any(fits, axis=1))[:, None], box, 0))

    def operations(self, ids: np.ndarray, image_size: int) -> OperationRows:
        """Codes and parameters of one slot for the images `ids`, int64 [n]."""
        box = self.box[ids]
        parameters = np.zeros((len(ids), 1, PARAMETERS))
        parameters[:, 0, :4] = box
        erased = box[:, 1] > box[:, 0]
        return OperationRows(
            np.where(erased, Operation.ERASE, Operation.IDENTITY).astype(np.uint8)[:, None], parameters
        )
