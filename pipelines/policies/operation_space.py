"""Named operations at numbered magnitudes: what AutoAugment, RandAugment and TrivialAugment choose from."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from titn.pipelines import geometry
from titn.pipelines.policies.operation_rows import PARAMETERS, Operation

SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
"""Operations whose magnitude gets a random sign."""

WITHOUT_MAGNITUDE = ("Identity", "AutoContrast", "Equalize", "Invert")


@dataclass(frozen=True, slots=True, eq=False)
class OperationSpace:
    """The operations of a policy and the meaning of their magnitudes, those of torchvision to the last bit.

    Shears are slopes, translations pixels before truncation, rotations degrees, blends the factor less one, Posterize
    bits kept, Solarize a threshold; all but the last two grow with the bin.

    Attributes:
        names: of the operations, in the order their numbers mean.
        bins: magnitudes of each.
        largest: magnitude of the last bin by name, for Posterize the bits lost; 0 for operations without one.
        per_pixel: whether the largest translation is a share of the image's width instead of pixels.
    """

    names: tuple[str, ...]
    bins: int
    largest: Mapping[str, float]
    per_pixel: bool

    def magnitudes(self, name: str, image_size: int) -> np.ndarray:
        """Magnitudes of the operation's bins without sign, float64 [bins]."""
        if name in WITHOUT_MAGNITUDE:
            return np.zeros(self.bins)
        if name == "Solarize":
            return _evenly_spaced(255.0, 0.0, self.bins)
        largest = self.largest[name]
        if name == "Posterize":
            return 8 - np.rint(np.arange(self.bins, dtype=np.float32) / np.float32((self.bins - 1) / largest))
        share = image_size if self.per_pixel and name.startswith("Translate") else 1
        return _evenly_spaced(0.0, largest * share, self.bins)

    @functools.lru_cache(maxsize=16)  # noqa: B019 - the spaces are constants
    def tables(self, image_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes, uint8 [names], and parameters, float64 [names, bins, 2 (positive, negative), 6]."""
        codes = np.empty(len(self.names), dtype=np.uint8)
        parameters = np.empty((len(self.names), self.bins, 2, PARAMETERS))
        for row, name in enumerate(self.names):
            sign = np.array([1.0, -1.0 if name in SIGNED else 1.0])
            level = self.magnitudes(name, image_size)[:, None] * sign
            codes[row], parameters[row] = operation_parameters(name, level, image_size)
        return codes, parameters


def _space(names: tuple[str, ...], bins: int, *, per_pixel: bool, **largest: float) -> OperationSpace:
    """The paper's ranges but for those given."""
    usual = dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.9) | {"Rotate": 30.0}
    usual |= dict.fromkeys(("ShearX", "ShearY"), 0.3) | dict.fromkeys(("TranslateX", "TranslateY"), 150 / 331)
    return OperationSpace(names, bins, MappingProxyType(usual | {"Posterize": 4} | largest), per_pixel)


_COMMON = (*SIGNED, "Posterize", "Solarize", "AutoContrast", "Equalize")

AUTOAUGMENT = _space((*_COMMON, "Invert"), 10, per_pixel=True)
"""Source: Cubuk et al., "AutoAugment: Learning Augmentation Strategies from Data", CVPR 2019."""

RANDAUGMENT = _space(("Identity", *_COMMON), 31, per_pixel=True)
"""Source: Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", 2020."""

TRIVIALAUGMENT = _space(
    ("Identity", *_COMMON),
    31,
    per_pixel=False,
    Posterize=6,
    Rotate=135.0,
    **dict.fromkeys(("ShearX", "ShearY", "Brightness", "Color", "Contrast", "Sharpness"), 0.99),
    **dict.fromkeys(("TranslateX", "TranslateY"), 32.0),
)
"""Source: Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", ICCV 2021 (wide)."""


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


def _evenly_spaced(first: float, last: float, count: int) -> np.ndarray:
    """Values counted in float32 from the nearer end, each rounded once, as PyTorch's `linspace`; float64 [count]."""
    low, high = np.float32(first), np.float32(last)
    step = float((high - low) / np.float32(count - 1))
    place = np.arange(count)
    exact = np.where(place < count // 2, float(low) + step * place, float(high) - step * place[::-1])
    return exact.astype(np.float32).astype(np.float64)
