"""Which pixel operations each image gets, with their parameters: what every backend reads from a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np

if TYPE_CHECKING:
    from titn.pipelines.augmentation import Augmentation

PARAMETERS = 6


class Operation(IntEnum):
    """Operations on uint8 pixels, with what their row of parameters holds (unused columns are zero)."""

    IDENTITY = 0
    AFFINE = 1  # six 16.16 coefficients, see geometry.fixed_point
    BRIGHTNESS = 2  # factor
    COLOR = 3  # factor
    CONTRAST = 4  # factor
    SHARPNESS = 5  # factor
    POSTERIZE = 6  # bit mask
    SOLARIZE = 7  # threshold, an integer
    AUTOCONTRAST = 8
    EQUALIZE = 9
    INVERT = 10
    ERASE = 11  # top, bottom, left, right (bottom and right excluded), byte to fill with


@dataclass(frozen=True, slots=True)
class OperationRows:
    """Operations of n images, applied from the first slot to the last.

    Attributes:
        codes: `Operation` values, uint8 [n, slots].
        parameters: float64 [n, slots, 6]; integers among them are exact.
    """

    codes: np.ndarray
    parameters: np.ndarray

    @classmethod
    def joined(cls, rows: Sequence[OperationRows]) -> OperationRows:
        """All slots of the first, then those of the next."""
        return cls(
            np.concatenate([each.codes for each in rows], axis=1),
            np.concatenate([each.parameters for each in rows], axis=1),
        )


class ImageOperations(Protocol):
    """Operations for every image of an epoch."""

    def operations(self, ids: np.ndarray, image_size: int) -> OperationRows:
        """Codes and parameters for the images `ids`, int64 [n]; every image has as many slots."""
        ...


class PolicyRows(ImageOperations, Protocol):
    """The draws of a policy for every image; a dataclass of arrays that are indexed by image id."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @classmethod
    def draw(cls, augmentation: Augmentation, seed: int, epoch: int, size: int, image_size: int) -> Self:
        """The draws for `size` images of `image_size` pixels: row i depends on neither `size` nor other epochs."""
        ...
