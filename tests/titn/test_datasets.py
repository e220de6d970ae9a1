"""Data sets: real MNIST and CIFAR, folders, Parquet, splits, statistics, the cache, and damaged files."""

import hashlib
import logging
import os
import pickle
import shutil
import socket
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.transforms import functional

from titn.datasets import Dataset, load_dataset
from titn.decode import fit
from titn.errors import UserError
from titn.splits import balanced_subset, channel_statistics, stratified_test_rows

CIFAR_HASHES = {
    "cifar10": ("61bea91e73ac2b02", "52a9dc125982c044"),
    "cifar100": ("2aa2e92a742ec0fb", "2716d826d85ee9ca"),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TITN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Digit scans as files: 3 classes of 10 images, of several formats, modes and sizes."""
    scans = load_digits()
    folder = tmp_path / "scans"
    for digit in range(3):
        (folder / f"digit{digit}").mkdir(parents=True)
        for number, scan in enumerate(scans.images[scans.target == digit][:10]):
            image = Image.fromarray((scan * 15).astype(np.uint8)).resize((30 + 3 * number, 40))
            if number % 2:
                image.convert("RGB").save(folder / f"digit{digit}" / f"{number}.JPG", quality=95)
            else:
                image.save(folder / f"digit{digit}" / f"{number}.png")
    return folder


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


@pytest.fixture
def small_cifar(shared_data: Path, tmp_path: Path) -> Path:
    """A data_dir whose cifar10 has the first 300 real test images in both splits."""
    copy_shard(shared_data / "cifar10" / "test-00000-of-00001.parquet", tmp_path / "data" / "cifar10", 300)
    return tmp_path / "data"


def test_digits_are_the_scans_in_a_fixed_stratified_split() -> None:
    data = load_dataset("digits", image_size=8)
    assert data.train_images.dtype == np.uint8
    assert data.train_labels.dtype == np.int64
    assert (data.num_classes, data.channels, data.image_size, data.name) == (10, 1, 8, "digits")
    scans = load_digits()
    for digit in range(10):
        train = data.train_images[data.train_labels == digit]
        test = data.test_images[data.test_labels == digit]
        assert len(test) == round(0.2 * (len(train) + len(test)))
        expected = np.rint(scans.images[scans.target == digit] * 255 / 16).astype(np.uint8)
        found = np.concatenate([train, test])[..., 0]
        assert sorted(map(bytes, found)) == sorted(map(bytes, expected))
    assert data.fingerprint == "ba755e4d03107e1782070df44983e0ef5a4383a4252691dca3342e9512b9d387"


def test_digits_are_resized_bilinearly() -> None:
    small, large = load_dataset("digits", image_size=8), load_dataset("digits")
    assert large.train_images.shape == (1438, 32, 32, 1)
    assert large.test_images.shape == (359, 32, 32, 1)
    expected = functional.resize(Image.fromarray(small.train_images[7, :, :, 0]), 32)
    assert np.array_equal(large.train_images[7, :, :, 0], expected)


def test_mnist_is_the_real_one(shared_data: Path) -> None:
    data = load_dataset("mnist", shared_data, image_size=28)
    for train, images, labels in (
        (True, data.train_images, data.train_labels),
        (False, data.test_images, data.test_labels),
    ):
        reference = torchvision.datasets.MNIST(shared_data, train=train)
        assert np.array_equal(images[..., 0], reference.data.numpy())
        assert np.array_equal(labels, reference.targets.numpy())
    assert data.class_names == tuple("0123456789")
    assert np.allclose(data.mean + data.std, (0.1307, 0.3081), atol=5e-5)
    resized = load_dataset("mnist", shared_data)
    assert resized.train_images.shape == (60000, 32, 32, 1)
    assert resized.test_images.shape == (10000, 32, 32, 1)
    expected = functional.resize(Image.fromarray(data.test_images[5, :, :, 0]), 32)
    assert np.array_equal(resized.test_images[5, :, :, 0], expected)
    for folder in (shared_data / "MNIST", shared_data / "MNIST" / "raw"):
        assert same(load_dataset("mnist", folder), resized)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_pixels_are_exact_and_statistics_are_numpys(name: str, shared_data: Path, own_cache: Path) -> None:
    data = load_dataset(name, shared_data)
    assert data.train_images.shape == (50000, 32, 32, 3)
    assert data.test_images.shape == (10000, 32, 32, 3)
    assert np.array_equal(np.bincount(data.train_labels), np.full(data.num_classes, 50000 // data.num_classes))
    splits = (("train", data.train_images, data.train_labels), ("test", data.test_images, data.test_labels))
    for (split, images, labels), prefix in zip(splits, CIFAR_HASHES[name], strict=True):
        paths: list[str] = []
        for shard in sorted((shared_data / name).glob(f"{split}-*.parquet")):
            paths += [item["path"] for item in pq.read_table(shard, columns=["img"]).column("img").to_pylist()]
        order = sorted(range(len(paths)), key=lambda row: (data.class_names[labels[row]], paths[row]))
        digest = hashlib.sha256()
        for row in order:
            digest.update(images[row].tobytes())
        assert digest.hexdigest().startswith(prefix)
    for channel in range(3):
        scaled = data.train_images[..., channel].ravel() / 255.0
        assert data.mean[channel] == pytest.approx(scaled.mean(), rel=1e-12)
        assert data.std[channel] == pytest.approx(scaled.std(), rel=1e-12)
    (cached,) = own_cache.iterdir()
    before = cached.stat().st_mtime_ns
    again = load_dataset(name, shared_data / name)
    assert same(again, data)
    assert cached.stat().st_mtime_ns == before


def test_statistics_are_exact_and_a_constant_channel_is_left_alone() -> None:
    images = np.zeros((3000, 2, 2, 2), np.uint8)
    images[::3, ..., 0] = 255
    assert channel_statistics(images) == ((1 / 3, 0.0), (pytest.approx(2**0.5 / 3, rel=1e-15), 1.0))


def test_limit_train_is_balanced_nested_and_fixed() -> None:
    full, small, smaller = (load_dataset("digits", limit_train=limit) for limit in (None, 205, 20))
    assert set(np.bincount(small.train_labels)) == {20, 21}
    assert set(np.bincount(smaller.train_labels)) == {2}
    images = {bytes(image) for image in small.train_images}
    assert {bytes(image) for image in smaller.train_images} <= images <= {bytes(image) for image in full.train_images}
    assert same(load_dataset("digits", limit_train=205), small)
    assert small.fingerprint != full.fingerprint
    assert (small.mean, small.std) == (full.mean, full.std)
    assert np.array_equal(small.test_images, full.test_images)
    assert load_dataset("digits", limit_train=1438).fingerprint == full.fingerprint


def test_subset_with_rare_classes_takes_what_there_is() -> None:
    labels = np.array([0] * 50 + [1] * 3 + [2] * 50)
    assert np.bincount(labels[balanced_subset(labels, 43)]).tolist() == [20, 3, 20]
    assert np.bincount(labels[balanced_subset(labels, 103)]).tolist() == [50, 3, 50]


def test_held_out_rows_leave_every_class_on_both_sides() -> None:
    labels = np.array([0] * 2 + [1] * 50 + [2])
    held_out = stratified_test_rows(labels)
    assert np.bincount(labels[held_out], minlength=3).tolist() == [1, 10, 0]
    assert np.array_equal(held_out, stratified_test_rows(labels))


@pytest.mark.parametrize("limit", [0, -3, 1439, True])
def test_limit_train_out_of_range(limit: int) -> None:
    assert "from 1 to 1438" in message("digits", limit_train=limit)


@pytest.mark.parametrize("size", [0, -32, 5000, 32.0])
def test_image_size_out_of_range(size: int) -> None:
    assert "--image-size must be from 1 to 4096" in message("digits", image_size=size)


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (50, 33), (33, 51), (300, 7), (1, 9)])
def test_fit_equals_torchvisions_resize_and_centre_crop(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = functional.center_crop(functional.resize(image, 32), 32)
    assert np.array_equal(fit(image, 32), expected)


def test_folder_of_classes_equals_torchvisions_image_folder(image_folder: Path) -> None:
    (image_folder / "digit0" / "notes.txt").write_text("no image")
    (image_folder / ".hidden").mkdir()
    data = load_dataset(str(image_folder))
    assert data.class_names == ("digit0", "digit1", "digit2")
    assert data.name == "scans"
    assert data.train_images.shape == (24, 32, 32, 3)
    assert np.bincount(data.test_labels).tolist() == [2, 2, 2]
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
    (root / "val" / "digit7").mkdir()
    assert str(root / "val" / "digit7") in message(root)
    shutil.rmtree(root / "train")
    assert "no train/" in message(root)


def test_unusable_folders(image_folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in message(empty)
    shutil.copytree(image_folder / "digit0", tmp_path / "one" / "digit0")
    assert "1 class folder" in message(tmp_path / "one")
    (image_folder / "digit3").mkdir()
    assert str(image_folder / "digit3") in message(image_folder)
    assert "did you mean cifar10?" in message("cifar-10", tmp_path)
    assert "unknown data set" in message(tmp_path / "absent")
    assert "unknown data set" in message("")


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "deep"])
def test_unreadable_image_is_named(image_folder: Path, damage: str) -> None:
    path = image_folder / "digit1" / "4.png"
    if damage == "deep":
        Image.fromarray(np.zeros((40, 40), np.uint16)).save(path)
    else:
        path.write_bytes({"text": b"no image", "empty": b"", "truncated": path.read_bytes()[:-60]}[damage])
    text = message(image_folder)
    assert str(path) in text
    assert ("8 bits" in text) == (damage == "deep")


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


def test_cache_is_rebuilt_when_damaged_and_follows_its_sources(image_folder: Path, own_cache: Path) -> None:
    data = load_dataset(str(image_folder))
    (cached,) = own_cache.iterdir()
    whole = cached.read_bytes()
    for damaged in (whole[:1000], b"", whole[:-1] + bytes([whole[-1] ^ 1]), whole.replace(b"digit0", b"digit9")):
        assert damaged != whole
        cached.write_bytes(damaged)
        assert same(load_dataset(str(image_folder)), data)
        rebuilt = cached.stat().st_mtime_ns
        assert len(cached.read_bytes()) == len(whole)
        assert same(load_dataset(str(image_folder)), data)
        assert cached.stat().st_mtime_ns == rebuilt
    shutil.copy(image_folder / "digit1" / "0.png", image_folder / "digit0" / "0.png")
    assert load_dataset(str(image_folder)).fingerprint != data.fingerprint
    assert len(list(own_cache.iterdir())) == 2


def test_unwritable_cache_is_a_warning(image_folder: Path, own_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = load_dataset(str(image_folder))
    shutil.rmtree(own_cache)
    own_cache.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert same(load_dataset(str(image_folder)), data)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(own_cache) in caplog.text


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
        (table.set_column(1, "label", table.column("img").combine_chunks().field("path")), "whole numbers"),
        (table.set_column(1, "label", [list(range(300))]), "class names"),
    ):
        pq.write_table(broken, train)
        text = message("cifar10", small_cifar)
        assert expected in text
    items = table.column("img").to_pylist()
    for bad, expected in ((None, "no image"), (b"no image", "cannot read the image")):
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
