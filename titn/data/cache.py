"""Decoded data sets and their statistics on disk.

Decoding CIFAR's 60,000 images takes seconds, reading them back from here a fraction of one. The files lie in
$TITN_CACHE, or in titn/ of the user's cache folder ($XDG_CACHE_HOME or ~/.cache), and are all this program's own: they
may go at any time. A file's name is a hash of everything that the images depend on: what the data set is read as, the
image size, and the names and contents of the source files within its folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from titn.data.decoding import memory_shortage
from titn.data.splits import Source, Splits, channel_statistics, shown
from titn.errors import UserError
from titn.files import sha256, write_atomic
from titn.pipelines.image_files import ImageFiles, digest

_VERSION = 3
FROM_FILES = "images stay in their files and are decoded for every batch"
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_OPTIONAL = ("val_images", "val_labels", "train_keys")
_FACTS = ("class_names", "test_names", "notes")


class Decoded(NamedTuple):
    """Images, the training images' mean and standard deviation per channel (`channel_statistics`), and notes."""

    splits: Splits
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()


def cache_folder() -> Path | None:
    """$TITN_CACHE, else $XDG_CACHE_HOME/titn, else ~/.cache/titn; None where there is no home folder either."""
    try:
        if own := os.environ.get("TITN_CACHE"):
            return Path(own).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "titn"
    except RuntimeError:
        return None


def read_through_cache(source: Source, image_size: int, *, in_files: bool | None = False) -> Decoded:
    """The source's images and their statistics from the cache, or computed and then stored there.

    A damaged cache file is replaced. Where the cache cannot be written, the images are decoded on every start, and a
    note says why.

    Args:
        source: where the data set was found.
        image_size: in pixels.
        in_files: leave images in their files where each has its own, which a note says: they are decoded twice, and
            what is kept is what was found out about them, for as long as every file has its size and time of change.
            None: where they do not fit into memory.

    Raises:
        UserError: a source file cannot be read.
    """
    said, read, why = source.notes, source.read, None
    if source.read_files is not None and in_files is None:
        why = memory_shortage(len(source.files), image_size, 3)
    in_files = source.read_files is not None and bool(in_files or why)
    if source.read_files is not None and in_files:
        read = source.read_files
        said += (FROM_FILES + (f": {why}" if why else ""),)
    key = _key(source, image_size, in_files)
    folder = cache_folder()
    path = None if folder is None else folder / f"{key}.safetensors"
    decoded = None if path is None else _load(path, source, image_size)
    if decoded is not None:
        return decoded._replace(notes=said + decoded.splits.notes)
    splits = read(image_size)
    decoded = Decoded(splits, *channel_statistics(splits.train_images))
    reason = "there is no home folder; name one with TITN_CACHE" if path is None else _store(path, source, decoded)
    notes = said + splits.notes
    if reason:
        notes += (f"decoded images are not kept, so that every start decodes them again: {reason}",)
    return decoded._replace(notes=notes)


def _key(source: Source, image_size: int, in_files: bool) -> str:
    form = "files " if in_files else ""
    state = hashlib.sha256(f"{_VERSION} {form}{source.layout} {image_size}".encode("utf-8", "surrogateescape"))
    for path in source.files:
        _check_file(path, source.largest_file)
        try:
            facts = path.stat()
            content = f"{facts.st_size} {facts.st_mtime_ns}" if in_files else sha256(path)
            state.update(b"\n" + os.fsencode(os.path.relpath(path, source.folder)) + b"\0" + content.encode())
        except OSError as error:
            raise UserError(f"cannot read {shown(path)}: {error.strerror}") from None
    return state.hexdigest()


def _check_file(path: Path, largest: int) -> None:
    """Raise UserError unless this is a file of a sensible size; nothing is opened, so that a pipe cannot hang."""
    try:
        facts = path.stat()
    except OSError as error:
        link = os.path.islink(path)  # noqa: PTH114 (Path.is_symlink raises where this may not be asked)
        reason = f"it is a link to {path.readlink()}, which is not there" if link else error.strerror
        raise UserError(f"cannot read {shown(path)}: {shown(reason or '')}") from None
    if not stat.S_ISREG(facts.st_mode):
        raise UserError(f"cannot read {shown(path)}: it is no regular file (a pipe, socket, device or folder)")
    if not facts.st_size:
        raise UserError(f"cannot read {shown(path)}: it is empty (0 bytes)")
    if facts.st_size > largest:
        raise UserError(f"cannot read {shown(path)}: it has {facts.st_size:,} bytes, at most {largest:,} are read")


def _load(path: Path, source: Source, image_size: int) -> Decoded | None:
    try:
        if not path.is_file():
            return None
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if _seal(arrays, metadata["facts"]) != metadata["seal"]:
            return None
        facts = json.loads(metadata["facts"])
        named: dict[str, Any] = {name: None if facts[name] is None else tuple(facts[name]) for name in _FACTS}
        images: dict[str, Any] = {
            name: ImageFiles([source.files[row] for row in arrays.pop(name).tolist()], image_size, sha256)
            for name, sha256 in facts["in_files"].items()
        }
        splits = Splits(**arrays, **images, **named)
        if facts["val_is_test"]:
            splits = replace(splits, val_images=splits.test_images, val_labels=splits.test_labels)
        return Decoded(splits, tuple(facts["mean"]), tuple(facts["std"]))
    except (OSError, safetensors.SafetensorError, LookupError, TypeError, ValueError, UserError):
        return None


def _store(path: Path, source: Source, decoded: Decoded) -> str | None:
    """Write the cache file, of images in files which files they are; the reason if that is impossible."""
    arrays = {name: getattr(decoded.splits, name) for name in (*_ARRAYS, *_OPTIONAL)}
    in_files = {name: images for name, images in arrays.items() if isinstance(images, ImageFiles)}
    rows = {file: row for row, file in enumerate(source.files)} if in_files else {}
    for name, images in in_files.items():
        arrays[name] = np.array([rows[file] for file in images.paths], np.int64)
    one = decoded.splits.val_images is decoded.splits.test_images
    if one:
        arrays |= {"val_images": None, "val_labels": None}
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
    named: dict[str, Any] = {name: getattr(decoded.splits, name) for name in _FACTS}
    named["in_files"] = {name: digest(images) for name, images in in_files.items() if name in tensors}
    facts = json.dumps(named | {"val_is_test": one, "mean": decoded.mean, "std": decoded.std})
    metadata = {"facts": facts, "seal": _seal(tensors, facts)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, safetensors.numpy.save(tensors, metadata))
    except OSError as error:
        return f"cannot write {shown(path.parent)} ({error.strerror}); another folder can be named with TITN_CACHE"
    except (safetensors.SafetensorError, MemoryError) as error:
        return f"cannot write {shown(path.parent)} ({error})"
    return None


def _seal(arrays: dict[str, np.ndarray], facts: str) -> str:
    named = f"{[(name, digest(arrays[name])) for name in sorted(arrays)]}{facts}"
    return hashlib.sha256(named.encode()).hexdigest()
