"""What follows from the images' content: splits, identity, transparency, orientation, and the cache of all that."""

import contextlib
import json
import resource
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw
from stored_data import message, same

from titn.data.dataset import Dataset, development_split, explain_difference, load_dataset
from titn.data.splits import balanced_subset, content_rows

pytestmark = pytest.mark.usefixtures("own_cache")


def draw(folder: Path, numbers: Iterable[int], form: str = "png") -> None:
    """A noise image for each number, the same one wherever it is drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (9, 11, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.{form}")


def sides(root: Path, size: int = 16) -> tuple[set[bytes], set[bytes]]:
    """Training and test images."""
    data = load_dataset(root, image_size=size)
    return {image.tobytes() for image in data.train_images}, {image.tobytes() for image in data.test_images}


def test_an_image_never_changes_sides_when_others_come_or_go(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for label, first in (("cat", 0), ("dog", 1000), ("emu", 2000)):
        draw(root / label, range(first, first + 60))
    train, test = sides(root)
    assert len(train) + len(test) == 180
    assert 18 <= len(test) <= 54  # within four standard deviations of a fifth
    for label, first in (("ant", 3000), ("cat", 60), ("dog", 1060), ("fox", 4000)):
        draw(root / label, range(first, first + 40))
    more_train, more_test = sides(root)
    assert train < more_train
    assert test < more_test
    for label, first in (("cat", 0), ("dog", 1000), ("emu", 2000)):
        for number in range(first, first + 60, 2):
            (root / label / f"{number}.png").unlink()
    fewer_train, fewer_test = sides(root)
    assert fewer_train < more_train
    assert fewer_test < more_test


def test_the_side_depends_on_the_pixels_alone(tmp_path: Path) -> None:
    """Not on name, file format, place, image size; and not on folder or Parquet."""
    names = {}
    for form in ("png", "bmp"):
        for label, first in (("cat", 0), ("dog", 100)):
            draw(tmp_path / form / label, range(first, first + 40), form)
        names[form] = {Path(name).stem for name in load_dataset(tmp_path / form).test_names or ()}
    large = {Path(name).stem for name in load_dataset(tmp_path / "png", image_size=48).test_names or ()}
    (tmp_path / "png").rename(tmp_path / "renamed")
    for path in (tmp_path / "renamed" / "cat").iterdir():
        path.rename(path.with_name(f"new{path.stem}.PNG"))
    renamed = {Path(name).stem.removeprefix("new") for name in load_dataset(tmp_path / "renamed").test_names or ()}
    files = [path for label in ("cat", "dog") for path in sorted((tmp_path / "bmp" / label).iterdir())]
    table = pa.table({"image": [path.read_bytes() for path in files], "label": [path.parent.name for path in files]})
    (tmp_path / "parquet").mkdir()
    pq.write_table(table, tmp_path / "parquet" / "train.parquet")
    rows = [int(name.split()[-1]) for name in load_dataset(tmp_path / "parquet").test_names or ()]
    assert names["png"] == names["bmp"] == large == renamed == {files[row].stem for row in rows}


def test_identical_images_land_on_the_same_side(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for label, first in (("cat", 0), ("dog", 100)):
        draw(root / label, range(first, first + 30))
        for number in range(first, first + 30, 3):
            shutil.copy(root / label / f"{number}.png", root / label / f"copy{number}.png")
    data = load_dataset(root)
    assert len(data.train_labels) + len(data.test_labels) == 80
    train, test = sides(root)
    assert not train & test


@pytest.mark.parametrize("size", [2, 3, 5, 40])
def test_a_class_has_an_image_on_either_side(size: int) -> None:
    generator = np.random.default_rng(size)
    labels = np.repeat(np.arange(200), size)
    keys = generator.integers(0, 2**64, len(labels), np.uint64)
    rows = content_rows(labels, keys, 0.2, "test")
    held_out = np.bincount(labels[rows], minlength=200)
    assert held_out.min() >= 1
    assert held_out.max() <= size - 1
    order = generator.permutation(len(labels))
    assert np.array_equal(content_rows(labels[order], keys[order], 0.2, "test"), rows[order])
    other = content_rows(labels, keys, 0.2, "development")
    assert not np.array_equal(other, rows)
    assert not content_rows(np.zeros(9, np.int64), np.full(9, 7, np.uint64), 0.9, "test").any()


def test_small_classes_are_said(tmp_path: Path) -> None:
    for label, first in (("cat", 0), ("dog", 100)):
        draw(tmp_path / "set" / label, range(first, first + 2))
    data = load_dataset(tmp_path / "set")
    assert np.bincount(data.test_labels).tolist() == [1, 1]
    assert any("so small that images added to them" in note and "cat" in note for note in data.notes)


def test_development_split_and_subset_follow_the_content(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for label, first in (("cat", 0), ("dog", 1000)):
        draw(root / label, range(first, first + 100))

    def kept(data: Dataset) -> tuple[set[bytes], set[bytes]]:
        split = development_split(data)
        return {image.tobytes() for image in split.train_images}, {image.tobytes() for image in split.test_images}

    train, held_out = kept(load_dataset(root))
    subset = {image.tobytes() for image in load_dataset(root, limit_train=40).train_images}
    draw(root / "cat", range(100, 130))
    draw(root / "dog", range(1100, 1130))
    more_train, more_held_out = kept(load_dataset(root))
    assert train < more_train
    assert held_out < more_held_out
    data = load_dataset(root, limit_train=40)
    assert np.bincount(data.train_labels).tolist() == [20, 20]
    again = {image.tobytes() for image in data.train_images}
    assert len(again & subset) >= 20  # some 31 of 40: the lowest 20 of 100 and of 130 random numbers
    labels, keys = np.repeat([0, 1], 50), np.random.default_rng(0).integers(0, 2**64, 100, np.uint64)
    assert set(balanced_subset(labels, 20, keys)) < set(balanced_subset(labels, 50, keys))


def test_what_changed_is_named(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for split, count in (("train", 12), ("val", 4), ("test", 6)):
        for label, first in (("cat", 0), ("dog", 100)):
            draw(root / split / label, range(first, first + count))
    data = load_dataset(root)
    stored = json.loads(json.dumps(data.identity()))
    assert explain_difference(stored, data.identity()) is None
    shutil.copytree(root, tmp_path / "elsewhere")
    assert explain_difference(stored, load_dataset(tmp_path / "elsewhere").identity()) is None
    assert load_dataset(tmp_path / "elsewhere").fingerprint == data.fingerprint
    assert explain_difference(stored, load_dataset(root, image_size=16).identity()) == (
        "image size 32 became 16; other training images, or in another order (24 as before); other validation images, "
        "or in another order (8 as before); other test images, or in another order (12 as before)"
    )
    swapped = replace(data, test_labels=1 - data.test_labels, fingerprint="")
    assert explain_difference(stored, swapped.identity()) == "the same test images with other labels"
    assert swapped.fingerprint != data.fingerprint
    assert explain_difference(stored, replace(data, val_images=None, val_labels=None).identity()) == (
        "there is no validation split now"
    )
    assert explain_difference(stored, replace(data, class_names=("dog", "cat")).identity()) == (
        "the classes are in another order"
    )
    draw(root / "test" / "dog", range(200, 209))
    assert explain_difference(stored, load_dataset(root).identity()) == "12 test images became 21"
    (root / "train" / "cat").rename(root / "train" / "zebra")
    shutil.rmtree(root / "test" / "cat")
    shutil.rmtree(root / "val" / "cat")
    text = explain_difference(stored, load_dataset(root).identity())
    assert text is not None
    assert text.startswith("classes gone: cat; new classes: zebra; ")
    for foreign in ({}, {"class_names": 3, "train": "x"}, {"class_names": ["a"], "train": {"images": "many"}}):
        assert explain_difference(foreign, data.identity())


def test_transparency_is_composed_on_white(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for shape in ("ellipse", "rectangle"):
        (tmp_path / "icons" / shape).mkdir(parents=True)
        for number in range(12):
            image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
            x, y = generator.integers(2, 16, 2).tolist()
            getattr(ImageDraw.Draw(image), shape)((x, y, x + 14, y + 14), fill=(0, 0, 0, 255))
            form = (image, image.convert("LA"), image.quantize(4), image.convert("PA"))[number % 4]
            form.save(tmp_path / "icons" / shape / f"{number}.{'tif' if form.mode == 'PA' else 'png'}")
    half = Image.new("RGBA", (32, 32), (255, 0, 0, 51))
    half.save(tmp_path / "icons" / "ellipse" / "half.png")
    data = load_dataset(tmp_path / "icons")
    assert any("are transparent: they are read on a white ground" in note for note in data.notes)
    images = np.concatenate([data.train_images, data.test_images])
    corners = images[:, 0, 0].astype(int)
    assert sorted(map(tuple, corners.tolist()))[0] == (255, 204, 204)  # 0.2 x red + 0.8 x white
    assert (corners == 255).all(1).sum() == 24
    assert len({image.tobytes() for image in images}) > 15


def test_transparent_colours_without_an_alpha_channel(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = (255, 0, 0)
    for label in ("a", "b"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(3):
            pixels[7, 7] = number
            Image.fromarray(pixels).save(tmp_path / "set" / label / f"{number}.png", transparency=(255, 0, 0))
            grey = Image.fromarray(pixels[..., 2]).convert("L")
            grey.save(tmp_path / "set" / label / f"grey{number}.png", transparency=0)
    data = load_dataset(tmp_path / "set", image_size=8)
    images = np.concatenate([data.train_images, data.test_images])
    assert (images[:, :4] == 255).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WebP", "TIFF"])
def test_orientation_is_honoured(form: str, tmp_path: Path) -> None:
    top = np.zeros((64, 48, 3), np.uint8)
    top[:32] = 255
    turned = {1: 0, 3: 180, 6: 90, 8: 270}
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number, (orientation, angle) in enumerate(turned.items()):
            top[40 + 4 * number, 24] = 255
            exif = Image.Exif()
            exif[0x112] = orientation
            image = Image.fromarray(top).rotate(angle, expand=True)
            image.save(tmp_path / "photos" / label / f"{number}.{form.lower()}", form, exif=exif)
    data = load_dataset(tmp_path / "photos")
    images = np.concatenate([data.train_images, data.test_images])
    assert (images[:, :14].mean((1, 2, 3)) > 240).all()
    assert (images[:, 18:].mean((1, 2, 3)) < 30).all()


def test_identical_images_are_said(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for split, first in (("train", 0), ("test", 50)):
        draw(root / split / "cat", range(first, first + 20))
        draw(root / split / "dog", range(first + 100, first + 120))
        draw(root / split / "emu", [first + 200])
    for split, label in (("train", "dog"), ("test", "cat")):
        shutil.copy(root / "train" / "cat" / "3.png", root / split / label / "copy.png")
    for number in range(5):
        shutil.copy(root / "train" / "emu" / "200.png", root / "train" / "emu" / f"{number}.png")
    notes = load_dataset(root).notes
    assert "classes whose training images are all identical: emu" in notes
    assert "identical training images lie in more than one class (1 times)" in notes
    assert "1 of 42 test images are training images too" in notes
    same_everywhere = tmp_path / "same"
    for label in ("a", "b"):
        (same_everywhere / label).mkdir(parents=True)
        for number in range(6):
            shutil.copy(root / "train" / "cat" / "0.png", same_everywhere / label / f"{number}.png")
    data = load_dataset(same_everywhere)
    assert len(data.train_labels) + len(data.test_labels) == 12
    notes = "\n".join(data.notes)
    assert "training images are identical" in notes
    assert "copies of training images" in notes
    for label, value in (("a", 0), ("b", 0)):
        (tmp_path / "black" / label).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (8 + number, 8), (value,) * 3).save(tmp_path / "black" / label / f"{number}.png")
    assert "same value in channel 0" in "\n".join(load_dataset(tmp_path / "black").notes)


@contextlib.contextmanager
def unwritable(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A cache that cannot be written; gives what a note has to say of it."""
    if kind == "a write that fails half-way":
        monkeypatch.setenv("TITN_CACHE", str(folder))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            yield "File too large"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list(folder.iterdir()) == []
    elif kind == "no home":
        for name in ("TITN_CACHE", "XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("pwd.getpwuid", _nobody)  # a user id without an entry, as containers have them
        yield "no home folder"
    else:
        if kind == "a file":
            folder.write_text("a file where the folder should be")
        taken = Path("/proc/titn") if kind == "below a system folder" else folder
        monkeypatch.setenv("TITN_CACHE", str(taken))
        yield f"cannot write {taken}"


def _nobody(number: int) -> None:
    raise KeyError(f"getpwuid(): uid not found: {number}")


@pytest.mark.parametrize("kind", ["a file", "below a system folder", "a write that fails half-way", "no home"])
def test_without_a_cache_a_note_says_why(
    kind: str, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_dataset(image_folder)
    with unwritable(kind, tmp_path / "unwritable", monkeypatch) as reason:
        for _ in range(2):
            data = load_dataset(image_folder)
            assert same(data, expected)
            (note,) = set(data.notes) - set(expected.notes)
            assert "decoded images are not kept" in note
            assert reason in note


def test_the_caches_home_may_be_spelt_with_a_tilde(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TITN_CACHE", "~/decoded")
    monkeypatch.chdir(tmp_path)
    load_dataset(image_folder)
    assert len(list((tmp_path / "home" / "decoded").iterdir())) == 1
    assert not (tmp_path / "~").exists()


def test_what_was_read_before_changes_nothing(small_cifar: Path, tmp_path: Path) -> None:
    """The same files as a known data set and as a folder, in either order."""
    folder = small_cifar / "cifar10"
    for path in folder.iterdir():
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata(None), path)
    (tmp_path / "cache").mkdir(exist_ok=True)
    first = load_dataset(folder), load_dataset("cifar10", small_cifar)
    shutil.rmtree(tmp_path / "cache")
    second = load_dataset("cifar10", small_cifar), load_dataset(folder)
    assert same(first[0], second[1])
    assert same(first[1], second[0])
    assert first[0].class_names == tuple("0123456789")
    assert first[1].class_names[:2] == ("airplane", "automobile")
    (folder / "test-00000-of-00001.parquet").rename(folder / "validation-00000-of-00001.parquet")
    third = load_dataset(folder)
    assert third.val_labels is not None
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_home_that_is_not_there(tmp_path: Path) -> None:
    assert "no such home folder" in message("~nobody-has-this-name/photos")
    assert "no such home folder" in message("cifar10", Path("~nobody-has-this-name"))
    assert list(tmp_path.iterdir()) == []
