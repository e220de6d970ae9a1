"""What is done to training images, in words; the plan draws it and a pipeline does it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from titn.pipelines.policies import CODE, POLICIES
from titn.pipelines.policies.operation_space import RANDAUGMENT

Mix = Literal["none", "cutmix", "cutmix_batch", "mixup"]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is done to an image: random crop, flip, policy, erasing, normalisation, mixing, in this order.

    Attributes:
        crop_padding: black border on each side before the random crop back to the image size, in pixels; 0 is no crop.
        flip: mirror left and right with probability 1/2.
        policy: "cifar10" is AutoAugment's CIFAR-10 policy; "mnist" rotation by up to 30 degrees, an affine map
            (20 degrees, 10 % shift, scale 0.9 to 1.1), then brightness and contrast jitter of 0.2 in random order;
            "mnist_mild" an affine map alone (12 degrees, scale 0.9 to 1.1); "randaugment" and "trivialaugment" are
            torchvision's RandAugment and TrivialAugmentWide; "none", or one that was registered.
        randaugment_operations: operations per image under "randaugment".
        randaugment_magnitude: of all of them, 0 to 30.
        erase: probability of a black rectangle (random erasing) of 2 to 33 % of the image, sides 0.3 to 3.3 to 1.
        mix: "cutmix" pastes a box of the partner per image and corrects lam for a box clipped at the border;
            "cutmix_batch" is the paper's: `mix_batch` consecutive positions share one box and lam is not corrected;
            "mixup" adds lam times the image and 1 - lam times its partner.
        mix_alpha: lam is drawn from Beta(mix_alpha, mix_alpha).
        mix_batch: positions that share a box under "cutmix_batch" (and nowhere else): the global batch size.

    Raises:
        ValueError: a value is out of range or of the wrong type.
    """

    crop_padding: int = 4
    flip: bool = True
    policy: str = "none"
    randaugment_operations: int = 2
    randaugment_magnitude: int = 9
    erase: float = 0.0
    mix: Mix = "none"
    mix_alpha: float = 0.5
    mix_batch: int = 1024

    def __post_init__(self) -> None:
        check_integer("crop_padding", self.crop_padding, 0)
        if not isinstance(self.flip, bool):
            raise ValueError(f"flip must be true or false, not {self.flip!r}")
        if self.policy != "none" and self.policy not in POLICIES:
            raise ValueError(f"policy must be one of none, {', '.join(POLICIES)}, not {self.policy!r}")
        check_integer("randaugment_operations", self.randaugment_operations, 1)
        check_integer("randaugment_magnitude", self.randaugment_magnitude, 0, RANDAUGMENT.bins - 1)
        if not _is_number(self.erase) or not 0 <= self.erase <= 1:
            raise ValueError(f"erase must be a probability from 0 to 1, not {self.erase!r}")
        if self.mix not in get_args(Mix):
            raise ValueError(f"mix must be one of {', '.join(get_args(Mix))}, not {self.mix!r}")
        if not _is_number(self.mix_alpha) or self.mix_alpha <= 0:
            raise ValueError(f"mix_alpha must be a finite number above 0, not {self.mix_alpha!r}")
        check_integer("mix_batch", self.mix_batch, 1)

    def effective(self) -> dict[str, object]:
        """The values that pixels depend on, for fingerprints."""
        values: dict[str, object] = {
            "crop_padding": self.crop_padding, "flip": self.flip, "policy": self.policy, "mix": self.mix,
        }  # fmt: skip
        if self.policy in CODE:
            values["policy_code"] = CODE[self.policy]
        if self.policy == "randaugment":
            values["randaugment"] = [self.randaugment_operations, self.randaugment_magnitude]
        if self.erase:
            values["erase"] = float(self.erase)
        if self.mix != "none":
            values["mix_alpha"] = float(self.mix_alpha)
        if self.mix == "cutmix_batch":
            values["mix_batch"] = self.mix_batch
        return values


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raises ValueError unless `value` is an integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        span = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be an integer {span}, not {value!r}")
