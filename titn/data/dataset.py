"""Data sets as uint8 arrays with class names and statistics: digits, MNIST, CIFAR, Parquet, folders of images."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from titn.data.cache import read_through_cache
from titn.data.decoding import resize_grey
from titn.data.folders import ARCHIVES, is_folder
from titn.data.known import KNOWN, check_classes, find_folder, find_known
from titn.data.splits import (
    SPLIT_TITLES,
    TEST_SHARE,
    Splits,
    balanced_subset,
    channel_statistics,
    content_keys,
    content_rows,
    listing,
    shown,
    stratified_development_rows,
    stratified_test_rows,
    validation_rows,
)
from titn.errors import UserError
from titn.own_parts import own_dataset
from titn.pipelines.image_files import ImageFiles, Images, digest

DATASETS = ("digits", *KNOWN)
_MAX_IMAGE_SIZE = 4096


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory, or with its images in files that are decoded when they are needed.

    Attributes:
        name: as asked for; for a folder, its own name.
        train_images: uint8 [N, H, W, C] or `ImageFiles`, H = W = image_size; C = 1 for digits and mnist, else 3 (RGB).
        train_labels: int64 [N], from 0 to num_classes - 1.
        test_images: uint8 [N_test, H, W, C].
        test_labels: int64 [N_test].
        class_names: name of each label.
        mean: per channel, of the whole training split at this image size (whatever `limit_train`), 0..1 scale.
        std: likewise, the population's standard deviation; 1 for a channel that never changes.
        fingerprint: SHA-256 of `identity()`, unless it is given.
        val_images: uint8 [N_val, H, W, C] of the validation split, None without one. Without a test split they are the
            test images too (the same array).
        val_labels: int64 [N_val], or None.
        train_keys: uint64 [N], keys of the training images' content, by which `development_split` chooses; None where
            it chooses by position.
        validation: share of the training images that `validation_split` has taken for the validation split.
        test_names: for mistakes to be found again, the file or row of each test image; None where there are none.
        notes: what a user should know, a line each: what each folder is used for, what is passed over, what is odd.

    Raises:
        UserError: images are not uint8 of one size, or labels are no positions in the class names.
    """

    name: str
    train_images: Images
    train_labels: np.ndarray
    test_images: Images
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str = ""
    val_images: Images | None = None
    val_labels: np.ndarray | None = None
    train_keys: np.ndarray | None = None
    test_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    validation: float = 0.0

    def __post_init__(self) -> None:
        for kind, title in SPLIT_TITLES.items():
            images, labels = getattr(self, f"{kind}_images"), getattr(self, f"{kind}_labels")
            if kind == "val" and images is None and labels is None:
                continue
            images, labels = images if isinstance(images, ImageFiles) else np.asarray(images), np.asarray(labels)
            if images.dtype != np.uint8 or images.shape[1:] != self.train_images.shape[1:] or images.ndim != 4:
                raise UserError(
                    f"the {title} images must be uint8 [N, H, W, C], all splits of one size, not {images.dtype} "
                    f"{list(images.shape)}"
                )
            if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
                raise UserError(
                    f"the {title} labels must be whole numbers, one for each of {len(images):,} images, not "
                    f"{labels.dtype} {list(labels.shape)}"
                )
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.class_names):
                raise UserError(
                    f"the {title} labels must be from 0 to {len(self.class_names) - 1}, positions in the class names, "
                    f"but run from {labels.min()} to {labels.max()}"
                )
            object.__setattr__(self, f"{kind}_images", images)
            object.__setattr__(self, f"{kind}_labels", labels.astype(np.int64, copy=False))
        if not self.fingerprint:
            text = json.dumps(self.identity(), sort_keys=True)
            object.__setattr__(self, "fingerprint", hashlib.sha256(text.encode()).hexdigest())

    @classmethod
    def from_arrays(
        cls,
        train_images: np.ndarray,
        train_labels: np.ndarray,
        test_images: np.ndarray | None = None,
        test_labels: np.ndarray | None = None,
        *,
        val_images: np.ndarray | None = None,
        val_labels: np.ndarray | None = None,
        class_names: Sequence[str] | None = None,
        name: str = "arrays",
    ) -> Dataset:
        """A data set of arrays; without test images a fifth of the training images is held out by their content.

        Args:
            train_images: uint8 [N, S, S, C], C = 1 or 3.
            train_labels: whole numbers [N].
            test_images: uint8 [N_test, S, S, C].
            test_labels: whole numbers [N_test].
            val_images: uint8 [N_val, S, S, C], None without a validation split.
            val_labels: whole numbers [N_val], likewise.
            class_names: name of each label; None: the numbers.
            name: what it is called.

        Raises:
            UserError: images or labels are of another type or shape, or no class has two images to hold one out.
        """
        images, labels = np.asarray(train_images), np.asarray(train_labels)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2]:
            raise UserError(f"train_images must be uint8 [N, S, S, C], not {images.dtype} {list(images.shape)}")
        if images.shape[3] not in (1, 3):
            raise UserError(f"images must have 1 or 3 channels, not {images.shape[3]}")
        if class_names is None:
            every = [each for each in (labels, test_labels, val_labels) if each is not None]
            class_names = [str(number) for number in range(1 + max(int(np.max(each)) for each in every))]
        keys = content_keys(images)
        if test_images is None or test_labels is None:
            held_out = content_rows(labels.astype(np.int64), keys, TEST_SHARE, "test")
            if not held_out.any():
                raise UserError("no class has two different images, so that none can be held out: give test_images")
            test_images, test_labels = images[held_out], labels[held_out]
            images, labels, keys = images[~held_out], labels[~held_out], keys[~held_out]
        mean, std = channel_statistics(images)
        return cls(
            name, images, labels, np.asarray(test_images), np.asarray(test_labels), tuple(class_names), mean, std,
            val_images=val_images, val_labels=val_labels, train_keys=keys,
        )  # fmt: skip

    @property
    def validates(self) -> bool:
        """Whether there is a validation split other than the test split."""
        return self._contents.get("val") not in (None, self._contents["test"])

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def in_files(self) -> bool:
        """Whether the images are in files."""
        return isinstance(self.train_images, ImageFiles)

    @property
    def channels(self) -> int:
        """Channels of an image: 1 or 3."""
        return self.train_images.shape[3]

    @property
    def image_size(self) -> int:
        """Height and width of an image, in pixels."""
        return self.train_images.shape[1]

    def identity(self) -> dict[str, Any]:
        """What makes this data set this one, as values for JSON: classes, sizes, and a hash of each split's contents.

        It does not depend on where the data set lies or what it is called. `explain_difference` compares two of them.
        """
        return {
            "class_names": list(self.class_names),
            "image_size": self.image_size,
            "channels": self.channels,
            **self._contents,
        }

    @functools.cached_property
    def _contents(self) -> dict[str, Any]:
        """Number of images, hash of the pixels and hash of the labels of each split."""
        contents: dict[str, Any] = {}
        for kind in SPLIT_TITLES:
            images, labels = getattr(self, f"{kind}_images"), getattr(self, f"{kind}_labels")
            if images is not None:
                contents[kind] = {"images": len(images), "pixels": digest(images), "labels": digest(labels)}
        return contents


