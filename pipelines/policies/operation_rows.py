"""Which pixel operations each image gets, with their parameters: what every backend reads from a plan."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

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


@dataclass(frozen=True, slots=True)
class OperationRows:
    """Operations of n images, applied from the first slot to the last.

    Attributes:
        codes: `Operation` values, uint8 [n, slots].
        parameters: float64 [n, slots, 6]; integers among them are exact.
    """

    codes: np.ndarray
    parameters: np.ndarray
