"""What a data set consists of once it is read, and the fixed choices among its images.

Where a data set has no test split, which images are held out depends on each image's content alone: the pixels,
upright and at full size, are hashed, and an image whose hash lies in the lowest fifth of all hashes is a test image
(`content_rows` has the exact rule). So it keeps its side when other images come or go, under another name or format or
image size, and identical images stay together. The development split and `--limit-train` choose likewise. Digits, MNIST
and CIFAR have no content keys: theirs are fixed choices by position, which published numbers depend on.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from titn.errors import UserError
from titn.pipelines.image_files import Images, chunks

T = TypeVar("T")
TEST_SHARE, DEVELOPMENT_SHARE = 0.2, 0.1
_SPLIT_KEY = 20
_SUBSET_KEY = 21
_DEVELOPMENT_KEY = 22
_VALIDATION_KEY = 23
_NAMED = 3
# The words are those of Hugging Face's `datasets` (its data_files.py).
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
    "eval": ("eval", "evaluation"),
}
SPLIT_TITLES = {"train": "training", "val": "validation", "test": "test"}
_KINDS = {word: kind for kind, words in _SPLIT_WORDS.items() for word in words}
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_FILLERS = {"set", "data", "dataset", "image", "images", "img", "imgs", "split", "folder", "seg"}


class Part(NamedTuple):
    """One split as read.

    Attributes:
        images: uint8 [N, H, W, C], in memory or in files.
        labels: int64 [N].
        keys: uint64 [N], of the images' content.
        transparent: bool [N], which images are composed on white.
        names: N file names or the like.
    """

    images: Images
    labels: np.ndarray
    keys: np.ndarray
    transparent: np.ndarray
    names: Sequence[str]

    def take(self, rows: np.ndarray) -> Part:
        """The part of it that `rows`, bool [N], says."""
        names = [self.names[row] for row in np.flatnonzero(rows).tolist()]
        return Part(self.images[rows], self.labels[rows], self.keys[rows], self.transparent[rows], names)


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set as read: images uint8 [N, H, W, C], labels int64 [N] (below the number of class names), class names.

    Attributes:
        val_images, val_labels: the validation split, None without one.
        train_keys: content keys uint64 [N] of the training images; None where choices among them go by position.
        test_names: name of each test image; None where they have none.
        notes: what a user should know about the content, a line each.

    Raises:
        UserError: a label has no class name, a split is empty, or there are fewer than two classes.
    """

    train_images: Images
    train_labels: np.ndarray
    test_images: Images
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    val_images: Images | None = None
    val_labels: np.ndarray | None = None
    train_keys: np.ndarray | None = None
    test_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise UserError(f"the data set has {len(self.class_names)} class(es); at least 2 are needed")
        for name, labels in (("training", self.train_labels), ("test", self.test_labels), ("val", self.val_labels)):
            if labels is None:
                continue
            if not len(labels):
                raise UserError(f"the data set has no {name} images")
            if labels.min() < 0 or labels.max() >= len(self.class_names):
                raise UserError(
                    f"the {name} labels run from {labels.min()} to {labels.max()}, "
                    f"but there are {len(self.class_names)} class names"
                )


@dataclass(frozen=True)
class Source:
    """Where a data set was found.

    Attributes:
        folder: the folder that `files` lie in.
        files: every file that `read` depends on.
        layout: everything else that `read` depends on, as text.
        read: gives the data set at an image size in pixels.
        read_files: gives it with the images left in their files; None: they are not files of one image each.
        notes: what a user should know about the files, a line each.
        largest_file: bytes above which a file is refused.
    """

    folder: Path
    files: tuple[Path, ...]
    layout: str
    read: Callable[[int], Splits]
    notes: tuple[str, ...] = ()
    largest_file: int = 16 << 30
    read_files: Callable[[int], Splits] | None = None


def shown(text: str | Path) -> str:
    """A name or path as one line that every UTF-8 stream takes: undecodable bytes and controls appear as escapes."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def listing(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = len(listed) - _NAMED
    return ", ".join(listed[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def left_out_notes(bad: Mapping[str, str]) -> list[str]:
    """A note that counts and names images that cannot be read, by name why; none where there are none."""
    if not bad:
        return []
    first = next(iter(bad.values()))
    return [f"{len(bad):,} images left out, since they cannot be read: {listing(bad)} (the first: {shown(first)})"]


def split_of(name: str) -> str | None:
    """Which split (train, val, test, eval) exactly this word means, in any capitalisation; None for another word."""
    return _KINDS.get(name.lower())


def settle_eval(found: dict[str, T]) -> None:
    """Let what is found as `eval` be the test split, or beside a test split the validation split."""
    kind = "val" if "test" in found else "test"
    if "eval" in found and kind not in found:
        found[kind] = found.pop("eval")


def split_of_folder(name: str) -> str | None:
    """As `split_of`, with words like set, data or images around it: `Training Set`, `seg_train`, `testset`."""
    words = split_words(name)
    return split_of(re.sub(r"(?<=.)(set|data|images)$", "", words[0])) if len(words) == 1 else None


def split_words(name: str) -> list[str]:
    """The words of a folder's name, without those that say no more than that it holds a set of images."""
    return [word for word in re.split(r"[\W_]+", name.lower()) if word and word not in _FILLERS]


