"""The plan of an epoch: its order and every random choice for every image, without any pixels.

All draws come from numpy's Philox keyed by (seed, epoch) and are indexed by image id: they do not depend on batch size,
number of workers or processes, backend, device, or the epoch a run was resumed at.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np
from scipy.special import betaincinv  # type: ignore[import-untyped]

from titn.pipelines.counter_random import Stream, uniforms, words
from titn.pipelines.policies.autoaugment import AutoAugmentRows
from titn.pipelines.policies.mnist import MnistRows
from titn.pipelines.policies.operation_rows import OperationRows

PLAN_VERSION = 1
"""Raised whenever the same arguments come to mean other pixels."""

Policy = Literal["none", "cifar10", "mnist"]
Mix = Literal["none", "cutmix", "cutmix_batch", "mixup"]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is done to an image: random crop, flip, policy, normalisation, mixing, in this order.

    Attributes:
        crop_padding: black border on each side before the random crop back to the image size, in pixels; 0 is no crop.
        flip: mirror left and right with probability 1/2.
        policy: "cifar10" is AutoAugment's CIFAR-10 policy; "mnist" rotation by up to 30 degrees, an affine map
            (20 degrees, 10 % shift, scale 0.9 to 1.1), then brightness and contrast jitter of 0.2 in random order.
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
    policy: Policy = "none"
    mix: Mix = "none"
    mix_alpha: float = 0.5
    mix_batch: int = 1024

    def __post_init__(self) -> None:
        _check_integer("crop_padding", self.crop_padding, 0)
        if not isinstance(self.flip, bool):
            raise ValueError(f"flip must be true or false, not {self.flip!r}")
        if self.policy not in get_args(Policy):
            raise ValueError(f"policy must be one of {', '.join(get_args(Policy))}, not {self.policy!r}")
        if self.mix not in get_args(Mix):
            raise ValueError(f"mix must be one of {', '.join(get_args(Mix))}, not {self.mix!r}")
        number = isinstance(self.mix_alpha, int | float) and not isinstance(self.mix_alpha, bool)
        if not number or not math.isfinite(self.mix_alpha) or self.mix_alpha <= 0:
            raise ValueError(f"mix_alpha must be a finite number above 0, not {self.mix_alpha!r}")
        _check_integer("mix_batch", self.mix_batch, 1)

    def effective(self) -> dict[str, object]:
        """The values that pixels depend on, for fingerprints."""
        values: dict[str, object] = {
            "crop_padding": self.crop_padding, "flip": self.flip, "policy": self.policy, "mix": self.mix,
        }  # fmt: skip
        if self.mix != "none":
            values["mix_alpha"] = float(self.mix_alpha)
        if self.mix == "cutmix_batch":
            values["mix_batch"] = self.mix_batch
        return values


@dataclass(frozen=True, slots=True, eq=False)
class EpochPlan:
    """Order and augmentation parameters of one epoch of N images; arrays are read-only, rows indexed by image id.

    Attributes:
        augmentation: as given to `draw`.
        size: number of images N.
        image_size: height and width, in pixels.
        seed: as given to `draw`.
        epoch: as given to `draw`.
        fingerprint: SHA-256, hexadecimal, of the plan's version and of everything its pixels depend on besides the
            stored images.
        order: image id at each position, int64 [N], a uniformly random permutation.
        crop: top and left corner of the crop in the padded image, int64 [N, 2].
        flip: bool [N].
        autoaugment: draws of the policy "cifar10", else None.
        mnist: draws of the policy "mnist", else None.
        lam: weight of the image's own label, float32 [N].
        box: top, bottom, left, right (bottom and right excluded) of the partner's box, int64 [N, 4]; empty boxes are
            where nothing is pasted.
    """

    augmentation: Augmentation
    size: int
    image_size: int
    seed: int
    epoch: int
    fingerprint: str
    order: np.ndarray
    crop: np.ndarray
    flip: np.ndarray
    autoaugment: AutoAugmentRows | None
    mnist: MnistRows | None
    lam: np.ndarray
    box: np.ndarray

    @classmethod
    def draw(cls, augmentation: Augmentation, *, size: int, image_size: int, seed: int, epoch: int) -> EpochPlan:
        """The plan of `epoch` (from 0) for `size` images of `image_size` pixels.

        Raises:
            ValueError: a value is out of range, or the crop's border is wider than the image.
        """
        _check_integer("size", size, 1)
        _check_integer("image_size", image_size, 1, 4096)
        _check_integer("seed", seed, 0, 2**64 - 1)
        _check_integer("epoch", epoch, 0, 2**64 - 1)
        if augmentation.crop_padding > image_size:
            raise ValueError(f"crop_padding must not exceed the image size {image_size}: {augmentation.crop_padding}")
        order = np.argsort(words(seed, epoch, Stream.ORDER, size)[:, 0], kind="stable")
        corners = 2 * augmentation.crop_padding + 1
        lam, box = _draw_mix(augmentation, order, image_size, seed, epoch)
        plan = cls(
            augmentation, size, image_size, seed, epoch,
            fingerprint=_fingerprint(augmentation, size, image_size, seed, epoch),
            order=order,
            crop=(uniforms(seed, epoch, Stream.CROP, size, 2) * corners).astype(np.int64),
            flip=(uniforms(seed, epoch, Stream.FLIP, size)[:, 0] < 0.5) & augmentation.flip,
            autoaugment=AutoAugmentRows.draw(seed, epoch, size) if augmentation.policy == "cifar10" else None,
            mnist=MnistRows.draw(seed, epoch, size, image_size) if augmentation.policy == "mnist" else None,
            lam=lam,
            box=box,
        )  # fmt: skip
        for rows in (plan, plan.autoaugment, plan.mnist):
            for field in fields(rows) if rows is not None else ():
                value = getattr(rows, field.name)
                if isinstance(value, np.ndarray):
                    value.setflags(write=False)
        return plan

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with partners."""
        return self.augmentation.mix != "none"

    def partners(self, positions: np.ndarray) -> np.ndarray:
        """Positions of the mixing partners: the next one, cyclic; a bijection, uniformly random as the order is."""
        return (positions + 1) % self.size

    def operations(self, ids: np.ndarray) -> OperationRows | None:
        """The policy's pixel operations for the images `ids`, int64 [n]; None without a policy."""
        policy = self.autoaugment or self.mnist
        return None if policy is None else policy.operations(ids, self.image_size)


