"""AutoAugment's 25 sub-policies for CIFAR-10 and the meaning of their magnitudes.

Source: Cubuk et al., "AutoAugment: Learning Augmentation Strategies from Data", CVPR 2019, table 7; magnitude ranges as
in torchvision's `AutoAugment` (10 bins).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from titn.pipelines import geometry
from titn.pipelines.counter_random import Stream, uniforms
from titn.pipelines.policies.operation_rows import PARAMETERS, Operation, OperationRows

BINS = 10

OPERATIONS = (
    "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness",
    "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert",
)  # fmt: skip
"""The 14 operations that the paper's CIFAR-10 policies and torchvision's table know."""

SIGNED = OPERATIONS[:9]
"""Operations whose magnitude gets a random sign."""

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

_OPERATION = np.array([[OPERATIONS.index(name) for name, _, _ in pair] for pair in CIFAR10_POLICY])
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
    def draw(cls, seed: int, epoch: int, size: int) -> AutoAugmentRows:
        """Sub-policies uniform over the 25, each operation with its probability, signs even."""
        draws = uniforms(seed, epoch, Stream.AUTOAUGMENT, size, 5)
        sub_policy = (draws[:, 0] * len(CIFAR10_POLICY)).astype(np.uint8)
        return cls(sub_policy, draws[:, 1:3] < _PROBABILITY[sub_policy], draws[:, 3:5] < 0.5)

    def operations(self, ids: np.ndarray, image_size: int) -> OperationRows:
        """Codes and parameters of two slots for the images `ids`, int64 [n]."""
        codes, parameters = _tables(image_size)
        sub_policy = self.sub_policy[ids]
        operation = _OPERATION[sub_policy]
        chosen = parameters[operation, _BIN[sub_policy], self.negative[ids].astype(np.int64)]
        return OperationRows(np.where(self.apply[ids], codes[operation], np.uint8(Operation.IDENTITY)), chosen)


def magnitudes(operation: str, image_size: int) -> np.ndarray:
    """Magnitudes of the ten bins, float64 [10], to the last bit those of torchvision: Brightness shows the difference.

    Shears are slopes, translations pixels before truncation, rotations degrees, blends the factor less one, Posterize
    bits kept, Solarize a threshold; zero for the operations without one.
    """
    if operation in ("ShearX", "ShearY"):
        return _evenly_spaced(0.0, 0.3)
    if operation in ("TranslateX", "TranslateY"):
        return _evenly_spaced(0.0, 150 / 331 * image_size)
    if operation == "Rotate":
        return _evenly_spaced(0.0, 30.0)
    if operation in ("Brightness", "Color", "Contrast", "Sharpness"):
        return _evenly_spaced(0.0, 0.9)
    if operation == "Posterize":
        return 8 - np.rint(np.arange(BINS) * (4 / 9))
    if operation == "Solarize":
        return _evenly_spaced(255.0, 0.0)
    return np.zeros(BINS)


def _evenly_spaced(first: float, last: float) -> np.ndarray:
    """Ten values counted in float32 from the nearer end, as PyTorch's `linspace` does; float64 [10]."""
    low, high = np.float32(first), np.float32(last)
    step = (high - low) / np.float32(BINS - 1)
    count = np.arange(BINS, dtype=np.float32)
    return np.where(count < BINS // 2, low + step * count, high - step * count[::-1]).astype(np.float64)


def operation_parameters(name: str, level: np.ndarray, image_size: int) -> tuple[Operation, np.ndarray]:
    """The pixel operation of `name` and its parameters, float64 [..., 6], at magnitudes `level`, signed, [...]."""
    if name == "ShearX":
        code, values = Operation.AFFINE, geometry.shear(level, 0.0)
    elif name == "ShearY":
        code, values = Operation.AFFINE, geometry.shear(0.0, level)
    elif name == "TranslateX":
        code, values = Operation.AFFINE, geometry.affine(0.0, np.trunc(level), 0.0, 1.0, image_size)
    elif name == "TranslateY":
        code, values = Operation.AFFINE, geometry.affine(0.0, 0.0, np.trunc(level), 1.0, image_size)
    elif name == "Rotate":
        code, values = Operation.AFFINE, geometry.rotation(level, image_size)
    elif name in ("Brightness", "Color", "Contrast", "Sharpness"):
        code, values = Operation[name.upper()], 1.0 + level[..., None]
    elif name == "Posterize":
        code, values = Operation.POSTERIZE, 256 - 2.0 ** (8 - level[..., None])
    elif name == "Solarize":
        code, values = Operation.SOLARIZE, np.ceil(level[..., None])
    else:
        code, values = Operation[name.upper()], np.zeros((*level.shape, 1))
    parameters = np.zeros((*level.shape, PARAMETERS))
    parameters[..., : values.shape[-1]] = values
    return code, parameters


@functools.cache
def _tables(image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes, uint8 [14], and parameters, float64 [14, 10 bins, positive and negative, 6]."""
    codes = np.empty(len(OPERATIONS), dtype=np.uint8)
    parameters = np.empty((len(OPERATIONS), BINS, 2, PARAMETERS))
    for row, name in enumerate(OPERATIONS):
        sign = np.array([1.0, -1.0 if name in SIGNED else 1.0])
        codes[row], parameters[row] = operation_parameters(
            name, magnitudes(name, image_size)[:, None] * sign, image_size
        )
    return codes, parameters
