"""Data sets as users have them: folders, Parquet, torchvision's layouts, downloads; and what is wrong with them."""

import functools
import gzip
import hashlib
import http.server
import os
import pickle
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torchvision
from PIL import Image
from stored_data import copy_shard, message, same
from torchvision.transforms import functional

from titn.data.dataset import load_dataset
from titn.pipelines.pictures import fit

pytestmark = pytest.mark.usefixtures("own_cache")


def test_folder_of_classes_equals_torchvisions_image_folder(image_folder: Path) -> None:
    (image_folder / "digit0" / "notes.txt").write_text("no image")
    (image_folder / ".hidden").mkdir()
    data = load_dataset(str(image_folder))
    assert data.class_names == ("digit0", "digit1", "digit2")
    assert data.name == "scans"
    assert data.train_images.shape[1:] == (32, 32, 3)
    assert all(1 <= count <= 9 for count in np.bincount(data.test_labels))
    shutil.rmtree(image_folder / ".hidden")
    expected = {
        (functional.center_crop(functional.resize(image, 32), 32).tobytes(), label)
        for image, label in torchvision.datasets.ImageFolder(image_folder)
    }
    found = zip(
        np.concatenate([data.train_images, data.test_images]),
        np.concatenate([data.train_labels, data.test_labels]),
        strict=True,
    )
    assert {(image.tobytes(), label) for image, label in found} == expected
    assert same(load_dataset("scans", image_folder.parent), data)


def test_folder_with_its_own_test_split(image_folder: Path) -> None:
    root = image_folder.parent / "split"
    shutil.copytree(image_folder, root / "train")
    shutil.copytree(image_folder / "digit2", root / "val" / "digit2")
    data = load_dataset(str(root))
    assert data.train_images.shape == (30, 32, 32, 3)
    assert data.test_labels.tolist() == [2] * 10
    assert np.array_equal(data.test_images, data.train_images[data.train_labels == 2])
    assert "classes without test images: digit0, digit1" in data.notes
    assert any("10 of 10 test images are training images too" in note for note in data.notes)
    shutil.copytree(image_folder / "digit2", root / "val" / "digit7")
    text = message(root)
    assert str(root / "val") in text
    assert "digit7" in text
    shutil.rmtree(root / "train")
    assert "no train/" in message(root)


def test_class_folders_of_a_known_data_set(image_folder: Path) -> None:
    root = image_folder.parent / "data"
    shutil.copytree(image_folder, root / "cifar10")
    assert "holds 3 classes, but cifar10 has 10" in message("cifar10", root)
    for number in range(3, 10):
        shutil.copytree(image_folder / "digit0", root / "cifar10" / f"digit{number}")
    data = load_dataset("cifar10", root)
    assert len(data.train_labels) + len(data.test_labels) == 100
    assert data.train_keys is None


def test_unusable_folders(image_folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in message(empty)
    shutil.copytree(image_folder / "digit0", tmp_path / "one" / "digit0")
    assert "one folder with images, digit0/" in message(tmp_path / "one")
    (image_folder / "digit3").mkdir()
    assert str(image_folder / "digit3") in message(image_folder)
    assert "did you mean cifar10?" in message("cifar-10", tmp_path)
    assert "unknown data set" in message(tmp_path / "absent")
    assert "unknown data set" in message("")


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "deep"])
def test_unreadable_image_is_named(image_folder: Path, damage: str) -> None:
    path = image_folder / "digit1" / "4.png"
    if damage == "deep":
        Image.fromarray(np.zeros((40, 40), np.int32)).save(path, "TIFF")
    else:
        path.write_bytes({"text": b"no image", "empty": b"", "truncated": path.read_bytes()[:-60]}[damage])
    text = message(image_folder)
    assert str(path) in text
    assert ("32 bits" in text) == (damage == "deep")


