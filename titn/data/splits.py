"""Training and test images of a data set, their statistics, and the fixed random choices among them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from titn.errors import UserError

_SPLIT_KEY = 20
_SUBSET_KEY = 21
_DEVELOPMENT_KEY = 22
_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class Splits:
    """Images uint8 [N, H, W, C], labels int64 [N] (below the number of class names), class names.

    Raises:
        UserError: a label has no class name, a split is empty, or there are fewer than two classes.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise UserError(f"the data set has {len(self.class_names)} class(es); at least 2 are needed")
        for name, labels in (("training", self.train_labels), ("test", self.test_labels)):
            if not len(labels):
                raise UserError(f"the data set has no {name} images")
            if labels.min() < 0 or labels.max() >= len(self.class_names):
                raise UserError(
                    f"the {name} labels run from {labels.min()} to {labels.max()}, "
                    f"but there are {len(self.class_names)} class names"
                )


@dataclass(frozen=True)
class Source:
    """Where a data set was found: its files, and how to read them as `Splits` of a given image size."""

    folder: Path
    files: tuple[Path, ...]
    layout: str
    read: Callable[[int], Splits]


def _random_keys(count: int, key: int) -> np.ndarray:
    """`count` raw 64-bit Philox numbers; unlike numpy's distributions, raw streams never change between versions."""
    return np.random.Philox(key=key).random_raw(count)


def _rank_in_class(labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Position of each image in a random order of its own class: int64 [N]."""
    order = np.lexsort((keys, labels))
    sizes = np.bincount(labels)
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(starts, sizes)
    return rank


def stratified_test_rows(labels: np.ndarray) -> np.ndarray:
    """Which images are held out where a data set brings no test split: a fixed fifth of every class.

    Args:
        labels: int64 [N].

    Returns:
        bool [N]. A class of two or more images has at least one on either side.
    """
    return _held_out(labels, 2, _SPLIT_KEY)


def stratified_development_rows(labels: np.ndarray) -> np.ndarray:
    """Which training images are held out for choices that must not see the test set: a fixed tenth of every class.

    Args:
        labels: int64 [N], of the training split.

    Returns:
        bool [N]. A class of two or more images has at least one on either side.
    """
    return _held_out(labels, 1, _DEVELOPMENT_KEY)


def _held_out(labels: np.ndarray, tenths: int, key: int) -> np.ndarray:
    """A fixed random choice of so many tenths of every class, rounded: bool [N]."""
    sizes = np.bincount(labels)
    held_out = np.where(sizes > 1, np.maximum(1, (tenths * sizes + 5) // 10), 0)
    return _rank_in_class(labels, _random_keys(len(labels), key)) < held_out[labels]


def balanced_subset(labels: np.ndarray, size: int) -> np.ndarray:
    """A fixed random subset, as balanced over the classes as it can be; a larger one contains a smaller one.

    Args:
        labels: int64 [N].
        size: number of images, 1..N.

    Returns:
        int64 [size], ascending positions.

    Raises:
        UserError: `size` is out of range.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= len(labels):
        raise UserError(f"--limit-train must be from 1 to {len(labels)}, the number of training images, not {size}")
    keys = _random_keys(len(labels), _SUBSET_KEY)
    return np.sort(np.lexsort((keys, _rank_in_class(labels, keys)))[:size])


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (of the population) per channel, 0..1 scale, from exact integer sums.

    Args:
        images: uint8 [N, H, W, C].

    Returns:
        (mean, std), each with C floats. A channel that never changes gets std 1, so that it normalises to zero.
    """
    channels = images.shape[3]
    values = np.arange(256)
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    mean, std = [], []
    for row in counts:
        number, total, squares = (int((row * values**power).sum()) for power in range(3))
        mean.append(total / (255 * number))
        std.append(math.sqrt(number * squares - total**2) / (255 * number) or 1.0)
    return tuple(mean), tuple(std)