def settle(parts: Mapping[str, Part], class_names: tuple[str, ...], notes: Iterable[str] = ()) -> Splits:
    """The data set that the splits found (`train`, and `val` and `test` where there are any) make up.

    Without a test split the validation split is the test split too; without either, a fifth of the training images is
    held out by content.

    Raises:
        UserError: a label has no class name, a split is empty, or there are fewer than two classes.
    """
    train, val, test = (parts.get(kind) for kind in SPLIT_TITLES)
    assert train is not None
    said = list(notes)
    if test is None and val is not None:
        test = val
        said.append("there is no test split: the validation images are the test images too")
    elif test is None:
        train, test = _hold_out(train, class_names, said)
    return Splits(
        train.images,
        train.labels,
        test.images,
        test.labels,
        class_names,
        None if val is None else val.images,
        None if val is None else val.labels,
        train.keys,
        tuple(test.names),
        (*said, *_remarks(train, val, test, class_names)),
    )


def _hold_out(part: Part, class_names: Sequence[str], said: list[str]) -> tuple[Part, Part]:
    """Training and test images of a data set that has no test split; what is to be said of it is added to `said`."""
    rows, how = (
        content_rows(part.labels, part.keys, TEST_SHARE, "test"),
        "about a fifth, chosen by each image's content",
    )
    forced = (_draws(part.keys, "test") < _bound(TEST_SHARE)) != rows
    if not rows.any():
        rows, how = stratified_test_rows(part.labels), "copies of training images: no class has two different ones"
    elif forced.any():
        small = listing(class_names[label] for label in np.unique(part.labels[forced]).tolist())
        said.append(f"classes so small that images added to them can move one between training and test: {small}")
    if len(class_names) > 1 and not rows.any():
        raise UserError("no class has two images, so that none can be held out as a test split; add images or test/")
    said.append(f"there is no test split: {rows.sum():,} of {len(rows):,} images are held out for it ({how})")
    return part.take(~rows), part.take(rows)


def _remarks(train: Part, val: Part | None, test: Part, class_names: Sequence[str]) -> list[str]:
    """What is odd about the images: classes that are missing, images that are the same."""
    remarks = []
    others = [("test", test)] if val is None or val is test else [("validation", val), ("test", test)]
    listed = [("training", train), *others]
    transparent = np.concatenate([part.transparent for _, part in listed])
    if count := int(transparent.sum()):
        remarks.append(f"{count:,} of {len(transparent):,} images are transparent: they are read on a white ground")
    for title, part in listed:
        missing = np.setdiff1d(np.arange(len(class_names)), part.labels)
        if len(missing):
            remarks.append(f"classes without {title} images: {listing(class_names[label] for label in missing)}")
    keys, counts = np.unique(train.keys, return_counts=True)
    if len(train.keys) > 2 and 2 * counts.max() > len(train.keys):
        remarks.append(f"{counts.max():,} of {len(train.keys):,} training images are identical")
    lowest, highest = _extremes(train.labels, train.keys)
    sizes = np.bincount(train.labels, minlength=len(lowest))
    same = [class_names[label] for label in np.flatnonzero((sizes > 1) & (lowest == highest)).tolist()]
    if same and len(keys) > 1:
        remarks.append(f"classes whose training images are all identical: {listing(same)}")
    pairs = np.unique(np.stack([train.keys, train.labels.astype(np.uint64)], 1), axis=0)
    if (torn := len(pairs) - len(keys)) > 0:
        remarks.append(f"identical training images lie in more than one class ({torn:,} times)")
    for title, part in others:
        if seen := int(np.isin(part.keys, train.keys).sum()):
            remarks.append(f"{seen:,} of {len(part.keys):,} {title} images are training images too")
    return remarks


