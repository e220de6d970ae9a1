"""What the tests of data sets share: comparison, the one line of an error, small copies of real shards."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from titn.data.dataset import Dataset, load_dataset
from titn.errors import UserError


def message(name: str | Path, data_dir: Path | None = None, **options: int) -> str:
    """The one line that loading fails with."""
    with pytest.raises(UserError) as caught:
        load_dataset(str(name), data_dir, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def same(one: Dataset, two: Dataset) -> bool:
    arrays = ("train_images", "train_labels", "test_images", "test_labels")
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in arrays) and (
        (one.class_names, one.mean, one.std, one.fingerprint) == (two.class_names, two.mean, two.std, two.fingerprint)
    )


def copy_shard(source: Path, folder: Path, rows: int) -> Path:
    """The first rows of a real Parquet shard, schema metadata included, as train and test."""
    folder.mkdir(parents=True)
    table = pq.read_table(source).slice(0, rows)
    pq.write_table(table, folder / "train-00000-of-00001.parquet")
    pq.write_table(table, folder / "test-00000-of-00001.parquet")
    return folder
