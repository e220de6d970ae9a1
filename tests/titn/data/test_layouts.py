"""Folders and Parquet files as people have them: which of it is read as what, what is refused, what is said."""

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stored_data import message, same

from titn.data.dataset import Dataset, load_dataset

pytestmark = pytest.mark.usefixtures("own_cache")
DESTRUCTIVE = ("delete", "remove", "erase")


@pytest.fixture
def png() -> Callable[[], bytes]:
    """Gives another small image, as a file's bytes, at each call; the same ones in the same order in every test."""
    generator = np.random.default_rng(0)

    def draw() -> bytes:
        file = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(file, "PNG")
        return file.getvalue()

    return draw


@pytest.fixture
def images(png: Callable[[], bytes], tmp_path: Path) -> Callable[..., Path]:
    """Fills folders below tmp_path/set: `images({"train/cat": 3})`; gives tmp_path/set."""

    def fill(folders: dict[str, int]) -> Path:
        for folder, count in folders.items():
            path = tmp_path / "set" / folder
            path.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (path / f"{number}.png").write_bytes(png())
        return tmp_path / "set"

    return fill


def write(path: Path, images: Iterable[Any], labels: Any, **columns: Any) -> None:
    """A Parquet file as the hub has it: columns image (bytes and path) and label, and class names if given."""
    names = columns.pop("names", None)
    image_column, label_column = columns.pop("image", "image"), columns.pop("label", "label")
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({image_column: list(images), label_column: labels, **columns})
    if names:
        facts = {"info": {"features": {label_column: {"names": list(names), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({b"huggingface": json.dumps(facts).encode()})
    pq.write_table(table, path)


@pytest.fixture
def rows(png: Callable[[], bytes]) -> Callable[[int], list[dict[str, Any]]]:
    """Gives so many images as the hub's structs."""
    return lambda count: [{"bytes": png(), "path": None} for _ in range(count)]


def sizes(data: Dataset) -> tuple[int, int | None, int]:
    return len(data.train_labels), None if data.val_labels is None else len(data.val_labels), len(data.test_labels)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "valid", "Testing"),
        ("TRAIN", "Validation", "TEST"),
        ("training_set", "dev_set", "test_set"),
        ("seg_train/seg_train", "seg_dev", "seg_test/seg_test"),
        ("wrapped/Train", "wrapped/Val", "wrapped/Eval"),
        ("a/b/train images", "a/b/validation images", "a/b/evaluation"),
        ("train", "eval", "test"),
    ],
)
def test_split_folders_by_the_names_people_give(train: str, val: str, test: str, images: Callable[..., Path]) -> None:
    counts = {f"{split}/{name}": count for split, count in ((train, 5), (val, 2), (test, 3)) for name in ("cat", "dog")}
    data = load_dataset(str(images(counts)))
    assert data.class_names == ("cat", "dog")
    assert sizes(data) == (10, 4, 6)
    assert any("training images from" in note and "validation" in note and "test" in note for note in data.notes)
    assert data.test_names is not None
    assert data.test_names[0].endswith(f"{test}/cat/0.png")


def test_only_a_validation_split_is_the_test_split_too(images: Callable[..., Path]) -> None:
    data = load_dataset(images({"train/cat": 5, "train/dog": 5, "valid/cat": 2, "valid/dog": 2}))
    assert sizes(data) == (10, 4, 4)
    assert data.val_images is not None
    assert np.array_equal(data.val_images, data.test_images)
    assert any("no test split" in note and "validation" in note for note in data.notes)


@pytest.mark.parametrize("flat", ["test", "test/test", "test/images", "Test/unlabelled/test_images", "Test/data/test"])
def test_unlabelled_test_images_do_not_block_a_labelled_validation_split(
    flat: str, images: Callable[..., Path]
) -> None:
    folders = {"train/cat": 6, "train/dog": 6, "val/cat": 3, "val/dog": 3, flat: 4}
    data = load_dataset(images(folders))
    assert sizes(data) == (12, 6, 6)
    assert any("not used: its 4 images lie in no class folder" in note for note in data.notes)


def test_what_lies_beside_the_splits_is_said(images: Callable[..., Path]) -> None:
    root = images({"train/cat": 5, "train/dog": 5, "train": 2, "test/cat": 2, "extra/cat": 3, ".git": 1, "test/dog": 0})
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / "cat" / "photo.heic").write_text("x")
    (root / "train" / "dog" / ".hidden.png").write_text("x")
    data = load_dataset(root)
    assert sizes(data) == (10, None, 2)
    text = "\n".join(data.notes)
    for part in (
        "set/extra/ is not used: it is none of the splits",
        "2 images are not used",
        "1 .heic, 1 .txt",
        "1 hidden",
        ".git/",
    ):
        assert part in text
    assert "classes without test images: dog" in text


