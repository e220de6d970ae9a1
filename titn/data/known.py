"""Finding and reading the known data sets: torchvision's layouts, Parquet, class folders, or a download."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import socket
import tarfile
import tempfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100, MNIST

from titn.data.decoding import resize_colour, resize_grey
from titn.data.folders import find_image_folder
from titn.data.parquet import ParquetSplit, find_parquet
from titn.data.splits import Source, Splits
from titn.errors import UserError

_CIFAR = {"cifar10": CIFAR10, "cifar100": CIFAR100}
_DIGITS = tuple(str(digit) for digit in range(10))
_CLASSES = {"mnist": 10, "cifar10": 10, "cifar100": 100}
KNOWN = tuple(_CLASSES)
_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_NAMES = {"mnist": _DIGITS, "cifar10": _CIFAR10_NAMES}
# MD5 of the four uncompressed files, in the order training images, training labels, test images, test labels.
_MNIST_FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
_TIMEOUT_SECONDS = 30


def find_known(name: str, root: Path) -> Source:
    """The data set `name` (mnist, cifar10, cifar100) in root/name or root; where neither has it, a download to root.

    Raises:
        UserError: files are damaged or missing, or nothing was found and the download failed.
    """
    places = [place for place in (root / name, root) if place.is_dir()]
    for place in places:
        source = _find_torchvision(name, place) or _find_parquet(name, place)
        if source is None and (place != root or (root / "train").is_dir()):
            source = find_image_folder(place)
        if source is not None:
            return source
    _download(name, root)
    source = _find_torchvision(name, root)
    assert source is not None
    return source


def find_folder(folder: Path) -> Source:
    """Parquet shards or class folders in a folder of the user's.

    Raises:
        UserError: there are neither, or they are incomplete.
    """
    found = find_parquet(folder)
    source = _parquet_source(folder, found, None) if found else find_image_folder(folder)
    if source is None:
        raise UserError(f"{folder} holds no data set: it needs one sub-folder of images per class, or train-*.parquet")
    return source


def check_classes(name: str, splits: Splits, folder: Path) -> None:
    """Raise UserError where what lies in `folder` cannot be the known data set `name`."""
    if len(splits.class_names) != _CLASSES[name]:
        raise UserError(f"{folder} holds {len(splits.class_names)} classes, but {name} has {_CLASSES[name]}")


def _find_torchvision(name: str, place: Path) -> Source | None:
    if name == "mnist":
        for raw in (place / "MNIST" / "raw", place / "raw", place):
            if any((raw / file).exists() for file in _MNIST_FILES):
                return Source(raw, tuple(raw / file for file in _MNIST_FILES), "idx", partial(_read_mnist, raw))
        return None
    kind = _CIFAR[name]
    if place.name == kind.base_folder:
        place = place.parent
    listed = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
    checksums = {place / kind.base_folder / file: md5 for file, md5 in listed}
    if not any(path.exists() for path in checksums):
        return None
    return Source(place, tuple(checksums), "torchvision", partial(_read_cifar, name, place, checksums))


def _verified(path: Path, md5: str) -> bytes:
    """The file's bytes; UserError unless they have the given MD5."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; fetch it again") from None
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        raise UserError(f"{path} is damaged ({len(data):,} bytes, wrong MD5); delete it and fetch it again")
    return data


def _read_mnist(raw: Path, size: int) -> Splits:
    data = [np.frombuffer(_verified(raw / file, md5), np.uint8) for file, md5 in _MNIST_FILES.items()]
    # idx: 4 bytes of type and 4 per dimension come first, 16 before images and 8 before labels
    train_images, test_images = (resize_grey(data[part][16:].reshape(-1, 28, 28), size) for part in (0, 2))
    train_labels, test_labels = (data[part][8:].astype(np.int64) for part in (1, 3))
    return Splits(train_images, train_labels, test_images, test_labels, _DIGITS)


def _read_cifar(name: str, root: Path, checksums: dict[Path, str], size: int) -> Splits:
    for path, md5 in checksums.items():
        _verified(path, md5)
    try:  # torchvision verifies the same checksums before it unpickles
        train, test = (_CIFAR[name](root, train=part) for part in (True, False))
    except (RuntimeError, OSError) as error:
        raise UserError(f"cannot read {name} in {root}: {error}") from None
    images = [resize_colour(part.data, size) for part in (train, test)]
    labels = [np.array(part.targets, np.int64) for part in (train, test)]
    return Splits(images[0], labels[0], images[1], labels[1], tuple(train.classes))


def _find_parquet(name: str, place: Path) -> Source | None:
    for folder in (place, place / name, place / "data", place / "plain_text"):
        found = find_parquet(folder) if folder.is_dir() else None
        if found:
            return _parquet_source(folder, found, name)
    return None


def _parquet_source(folder: Path, found: tuple[ParquetSplit, ParquetSplit], name: str | None) -> Source:
    train, test = found
    channels = 1 if name == "mnist" else 3

    def read(size: int) -> Splits:
        train_images, train_labels, names = train.read(size, channels)
        test_images, test_labels, test_names = test.read(size, channels)
        if names != test_names:
            raise UserError(f"{test.files[0]} has other class names than {train.files[0]}")
        expected = _NAMES.get(name or "")
        if expected and names and names != expected:
            raise UserError(f"{folder} is not {name}: its classes are {', '.join(names[:3])}, ...")
        names = names or expected or tuple(str(label) for label in range(train_labels.max() + 1))
        return Splits(train_images, train_labels, test_images, test_labels, names)

    return Source(folder, train.files + test.files, f"parquet{channels}", read)


def _download(name: str, root: Path) -> None:
    """Fetch `name` through torchvision, which checks checksums, to `root`; nothing is left behind on failure."""
    kind = MNIST if name == "mnist" else _CIFAR[name]
    part = Path("MNIST", "raw") if name == "mnist" else Path(kind.base_folder)
    created = [folder for folder in (root, *root.parents) if not folder.exists()]
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as temporary:
            kind(temporary, download=True)
            (root / part).parent.mkdir(exist_ok=True)
            Path(temporary, part).replace(root / part)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error) as error:
        with contextlib.suppress(OSError):
            for folder in created:
                folder.rmdir()
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(
            f"{name} is neither in {root / name} nor in {root}, and downloading it failed ({reason}): put "
            f"torchvision's files, train-*.parquet and test-*.parquet, or one folder of images per class there, or "
            f"name another folder with --data-dir"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