def _draw_mix(
    augmentation: Augmentation, order: np.ndarray, image_size: int, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """lam, float32 [N], and boxes, int64 [N, 4], by image id.

    Sources: Yun et al., "CutMix", ICCV 2019; Zhang et al., "mixup", ICLR 2018. A box has sides of sqrt(1 - lam) times
    the image's, rounded down to even, about a uniform centre, and is clipped at the border.
    """
    size = len(order)
    box = np.zeros((size, 4), dtype=np.int64)
    if augmentation.mix == "none":
        return np.ones(size, dtype=np.float32), box
    rows = -(-size // augmentation.mix_batch) if augmentation.mix == "cutmix_batch" else size
    draws = uniforms(seed, epoch, Stream.MIX, rows, 3)
    lam = betaincinv(augmentation.mix_alpha, augmentation.mix_alpha, draws[:, 0])
    if augmentation.mix == "mixup":
        return lam.astype(np.float32), box
    half = (np.sqrt(1.0 - lam) * image_size).astype(np.int64) // 2
    center = (draws[:, 1:3] * image_size).astype(np.int64)
    box = np.stack(
        [np.clip(center[:, axis] + sign * half, 0, image_size) for axis in (0, 1) for sign in (-1, 1)], axis=1
    )
    if augmentation.mix == "cutmix_batch":
        step = np.empty(size, dtype=np.int64)
        step[order] = np.arange(size) // augmentation.mix_batch
        return lam[step].astype(np.float32), box[step]
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
    return (1.0 - area / image_size**2).astype(np.float32), box


def _fingerprint(augmentation: Augmentation, size: int, image_size: int, seed: int, epoch: int) -> str:
    values = {
        "plan_version": PLAN_VERSION, "augmentation": augmentation.effective(), "size": size,
        "image_size": image_size, "seed": seed, "epoch": epoch,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _check_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        span = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be an integer {span}, not {value!r}")
