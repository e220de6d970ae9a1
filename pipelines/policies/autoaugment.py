"""AutoAugment's 25 sub-policies for CIFAR-10.

Source: Cubuk et al., "AutoAugment: Learning Augmentation Strategies from Data", CVPR 2019, table 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from titn.pipelines.counter_random import Stream, uniforms
from titn.pipelines.policies.operation_rows import Operation, OperationRows
from titn.pipelines.policies.operation_space import AUTOAUGMENT

if TYPE_CHECKING:
    from titn.pipelines.augmentation import Augmentation

CIFAR10_POLICY: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)
"""Per sub-policy two (operation, probability, magnitude bin); the bin is 0 where the operation has no magnitude."""

_OPERATION = np.array([[AUTOAUGMENT.names.index(name) for name, _, _ in pair] for pair in CIFAR10_POLICY])
_PROBABILITY = np.array([[probability for _, probability, _ in pair] for pair in CIFAR10_POLICY])
_BIN = np.array([[magnitude for _, _, magnitude in pair] for pair in CIFAR10_POLICY])


@dataclass(frozen=True, slots=True)
class AutoAugmentRows:
    """AutoAugment's draws, indexed by image id.

    Attributes:
        sub_policy: row of `CIFAR10_POLICY`, uint8 [N].
        apply: whether each of its two operations is applied, bool [N, 2].
        negative: whether a signed magnitude is negated, bool [N, 2].
    """

    sub_policy: np.ndarray
    apply: np.ndarray
    negative: np.ndarray

    @classmethod
    def draw(cls, augmentation: Augmentation, seed: int, epoch: int, size: int, image_size: int) -> AutoAugmentRows:
        """Sub-policies uniform over the 25, each operation with its probability, signs even."""
        draws = uniforms(seed, epoch, Stream.AUTOAUGMENT, size, 5)
        sub_policy = (draws[:, 0] * len(CIFAR10_POLICY)).astype(np.uint8)
        return cls(sub_policy, draws[:, 1:3] < _PROBABILITY[sub_policy], draws[:, 3:5] < 0.5)

    def operations(self, ids: np.ndarray, image_size: int) -> OperationRows:
        """Codes and parameters of two slots for the images `ids`, int64 [n]."""
        codes, parameters = AUTOAUGMENT.tables(image_size)
        sub_policy = self.sub_policy[ids]
        operation = _OPERATION[sub_policy]
        chosen = parameters[operation, _BIN[sub_policy], self.negative[ids].astype(np.int64)]
        return OperationRows(np.where(self.apply[ids], codes[operation], np.uint8(Operation.IDENTITY)), chosen)
