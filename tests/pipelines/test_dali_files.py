"""The dali pipeline over files: Pillow's pixels within bounds, odd files converted as Pillow does, bad ones named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from titn.pipelines import Augmentation, DaliPipeline, EpochPlan, ImageFiles
from titn.pipelines.dali_files import DaliFilePipeline
from titn.pipelines.dali_pipeline import PACKAGE
from titn.pipelines.image_files import by_pillow, digest, read_header

if DaliPipeline.reasons(torch.device("cpu"), 32):
    pytest.skip(f"{PACKAGE} is not installed: nothing of the dali pipeline was tested", allow_module_level=True)

VALUES = {"mean": (0.49, 0.48, 0.45), "std": (0.247, 0.243, 0.262)}
SIZE = 64


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return load_sample_images().images


def build(paths: list[Path], device: str = "cpu", **options: object) -> DaliFilePipeline:
    return DaliFilePipeline(ImageFiles(paths, SIZE), np.arange(len(paths)), **VALUES, device=device, **options)


def stored(pipeline: DaliFilePipeline) -> np.ndarray:
    """uint8 [N, S, S, 3], as decoded and brought to size."""
    images = pipeline.plain(np.arange(len(pipeline))).images.cpu().numpy()
    pipeline.close()
    levels = (images + pipeline.offset.reshape(1, -1, 1, 1)) / pipeline.scale.reshape(1, -1, 1, 1)
    return np.rint(levels).transpose(0, 2, 3, 1)


def expected(paths: list[Path]) -> np.ndarray:
    return np.stack([by_pillow(path, SIZE) for path in paths]).astype(np.float64)


def save(folder: Path, name: str, image: Image.Image, **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_files_of_the_right_size_are_pillows_bit_for_bit(
    ending: str, photographs: list[np.ndarray], tmp_path: Path, device: str
) -> None:
    pieces = [photograph[top : top + SIZE, 50 : 50 + SIZE] for photograph in photographs for top in range(0, 300, 60)]
    paths = [save(tmp_path, f"{row}.{ending}", Image.fromarray(piece)) for row, piece in enumerate(pieces)]
    assert all(read_header(path.read_bytes()).by_dali for path in paths)
    tolerance = 0 if device == "cpu" else 2  # nvJPEG has an inverse transform of its own
    np.testing.assert_allclose(stored(build(paths, device)), expected(paths), rtol=0, atol=tolerance)


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_resized_files_are_pillows_within_the_stated_bounds(
    ending: str, photographs: list[np.ndarray], tmp_path: Path, device: str
) -> None:
    cuts = [(427, 640), (300, 200), (100, 100), (70, 64), (48, 90)]
    images = [Image.fromarray(photograph[:h, :w]) for photograph in photographs for h, w in cuts]
    paths = [save(tmp_path, f"{row}.{ending}", image) for row, image in enumerate(images)]
    apart = np.abs(stored(build(paths, device)) - expected(paths))
    assert apart.mean((1, 2, 3)).max() < 0.2
    assert (apart > 2).mean((1, 2, 3)).max() < 0.01


def test_odd_images_are_converted_as_pillow_does(photographs: list[np.ndarray], tmp_path: Path, device: str) -> None:
    square = Image.fromarray(photographs[0][100 : 100 + SIZE, 200 : 200 + SIZE])
    alpha = Image.fromarray((np.arange(SIZE * SIZE) % 256).astype(np.uint8).reshape(SIZE, SIZE))
    clear = square.copy()
    clear.putalpha(alpha)
    deep = Image.fromarray((np.asarray(alpha).astype(np.uint16) << 8) + 7)
    odd = [
        save(tmp_path, "palette.png", square.quantize(16)),
        save(tmp_path, "clear-palette.png", square.quantize(16), transparency=3),
        save(tmp_path, "cmyk.jpg", square.convert("CMYK")),
        save(tmp_path, "transparent.png", clear),
        save(tmp_path, "grey-alpha.png", clear.convert("LA")),
        save(tmp_path, "bits.png", square.convert("1")),
        save(tmp_path, "other.webp", square, lossless=True),
        save(tmp_path, "deep.png", deep),
        save(tmp_path, "turned.png", square, exif=turned(6)),
    ]
    plain = [save(tmp_path, "grey.jpg", square.convert("L")), save(tmp_path, "grey.png", square.convert("L"))]
    plain += [save(tmp_path, f"turned{way}.jpg", square, exif=turned(way)) for way in range(1, 9)]
    assert [read_header(path.read_bytes()).by_dali for path in odd + plain] == [False] * len(odd) + [True] * len(plain)
    actual = stored(build(odd + plain, device))
    np.testing.assert_array_equal(actual[: len(odd)], expected(odd))
    np.testing.assert_allclose(actual[len(odd) :], expected(plain), rtol=0, atol=0 if device == "cpu" else 2)
    np.testing.assert_array_equal(actual[7], np.asarray(alpha)[..., None].repeat(3, 2))
    white = np.asarray(alpha) == 0
    assert (actual[3][white] == 255).all()
    upright = actual[len(odd) + 2]
    assert all((actual[row] != upright).any() for row in range(len(odd) + 3, len(actual)))


@pytest.mark.parametrize("held", [1, 20_000, 1 << 25])
def test_augmentation_is_that_of_the_same_images_in_memory(
    held: int, photographs: list[np.ndarray], tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("titn.pipelines.dali_files._DECODED_PIXELS", held)
    pieces = [photograph[top : top + 90, 20:130] for photograph in photographs for top in range(0, 320, 20)]
    paths = [save(tmp_path, f"{row}.jpg", Image.fromarray(piece)) for row, piece in enumerate(pieces)]
    files = build(paths, device, threads=2)
    images = np.ascontiguousarray(stored(files).astype(np.uint8))
    resident = DaliPipeline(images, np.arange(len(paths)), **VALUES, device=device)
    augmentation = Augmentation(policy="cifar10", mix="cutmix")
    plan = EpochPlan.draw(augmentation, size=len(paths), image_size=SIZE, seed=1, epoch=3)
    for first in (0, 2):
        batches = resident.epoch(plan, 8, first_step=first)
        for actual, batch in zip(files.epoch(plan, 8, first_step=first), batches, strict=True):
            assert torch.equal(actual.images, batch.images) and torch.equal(actual.labels_b, batch.labels_b)
    files.close()
    resident.close()


@pytest.fixture
def damaged(photographs: list[np.ndarray], tmp_path: Path) -> list[Path]:
    """Good, cut off, no image, good."""
    good = [save(tmp_path, f"good{row}.jpg", Image.fromarray(photographs[row])) for row in range(2)]
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(good[0].read_bytes()[:9000])
    text = tmp_path / "text.png"
    text.write_bytes(b"no image at all")
    return [good[0], cut, text, good[1]]


def test_a_bad_file_is_named(damaged: list[Path]) -> None:
    pipeline = build(damaged)
    with pytest.raises(ValueError, match=r"cannot decode the image .*text\.png: it is no image of a known format"):
        pipeline.plain([0, 2, 3])
    with pytest.raises(ValueError, match=r"cannot decode the image .*cut\.jpg: .*truncated"):
        pipeline.plain([0, 1])
    assert pipeline.plain([0]).images.isfinite().all()  # it goes on with good ones
    damaged[0].unlink()
    with pytest.raises(ValueError, match=r"cannot decode the image .*good0\.jpg: .*No such file"):
        pipeline.plain([0])
    pipeline.close()


def test_files_are_used_as_the_array_that_they_would_make(photographs: list[np.ndarray], tmp_path: Path) -> None:
    cuts = [photograph[top : top + 80, 20:150] for photograph in photographs for top in range(0, 300, 50)]
    paths = [save(tmp_path, f"{row}.png", Image.fromarray(cut)) for row, cut in enumerate(cuts)]
    files, array = ImageFiles(paths, SIZE), np.stack([by_pillow(path, SIZE) for path in paths])
    assert (files.shape, files.ndim, files.dtype, files.size) == (array.shape, 4, np.uint8, array.size)
    odd = np.arange(12) % 2 == 1
    for rows in (slice(3, 7), slice(None), odd, np.array([4, 4, 0])):
        np.testing.assert_array_equal(np.asarray(files[rows]), array[rows])
    np.testing.assert_array_equal(files[5], array[5])
    assert digest(files) == digest(array) and digest(files[odd]) == digest(array[odd]) != digest(array[~odd])
    with pytest.raises(ValueError, match=r"cannot decode the image .*absent\.png"):
        np.asarray(ImageFiles([tmp_path / "absent.png"], SIZE))
