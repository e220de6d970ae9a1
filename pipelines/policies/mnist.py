"""The draws of MNIST's recipes: rotation, affine map and colour jitter, or a mild affine map alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from titn.pipelines import geometry
from titn.pipelines.counter_random import Stream, uniforms
from titn.pipelines.policies.operation_rows import PARAMETERS, Operation, OperationRows

if TYPE_CHECKING:
    from titn.pipelines.augmentation import Augmentation

ROTATION_DEGREES = 30.0
AFFINE_DEGREES = 20.0
SHIFT_FRACTION = 0.1
SCALE_RANGE = (0.9, 1.1)
JITTER = 0.2
MILD_DEGREES = 12.0


@dataclass(frozen=True, slots=True)
class MnistRows:
    """Parameters of the MNIST recipe, indexed by image id.

    Attributes:
        rotation: counter-clockwise, degrees, float64 [N], uniform in +-30.
        angle: of the affine map, clockwise, degrees, float64 [N], uniform in +-20.
        shift: to the right and down, whole pixels, int64 [N, 2], within 10 % of the image size.
        scale: float64 [N], uniform from 0.9 to 1.1.
        brightness: factor, float64 [N], uniform from 0.8 to 1.2.
        contrast: likewise.
        contrast_first: whether contrast comes before brightness, bool [N].
    """

    rotation: np.ndarray
    angle: np.ndarray
    shift: np.ndarray
    scale: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    contrast_first: np.ndarray

    @classmethod
    def draw(cls, augmentation: Augmentation, seed: int, epoch: int, size: int, image_size: int) -> MnistRows:
        """Independent draws per image, as torchvision's RandomRotation, RandomAffine and ColorJitter make them."""
        draws = uniforms(seed, epoch, Stream.MNIST, size, 8)
        centred = 2.0 * draws - 1.0
        low, high = SCALE_RANGE
        return cls(
            rotation=centred[:, 0] * ROTATION_DEGREES,
            angle=centred[:, 1] * AFFINE_DEGREES,
            shift=np.rint(centred[:, 2:4] * (SHIFT_FRACTION * image_size)).astype(np.int64),
            scale=low + draws[:, 4] * (high - low),
            brightness=1.0 + centred[:, 5] * JITTER,
            contrast=1.0 + centred[:, 6] * JITTER,
            contrast_first=draws[:, 7] < 0.5,
        )

    def operations(self, ids: np.ndarray, image_size: int) -> OperationRows:
        """Codes and parameters of four slots for the images `ids`, int64 [n]: rotation, affine map, two of jitter."""
        codes = np.full((len(ids), 4), Operation.AFFINE, dtype=np.uint8)
        parameters = np.zeros((len(ids), 4, PARAMETERS))
        shift_x, shift_y = self.shift[ids].T
        parameters[:, 0] = geometry.rotation(self.rotation[ids], image_size)
        parameters[:, 1] = geometry.affine(self.angle[ids], shift_x, shift_y, self.scale[ids], image_size)
        first = self.contrast_first[ids]
        codes[:, 2] = np.where(first, Operation.CONTRAST, Operation.BRIGHTNESS)
        codes[:, 3] = np.where(first, Operation.BRIGHTNESS, Operation.CONTRAST)
        parameters[:, 2, 0] = np.where(first, self.contrast[ids], self.brightness[ids])
        parameters[:, 3, 0] = np.where(first, self.brightness[ids], self.contrast[ids])
        return OperationRows(codes, parameters)


@dataclass(frozen=True, slots=True)
class MildMnistRows:
    """Parameters of a mild affine map, indexed by image id; the shift is left to the random crop.

    Attributes:
        angle: clockwise, degrees, float64 [N], uniform in +-12.
        scale: float64 [N], uniform from 0.9 to 1.1.
    """

    angle: np.ndarray
    scale: np.ndarray

    @classmethod
    def draw(cls, augmentation: Augmentation, seed: int, epoch: int, size: int, image_size: int) -> MildMnistRows:
        """Independent draws per image."""
        draws = uniforms(seed, epoch, Stream.MNIST_MILD, size, 2)
        low, high = SCALE_RANGE
        return cls((2.0 * draws[:, 0] - 1.0) * MILD_DEGREES, low + draws[:, 1] * (high - low))

    def operations(self, ids: np.ndarray, image_size: int) -> OperationRows:
        """The code and the parameters of one slot for the images `ids`, int64 [n]."""
        parameters = np.zeros((len(ids), 1, PARAMETERS))
        parameters[:, 0] = geometry.affine(self.angle[ids], 0.0, 0.0, self.scale[ids], image_size)
        return OperationRows(np.full((len(ids), 1), Operation.AFFINE, dtype=np.uint8), parameters)
