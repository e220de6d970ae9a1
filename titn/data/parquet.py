"""Data sets as Parquet files, as Hugging Face's hub has them.

A split is `train-00000-of-00002.parquet` and its fellows, `train.parquet`, or `train/*.parquet`, in the data set's
folder or in one below it (`data/`, `default/`, the name of a configuration). A file belongs to a split only if its name
is exactly a split's: `train_small-*` is not part of `train`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from titn.data.decoding import DecodedImages, decode_all
from titn.data.folders import Folder
from titn.data.splits import SPLIT_TITLES, Part, left_out_notes, listing, settle_eval, shown, split_of
from titn.errors import UserError

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("fine_label", "label")
_FEW = 5  # classes that may have one image each without being taken for identifiers
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<total>\d+)(?:-[0-9a-f]+)?\.parquet", re.IGNORECASE)
_NUMBERED = re.compile(r"(?P<stem>.+)[-_]\d+\.parquet", re.IGNORECASE)


@dataclass(frozen=True)
class ParquetSet:
    """The files of each split (`train`, and `val` and `test` where there are any), checked to be complete."""

    folder: Path
    files: dict[str, tuple[Path, ...]]

    def read(
        self, size: int, channels: int, names: tuple[str, ...] | None = None, *, skip_bad: bool = False
    ) -> tuple[dict[str, Part], tuple[str, ...], list[str]]:
        """Images and labels of each split that has labels, the class names, and notes.

        Args:
            size: height and width of the images, in pixels.
            channels: 1 or 3.
            names: class names where the files name none.
            skip_bad: leave out images that are missing or cannot be read; a note counts them.

        Raises:
            UserError: a file is damaged, empty or differs from the others; an image cannot be read; labels are missing
                or are no classes.
        """
        read = {kind: _read_split(files, self.folder) for kind, files in self.files.items()}
        labels, class_names, notes = _classes(read, self, names)
        parts: dict[str, Part] = {}
        left_out: dict[str, str] = {}
        for kind in labels:
            bad: dict[int, str] = {}
            rows = read[kind].rows
            decoded = self._decode(read[kind], size, channels, bad if skip_bad else None)
            part = Part(decoded.images, labels[kind], decoded.keys, decoded.transparent, rows)
            if len(bad) < len(rows):
                parts[kind] = part.take(~np.isin(np.arange(len(rows)), list(bad))) if bad else part
            left_out |= {rows[row]: reason for row, reason in sorted(bad.items())}
        if "train" not in parts:
            raise UserError(f"none of the training images in {shown(self.folder)} can be read")
        return parts, class_names, notes + left_out_notes(left_out)

    def _decode(self, split: _Read, size: int, channels: int, bad: dict[int, str] | None) -> DecodedImages:
        images = split.images
        return decode_all(
            len(images),
            lambda row: images[row],
            lambda row: f"{shown(self.folder)}/{split.rows[row]}",
            size=size,
            channels=channels,
            bad=bad,
        )


def find_parquet(folder: Folder) -> ParquetSet | None:
    """The data set in this folder, or None where no file in it is one of a training split.

    Raises:
        UserError: a shard that the names announce is missing, or a split has files of several kinds.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    for path in folder.parquet:
        kind, family = _split_of_file(path)
        if kind:
            found.setdefault(kind, {}).setdefault(family, []).append(path)
    for inner in folder.folders:
        directory = split_of(inner.path.name)
        if directory is None:
            continue
        for path in inner.parquet:
            kind, family = _split_of_file(path)
            if kind == directory:
                found.setdefault(kind, {}).setdefault(f"{inner.path.name}/{family}", []).append(path)
            elif kind is None and not any(map(split_of, re.split(r"[\W\d_]+", path.stem))):
                found.setdefault(directory, {}).setdefault(f"{inner.path.name}/", []).append(path)
    settle_eval(found)
    if "train" not in found:
        return None
    for kind, families in found.items():
        if len(families) > 1 and kind in SPLIT_TITLES:
            names = " and ".join(shown(paths[0].relative_to(folder.path)) for paths in families.values())
            raise UserError(
                f"{shown(folder.path)} mixes shards of different sets: {names} are both {SPLIT_TITLES[kind]} images; "
                f"expected one file, or the shards of one set"
            )
    files = {kind: _complete(*found[kind].values()) for kind in SPLIT_TITLES if kind in found}
    return ParquetSet(folder.path, files)