def explain_difference(stored: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What differs between two data sets' `Dataset.identity()`, in words; None if nothing does.

    Args:
        stored: the identity that was recorded.
        now: the identity of the data set at hand.
    """
    differences = []
    old, new = (_names(identity) for identity in (stored, now))
    if old != new:
        if gone := [name for name in old if name not in new]:
            differences.append(f"classes gone: {listing(gone)}")
        if added := [name for name in new if name not in old]:
            differences.append(f"new classes: {listing(added)}")
        if not gone and not added:
            differences.append("the classes are in another order")
    for name, title in (("image_size", "image size"), ("channels", "channels")):
        if stored.get(name) != now.get(name):
            differences.append(f"{title} {stored.get(name)} became {now.get(name)}")
    for kind, title in SPLIT_TITLES.items():
        before, after = stored.get(kind), now.get(kind)
        if before == after:
            continue
        if not isinstance(before, Mapping) or not isinstance(after, Mapping):
            differences.append(f"there is {'a' if after else 'no'} {title} split now")
        elif before.get("images") != after.get("images"):
            differences.append(f"{before.get('images')} {title} images became {after.get('images')}")
        elif before.get("pixels") != after.get("pixels"):
            differences.append(f"other {title} images, or in another order ({after.get('images')} as before)")
        else:
            differences.append(f"the same {title} images with other labels")
    if not differences and dict(stored) != dict(now):
        differences.append("the record of the data set has other entries")
    return "; ".join(differences) or None


def _names(identity: Mapping[str, Any]) -> list[str]:
    names = identity.get("class_names")
    return [str(name) for name in names] if isinstance(names, (list, tuple)) else []


def load_dataset(
    name: str | Path,
    data_dir: str | Path | None = None,
    *,
    image_size: int = 32,
    limit_train: int | None = None,
    skip_bad_images: bool = False,
    validation: float = 0.0,
    in_files: bool | None = False,
) -> Dataset:
    """Read a data set; decoded images are kept in the user's cache folder (see `titn.data.cache`).

    `digits` comes with scikit-learn. `mnist`, `cifar10` and `cifar100` are looked for in data_dir/NAME and data_dir, in
    torchvision's layout or its archives, as Hugging Face Parquet files or as folders of images, and downloaded to
    data_dir where neither has them. Any other name is a folder, or one in data_dir, of images (`titn.data.folders`) or
    Parquet files (`titn.data.parquet`). Images of other sizes are resized (shorter side, bilinear) and cut to the
    centre. Nothing is unpickled before its checksum is verified.

    Args:
        name: digits, mnist, cifar10, cifar100 or a folder.
        data_dir: where data sets lie; "data" by default.
        image_size: height and width of the result, in pixels.
        limit_train: use this many training images: a fixed random subset, as balanced over the classes as it can be.
        skip_bad_images: of a folder of images or Parquet files, leave out images that cannot be read; a note counts
            them.
        validation: share of the training images that becomes the validation split, see `validation_split`; of all of
            them, whatever `limit_train`.
        in_files: of a folder of images, leave them in their files; None: where they do not fit into memory.

    Raises:
        UserError: nothing was found and nothing could be downloaded; a file is damaged, missing or empty; an image
            cannot be read; a value is out of range.
    """
    if isinstance(image_size, bool) or not isinstance(image_size, (int, np.integer)):
        raise UserError(f"--image-size must be from 1 to {_MAX_IMAGE_SIZE} pixels, not {image_size}")
    if not 1 <= image_size <= _MAX_IMAGE_SIZE:
        raise UserError(f"--image-size must be from 1 to {_MAX_IMAGE_SIZE} pixels, not {image_size}")
    name, image_size = os.fspath(name), int(image_size)
    root = _home(Path("data" if data_dir is None else data_dir))
    if (own := own_dataset(name)) is not None:
        return _part(_of_size(own(image_size), name, image_size), validation, limit_train)
    notes: tuple[str, ...] = ()
    if skip_bad_images and name in DATASETS:
        raise UserError(f"--skip-bad-images is for a folder of your own, not for {name}, which is complete or damaged")
    if name == "digits":
        splits = _digits(image_size)
        mean, std = channel_statistics(splits.train_images)
    elif name in KNOWN:
        source = find_known(name, root)
        splits, mean, std, notes = read_through_cache(source, image_size, in_files=in_files)
        check_classes(name, splits, source.folder)
        splits = replace(splits, train_keys=None)
    else:
        folder, *others = _folders(name, root)
        splits, mean, std, notes = read_through_cache(
            find_folder(folder, skip_bad=skip_bad_images), image_size, in_files=in_files
        )
        notes += tuple(f"{shown(folder)} is read, and not {shown(other)}" for other in others)
        name = shown(folder.resolve().name) or "folder"
    notes += tuple(
        f"every pixel of every training image has the same value in channel {channel}"
        for channel, deviation in enumerate(std)
        if deviation == 1.0  # of values from 0 to 1, half is the most there is
    )
    dataset = Dataset(
        name,
        splits.train_images,
        splits.train_labels,
        splits.test_images,
        splits.test_labels,
        splits.class_names,
        mean,
        std,
        val_images=splits.val_images,
        val_labels=splits.val_labels,
        train_keys=splits.train_keys,
        test_names=splits.test_names,
        notes=notes,
    )
    return _part(dataset, validation, limit_train)


def _of_size(dataset: Dataset, name: str, image_size: int) -> Dataset:
    """A registered data set, which has to be what was asked for."""
    if not isinstance(dataset, Dataset) or dataset.image_size != image_size:
        found = f"images of {dataset.image_size} pixels" if isinstance(dataset, Dataset) else type(dataset).__name__
        raise UserError(f"--dataset {name} must give a titn.Dataset with images of {image_size} pixels, not {found}")
    return dataset


def _part(dataset: Dataset, validation: float, limit_train: int | None) -> Dataset:
    """The data set with this validation split, and as many of its other training images as wanted."""
    if validation:
        dataset = validation_split(dataset, validation)
    if limit_train is not None:
        rows = balanced_subset(dataset.train_labels, limit_train, dataset.train_keys)
        dataset = _with_training_rows(dataset, rows)
    return dataset


def validation_split(dataset: Dataset, share: float) -> Dataset:
    """The data set with about `share` of its training images as validation split.

    Which ones depends on the content of each image alone (`titn.data.splits.content_rows`), for digits, MNIST and CIFAR
    on its position in the published order. So an image does not change sides when others come or go. Mean and deviation
    stay those of the whole training split, so that runs with and without validation, and their teachers, see the same
    pixels.

    Raises:
        UserError: there is a validation split already, or no class has two training images.
    """
    if dataset.validates:
        raise UserError(f"{dataset.name} has a validation split of its own: leave --validation out")
    taken = validation_rows(dataset.train_labels, dataset.train_keys, share)
    if not taken.any():
        raise UserError("--validation needs two or more training images of a class")
    both = "there is no test split: the validation images are the test images too"
    return replace(
        _with_training_rows(dataset, ~taken),
        val_images=dataset.train_images[taken],
        val_labels=dataset.train_labels[taken],
        validation=share,
        notes=tuple(
            "there is no test split: the images of the validation split are it" if note == both else note
            for note in dataset.notes
        ),
    )


def _with_training_rows(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """The data set with these of its training images only; `rows` are positions or bool [N]."""
    return replace(
        dataset,
        train_images=dataset.train_images[rows],
        train_labels=dataset.train_labels[rows],
        train_keys=None if dataset.train_keys is None else dataset.train_keys[rows],
        fingerprint="",
    )


def development_split(dataset: Dataset) -> Dataset:
    """The data set with a fixed tenth of its training images in place of its test images.

    For choices that must not see the test set. Mean and deviation stay those of the whole training split.

    Raises:
        UserError: no class has two training images.
    """
    held_out = stratified_development_rows(dataset.train_labels, dataset.train_keys)
    if not held_out.any():
        raise UserError("the development split needs two or more training images of a class; raise --limit-train")
    return replace(
        _with_training_rows(dataset, ~held_out),
        test_images=dataset.train_images[held_out],
        test_labels=dataset.train_labels[held_out],
        test_names=None,
        fingerprint="",
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


def _home(path: Path) -> Path:
    """The path with ~ replaced by the home folder."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(f"{shown(path)}: there is no such home folder; name the folder in full") from None


def _folders(name: str, root: Path) -> list[Path]:
    """The folders that `name` may mean, the likeliest first."""
    path = _home(Path(name))
    folders = [folder for folder in (path, root / path) if name and is_folder(folder)]
    if len(folders) > 1 and folders[0].samefile(folders[1]):
        folders.pop()
    if folders:
        return folders
    if os.path.lexists(path) and name:
        what = "an archive: unpack it and name the folder" if path.suffix.lower() in ARCHIVES else "no folder"
        raise UserError(f"--dataset {shown(name)} is {what}; expected {', '.join(DATASETS)} or a folder of images")
    close = difflib.get_close_matches(name.lower(), DATASETS, 1)
    hint = f"did you mean {close[0]}?" if close else f"use {', '.join(DATASETS)} or a folder of images"
    raise UserError(
        f"unknown data set '{shown(name)}': neither '{shown(path)}' nor '{shown(root / path)}' is a folder; {hint}"
    )
