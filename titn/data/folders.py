"""Folders of images: FOLDER/train/CLASS/*, FOLDER/test/CLASS/*, or FOLDER/CLASS/* alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from titn.data.decoding import decode_all
from titn.data.splits import Source, Splits, stratified_test_rows
from titn.errors import UserError

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_TEST_NAMES = ("test", "val", "valid", "validation")


def find_image_folder(folder: Path) -> Source | None:
    """The classes in `folder`, or None where it has no sub-folders.

    Images are read as RGB. Without a test folder (test, val, valid or validation) a fixed fifth of each class is held
    out. Files whose name does not end like an image's are passed over, as torchvision's ImageFolder does.

    Raises:
        UserError: a class has no images, there is one class only, or the test folder has a class that is not trained.
    """
    if not _folders(folder):
        return None
    train = folder / "train"
    tests = [folder / name for name in _TEST_NAMES if (folder / name).is_dir()]
    if not train.is_dir():
        if tests:
            raise UserError(f"{folder} has {tests[0].name}/ but no train/; add it, one sub-folder of images per class")
        train, tests = folder, []
    names = _folders(train)
    if len(names) < 2:
        raise UserError(f"{train} has {len(names)} class folder(s); at least 2 are needed, each with its images")
    train_files, train_labels = _list(train, names)
    test_files: list[Path] = []
    test_labels = np.empty(0, np.int64)
    if tests:
        extra = sorted(set(_folders(tests[0])) - set(names))
        if extra:
            raise UserError(f"{tests[0] / extra[0]} is a class that {train} does not have")
        test_files, test_labels = _list(tests[0], [name for name in names if (tests[0] / name).is_dir()])
        test_labels = np.array([names.index(_class_of(path, tests[0])) for path in test_files], np.int64)
        if not test_files:
            raise UserError(f"{tests[0]} holds no images; add them, or remove it to hold out a fifth of {train}")

    def read(size: int) -> Splits:
        files = train_files + test_files
        images = decode_all(
            len(files), lambda row: files[row].read_bytes(), lambda row: str(files[row]), size=size, channels=3
        )
        count = len(train_files)
        if test_files:
            return Splits(images[:count], train_labels, images[count:], test_labels, tuple(names))
        held_out = stratified_test_rows(train_labels)
        return Splits(
            images[~held_out], train_labels[~held_out], images[held_out], train_labels[held_out], tuple(names)
        )

    return Source(folder, tuple(train_files + test_files), "folder", read)


def _folders(folder: Path) -> list[str]:
    """Names of the visible sub-folders, sorted."""
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from None


def _class_of(path: Path, root: Path) -> str:
    return path.relative_to(root).parts[0]


def _list(root: Path, names: list[str]) -> tuple[list[Path], np.ndarray]:
    """All image files under root/NAME in a fixed order, and the position of NAME as the label."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = [
            Path(folder) / file
            for folder, _, inside in os.walk(root / name)
            for file in inside
            if file.lower().endswith(_EXTENSIONS) and not file.startswith(".")
        ]
        if not found:
            raise UserError(f"{root / name} holds no images ({', '.join(_EXTENSIONS)}); add some or remove the folder")
        files += sorted(found)
        labels += [label] * len(found)
    return files, np.array(labels, np.int64)