def find_parquet_below(folder: Folder) -> tuple[ParquetSet, list[str]] | None:
    """The data set in this folder or in one below it with notes on what is not used, or None where there is none.

    Raises:
        UserError: as of `find_parquet`, or there are several data sets.
    """
    sets = list(_sets(folder))
    if len(sets) > 1:
        places = listing(shown(found.folder) for found in sets)
        raise UserError(f"{shown(folder.path)} holds {len(sets)} data sets of Parquet files; name one of {places}")
    if not sets:
        return None
    (found,) = sets
    notes = []
    if found.folder != folder.path:
        notes.append(f"the data set lies in {shown(found.folder.relative_to(folder.path))}/")
    if any(inner.holds_images for inner in folder.walk()):
        notes.append(f"{folder.name}: image files beside the Parquet files are not used")
    used = {path for files in found.files.values() for path in files}
    if others := [path for inner in folder.walk() for path in inner.parquet if path not in used]:
        names = listing(shown(path.relative_to(folder.path)) for path in others)
        notes.append(f"Parquet files that are not used, since their name is not exactly a split's: {names}")
    return found, notes


def _sets(folder: Folder) -> Iterator[ParquetSet]:
    found = find_parquet(folder)
    if found:
        yield found
    for inner in folder.folders:
        if not (found and split_of(inner.path.name)):
            yield from _sets(inner)


def _split_of_file(path: Path) -> tuple[str | None, str]:
    """Which split the file's own name says, and what its fellows have in common."""
    if match := _SHARD.fullmatch(path.name):
        return split_of(match["stem"]), f"{match['stem']} of {match['total']}"
    if match := _NUMBERED.fullmatch(path.name):
        return split_of(match["stem"]), f"{match['stem']}-N"
    return split_of(path.stem), path.stem


def _complete(files: list[Path]) -> tuple[Path, ...]:
    """The files in order; UserError where a numbered one of them is missing or there twice."""
    shards = {path: match for path in files if (match := _SHARD.fullmatch(path.name))}
    numbers = [int(match["number"]) for match in shards.values()]
    for match in shards.values():
        total = match["total"]
        for number in range(int(total)):
            if number not in numbers:
                expected = files[0].parent / f"{match['stem']}-{number:0{len(total)}d}-of-{total}.parquet"
                raise UserError(
                    f"{shown(expected)} is missing; fetch it, or rename the others to {shown(match['stem'])}-N.parquet "
                    f"to go without it"
                )
        if len(set(numbers)) < len(numbers):
            raise UserError(f"{shown(files[0].parent)} has two files of one shard of {shown(match['stem'])}")
    return tuple(sorted(files, key=lambda path: (int(shards[path]["number"]) if path in shards else 0, path.name)))


class _Read(NamedTuple):
    """A split: encoded images, labels (int64 or text), which have none, names from the metadata, names of the rows."""

    images: list[bytes]
    labels: np.ndarray
    missing: np.ndarray
    names: tuple[str, ...] | None
    rows: list[str]


def _read_split(files: Sequence[Path], folder: Path) -> _Read:
    shards = [_read_shard(path, folder) for path in files]
    for path, shard in zip(files[1:], shards[1:], strict=True):
        if (shard.names, shard.labels.dtype.kind) != (shards[0].names, shards[0].labels.dtype.kind):
            raise UserError(f"{shown(path)} has another label column or other class names than {shown(files[0])}")
    return _Read(
        [image for shard in shards for image in shard.images],
        np.concatenate([shard.labels for shard in shards]),
        np.concatenate([shard.missing for shard in shards]),
        shards[0].names,
        [name for shard in shards for name in shard.rows],
    )


def _read_shard(path: Path, folder: Path) -> _Read:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        features = _features(schema.metadata, path)
        image_column, label_column = _columns(schema, features, path)
        table = pq.read_table(path, columns=[image_column, label_column], page_checksum_verification=True)
        images, labels = table.column(image_column), table.column(label_column)
        if pa.types.is_struct(images.type):
            images = pc.struct_field(images, "bytes")
        if pa.types.is_dictionary(labels.type):
            labels = labels.cast(labels.type.value_type)
        missing = labels.is_null().to_numpy().astype(bool)
        if pa.types.is_integer(labels.type):
            values = labels.cast(pa.int64()).fill_null(-1).to_numpy().astype(np.int64)
        elif pa.types.is_boolean(labels.type):
            values = np.array([str(value) for value in labels.to_pylist()], object)
        else:
            values = np.array([value or "" for value in labels.to_pylist()], object)
        encoded = images.to_pylist()
    except (pa.ArrowException, OSError, UnicodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"{shown(path)} is damaged or no Parquet file ({reason}); fetch it again") from None
    if not len(table):
        raise UserError(f"{shown(path)} holds no rows; fetch it again")
    name = shown(path.relative_to(folder))
    rows = [f"{name}, row {row}" for row in range(len(encoded))]
    return _Read([item or b"" for item in encoded], values, missing, _class_names(features, label_column), rows)


