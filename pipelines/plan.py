"""The plan of an epoch: its order and every random choice for every image, without any pixels.

All draws come from numpy's Philox keyed by (seed, epoch) and are indexed by image id: they do not depend on batch size,
number of workers or processes, backend, device, or the epoch a run was resumed at.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields

import numpy as np
from scipy.special import betaincinv  # type: ignore[import-untyped]

from titn.pipelines.augmentation import Augmentation, check_integer
from titn.pipelines.counter_random import Stream, uniforms, words
from titn.pipelines.policies import POLICIES, EraseRows, ImageOperations, OperationRows

PLAN_VERSION = 1
"""Raised whenever the same arguments come to mean other pixels."""


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
        policy: draws of the policy, None without one.
        erase: draws of random erasing, None without it.
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
    policy: ImageOperations | None
    erase: ImageOperations | None
    lam: np.ndarray
    box: np.ndarray

    @classmethod
    def draw(cls, augmentation: Augmentation, *, size: int, image_size: int, seed: int, epoch: int) -> EpochPlan:
        """The plan of `epoch` (from 0) for `size` images of `image_size` pixels.

        Raises:
            ValueError: a value is out of range, or the crop's border is wider than the image.
        """
        check_integer("size", size, 1)
        check_integer("image_size", image_size, 1, 4096)
        check_integer("seed", seed, 0, 2**64 - 1)
        check_integer("epoch", epoch, 0, 2**64 - 1)
        if augmentation.crop_padding > image_size:
            raise ValueError(f"crop_padding must not exceed the image size {image_size}: {augmentation.crop_padding}")
        order = np.argsort(words(seed, epoch, Stream.ORDER, size)[:, 0], kind="stable")
        corners = 2 * augmentation.crop_padding + 1
        drawn = augmentation, seed, epoch, size, image_size
        policy = None if augmentation.policy == "none" else POLICIES[augmentation.policy].draw(*drawn)
        erase = EraseRows.draw(*drawn) if augmentation.erase else None
        lam, box = _draw_mix(augmentation, order, image_size, seed, epoch)
        plan = cls(
            augmentation, size, image_size, seed, epoch,
            fingerprint=_fingerprint(augmentation, size, image_size, seed, epoch),
            order=order,
            crop=(uniforms(seed, epoch, Stream.CROP, size, 2) * corners).astype(np.int64),
            flip=(uniforms(seed, epoch, Stream.FLIP, size)[:, 0] < 0.5) & augmentation.flip,
            policy=policy,
            erase=erase,
            lam=lam,
            box=box,
        )  # fmt: skip
        for rows in (plan, policy, erase):
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
        """Pixel operations of the policy, then of random erasing, for the images `ids`, int64 [n]; None without any."""
        rows = [drawn.operations(ids, self.image_size) for drawn in (self.policy, self.erase) if drawn is not None]
        return OperationRows.joined(rows) if rows else None


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
