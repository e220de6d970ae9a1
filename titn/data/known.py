"""Finding and reading the known data sets: torchvision's layouts, Parquet, class folders, or a download."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import socket
import tarfile
import tempfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100, MNIST
from torchvision.datasets.utils import extract_archive

from titn.data.decoding import resize_colour, resize_grey
from titn.data.folders import ARCHIVES, describe, find_image_folder, is_folder, scan
from titn.data.parquet import ParquetSet, find_parquet, find_parquet_below
from titn.data.splits import Source, Splits, listing, settle, shown
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
    for place in (root / name, root):
        try:
            source = _find_in(name, place, own=place != root) if is_folder(place) else None
        except OSError as error:
            raise UserError(f"cannot read {shown(error.filename or place)}: {error.strerror}") from None
        if source is not None:
            return source
    _download(name, root)
    source = _find_torchvision(name, root)
    assert source is not None
    return source


def _find_in(name: str, place: Path, *, own: bool) -> Source | None:
    """The data set `name` in a folder, be it its own or the folder of all data sets."""
    scan(place, depth=0)  # says so if it cannot be listed
    source = _find_torchvision(name, place) or _find_parquet(name, place, own=own)
    if source is None and (own or is_folder(place / "train")):
        source = find_image_folder(scan(place), name)
    return source


def find_folder(folder: Path, *, skip_bad: bool = False) -> Source:
    """Parquet shards or class folders in a folder of the user's.

    With `skip_bad`, images that cannot be read are left out, and a note counts them.

    Raises:
        UserError: there are neither, or they are incomplete.
    """
    tree = scan(folder)
    found = find_parquet_below(tree)
    source = _parquet_source(*found, None, skip_bad) if found else find_image_folder(tree, skip_bad=skip_bad)
    if source is None:
        raise UserError(
            f"{shown(folder)} holds no data set: found {describe(tree)}; expected one sub-folder of images per class, "
            f"train/ and test/ with such sub-folders, or train-*.parquet"
        )
    return source


def check_classes(name: str, splits: Splits, folder: Path) -> None:
    """Raise UserError where what lies in `folder` cannot be the known data set `name`."""
    if len(splits.class_names) != _CLASSES[name]:
        raise UserError(f"{shown(folder)} holds {len(splits.class_names)} classes, but {name} has {_CLASSES[name]}")


def _find_torchvision(name: str, place: Path) -> Source | None:
    """torchvision's files, or the archives that they come in."""
    if name == "mnist":
        for raw in (place / "MNIST" / "raw", place / "raw", place):
            files = {file: _as_found(raw / file) for file in _MNIST_FILES}
            if any(path.exists() for path in files.values()):
                return Source(raw, tuple(files.values()), "mnist idx", partial(_read_mnist, files))
        return None
    kind = _CIFAR[name]
    if place.name == kind.base_folder:
        place = place.parent
    listed = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
    checksums = {place / kind.base_folder / file: md5 for file, md5 in listed}
    if any(path.exists() for path in checksums):
        return Source(place, tuple(checksums), f"{name} torchvision", partial(_read_cifar, name, place, checksums))
    archive = place / kind.filename
    if archive.is_file():
        return Source(place, (archive,), f"{name} archive", partial(_read_cifar_archive, name, archive))
    return None


def _as_found(path: Path) -> Path:
    """The file itself, or where it is absent its .gz, or either with the dot that some copies have in the name."""
    dotted = path.name.replace("-idx", ".idx")
    spellings = (path, *(path.with_name(name) for name in (f"{path.name}.gz", dotted, f"{dotted}.gz")))
    return next((spelling for spelling in spellings if spelling.exists() and not spelling.is_dir()), path)


