"""Stored data sets for the tests: real images as files, in folders of their own."""

import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from stored_data import copy_shard


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of decoded images for this test alone."""
    monkeypatch.setenv("TITN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No host name can be resolved."""

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


@pytest.fixture
def small_cifar(shared_data: Path, tmp_path: Path) -> Path:
    """A data_dir whose cifar10 has the first 300 real test images in both splits."""
    copy_shard(shared_data / "cifar10" / "test-00000-of-00001.parquet", tmp_path / "data" / "cifar10", 300)
    return tmp_path / "data"
