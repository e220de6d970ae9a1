"""Images that cannot be read: one stops the run and is named, or all are left out and counted; what is too large."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored_data import copy_shard, message, same

from titn.config import TrainConfig
from titn.data import decoding
from titn.data.dataset import load_dataset
from titn.data.decoding import available_memory
from titn.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


def test_bad_images_are_left_out_and_counted(image_folder: Path) -> None:
    good = load_dataset(str(image_folder))
    first = sorted((image_folder / "digit0").iterdir())[0]
    (image_folder / "digit0" / "cut.png").write_bytes(first.read_bytes()[:60])
    (image_folder / "digit1" / "text.png").write_text("no image")
    (image_folder / "digit2" / "empty.png").touch()
    with pytest.raises(UserError, match=r"(cut|text|empty)\.png"):
        load_dataset(str(image_folder))
    for _ in range(2):  # decoded, and from the cache
        data = load_dataset(str(image_folder), skip_bad_images=True)
        (note,) = [note for note in data.notes if "cannot be read" in note]
        assert note.startswith("3 images left out, since they cannot be read: ")
        assert all(name in note for name in ("digit0/cut.png", "digit1/text.png", "digit2/empty.png"))
        assert data.fingerprint == good.fingerprint
    assert not any("cannot be read" in note for note in good.notes)


def test_no_training_image_that_can_be_read(image_folder: Path) -> None:
    for path in image_folder.glob("*/*"):
        path.write_text("no image")
    with pytest.raises(UserError, match=r"none of the training images in .* can be read"):
        load_dataset(str(image_folder), skip_bad_images=True)


def test_bad_images_in_parquet_files_are_left_out_and_counted(tmp_path: Path, shared_data: Path) -> None:
    folder = copy_shard(shared_data / "cifar10" / "train-00000-of-00004.parquet", tmp_path / "set", 40)
    shard = folder / "train-00000-of-00001.parquet"
    table = pq.read_table(shard)
    encoded = [image["bytes"] for image in table["img"].to_pylist()]
    damaged = {3: encoded[3][:90], 17: b"no image", 30: None}

    def write(items: list[bytes | None], rows: list[int]) -> None:
        kind = table["img"].type
        column = pa.array([{"bytes": items[row], "path": None} for row in rows], kind)
        pq.write_table(table.take(rows).set_column(table.column_names.index("img"), table.field("img"), column), shard)

    write([damaged.get(row, item) for row, item in enumerate(encoded)], list(range(40)))
    assert "train-00000-of-00001.parquet, row 3: " in message(folder)
    for _ in range(2):  # decoded, and from the cache
        data = load_dataset(folder, skip_bad_images=True)
        (note,) = [note for note in data.notes if "cannot be read" in note]
        assert note.startswith("3 images left out, since they cannot be read: train-00000-of-00001.parquet, row 3, ")
        assert all(f"row {row}" in note for row in damaged)
    write(list(encoded), [row for row in range(40) if row not in damaged])
    assert same(load_dataset(folder), data)
    write([None, *encoded[1:]], list(range(40)))
    assert "train-00000-of-00001.parquet, row 0: it is empty (0 bytes)" in message(folder)
    write([b"no image"] * 40, list(range(40)))
    assert f"none of the training images in {folder} can be read" in message(folder, skip_bad_images=True)


def test_a_known_data_set_has_no_bad_images() -> None:
    with pytest.raises(UserError, match="--skip-bad-images is for a folder of your own, not for digits"):
        load_dataset("digits", skip_bad_images=True)


def test_a_teacher_takes_the_setting_from_its_student() -> None:
    assert TrainConfig(skip_bad_images=True, teacher="small_cnn").teacher_training("small_cnn").skip_bad_images


def test_what_does_not_fit_into_memory_is_refused_with_a_way_out(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 2**20 < available_memory() < 2**60
    monkeypatch.setattr(decoding, "available_memory", lambda: 3 * 2**10)
    text = message(str(image_folder))
    assert "30 images of 32x32 pixels take 0.0 GiB, and 0.0 GiB of memory are free" in text
    assert "--pipeline dali" in text and "--image-size" in text
    monkeypatch.setattr(decoding, "available_memory", lambda: 30 * 32 * 32 * 3)
    assert np.shape(load_dataset(str(image_folder)).train_images)[1:] == (32, 32, 3)