def _features(metadata: Mapping[bytes, bytes] | None, path: Path) -> dict[str, Any]:
    """The columns as Hugging Face's `datasets` describes them in the schema's metadata; empty without it."""
    text = (metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{shown(path)}: the schema's huggingface metadata is damaged; fetch it again") from None


def _class_names(features: Mapping[str, Any], column: str) -> tuple[str, ...] | None:
    names = features.get(column, {}).get("names")
    return tuple(shown(str(name)) for name in names) if isinstance(names, list) else None


def _columns(schema: Any, features: Mapping[str, Any], path: Path) -> tuple[str, str]:
    """The columns of the images and of the labels: by the usual names, else the only ones that can be."""
    import pyarrow as pa

    def is_image(kind: Any) -> bool:
        return (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0) or is_bytes(kind)

    def is_bytes(kind: Any) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)

    def is_label(kind: Any) -> bool:
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        return pa.types.is_integer(kind) or pa.types.is_boolean(kind) or text

    kinds = {field.name: field.type for field in schema}
    images = [name for name, kind in kinds.items() if is_image(kind)]
    labels = [name for name, kind in kinds.items() if is_label(kind)]
    described = [name for name in labels if _class_names(features, name) is not None]
    usual_images = [name for name in _IMAGE_COLUMNS if name in kinds]
    usual_labels = [name for name in _LABEL_COLUMNS if name in kinds][:1]
    chosen: list[str] = []
    for candidates, usual, what, expected in (
        (images, usual_images, "image", "a struct with the image file's bytes, or binary"),
        (labels, usual_labels or described, "label", "whole numbers or text"),
    ):
        columns = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        if len(usual) == 1 and usual[0] not in candidates:
            raise UserError(f"{shown(path)}: the column {usual[0]} must be {expected}, not {kinds[usual[0]]}")
        likely = usual or candidates
        if not likely:
            raise UserError(f"{shown(path)} needs a column {what} ({expected}); it has {shown(columns)}")
        if len(likely) > 1:
            raise UserError(
                f"{shown(path)}: {' or '.join(map(shown, likely))} may be the column of the {what}s; "
                f"expected one column called {what}"
            )
        chosen += likely
    return chosen[0], chosen[1]


def _classes(
    read: Mapping[str, _Read], found: ParquetSet, expected: tuple[str, ...] | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...], list[str]]:
    """Labels int64 of each split that has any, class names, notes.

    Numbers are positions in the class names where the files (or `expected`) give names. Otherwise each different number
    or text in the training split is a class: numbers in ascending order, text in alphabetical order.
    """
    train, first = read["train"], shown(found.files["train"][0])
    notes: list[str] = []
    names = train.names or expected
    numeric = train.labels.dtype.kind == "i"
    values = np.unique(train.labels[~train.missing])
    signed = numeric and names is None and values.tolist() == [-1, 1]
    unlabelled = {kind: split.missing | _hidden(split, signed) for kind, split in read.items()}
    if count := int(unlabelled["train"].sum()):
        raise UserError(f"{count:,} of {len(train.labels):,} training images in {first} have no label (null or -1)")
    if names is None or not numeric:
        if len(values) > max(_FEW, len(train.labels) // 2):
            raise UserError(
                f"the labels in {first} are no classes but identifiers: {len(values):,} different ones "
                f"({shown(listing(map(str, values)))}) for {len(train.labels):,} images"
            )
        names = tuple(shown(str(value)) for value in values)
        if numeric and values.tolist() != list(range(len(values))):
            notes.append(f"the labels are {values[0]} to {values[-1]}: each of the {len(values)} values is a class")
    else:
        values = np.arange(len(names))
    labels: dict[str, np.ndarray] = {}
    for kind, split in read.items():
        where, title = shown(found.files[kind][0]), SPLIT_TITLES[kind]
        if split.names is not None and train.names is not None and split.names != train.names:
            raise UserError(f"{where} has other class names than {first}")
        if count := int(unlabelled[kind].sum()):
            if count < (total := len(split.labels)):
                raise UserError(f"{count:,} of {total:,} {title} images in {where} have no label (null or -1)")
            notes.append(f"the {title} split is not used: its images have no labels (null or -1)")
            continue
        if split.labels.dtype.kind != train.labels.dtype.kind:
            kinds = ("numbers", "text") if numeric else ("text", "numbers")
            raise UserError(f"the labels in {first} are {kinds[0]}, those in {where} are {kinds[1]}")
        unknown = np.setdiff1d(split.labels, values)
        if len(unknown):
            raise UserError(
                f"{where} has the label {shown(str(unknown[0]))}, which is none of the {len(names)} class names "
                f"({listing(names)})"
            )
        labels[kind] = np.searchsorted(values, split.labels).astype(np.int64)
    return labels, names, notes


def _hidden(split: _Read, signed: bool) -> np.ndarray:
    """Rows whose label is -1, by which the hub marks labels that are kept secret; not where classes are -1 and 1."""
    if split.labels.dtype.kind != "i" or signed:
        return np.zeros(len(split.labels), bool)
    return split.labels == -1
