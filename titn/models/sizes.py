"""The sizes of the networks: all that the shapes of their weights and the meaning of their outputs depend on."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real

import numpy as np

from titn.errors import UserError

POOLS = ("mean", "token")


@dataclass(frozen=True)
class Sizes:
    """What every network is built for, teachers included.

    Values are checked when an object is made. Whole numbers of any type (numpy's, a float without a fraction) become
    int.

    Raises:
        UserError: a value is of the wrong type or out of range, or two values do not fit each other.
    """

    num_classes: int = 100
    """Outputs; 0 leaves the heads out."""
    in_channels: int = 3
    image_size: int = 32
    """Height and width in pixels."""

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name == "pool":
                checked: object = check_choice(name, value, POOLS)
            elif isinstance(field.default, bool):
                checked = check_flag(name, value)
            else:
                checked = check_whole(name, value, at_least=0 if name == "num_classes" else 1)
            object.__setattr__(self, name, checked)


@dataclass(frozen=True)
class TransformerSizes(Sizes):
    """Sizes of a Transformer over the patches of an image, which are squares of `patch_size` pixels."""

    patch_size: int = 8
    patch_dim: int = 192
    patch_heads: int = 8
    depth: int = 12
    pool: str = "mean"
    """Class representation: the mean of class token and patches, or the class token alone ("token")."""
    distilled: bool = True
    """Whether there is a distillation token, with a head of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_divides("image_size", self.image_size, "patch_size", self.patch_size)
        check_divides("patch_dim", self.patch_dim, "patch_heads", self.patch_heads)

    @property
    def num_patches(self) -> int:
        """N, the patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        """T: class token, patches and, if `distilled`, the distillation token."""
        return self.num_patches + (2 if self.distilled else 1)


@dataclass(frozen=True)
class ViTSizes(TransformerSizes):
    """Sizes of a ViT, with `distilled` of a DeiT."""

    pool: str = "token"
    distilled: bool = False


@dataclass(frozen=True)
class TNTSizes(TransformerSizes):
    """Sizes of a TITN, without `distilled` of a TNT: each patch consists of squares of `pixel_size` pixels."""

    pixel_size: int = 2
    pixel_dim: int = 12
    pixel_heads: int = 4
    second_position: bool = False
    """Whether there is a second position table, as in the authors' code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_divides("patch_size", self.patch_size, "pixel_size", self.pixel_size)
        check_divides("pixel_dim", self.pixel_dim, "pixel_heads", self.pixel_heads)

    @property
    def num_pixels(self) -> int:
        """M, the pixels of a patch."""
        return (self.patch_size // self.pixel_size) ** 2


def check_whole(name: str, value: object, at_least: int = 1) -> int:
    """`value` as int; UserError unless it is a whole number of at least `at_least`."""
    number = _number(value)
    if not number.is_integer() or number < at_least:
        raise UserError(f"{name} must be a whole number of at least {at_least}, not {value!r}")
    return int(number)


def check_rate(name: str, value: object) -> float:
    """`value` as float; UserError unless it is a probability below 1."""
    number = _number(value)
    if not 0.0 <= number < 1.0:
        raise UserError(f"{name} must be at least 0 and below 1, not {value!r}")
    return number


def check_flag(name: str, value: object) -> bool:
    """`value` as bool; UserError unless it is True or False, Python's or numpy's."""
    if not isinstance(value, (bool, np.bool_)):
        raise UserError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """`value` as str; UserError unless it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
    return str(value)


def check_divides(whole_name: str, whole: int, part_name: str, part: int) -> None:
    """Raise UserError unless `part` divides `whole`."""
    if whole % part:
        fitting = [divisor for divisor in range(1, whole + 1) if whole % divisor == 0]
        nearest = min(fitting, key=lambda divisor: abs(divisor - part))
        raise UserError(f"{part_name} {part} does not divide {whole_name} {whole}; {part_name} {nearest} would")


def _number(value: object) -> float:
    """`value` as float, numpy's numbers too; not a number where it is none."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
