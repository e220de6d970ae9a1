"""Data sets as uint8 arrays with class names and statistics: digits, MNIST, CIFAR, Parquet, folders of images."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from titn.data.cache import digest, read_through_cache
from titn.data.decoding import resize_grey
from titn.data.known import KNOWN, check_classes, find_folder, find_known
from titn.data.splits import (
    Splits,
    balanced_subset,
    channel_statistics,
    stratified_development_rows,
    stratified_test_rows,
)
from titn.errors import UserError

DATASETS = ("digits", *KNOWN)
_MAX_IMAGE_SIZE = 4096


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    Attributes:
        name: as asked for; for a folder, its own name.
        train_images: uint8 [N, H, W, C], H = W = image_size; C = 1 for digits and mnist, else 3 (RGB).
        train_labels: int64 [N], from 0 to num_classes - 1.
        test_images: uint8 [N_test, H, W, C].
        test_labels: int64 [N_test].
        class_names: name of each label.
        mean: per channel, of the whole training split at this image size (whatever `limit_train`), 0..1 scale.
        std: likewise, the population's standard deviation; 1 for a channel that never changes.
        fingerprint: SHA-256 of the pixels and labels in `train_images` and `train_labels`.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """Channels of an image: 1 or 3."""
        return self.train_images.shape[3]

    @property
    def image_size(self) -> int:
        """Height and width of an image, in pixels."""
        return self.train_images.shape[1]


def load_dataset(
    name: str, data_dir: str | Path | None = None, *, image_size: int = 32, limit_train: int | None = None
) -> Dataset:
    """Read a data set; decoded images are kept in the user's cache folder (see `titn.data.cache`).

    `digits` comes with scikit-learn. `mnist`, `cifar10` and `cifar100` are looked for in data_dir/NAME and data_dir, in
    torchvision's layout, as Hugging Face Parquet shards or as folders of images, and downloaded to data_dir where
    neither has them. Any other name is a folder, or one in data_dir, with one sub-folder of images per class or with
    Parquet shards. Images of other sizes are resized (shorter side, bilinear) and cut to the centre. Nothing is
    unpickled before its checksum is verified.

    Args:
        name: digits, mnist, cifar10, cifar100 or a folder.
        data_dir: where data sets lie; "data" by default.
        image_size: height and width of the result, in pixels.
        limit_train: use this many training images: a fixed random subset, as balanced over the classes as it can be.

    Raises:
        UserError: nothing was found and nothing could be downloaded; a file is damaged, missing or empty; an image
            cannot be read; a value is out of range.
    """
    if isinstance(image_size, bool) or not isinstance(image_size, int) or not 1 <= image_size <= _MAX_IMAGE_SIZE:
        raise UserError(f"--image-size must be from 1 to {_MAX_IMAGE_SIZE} pixels, not {image_size}")
    root = Path("data" if data_dir is None else data_dir)
    if name == "digits":
        splits = _digits(image_size)
        mean, std = channel_statistics(splits.train_images)
    elif name in KNOWN:
        source = find_known(name, root)
        splits, mean, std = read_through_cache(source, image_size)
        check_classes(name, splits, source.folder)
    else:
        folder = _folder(name, root)
        splits, mean, std = read_through_cache(find_folder(folder), image_size)
        name = folder.resolve().name
    images, labels = splits.train_images, splits.train_labels
    if limit_train is not None:
        rows = balanced_subset(labels, limit_train)
        images, labels = images[rows], labels[rows]
    return Dataset(
        name, images, labels, splits.test_images, splits.test_labels, splits.class_names, mean, std,
        digest([images, labels]),
    )  # fmt: skip


def development_split(dataset: Dataset) -> Dataset:
    """The data set with a fixed, stratified tenth of its training images in place of its test images.

    For choices that must not see the test set. Mean and deviation stay those of the whole training split.

    Raises:
        UserError: no class has two training images.
    """
    held_out = stratified_development_rows(dataset.train_labels)
    if not held_out.any():
        raise UserError("the development split needs two or more training images of a class; raise --limit-train")
    images, labels = dataset.train_images[~held_out], dataset.train_labels[~held_out]
    return replace(
        dataset,
        train_images=images,
        train_labels=labels,
        test_images=dataset.train_images[held_out],
        test_labels=dataset.train_labels[held_out],
        fingerprint=digest([images, labels]),
    )


def _digits(size: int) -> Splits:
    """scikit-learn's 1,797 scans, 8x8 with values 0..16; a fixed stratified fifth is the test split."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = resize_grey(np.rint(scans.images * (255 / 16)).astype(np.uint8), size)
    labels = scans.target.astype(np.int64)
    held_out = stratified_test_rows(labels)
    names = tuple(str(digit) for digit in range(10))
    return Splits(images[~held_out], labels[~held_out], images[held_out], labels[held_out], names)


def _folder(name: str, root: Path) -> Path:
    """The folder that `name` means."""
    if name:
        for folder in (Path(name), root / name):
            if folder.is_dir():
                return folder
    close = difflib.get_close_matches(name.lower(), DATASETS, 1)
    hint = f"did you mean {close[0]}?" if close else f"use {', '.join(DATASETS)} or a folder of images"
    raise UserError(f"unknown data set {name!r}: neither {name!r} nor {str(root / name)!r} is a folder; {hint}")
