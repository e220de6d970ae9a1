"""Folders of images: what lies in a folder, which of it is a split, which of it a class.

Read are `CLASS/*`, and `train/CLASS/*` with `val/CLASS/*` and `test/CLASS/*`, under any of the names that people give
to splits, in any capitalisation, and below folders that only wrap another one. Everything else is refused, naming what
was found and what is expected: a layout that is not recognised is never read as another one.

Which files are images is torchvision's rule and some endings more. The walk is not torchvision's `make_dataset`, which
passes silently over folders that cannot be listed, goes round in links, and knows neither hidden files nor splits.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from titn.data.cache import cache_folder
from titn.data.decoding import decode_all
from titn.data.splits import (
    SPLIT_TITLES,
    Part,
    Source,
    Splits,
    left_out_notes,
    listing,
    settle,
    settle_eval,
    shown,
    split_of,
    split_of_folder,
    split_words,
)
from titn.errors import UserError
from titn.pipelines.image_files import ImageFiles

EXTENSIONS = (*IMG_EXTENSIONS, ".gif", ".jfif", ".jpe", ".jp2", ".tga", ".avif")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
_DEEPEST = 100
_LARGEST_IMAGE = 1 << 30
_EXPECTED = "one sub-folder of images per class, or train/ and test/ with one sub-folder of images per class"


@dataclass(eq=False)
class Folder:
    """What lies in a folder, hidden files, hidden folders and this program's own folders apart.

    Attributes:
        path: as it was spelt.
        name: path from the data set's folder, as text.
        images, parquet: files by the end of their name, in a fixed order.
        folders: the sub-folders by name, links followed.
        others: how many files have each other ending.
        passed: folders that are not read, and why.
        hidden: number of hidden files that would be images.
        error: why the folder could not be read.
    """

    path: Path
    name: str
    images: list[Path] = field(default_factory=list)
    parquet: list[Path] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    passed: list[str] = field(default_factory=list)
    hidden: int = 0
    error: str | None = None

    def walk(self) -> Iterator[Folder]:
        """This folder and all below it."""
        yield self
        for folder in self.folders:
            yield from folder.walk()

    def all_images(self) -> list[Path]:
        """All images in this folder and below.

        Raises:
            UserError: a folder could not be read.
        """
        for folder in self.walk():
            if folder.error:
                raise UserError(f"cannot read the folder {shown(folder.path)}: {folder.error}")
        return [path for folder in self.walk() for path in folder.images]

    @property
    def holds_images(self) -> bool:
        """Whether there is an image in this folder or below; a folder that cannot be read might hold one."""
        return bool(self.images or self.error) or any(folder.holds_images for folder in self.folders)


def scan(path: Path, depth: int = _DEEPEST) -> Folder:
    """List a folder and what is below it, so many levels deep.

    Raises:
        UserError: the folder itself cannot be read.
    """
    folder = _scan(path, shown(path.resolve().name) or "folder", depth, ())
    if folder.error:
        raise UserError(f"cannot read the folder {shown(path)}: {folder.error}")
    return folder


def _scan(path: Path, name: str, depth: int, above: tuple[tuple[int, int], ...]) -> Folder:
    folder = Folder(path, name)
    try:
        facts = path.stat()
        entries = sorted(os.scandir(path), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        folder.error = error.strerror
        return folder
    above = (*above, (facts.st_dev, facts.st_ino))
    for entry in entries:
        hidden = entry.name.startswith(".") or entry.name == "__MACOSX"
        inner, inner_name = path / entry.name, f"{name}/{shown(entry.name)}"
        image = has_file_allowed_extension(entry.name, EXTENSIONS)
        if is_folder(entry):
            reason = "hidden" if hidden else _not_data(inner, above) or ("" if depth > 0 else "nested too deep")
            if reason:
                folder.passed.append(f"{inner_name}/ ({reason})")
            else:
                folder.folders.append(_scan(inner, inner_name, depth - 1, above))
        elif hidden:
            folder.hidden += image
        elif image:
            folder.images.append(inner)
        elif entry.name.lower().endswith(".parquet"):
            folder.parquet.append(inner)
        else:
            folder.others[inner.suffix.lower() or "no ending"] += 1
    return folder


def is_folder(path: Path | os.DirEntry[str]) -> bool:
    """Whether this is a folder or a link to one; unlike `Path.is_dir`, no name is too long or too secret to ask."""
    return os.path.isdir(path)  # noqa: PTH112


def _not_data(folder: Path, above: tuple[tuple[int, int], ...]) -> str | None:
    """Why a folder in a data set is no part of it: a link to a folder above, training runs, the cache."""
    cache = cache_folder()
    try:
        facts = folder.stat()
        if (facts.st_dev, facts.st_ino) in above:
            return "a link back"
        if cache is not None and cache.exists() and cache.samefile(folder):
            return "decoded images"
        inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
        if _is_run(folder) or (all(path.is_dir() for path in inside) and any(map(_is_run, inside))):
            return "training runs"
    except OSError:
        pass  # listing it says so
    return None


def _is_run(folder: Path) -> bool:
    """Whether this is a run folder of ours, be it a half-made one."""
    return (folder / "checkpoints").is_dir() and any((folder / name).is_file() for name in ("config.yaml", ".lock"))


def passed_over(folder: Folder) -> list[str]:
    """A note for each kind of thing in the folder that is not read."""
    folders = list(folder.walk())
    others: Counter[str] = sum((inner.others for inner in folders), Counter())
    notes = []
    if others:
        kinds = ", ".join(f"{count:,} {ending}" for ending, count in sorted(others.items()))
        notes.append(f"{folder.name}: files passed over, since their name does not end like an image's: {shown(kinds)}")
    if hidden := sum(inner.hidden for inner in folders):
        notes.append(f"{folder.name}: {hidden:,} hidden image files passed over")
    if names := [name for inner in folders for name in inner.passed]:
        notes.append(f"{folder.name}: folders passed over: {listing(names)}")
    if parquet := [shown(path.name) for inner in folders for path in inner.parquet]:
        notes.append(f"{folder.name}: Parquet files passed over, since none is a training split: {listing(parquet)}")
    if closed := [inner.name for inner in folders if inner.error]:
        notes.append(f"{folder.name}: folders that cannot be read: {listing(closed)}")
    return notes


def find_image_folder(folder: Folder, layout: str = "folder", *, skip_bad: bool = False) -> Source | None:
    """The image data set in `folder`, or None where it holds no folder with images. Images are read as RGB.

    With `skip_bad`, images that cannot be read are left out, and a note counts them.

    Raises:
        UserError: a class has no images, there is one class only, another split has a class that is not trained, or the
            layout is not one that is known.
    """
    if not folder.folders or not folder.holds_images:
        return None
    parts, notes = _parts(folder)
    notes += passed_over(folder)
    root = folder.path
    rows = [(kind, label, path) for kind, part in parts.items() for label in part for path in part[label]]
    files = tuple(path for _, _, path in rows if not (skip_bad and _is_empty(path)))  # an empty one is a bad one
    plan = "\n".join(f"{kind}/{label}/{os.path.relpath(path, root)}" for kind, label, path in rows)
    read = partial(_read, root, rows, list(parts["train"]), skip_bad)
    return Source(
        root,
        files,
        f"{layout}{' without bad images' if skip_bad else ''}\n{plan}",
        read,
        tuple(notes),
        _LARGEST_IMAGE,
        partial(read, keep=False),
    )


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return False


def _parts(folder: Folder) -> tuple[dict[str, dict[str, list[Path]]], list[str]]:
    """The images of each class of each split, in a fixed order, and notes."""
    place, splits, notes = _find_splits(folder)
    parts: dict[str, dict[str, list[Path]]] = {}
    if not splits:
        parts["train"] = _classes(place, notes)
    for kind, inner in splits.items():
        if kind != "train" and not _has_classes(inner, tuple(parts["train"])):
            count = len(inner.all_images())
            reason = f"its {count:,} images lie in no class folder" if count else "it holds no images"
            notes.append(f"{inner.name}/ is not used: {reason}")
            continue
        parts[kind] = _classes(inner, notes, tuple(parts.get("train", ())), needed=kind == "train")
    names = list(parts["train"])
    if len(names) < 2:
        where = splits["train"] if splits else place
        raise UserError(
            f"{shown(where.path)} has one folder with images, {listing(map(shown, names))}/; expected at least 2, "
            f"one for each class"
        )
    for kind, classes in parts.items():
        if extra := sorted(set(classes) - set(names)):
            raise UserError(
                f"{shown(splits[kind].path)} has a class {shown(extra[0])} that {shown(splits['train'].path)} does not "
                f"have (it has {shown(listing(names))})"
            )
    if splits:
        used = ", ".join(f"{SPLIT_TITLES[kind]} images from {splits[kind].name}/" for kind in parts)
        notes.insert(0, used)
    return parts, notes


def _read(
    root: Path, rows: list[tuple[str, str, Path]], names: list[str], skip_bad: bool, size: int, *, keep: bool = True
) -> Splits:
    """The images of `rows`, each (split, class, file), in memory, or without `keep` left in their files."""
    files = [path for _, _, path in rows]
    bad: dict[int, str] = {}
    decoded = decode_all(
        len(files),
        lambda row: files[row].read_bytes(),
        lambda row: shown(files[row]),
        size=size,
        channels=3,
        bad=bad if skip_bad else None,
        keep=keep,
    )
    everything = decoded.images if keep else ImageFiles(files, size)
    kept = np.array([row for row in range(len(files)) if row not in bad], np.int64)
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[label] for _, label, _ in rows], np.int64)
    parts, start = {}, 0
    for kind, count in Counter(rows[row][0] for row in kept.tolist()).items():
        end = start + count
        of_split = kept[start:end] if bad else slice(start, end)  # a slice copies nothing
        parts[kind] = Part(
            everything[of_split],
            labels[of_split],
            decoded.keys[of_split],
            decoded.transparent[of_split],
            [shown(os.path.relpath(files[row], root)) for row in kept[start:end].tolist()],
        )
        start = end
    if "train" not in parts:
        raise UserError(f"none of the training images in {shown(root)} can be read")
    splits = settle(parts, tuple(map(shown, names)))
    left_out = {shown(os.path.relpath(files[row], root)): reason for row, reason in sorted(bad.items())}
    return replace(splits, notes=(*splits.notes, *left_out_notes(left_out)))


def _find_splits(folder: Folder) -> tuple[Folder, dict[str, Folder], list[str]]:
    """The folder, in or below `folder`, that holds splits or classes; its splits, empty where it holds classes."""
    notes: list[str] = []
    place = folder
    while True:
        splits = _splits_in(place, notes)
        inner = None if splits else _wrapped(place, notes)
        if inner is None:
            return place, splits, notes
        place = inner


def _wrapped(place: Folder, notes: list[str]) -> Folder | None:
    """The folder inside, where `place` does no more than wrap one that has folders of images."""
    live = [inner for inner in place.folders if inner.holds_images]
    if len(live) != 1 or live[0].images or not any(inner.holds_images for inner in live[0].folders):
        return None
    notes.append(f"{live[0].name}/ is read, the only folder with images in {place.name}/")
    _note_loose(place, notes)
    return live[0]


def _note_loose(place: Folder, notes: list[str]) -> None:
    if place.images:
        notes.append(
            f"{len(place.images):,} images are not used, since they lie in {place.name}/ itself and in no class"
        )


def _splits_in(place: Folder, notes: list[str]) -> dict[str, Folder]:
    """Which sub-folders are which splits."""
    by_kind: dict[str, list[Folder]] = {}
    for inner in place.folders:
        if kind := split_of_folder(inner.path.name):
            by_kind.setdefault(kind, []).append(inner)
    if not by_kind:
        return {}
    settle_eval(by_kind)
    named = [inner for kind in SPLIT_TITLES for inner in by_kind.get(kind, [])]
    others = [inner for inner in place.folders if inner not in named and inner.holds_images]
    if others and [inner.path.name.lower() for inner in named] == ["train"] and _is_flat(named[0]):
        notes.append(f"{named[0].name}/ is read as a class, not as a split: it holds images, as the folders beside it")
        return {}
    for kind, inners in by_kind.items():
        if len(inners) > 1:
            spelt = " and ".join(shown(inner.path.name) + "/" for inner in inners)
            raise UserError(f"{shown(place.path)} has {spelt}: expected one folder of {SPLIT_TITLES[kind]} images")
    if "train" not in by_kind:
        spelt = listing(shown(inner.path.name) + "/" for inner in named)
        raise UserError(
            f"{shown(place.path)} has {spelt} but no train/; expected train/ with {_EXPECTED.split(',')[0]}"
        )
    notes += [f"{inner.name}/ is not used: it is none of the splits" for inner in others]
    _note_loose(place, notes)
    return {kind: by_kind[kind][0] for kind in SPLIT_TITLES if kind in by_kind}


def _has_classes(split: Folder, known: tuple[str, ...]) -> bool:
    """Whether there are images in folders that may be classes; `test/test/*` and `val/images/*` are not."""
    live = [inner for inner in split.folders if inner.holds_images]
    while len(live) == 1 and not live[0].images and live[0].path.name not in known:
        live = [inner for inner in live[0].folders if inner.holds_images]
    names = [inner.path.name for inner in live]
    if len(names) == 1 and names[0] not in known:
        return bool(split_words(names[0])) and not split_of_folder(names[0])
    return bool(names)


def _is_flat(folder: Folder) -> bool:
    return bool(folder.images) and not any(inner.holds_images for inner in folder.folders)


def _classes(
    place: Folder, notes: list[str], known: tuple[str, ...] = (), *, needed: bool = True
) -> dict[str, list[Path]]:
    """Images of each class, by name, in `place` or the one folder that it wraps."""
    while not any(inner.path.name in known for inner in place.folders) and (inside := _wrapped(place, notes)):
        place = inside
    live = [inner for inner in place.folders if inner.holds_images]
    if not live:
        found = f"{len(place.images):,} images" if place.images else "no images"
        raise UserError(f"{shown(place.path)} holds {found} and no folder with images; expected {_EXPECTED}")
    _note_loose(place, notes)
    if len(live) > 1 and all(any(map(split_of, split_words(inner.path.name))) for inner in live):
        raise UserError(
            f"{shown(place.path)} has {listing(shown(inner.path.name) + '/' for inner in live)}, names of splits where "
            f"classes are expected; expected {_EXPECTED}"
        )
    classes: dict[str, list[Path]] = {}
    for inner in place.folders:
        images = inner.all_images()
        if not images:
            if needed:
                found = listing(f"{count:,} {ending}" for ending, count in sorted(inner.others.items()))
                raise UserError(
                    f"{shown(inner.path)} holds no images, but every folder beside it is a class "
                    f"({f'found: {shown(found)}; ' if found else ''}expected: {', '.join(EXTENSIONS)})"
                )
            notes.append(f"{inner.name}/ holds no images")
            continue
        below = [deeper for deeper in inner.folders if deeper.holds_images]
        if not inner.images and len(below) > 1:
            raise UserError(
                f"{shown(inner.path)} has no images of its own but {len(below)} folders with images "
                f"({listing(shown(deeper.path.name) for deeper in below)}), which may be classes or parts of one; "
                f"expected {_EXPECTED}"
            )
        if inner.images and below:
            notes.append(f"{inner.name}: images in the folders below it belong to this class too")
        classes[inner.path.name] = sorted(images, key=os.fsencode)
    return classes


def describe(folder: Folder) -> str:
    """What lies in a folder where no data set was recognised, in a few words."""
    found = []
    if folder.images:
        found.append(f"{len(folder.images):,} images in no class folder")
    if folder.folders:
        found.append(f"the folders {listing(shown(inner.path.name) + '/' for inner in folder.folders)}")
    if parquet := [path.name for inner in folder.walk() for path in inner.parquet]:
        found.append(shown(listing(parquet)))
    others: Counter[str] = sum((inner.others for inner in folder.walk()), Counter())
    for ending, count in sorted(others.items()):
        packed = " (an archive: unpack it)" if ending in ARCHIVES else ""
        found.append(f"{count:,} {shown(ending)}{packed}")
    return "; ".join(found) or "nothing"
