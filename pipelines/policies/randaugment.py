"""RandAugment and TrivialAugment: operations uniform over a space, at one magnitude or at any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from titn.pipelines.counter_random import Stream, uniforms
from titn.pipelines.policies.operation_rows import OperationRows
from titn.pipelines.policies.operation_space import RANDAUGMENT, TRIVIALAUGMENT

if TYPE_CHECKING:
    from titn.pipelines.augmentation import Augmentation


@dataclass(frozen=True, slots=True)
class RandAugmentRows:
    """RandAugment's draws, indexed by image id, as torchvision's `RandAugment` makes them.

    Source: Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", 2020.

    Attributes:
        operation: row of the space, uint8 [N, operations].
        negative: whether a signed magnitude is negated, bool [N, operations].
        magnitude: of all operations, 0 to 30.
    """

    operation: np.ndarray
    negative: np.ndarray
    magnitude: int

    @classmethod
    def draw(cls, augmentation: Augmentation, seed: int, epoch: int, size: int, image_size: int) -> RandAugmentRows:
        """Operations uniform over the 14, with repetition, signs even."""
        slots = augmentation.randaugment_operations
        draws = uniforms(seed, epoch, Stream.RANDAUGMENT, size, 2 * slots)
        operation = (draws[:, :slots] * len(RANDAUGMENT.names)).astype(np.uint8)
        return cls(operation, draws[:, slots:] < 0.5, augmentation.randaugment_magnitude)

    def operations(self, ids: np.ndarray, image_size: int) -> OperationRows:
        """Codes and parameters of as many slots as operations for the images `ids`, int64 [n]."""
        codes, parameters = RANDAUGMENT.tables(image_size)
        operation = self.operation[ids]
        return OperationRows(
            codes[operation], parameters[operation, self.magnitude, self.negative[ids].astype(np.int64)]
        )


@dataclass(frozen=True, slots=True)
class TrivialAugmentRows:
    """TrivialAugment's draws, indexed by image id, as torchvision's `TrivialAugmentWide` makes them.

    Source: Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", ICCV 2021.

    Attributes:
        operation: row of the space, uint8 [N].
        magnitude: bin of the magnitude, uint8 [N].
        negative: whether a signed magnitude is negated, bool [N].
    """

    operation: np.ndarray
    magnitude: np.ndarray
    negative: np.ndarray

    @classmethod
    def draw(cls, augmentation: Augmentation, seed: int, epoch: int, size: int, image_size: int) -> TrivialAugmentRows:
        """One operation uniform over the 14, its magnitude uniform over 31 bins, signs even."""
        draws = uniforms(seed, epoch, Stream.TRIVIALAUGMENT, size, 3)
        operation = (draws[:, 0] * len(TRIVIALAUGMENT.names)).astype(np.uint8)
        return cls(operation, (draws[:, 1] * TRIVIALAUGMENT.bins).astype(np.uint8), draws[:, 2] < 0.5)

    def operations(self, ids: np.ndarray, image_size: int) -> OperationRows:
        """Codes and parameters of one slot for the images `ids`, int64 [n]."""
        codes, parameters = TRIVIALAUGMENT.tables(image_size)
        operation = self.operation[ids]
        chosen = parameters[operation, self.magnitude[ids], self.negative[ids].astype(np.int64)]
        return OperationRows(codes[operation][:, None], chosen[:, None])