def test_classes_one_level_deeper(images: Callable[..., Path]) -> None:
    data = load_dataset(images({f"{split}/{name}/images": 3 for split in ("train", "test") for name in ("cat", "dog")}))
    assert (sizes(data), data.class_names) == ((6, None, 6), ("cat", "dog"))
    shutil.rmtree(images({"test/cat/images": 2}) / "test" / "dog")
    assert sizes(load_dataset(images({}))) == (6, None, 3)
    shutil.rmtree(images({}))
    root = images({"photos/cat/images": 5, "photos/dog/images": 5, "photos/dog": 1})
    (root / "annotations").mkdir()
    (root / "annotations" / "boxes.xml").write_text("x")
    data = load_dataset(root)
    assert data.class_names == ("cat", "dog")
    assert len(data.train_labels) + len(data.test_labels) == 11
    assert any("set/photos/ is read" in note for note in data.notes)


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        ({"Training": 4, "Testing": 4}, "Training holds 4 images"),
        ({"train": 4, "test": 4}, "no folder with images"),
        ({"first/cat": 3, "first/dog": 3, "second/cat": 3, "second/dog": 3}, "may be classes or parts of one"),
        ({"cat/train": 3, "cat/test": 3, "dog/train": 3, "dog/test": 3}, "may be classes or parts of one"),
        ({"train/train": 3, "train/test": 3}, "names of splits"),
        ({"train_cat": 3, "train_dog": 3, "test_cat": 3, "test_dog": 3}, "names of splits"),
        ({"train/cat": 3, "train/dog": 3, "Training/cat": 3}, "Training/ and train/"),
        ({"val/cat": 3, "valid/cat": 3, "train/cat": 3, "train/dog": 3}, "val/ and valid/"),
        ({"test/cat": 3, "test/dog": 3}, "no train/"),
        ({"cat": 3, "dog": 3, "test": 3}, "no train/"),
        ({"train/cat": 3, "train/dog": 3, "test/Cat": 3}, "a class Cat"),
        ({"": 5}, "5 images in no class folder"),
        ({"cat": 4, "dog": 0}, "dog holds no images"),
        ({"cat": 4}, "one folder with images, cat/"),
        ({"train/cat": 4}, "one folder with images, cat/"),
        ({"cat": 1, "dog": 1}, "no class has two images"),
    ],
)
def test_a_layout_that_is_not_known_is_never_read_as_another(
    folders: dict[str, int], said: str, images: Callable[..., Path]
) -> None:
    root = images(folders)
    text = message(root)
    assert said in text
    assert str(root) in text or "add images" in text
    assert not any(word in text for word in DESTRUCTIVE)


