"""Counter-based random numbers: the draws of row i depend on (seed, epoch, stream, i) alone."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a stream of draws is for; each has a counter range of its own, so no stream shifts another."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    AUTOAUGMENT = 3
    MNIST = 4
    MIX = 5
    RANDAUGMENT = 6
    TRIVIALAUGMENT = 7
    ERASE = 8
    OWN_POLICY = 9
    MNIST_MILD = 10


def words(seed: int, epoch: int, stream: Stream, rows: int, columns: int = 1) -> np.ndarray:
    """Raw draws, uint64 [rows, columns], of numpy's Philox 4x64 with key (seed, epoch) and the stream in its counter.

    Row i does not depend on `rows`. Only the raw output of the bit generator is used, which numpy keeps unchanged from
    version to version (NEP 19), unlike its distributions. Source: Salmon et al., "Parallel random numbers: as easy as
    1, 2, 3", SC 2011.
    """
    key = np.array([seed, epoch], dtype=np.uint64)
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    return np.random.Philox(counter=counter, key=key).random_raw(rows * columns).reshape(rows, columns)


def uniforms(seed: int, epoch: int, stream: Stream, rows: int, columns: int = 1) -> np.ndarray:
    """Uniform draws in [0, 1), float64 [rows, columns]: multiples of 2**-53."""
    return (words(seed, epoch, stream, rows, columns) >> np.uint64(11)) * 2.0**-53
