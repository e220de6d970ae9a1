"""The validation split that is taken of the training images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from titn.data.dataset import load_dataset, validation_split
from titn.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


def draw(folder: Path, numbers: range) -> None:
    """A noise image for each number, the same one wherever it is drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (9, 11, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def sides(root: Path, share: float = 0.3, size: int = 16) -> dict[str, set[bytes]]:
    data = load_dataset(root, image_size=size, validation=share)
    splits = {"train": data.train_images, "val": data.val_images, "test": data.test_images}
    return {kind: {image.tobytes() for image in images} for kind, images in splits.items() if images is not None}


def test_an_image_never_changes_sides_when_others_come_or_go(tmp_path: Path) -> None:
    for label, first in (("cat", 0), ("dog", 1000)):
        draw(tmp_path / label, range(first, first + 90))
    before = sides(tmp_path)
    assert sum(map(len, before.values())) == 180
    assert 20 <= len(before["val"]) <= 66  # within four standard deviations of 0.3 of 144
    assert not before["val"] & (before["train"] | before["test"])
    for label, first in (("ant", 3000), ("cat", 90), ("dog", 1090)):
        draw(tmp_path / label, range(first, first + 40))
    more = sides(tmp_path)
    assert all(before[kind] < more[kind] for kind in before)
    for label, first in (("cat", 0), ("dog", 1000)):
        for number in range(first, first + 90, 2):
            (tmp_path / label / f"{number}.png").unlink()
    fewer = sides(tmp_path)
    assert all(fewer[kind] < more[kind] for kind in before)
    smaller = sides(tmp_path, 0.1)
    assert smaller["val"] < fewer["val"]


def test_the_whole_training_split_decides_and_every_class_is_there() -> None:
    whole, part = load_dataset("digits", validation=0.1), load_dataset("digits", validation=0.1, limit_train=100)
    plain = load_dataset("digits")
    assert whole.val_images is not None and part.val_images is not None and whole.val_labels is not None
    assert np.array_equal(whole.val_images, part.val_images)
    assert len(part.train_labels) == 100
    assert len(whole.train_labels) + len(whole.val_labels) == len(plain.train_labels)
    assert set(whole.val_labels) == set(range(10))
    assert (whole.mean, whole.std) == (plain.mean, plain.std), "so that the same teacher serves both"
    assert np.array_equal(whole.test_images, plain.test_images)
    trained = {image.tobytes() for image in part.train_images}
    assert not trained & {image.tobytes() for image in whole.val_images}
    assert whole.fingerprint != plain.fingerprint


def test_folders_of_splits_mean_what_they_say(tmp_path: Path) -> None:
    for kind, first in (("train", 0), ("val", 100), ("test", 200)):
        for label, more in (("cat", 0), ("dog", 1000)):
            draw(tmp_path / "three" / kind / label, range(first + more, first + more + 10))
    three = load_dataset(tmp_path / "three")
    assert three.validates
    with pytest.raises(UserError, match="has a validation split of its own: leave --validation out"):
        load_dataset(tmp_path / "three", validation=0.1)
    (tmp_path / "three" / "test").rename(tmp_path / "elsewhere")
    two = load_dataset(tmp_path / "three")
    assert not two.validates
    assert "there is no test split: the validation images are the test images too" in two.notes
    taken = load_dataset(tmp_path / "three", validation=0.3)
    assert taken.validates
    assert np.array_equal(taken.test_images, two.test_images)
    assert "there is no test split: the images of the validation split are it" in taken.notes


def test_a_split_that_cannot_be_is_refused() -> None:
    one_each = load_dataset("digits", limit_train=10)
    with pytest.raises(UserError, match="two or more training images of a class"):
        validation_split(one_each, 0.5)
