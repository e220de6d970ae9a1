"""Data sets in Hugging Face's Parquet layout: shards train-*.parquet and test-*.parquet."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from titn.data.decoding import decode_all
from titn.errors import UserError

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("fine_label", "label")
_TEST_NAMES = ("test", "validation", "valid", "val")
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.parquet$")


@dataclass(frozen=True)
class ParquetSplit:
    """Shards of one split, checked to be complete."""

    files: tuple[Path, ...]

    def read(self, size: int, channels: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...] | None]:
        """Images uint8 [N, size, size, channels], labels int64 [N] and the class names, None where the files name none.

        Raises:
            UserError: a shard is damaged, empty or differs from the others; an image cannot be read.
        """
        rows: list[tuple[bytes, str]] = []
        labels: list[np.ndarray] = []
        first: tuple[str, tuple[str, ...] | None] | None = None
        for path in self.files:
            shard, label_column, names = _read_shard(path)
            first = first or (label_column, names)
            if first != (label_column, names):
                raise UserError(f"{path} has another label column or other class names than {self.files[0]}")
            rows += [(item["bytes"], f"{path}, row {row}") for row, item in enumerate(shard[0])]
            labels.append(shard[1])
        assert first is not None
        images = decode_all(len(rows), lambda row: rows[row][0], lambda row: rows[row][1], size=size, channels=channels)
        return images, np.concatenate(labels), first[1]


def find_parquet(folder: Path) -> tuple[ParquetSplit, ParquetSplit] | None:
    """The training and test shards in `folder`, or None where it holds no train*.parquet.

    Raises:
        UserError: a shard that the names announce is missing, or there is no test split.
    """
    train = sorted(folder.glob("train*.parquet"))
    if not train:
        return None
    for name in _TEST_NAMES:
        test = sorted(folder.glob(f"{name}*.parquet"))
        if test:
            return ParquetSplit(_complete(train)), ParquetSplit(_complete(test))
    raise UserError(f"{folder} has train*.parquet but no test*.parquet or validation*.parquet")


def _complete(files: list[Path]) -> tuple[Path, ...]:
    totals = {match[2] for path in files if (match := _SHARD.search(path.name))}
    if len(totals) > 1:
        raise UserError(f"{files[0].parent} mixes shards of different sets (of {' and of '.join(sorted(totals))})")
    for total in totals:
        stem = files[0].name[: files[0].name.index("-")]
        for number in range(int(total)):
            expected = files[0].parent / f"{stem}-{number:0{len(total)}d}-of-{total}.parquet"
            if expected not in files:
                raise UserError(
                    f"{expected} is missing; fetch it, or rename the others to {stem}-N.parquet to go without it"
                )
    return tuple(files)


def _read_shard(path: Path) -> tuple[tuple[list[dict[str, Any]], np.ndarray], str, tuple[str, ...] | None]:
    """((rows of {bytes, path}, labels int64), label column, class names) of one file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        image_column = next((name for name in _IMAGE_COLUMNS if name in schema.names), None)
        label_column = next((name for name in _LABEL_COLUMNS if name in schema.names), None)
        if image_column is None or label_column is None:
            raise UserError(
                f"{path} needs a column img or image and a column label or fine_label; it has {', '.join(schema.names)}"
            )
        table = pq.read_table(path, columns=[image_column, label_column], page_checksum_verification=True)
        images = table.column(image_column)
        labels = table.column(label_column)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged or no Parquet file ({_first_line(error)}); fetch it again") from None
    if not len(table):
        raise UserError(f"{path} holds no rows; fetch it again")
    kind = images.type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise UserError(f"{path}: the column {image_column} must be a struct with the image file's bytes, not {kind}")
    if not pa.types.is_integer(labels.type) or labels.null_count:
        raise UserError(f"{path}: the column {label_column} must hold whole numbers and no gaps")
    rows = images.to_pylist()
    for row, item in enumerate(rows):
        if item is None or not item["bytes"]:
            raise UserError(f"{path}, row {row}: there is no image in the column {image_column}")
    return (rows, labels.to_numpy().astype(np.int64)), label_column, _class_names(schema.metadata, label_column, path)


def _class_names(metadata: dict[bytes, bytes] | None, column: str, path: Path) -> tuple[str, ...] | None:
    text = (metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        names = json.loads(text)["info"]["features"][column].get("names")
        return None if names is None else tuple(str(name) for name in names)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: the schema's huggingface metadata is damaged; fetch it again") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
