"""Data sets: digits, real MNIST and CIFAR, splits, subsets, statistics and the cache of decoded images."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from stored_data import message, same
from torchvision.transforms import functional

from titn.data.dataset import load_dataset
from titn.data.folders import scan
from titn.data.parquet import find_parquet
from titn.data.splits import balanced_subset, channel_statistics, stratified_test_rows
from titn.errors import UserError
from titn.pipelines.pictures import fit

pytestmark = pytest.mark.usefixtures("own_cache")


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
    split = hashlib.sha256(data.train_images.tobytes() + data.train_labels.tobytes()).hexdigest()
    assert split == "7462b2f417dbc3ee53acc0872ab87228f124ebaf942ebeef0e2621e772420637"
    assert (data.notes, data.val_images, data.train_keys) == ((), None, None)


def test_a_data_set_of_ones_own_is_checked() -> None:
    data = load_dataset("digits", image_size=8, limit_train=50)
    narrow = replace(data, test_labels=data.test_labels.astype(np.int32), fingerprint="")
    assert narrow.test_labels.dtype == np.int64
    assert narrow.fingerprint == data.fingerprint
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"train_images": data.train_images / 255}, "training images must be uint8"),
        ({"test_images": data.test_images[..., 0]}, "test images must be uint8"),
        ({"test_images": data.test_images[:, :4]}, "all splits of one size"),
        ({"test_labels": data.test_labels[1:]}, "one for each of 359"),
        ({"train_labels": data.train_labels.astype(float)}, "whole numbers"),
        ({"train_labels": data.train_labels - 1}, "from 0 to 9"),
        ({"test_labels": data.test_labels + 1}, "run from 1 to 10"),
        ({"val_images": data.test_images}, "validation labels"),
    ]
    for change, expected in wrong:
        with pytest.raises(UserError, match=expected):
            replace(data, **change)


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


def pixel_hash(images: np.ndarray, labels: np.ndarray, names: tuple[str, ...], shards: list[Path]) -> str:
    """SHA-256 over the images sorted by class name and the path that the shards give them."""
    paths: list[str] = []
    for shard in sorted(shards):
        paths += [item["path"] for item in pq.read_table(shard, columns=["img"]).column("img").to_pylist()]
    digest = hashlib.sha256()
    for row in sorted(range(len(paths)), key=lambda row: (names[labels[row]], paths[row])):
        digest.update(images[row].tobytes())
    return digest.hexdigest()


def test_cifar10_is_exact_and_cached(shared_data: Path, own_cache: Path) -> None:
    data = load_dataset("cifar10", shared_data)
    folder = shared_data / "cifar10"
    train = pixel_hash(data.train_images, data.train_labels, data.class_names, list(folder.glob("train-*")))
    test = pixel_hash(data.test_images, data.test_labels, data.class_names, list(folder.glob("test-*")))
    assert (train[:16], test[:16]) == ("61bea91e73ac2b02", "52a9dc125982c044")
    assert np.bincount(data.train_labels).tolist() == [5000] * 10
    for channel in range(3):
        scaled = data.train_images[..., channel].ravel() / 255.0
        assert data.mean[channel] == pytest.approx(scaled.mean(), rel=1e-12)
        assert data.std[channel] == pytest.approx(scaled.std(), rel=1e-12)
    (cached,) = own_cache.iterdir()
    before = cached.stat().st_mtime_ns
    assert same(load_dataset("cifar10", folder), data)
    assert cached.stat().st_mtime_ns == before


def test_cifar100_has_its_fine_labels_and_exact_pixels(shared_data: Path) -> None:
    found = find_parquet(scan(shared_data / "cifar100"))
    assert found is not None
    test = replace(found, files={"train": found.files["test"]})
    parts, names, notes = test.read(32, 3)
    images, labels, *_ = parts["train"]
    assert len(names) == 100
    assert notes == []
    assert np.bincount(labels).tolist() == [100] * 100
    assert pixel_hash(images, labels, names, list(found.files["test"])).startswith("2716d826d85ee9ca")


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
    assert np.array_equal(np.asarray(fit(image, 32)), np.asarray(expected))


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
