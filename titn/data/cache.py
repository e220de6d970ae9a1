"""Decoded data sets and their statistics on disk.

Decoding CIFAR's 60,000 WebP images takes about 7 s on one core, reading them back from here 0.3 s. The files lie in
$TITN_CACHE, or in titn/ of the user's cache folder ($XDG_CACHE_HOME or ~/.cache), and may be deleted at any time. The
name of a file is derived from the contents of the source files, so a changed source is never mistaken.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from titn.data.splits import Source, Splits, channel_statistics
from titn.errors import UserError
from titn.files import sha256, write_atomic

_VERSION = 1
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_log = logging.getLogger("titn")


class Decoded(NamedTuple):
    """Images, and the training images' mean and standard deviation per channel (`channel_statistics`)."""

    splits: Splits
    mean: tuple[float, ...]
    std: tuple[float, ...]


def cache_folder() -> Path:
    """$TITN_CACHE, else $XDG_CACHE_HOME/titn, else ~/.cache/titn."""
    own = os.environ.get("TITN_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "titn"


def digest(arrays: Sequence[np.ndarray]) -> str:
    """SHA-256 of the arrays' types, shapes and contents."""
    state = hashlib.sha256()
    for array in arrays:
        state.update(f"{array.dtype.str}{array.shape}".encode())
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def read_through_cache(source: Source, image_size: int) -> Decoded:
    """The source's images and their statistics from the cache, or computed and then stored there.

    A damaged cache file is replaced; a cache folder that cannot be written is a warning, no error.

    Raises:
        UserError: a source file cannot be read.
    """
    path = cache_folder() / f"{_key(source, image_size)}.safetensors"
    decoded = _load(path)
    if decoded is None:
        splits = source.read(image_size)
        decoded = Decoded(splits, *channel_statistics(splits.train_images))
        _store(path, decoded)
    return decoded


def _key(source: Source, image_size: int) -> str:
    state = hashlib.sha256(f"{_VERSION} {source.layout} {image_size}".encode())
    for path in source.files:
        try:
            state.update(f"\n{os.path.relpath(path, source.folder)}\0{sha256(path)}".encode())
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; fetch it again") from None
    return state.hexdigest()


def _load(path: Path) -> Decoded | None:
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata()
            arrays = {name: file.get_tensor(name) for name in _ARRAYS}
        if _seal(arrays, metadata["facts"]) != metadata["seal"]:
            return None
        facts = json.loads(metadata["facts"])
        splits = Splits(**arrays, class_names=tuple(facts["class_names"]))
        return Decoded(splits, tuple(facts["mean"]), tuple(facts["std"]))
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, UserError):
        return None


def _store(path: Path, decoded: Decoded) -> None:
    tensors = {name: np.ascontiguousarray(getattr(decoded.splits, name)) for name in _ARRAYS}
    facts = json.dumps({"class_names": decoded.splits.class_names, "mean": decoded.mean, "std": decoded.std})
    metadata = {"facts": facts, "seal": _seal(tensors, facts)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, safetensors.numpy.save(tensors, metadata))
    except OSError as error:
        _log.warning("cannot store decoded images in %s (%s); the next start decodes them again", path, error.strerror)


def _seal(arrays: dict[str, np.ndarray], facts: str) -> str:
    return hashlib.sha256((digest(list(arrays.values())) + facts).encode()).hexdigest()