def test_large_images_are_decoded_in_threads_to_the_same_pixels(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 90, 70, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        folder = tmp_path / "noise" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    data = load_dataset("noise", tmp_path)
    found = {image.tobytes() for image in np.concatenate([data.train_images, data.test_images])}
    assert found == {np.asarray(fit(Image.fromarray(pixels), 32)).tobytes() for pixels in noise}
    (tmp_path / "noise" / "1" / "7.png").write_bytes(b"no image")
    assert "7.png" in message("noise", tmp_path)


def test_parquet_folder_without_names_and_with_other_sizes(small_cifar: Path) -> None:
    named = load_dataset("cifar10", small_cifar)
    assert np.array_equal(named.train_images, named.test_images)
    folder = small_cifar / "cifar10"
    for path in folder.iterdir():
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata(None).rename_columns(["image", "label"]), path)
    plain = load_dataset(str(folder), image_size=24)
    assert plain.class_names == tuple("0123456789")
    expected = functional.resize(Image.fromarray(named.train_images[3]), 24)
    assert np.array_equal(plain.train_images[3], expected)
    assert load_dataset("cifar10", small_cifar).class_names == named.class_names


def test_damaged_parquet(small_cifar: Path) -> None:
    folder = small_cifar / "cifar10"
    train, test = folder / "train-00000-of-00001.parquet", folder / "test-00000-of-00001.parquet"
    whole = train.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PAR1" * 100):
        train.write_bytes(damaged)
        assert str(train) in message("cifar10", small_cifar)
    table = pq.read_table(test)
    for broken, expected in (
        (table.slice(0, 0), "no rows"),
        (table.drop_columns(["label"]), "a column label"),
        (table.set_column(0, "img", table.column("label")), "struct"),
        (
            table.set_column(1, "label", table.column("img").combine_chunks().field("path")),
            "no classes but identifiers",
        ),
        (table.set_column(1, "label", [list(range(300))]), "class names"),
    ):
        pq.write_table(broken, train)
        text = message("cifar10", small_cifar)
        assert expected in text
    items = table.column("img").to_pylist()
    for bad, expected in ((None, "it is empty (0 bytes)"), (b"no image", "cannot read the image")):
        changed = [*items[:7], {"bytes": bad, "path": "x.png"}, *items[8:]]
        pq.write_table(table.set_column(0, table.schema.field("img"), [changed]), train)
        text = message("cifar10", small_cifar)
        assert expected in text
        assert f"{train}, row 7" in text


def test_shards_that_do_not_belong_together(small_cifar: Path, shared_data: Path) -> None:
    folder = small_cifar / "cifar10"
    train, test = folder / "train-00000-of-00001.parquet", folder / "test-00000-of-00001.parquet"
    test.rename(folder / "kept")
    assert "no test*.parquet" in message("cifar10", small_cifar)
    (folder / "kept").rename(test)
    first = train.rename(folder / "train-00000-of-00002.parquet")
    assert str(folder / "train-00001-of-00002.parquet") in message("cifar10", small_cifar)
    shutil.copy(first, folder / "train-00001-of-00003.parquet")
    assert "mixes shards" in message("cifar10", small_cifar)
    (folder / "train-00001-of-00003.parquet").unlink()
    other = copy_shard(shared_data / "cifar100" / "test-00000-of-00001.parquet", small_cifar / "other", 10)
    shutil.copy(other / "test-00000-of-00001.parquet", folder / "train-00001-of-00002.parquet")
    assert str(folder / "train-00001-of-00002.parquet") in message("cifar10", small_cifar)
    (folder / "train-00001-of-00002.parquet").unlink()
    first.rename(train)
    shutil.copy(other / "test-00000-of-00001.parquet", test)
    assert str(test) in message("cifar10", small_cifar)


@pytest.mark.parametrize("name", ["cifar100", "mnist"])
def test_another_data_set_is_not_mistaken_for_the_one_asked_for(name: str, small_cifar: Path) -> None:
    text = message(name, small_cifar / "cifar10")
    assert name in text
    assert str(small_cifar / "cifar10") in text


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "changed"])
def test_damaged_idx(damage: str, shared_data: Path, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    shutil.copytree(shared_data / "MNIST" / "raw", raw, copy_function=os.symlink)
    path = raw / "t10k-labels-idx1-ubyte"
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        flipped = whole[:-1] + bytes([whole[-1] ^ 1])
        path.write_bytes({"truncated": whole[:-5], "empty": b"", "changed": flipped}[damage])
    assert str(path) in message("mnist", tmp_path)


class Harmful:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.trace,)