def test_of_two_folders_of_one_name_the_nearer_is_read_and_said(
    images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_dataset(images({"cat": 8, "dog": 8}))
    shutil.copytree(tmp_path / "set" / "cat", tmp_path / "data" / "set" / "emu")
    monkeypatch.chdir(tmp_path)
    data = load_dataset("set")
    assert same(data, expected)
    assert "set is read, and not data/set" in data.notes


def test_a_class_may_be_called_train(images: Callable[..., Path]) -> None:
    data = load_dataset(images({"bus": 5, "car": 5, "train": 5}))
    assert data.class_names == ("bus", "car", "train")
    assert any("read as a class" in note for note in data.notes)


def test_archives_and_files_are_named(images: Callable[..., Path], tmp_path: Path) -> None:
    root = images({"": 0})
    (root / "photos.zip").write_bytes(b"PK")
    assert "1 .zip (an archive: unpack it)" in message(root)
    assert "archive: unpack it" in message(root / "photos.zip")
    (root / "list.csv").write_text("x")
    assert "is no folder" in message(root / "list.csv")
    (root / "dangling").symlink_to(root / "absent")
    assert "is no folder" in message(root / "dangling")


def test_the_spelling_of_a_path_changes_nothing(
    images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    root = images({"cat": 8, "dog": 8})
    expected = load_dataset(root)
    (tmp_path / "link").symlink_to(root)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    spellings: list[tuple[str, str | None]] = [
        (f"{root}/", None), ("set", None), ("./set/", None), ("link", None), ("~/set", None), ("set", str(tmp_path)),
        ("set", "~"), ("set/../set", None),
    ]  # fmt: skip
    for name, data_dir in spellings:
        data = load_dataset(name, data_dir)
        assert same(data, expected)
        assert (data.name, data.notes, data.test_names) == (expected.name, expected.notes, expected.test_names)
    monkeypatch.chdir(root)
    data = load_dataset(".")
    assert same(data, expected)
    assert data.name == "set"
    shutil.copytree(root, tmp_path / "other" / "set")
    assert same(load_dataset(tmp_path / "other" / "set"), expected)
    assert len(list(own_cache.iterdir())) == 1


def test_our_own_folders_in_a_data_set_are_not_classes(
    images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = images({"cat": 8, "dog": 8})
    expected = load_dataset(root)
    (root / "half-made" / "checkpoints").mkdir(parents=True)
    (root / "half-made" / ".lock").touch()
    for run in ("runs/a", "runs/b", "own"):
        (root / run / "checkpoints" / "epoch-0001").mkdir(parents=True)
        (root / run / "config.yaml").write_text("model: titn\n")
        (root / run / "picture.png").write_bytes((root / "cat" / "0.png").read_bytes())
    monkeypatch.setenv("TITN_CACHE", str(root / "cache"))
    monkeypatch.chdir(root)
    for _ in range(2):
        data = load_dataset(".")
        assert same(data, expected)
    (note,) = (note for note in data.notes if "folders passed over" in note)
    assert "set/cache/ (decoded images), set/half-made/ (training runs), set/own/ (training runs) and 1 more" in note


def test_links_are_followed_once(images: Callable[..., Path], tmp_path: Path) -> None:
    root = images({"cat": 5, "dog": 5})
    (root / "cat" / "loop").symlink_to(root)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(root / "cat" / "0.png", tmp_path / "elsewhere" / "0.png")
    (root / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    data = load_dataset(root)
    assert len(data.train_labels) + len(data.test_labels) == 11
    assert any("a link back" in note for note in data.notes)


def test_names_in_another_encoding(images: Callable[..., Path]) -> None:
    root = images({"cat": 5, "dog": 5})
    os.rename(os.fsencode(root / "cat"), os.fsencode(root) + b"/caf\xe9")  # noqa: PTH104 (bytes)
    os.rename(os.fsencode(root / "dog" / "0.png"), os.fsencode(root) + b"/dog/\xff[b].png")  # noqa: PTH104 (bytes)
    data = load_dataset(root)
    assert data.class_names == ("caf\\udce9", "dog")
    json.dumps(data.identity(), ensure_ascii=False).encode()
    "\n".join((*data.notes, *data.class_names, *(data.test_names or ()))).encode()
    (root / os.fsdecode(b"caf\xe9") / "1.png").write_bytes(b"no image")
    assert "caf\\udce9/1.png" in message(root)


@pytest.mark.parametrize("kind", ["fifo", "empty", "folder link", "dangling", "huge"])
def test_files_that_are_no_images_are_named(kind: str, images: Callable[..., Path]) -> None:
    path = images({"cat": 5, "dog": 5}) / "cat" / "new.png"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "dangling":
        path.symlink_to("absent.png")
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(2 << 30)
    else:
        path.symlink_to("/dev/null")
    text = message(path.parents[1])
    assert str(path) in text
    expected = {
        "fifo": "pipe",
        "empty": "0 bytes",
        "dangling": "absent.png",
        "huge": "2,147,483,648",
        "folder link": "no regular",
    }
    assert expected[kind] in text


@pytest.fixture
def powerless() -> Iterator[Path]:
    """A new folder, and no more rights than any user has while a test with it runs."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        if root:
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize("closed", ["set", "set/cat", "set/cat/0.png"])
@pytest.mark.parametrize("mode", [0, 0o444])
def test_what_may_not_be_read_is_named(
    closed: str, mode: int, png: Callable[[], bytes], powerless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TITN_CACHE", str(powerless / "cache"))
    for label in ("cat", "dog"):
        (powerless / "set" / label).mkdir(parents=True)
        for number in range(6):
            (powerless / "set" / label / f"{number}.png").write_bytes(png())
    data = load_dataset(powerless / "set")
    path = powerless / closed
    path.chmod(mode)
    try:
        if path.is_file() and mode:
            assert same(load_dataset(powerless / "set"), data)
        else:
            text = message(powerless / "set")
            assert str(path) in text
            assert "cannot read" in text or "no data set" in text
            assert closed != "set" or "cannot read" not in text or "Permission denied" in text
            if closed == "set":
                assert "Permission denied" in message("cifar10", path)
    finally:
        path.chmod(0o755)
    (powerless / "cache").chmod(0)
    again = load_dataset(powerless / "set")
    assert same(again, data)
    assert any("decoded images are not kept" in note for note in again.notes)


def test_more_endings_are_read(images: Callable[..., Path]) -> None:
    root = images({"cat": 5, "dog": 5})
    pixels = np.random.default_rng(1).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    for name, form in (
        ("a.GIF", "GIF"),
        ("b.jfif", "JPEG"),
        ("c.JPEG", "JPEG"),
        ("d.WebP", "WebP"),
        ("e.Tiff", "TIFF"),
    ):
        Image.fromarray(pixels).save(root / "cat" / name, form)
    data = load_dataset(root)
    assert len(data.train_labels) + len(data.test_labels) == 15


@pytest.mark.parametrize(
    "name",
    [
        "{}-00000-of-00001.parquet", "{}.parquet", "data/{}-00000-of-00001-0123456789abcdef.parquet", "{}-0.parquet",
        "default/{}/0000.parquet", "data/{}/part-0.parquet", "plain_text/{}-00000-of-00001.parquet", "{}/{}.PARQUET",
    ],
)  # fmt: skip
@pytest.mark.parametrize("validation", ["validation", "eval"])
def test_parquet_where_the_hub_puts_it(name: str, validation: str, rows: Callable[[int], Any], tmp_path: Path) -> None:
    root = tmp_path / "set"
    for split, count in (("train", 12), (validation, 6), ("test", 9)):
        write(
            root / name.replace("{}", split),
            rows(count),
            [row % 3 for row in range(count)],
            names=("ant", "bee", "cow"),
        )
    data = load_dataset(root)
    assert sizes(data) == (12, 6, 9)
    assert data.class_names == ("ant", "bee", "cow")
    assert data.test_names is not None
    assert data.test_names[2].endswith("row 2")
    assert str(tmp_path) not in data.test_names[2]


def test_training_shards_never_mix_with_others(rows: Callable[[int], Any], tmp_path: Path) -> None:
    root, labels = tmp_path / "set", [0, 1, 2] * 4
    for name in ("train", "train_small", "test", "test_shuffled_labels", "trainer", "unsupervised"):
        write(root / f"{name}-00000-of-00001.parquet", rows(12), labels)
    data = load_dataset(root)
    assert sizes(data) == (12, None, 12)
    (note,) = (note for note in data.notes if "Parquet files that are not used" in note)
    assert "and 1 more" in note
    write(root / "train.parquet", rows(12), labels)
    assert "train.parquet" in message(root)
    (root / "train.parquet").unlink()
    write(root / "train-00000-of-00002.parquet", rows(12), labels)
    assert "mixes shards" in message(root)
    (root / "train-00000-of-00002.parquet").unlink()
    write(root / "train" / "0000.parquet", rows(12), labels)
    assert "train/0000.parquet" in message(root)
    (root / "train" / "0000.parquet").rename(root / "train" / "test-0.parquet")
    assert sizes(load_dataset(root)) == (12, None, 12)


def test_several_sets_of_parquet_files_are_ambiguous(rows: Callable[[int], Any], tmp_path: Path) -> None:
    for config in ("small", "large"):
        for split in ("train", "test"):
            write(tmp_path / "set" / config / f"{split}.parquet", rows(4), [0, 1, 0, 1])
    text = message(tmp_path / "set")
    assert "set/large" in text
    assert "set/small" in text
    assert sizes(load_dataset(tmp_path / "set" / "small")) == (4, None, 4)
    write(tmp_path / "alone" / "pictures.parquet", rows(4), [0, 1, 0, 1])
    assert "pictures.parquet" in message(tmp_path / "alone")


@pytest.mark.parametrize("image", ["picture", "jpg"])
@pytest.mark.parametrize("label", ["species", "label"])
def test_columns_by_other_names(image: str, label: str, rows: Callable[[int], Any], tmp_path: Path) -> None:
    for split in ("train", "test"):
        pictures = [row["bytes"] for row in rows(8)] if image == "jpg" else rows(8)
        write(tmp_path / f"{split}.parquet", pictures, [0, 1] * 4, image=image, label=label, names=("ant", "bee"),
              number=list(range(8)))  # fmt: skip
    data = load_dataset(tmp_path)
    assert data.class_names == ("ant", "bee")
    assert sizes(data) == (8, None, 8)


def test_columns_that_may_be_several_things(rows: Callable[[int], Any], tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", rows(4), [0, 1, 0, 1], image="left", right=rows(4))
    text = message(tmp_path)
    assert "left or right may be the column of the images" in text
    write(tmp_path / "train.parquet", rows(4), [0, 1, 0, 1], label="kind", number=[1, 2, 3, 4])
    assert "kind or number may be the column of the labels" in message(tmp_path)
    write(tmp_path / "train.parquet", [1, 2, 3, 4], [0, 1, 0, 1], image="number")
    assert "needs a column image" in message(tmp_path)


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [
        (["cow", "ant", "cow", "ant"] * 3, ("ant", "cow"), None),
        ([1, 2, 3, 1] * 3, ("1", "2", "3"), "1 to 3"),
        ([-1, 1, 1, -1] * 3, ("-1", "1"), "-1 to 1"),
        ([10**12, 7, 7, 10**12] * 3, ("7", str(10**12)), "each of the 2 values"),
        ([True, False, True, False] * 3, ("False", "True"), None),
        ([0, 1, 2, 0] * 3, ("0", "1", "2"), None),
    ],
)
def test_labels_of_any_kind_become_classes(
    labels: list[Any], names: tuple[str, ...], said: str | None, rows: Callable[[int], Any], tmp_path: Path
) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", rows(12), labels)
    data = load_dataset(tmp_path)
    assert data.class_names == names
    assert [names[label] for label in data.train_labels] == list(map(str, labels))
    assert any("the labels are" in note for note in data.notes) == (said is not None)
    assert said is None or any(said in note for note in data.notes)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (list(range(10**15, 10**15 + 12)), "no classes but identifiers"),
        ([f"image{number}" for number in range(12)], "no classes but identifiers"),
        ([0, 1, -1, 0] * 3, "3 of 12 training images"),
        ([0, 1, None, 0] * 3, "3 of 12 training images"),
        ([0.5, 1.0, 0.5, 1.0] * 3, "must be whole numbers or text"),
        ([[0], [1], [0], [1]] * 3, "must be whole numbers or text"),
        (pa.array([2**63 + 5, 1, 2, 3] * 3, pa.uint64()), "train.parquet"),
    ],
)
def test_labels_that_are_no_classes(labels: Any, said: str, rows: Callable[[int], Any], tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", rows(12), labels)
    text = message(tmp_path)
    assert said in text
    assert "train.parquet" in text


@pytest.mark.parametrize("hidden", [-1, None])
def test_a_test_split_without_labels_is_not_used(
    hidden: int | None, rows: Callable[[int], Any], tmp_path: Path
) -> None:
    names, labels = ("ant", "bee"), [0, 1] * 6
    write(tmp_path / "train.parquet", rows(12), labels, names=names)
    write(tmp_path / "test.parquet", rows(6), pa.array([hidden] * 6, pa.int64()), names=names)
    data = load_dataset(tmp_path)
    assert data.val_labels is None
    assert len(data.train_labels) + len(data.test_labels) == 12
    assert any("test split is not used" in note for note in data.notes)
    write(tmp_path / "validation.parquet", rows(8), [0, 1] * 4, names=names)
    assert sizes(load_dataset(tmp_path)) == (12, 8, 8)
    write(tmp_path / "test.parquet", rows(6), [hidden, 0, 1, 0, 1, 0], names=names)
    assert "1 of 6 test images" in message(tmp_path)
    write(tmp_path / "test.parquet", rows(6), [0, 1, 5, 0, 1, 0], names=names)
    assert "has the label 5" in message(tmp_path)


def test_a_pipe_called_parquet_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    os.mkfifo(tmp_path / "set" / "train.parquet")
    assert "pipe" in message(tmp_path / "set")