def _extremes(labels: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest draw of each label: uint64 [classes], twice."""
    classes = int(labels.max()) + 1 if len(labels) else 0
    lowest, highest = np.full(classes, np.iinfo(np.uint64).max, np.uint64), np.zeros(classes, np.uint64)
    np.minimum.at(lowest, labels, draws)
    np.maximum.at(highest, labels, draws)
    return lowest, highest


def _draws(keys: np.ndarray, purpose: str) -> np.ndarray:
    """Hash of each content key, another for every purpose: uint64 [N]."""
    person = purpose.encode()
    digests = [hashlib.blake2b(key.tobytes(), digest_size=8, person=person).digest() for key in keys.astype("<u8")]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def content_keys(images: np.ndarray) -> np.ndarray:
    """Key of each image's pixels, uint64 [N], of uint8 [N, H, W, C]."""
    digests = [hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=8).digest() for image in images]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def content_rows(labels: np.ndarray, keys: np.ndarray, share: float, purpose: str) -> np.ndarray:
    """Which images are held out by their content.

    An image is held out if the hash of its content and `purpose` lies in the lowest `share` of all hashes. Of a class
    with two or more different images, the one with the lowest hash always is and the one with the highest never is, so
    that either side has one; a class of one image (or copies of it) is not held out. Only where a class is so small
    that this decides can an image change sides when others of its class come or go.

    Args:
        labels: int64 [N].
        keys: uint64 [N], of the images' content.
        share: from 0 to 1.
        purpose: up to 16 letters; choices for different purposes are independent.

    Returns:
        bool [N].
    """
    draws = _draws(keys, purpose)
    lowest, highest = _extremes(labels, draws)
    return ((draws < _bound(share)) | (draws == lowest[labels])) & (draws != highest[labels])


def _bound(share: float) -> np.uint64:
    """The number below which that share of all 64-bit hashes lies."""
    return np.uint64(int(share * 2**64))


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
    """Which of the digits are held out: a fixed fifth of every class, by position.

    Args:
        labels: int64 [N].

    Returns:
        bool [N]. A class of two or more images has at least one on either side.
    """
    return _held_out(labels, 2, _SPLIT_KEY)


def stratified_development_rows(labels: np.ndarray, keys: np.ndarray | None = None) -> np.ndarray:
    """Which training images are held out for choices that must not see the test set: a fixed tenth of every class.

    Args:
        labels: int64 [N], of the training split.
        keys: uint64 [N] of the images' content; None: chosen by position.

    Returns:
        bool [N]. A class of two or more (different) images has at least one on either side.
    """
    if keys is not None:
        return content_rows(labels, keys, DEVELOPMENT_SHARE, "development")
    return _held_out(labels, 1, _DEVELOPMENT_KEY)


def validation_rows(labels: np.ndarray, keys: np.ndarray | None, share: float) -> np.ndarray:
    """Which training images are the validation split, by `content_rows`.

    Args:
        labels: int64 [N], of the whole training split.
        keys: uint64 [N] of the images' content; None: each image's position stands for it.
        share: of the images, from 0 to 1.

    Returns:
        bool [N].
    """
    return content_rows(
        labels, _random_keys(len(labels), _VALIDATION_KEY) if keys is None else keys, share, "validation"
    )


def _held_out(labels: np.ndarray, tenths: int, key: int) -> np.ndarray:
    """A fixed random choice of so many tenths of every class, rounded: bool [N]."""
    sizes = np.bincount(labels)
    held_out = np.where(sizes > 1, np.maximum(1, (tenths * sizes + 5) // 10), 0)
    return _rank_in_class(labels, _random_keys(len(labels), key)) < held_out[labels]


def balanced_subset(labels: np.ndarray, size: int, keys: np.ndarray | None = None) -> np.ndarray:
    """A fixed random subset, as balanced over the classes as it can be; a larger one contains a smaller one.

    Args:
        labels: int64 [N].
        size: number of images, 1..N.
        keys: uint64 [N] of the images' content, which alone then decides their order; None: chosen by position.

    Returns:
        int64 [size], ascending positions.

    Raises:
        UserError: `size` is out of range.
    """
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or not 1 <= size <= len(labels):
        raise UserError(f"--limit-train must be from 1 to {len(labels)}, the number of training images, not {size}")
    draws = _random_keys(len(labels), _SUBSET_KEY) if keys is None else _draws(keys, "subset")
    return np.sort(np.lexsort((draws, _rank_in_class(labels, draws)))[:size])


def channel_statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (of the population) per channel, 0..1 scale, from exact integer sums.

    Args:
        images: uint8 [N, H, W, C], in memory or in files.

    Returns:
        (mean, std), each with C floats. A channel that never changes gets std 1, so that it normalises to zero.
    """
    channels = images.shape[3]
    values = np.arange(256)
    counts = np.zeros((channels, 256), np.int64)
    for chunk in chunks(images):
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    mean, std = [], []
    for row in counts:
        number, total, squares = (int((row * values**power).sum()) for power in range(3))
        mean.append(total / (255 * number))
        std.append(math.sqrt(number * squares - total**2) / (255 * number) or 1.0)
    return tuple(mean), tuple(std)