def test_unverified_pickle_is_never_opened(tmp_path: Path) -> None:
    kind = torchvision.datasets.CIFAR10
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    trace = tmp_path / "trace"
    for name in [
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
        "batches.meta",
    ]:
        (folder / name).write_bytes(pickle.dumps(Harmful(trace)))
    assert str(folder / "data_batch_1") in message("cifar10", tmp_path)
    (folder / "data_batch_1").unlink()
    assert str(folder / "data_batch_1") in message("cifar10", folder)
    assert not trace.exists()
    pickle.loads((folder / "test_batch").read_bytes())
    assert trace.exists()


def test_torchvision_cifar_layout(tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real test images repacked in torchvision's layout, with checksums of this copy, read back as they were."""
    kind = torchvision.datasets.CIFAR100
    table = pq.read_table(shared_data / "cifar100" / "test-00000-of-00001.parquet").slice(0, 500)
    copy_shard(shared_data / "cifar100" / "test-00000-of-00001.parquet", tmp_path / "parquet", 500)
    expected = load_dataset("cifar100", tmp_path / "parquet")
    folder = tmp_path / "data" / kind.base_folder
    folder.mkdir(parents=True)
    rows = expected.train_images.transpose(0, 3, 1, 2).reshape(len(table), -1)
    contents = {
        "train": {"data": rows, "fine_labels": expected.train_labels.tolist()},
        "test": {"data": rows, "fine_labels": expected.test_labels.tolist()},
        "meta": {"fine_label_names": list(expected.class_names)},
    }
    checksums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        checksums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(kind, "train_list", [["train", checksums["train"]]])
    monkeypatch.setattr(kind, "test_list", [["test", checksums["test"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": checksums["meta"]})
    assert same(load_dataset("cifar100", tmp_path / "data"), expected)
    assert same(load_dataset("cifar100", folder), expected)
    archive = tmp_path / "packed" / kind.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, kind.base_folder)
    text = message("cifar100", archive.parent)
    assert str(archive) in text
    assert "MD5" in text
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert same(load_dataset("cifar100", archive.parent), expected)
    assert list(archive.parent.iterdir()) == [archive]


def test_packed_mnist_is_read_where_it_lies(shared_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mnist"
    folder.mkdir()
    for path in (shared_data / "MNIST" / "raw").iterdir():
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), compresslevel=1))
    packed = sorted(folder.iterdir())
    assert same(load_dataset("mnist", tmp_path), load_dataset("mnist", shared_data))
    assert sorted(folder.iterdir()) == packed
    for damaged in (packed[0].read_bytes()[:-100], b"no archive", gzip.compress(b"another file")):
        packed[0].write_bytes(damaged)
        text = message("mnist", tmp_path)
        assert str(packed[0]) in text
        assert "delete" not in text


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_without_a_network_one_line_says_where_it_looked(name: str, tmp_path: Path) -> None:
    root = tmp_path / "new" / "data"
    text = message(name, root)
    assert str(root / name) in text
    assert "no network" in text
    assert "--data-dir" in text
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    assert name in message(name, tmp_path / "file")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a web server for the folder tmp_path/mirror."""
    (tmp_path / "mirror").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "mirror")
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


@pytest.mark.parametrize("damaged", [False, True])
def test_download_is_verified_and_leaves_all_or_nothing(
    damaged: bool, shared_data: Path, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real files, fetched by torchvision from a local server."""
    resources = []
    for path in sorted((shared_data / "MNIST" / "raw").iterdir()):
        packed = tmp_path / "mirror" / f"{path.name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes(), compresslevel=1))
        resources.append((packed.name, hashlib.md5(packed.read_bytes()).hexdigest()))
    if damaged:
        packed.write_bytes(packed.read_bytes()[:-100])
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [server])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    root = tmp_path / "new" / "data"
    if damaged:
        assert "downloading it failed" in message("mnist", root)
        assert not (tmp_path / "new").exists()
    else:
        assert load_dataset("mnist", root).train_images.shape == (60000, 32, 32, 1)
        assert [path.name for path in root.iterdir()] == ["MNIST"]