def _verified(path: Path, md5: str, name: str) -> bytes:
    """The file's bytes, unpacked if it is a .gz; UserError unless they have the given MD5."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {shown(path)}: {reason}; expected {name}'s own file") from None
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        raise UserError(
            f"{shown(path)} is not {name}'s file of that name, or is damaged ({len(data):,} bytes, wrong MD5); "
            f"expected the original, with MD5 {md5}; another --data-dir can be named"
        )
    return data


def _read_mnist(files: dict[str, Path], size: int) -> Splits:
    data = [np.frombuffer(_verified(files[file], md5, "mnist"), np.uint8) for file, md5 in _MNIST_FILES.items()]
    # idx: 4 bytes of type and 4 per dimension come first, 16 before images and 8 before labels
    train_images, test_images = (resize_grey(data[part][16:].reshape(-1, 28, 28), size) for part in (0, 2))
    train_labels, test_labels = (data[part][8:].astype(np.int64) for part in (1, 3))
    return Splits(train_images, train_labels, test_images, test_labels, _DIGITS)


def _read_cifar(name: str, root: Path, checksums: dict[Path, str], size: int) -> Splits:
    for path, md5 in checksums.items():
        _verified(path, md5, name)
    try:  # torchvision verifies the same checksums before it unpickles
        train, test = (_CIFAR[name](root, train=part) for part in (True, False))
    except (RuntimeError, OSError) as error:
        raise UserError(f"cannot read {name} in {shown(root)}: {error}") from None
    images = [resize_colour(part.data, size) for part in (train, test)]
    labels = [np.array(part.targets, np.int64) for part in (train, test)]
    return Splits(images[0], labels[0], images[1], labels[1], tuple(train.classes))


def _read_cifar_archive(name: str, archive: Path, size: int) -> Splits:
    """Unpack to a temporary folder and read that; the archive's own folder stays as it is."""
    kind = _CIFAR[name]
    with archive.open("rb") as file:
        if hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() != kind.tgz_md5:
            raise UserError(f"{shown(archive)} is damaged or not {name}'s archive; expected MD5 {kind.tgz_md5}")
    with tempfile.TemporaryDirectory() as temporary:
        try:
            extract_archive(os.fspath(archive), temporary)
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            raise UserError(f"cannot unpack {shown(archive)}: {error}") from None
        source = _find_torchvision(name, Path(temporary))
        if source is None:
            raise UserError(f"{shown(archive)} does not hold {kind.base_folder}/")
        return source.read(size)


def _find_parquet(name: str, place: Path, *, own: bool) -> Source | None:
    """The Parquet files in `place`: anywhere below the data set's own folder, else where the hub has them."""
    if own:
        below = find_parquet_below(scan(place))
        return _parquet_source(*below, name) if below else None
    for folder in (place, place / "data", place / "plain_text", place / "default"):
        found = find_parquet(scan(folder, depth=1)) if is_folder(folder) else None
        if found:
            return _parquet_source(found, [], name)
    return None


def _parquet_source(found: ParquetSet, notes: list[str], name: str | None, skip_bad: bool = False) -> Source:
    channels = 1 if name == "mnist" else 3
    if name is not None and "test" not in found.files and "val" not in found.files:
        raise UserError(f"{shown(found.folder)} has train*.parquet but no test*.parquet, which {name} has")

    def read(size: int) -> Splits:
        expected = _NAMES.get(name or "")
        parts, names, said = found.read(size, channels, expected, skip_bad=skip_bad)
        if expected and names != expected:
            raise UserError(f"{shown(found.folder)} is not {name}: its classes are {', '.join(names[:3])}, ...")
        return settle(parts, names, said)

    files = tuple(path for kind in found.files for path in found.files[kind])
    plan = "\n".join(f"{kind} {len(paths)}" for kind, paths in found.files.items())
    layout = f"{name or 'folder'} parquet{channels}{' without bad images' if skip_bad else ''}\n{plan}"
    return Source(found.folder, files, layout, read, tuple(notes))


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
        folders = [folder for folder in (root / name, root) if is_folder(folder)]
        packed = [path.name for folder in folders for path in folder.iterdir() if path.suffix.lower() in ARCHIVES]
        unpack = f"; unpack {shown(listing(sorted(packed)))}, if it is that" if packed else ""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(
            f"{name} is neither in {root / name} nor in {root}, and downloading it failed ({reason}): put "
            f"torchvision's files or archives, train-*.parquet and test-*.parquet, or one folder of images per class "
            f"there, or name another folder with --data-dir{unpack}"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
