"""Each pixel operation against torchvision on Pillow images: all are equal bit for bit, there is no tolerance."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from numpy.testing import assert_array_equal
from PIL import Image, ImageEnhance
from pillow import each, from_planes, grey, to_planes
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

from titn.pipelines import geometry, operations
from titn.pipelines.policies.autoaugment import BINS, OPERATIONS, SIGNED, magnitudes, operation_parameters
from titn.pipelines.policies.operation_rows import Operation

SIGNS = [(name, negative) for name in OPERATIONS for negative in ((False, True) if name in SIGNED else (False,))]
MAGNITUDES = {name: range(1 if name in ("AutoContrast", "Equalize", "Invert") else BINS) for name in OPERATIONS}


def torchvision_magnitude(name: str, magnitude: int, negative: bool, size: int) -> float:
    """What torchvision's AutoAugment passes on for this operation, bin and sign at this image size."""
    levels, signed = AutoAugment(AutoAugmentPolicy.CIFAR10)._augmentation_space(BINS, (size, size))[name]
    level = float(levels[magnitude]) if levels.ndim else 0.0
    return -level if signed and negative else level


def ours(name: str, magnitude: int, negative: bool, images: np.ndarray, device: str) -> np.ndarray:
    """The same with our table and our tensor code."""
    size = images.shape[1]
    level = magnitudes(name, size)[magnitude] * (-1 if negative and name in SIGNED else 1)
    code, row = operation_parameters(name, level, size)
    parameters = torch.from_numpy(row).to(device).expand(len(images), -1)
    return from_planes(operations.OPERATIONS[code](to_planes(images, device), parameters))


def theirs(name: str, magnitude: int, negative: bool, images: np.ndarray) -> np.ndarray:
    """torchvision's own dispatch on Pillow images."""
    level = torchvision_magnitude(name, magnitude, negative, images.shape[1])
    return each(images, lambda image: _apply_op(image, name, level, InterpolationMode.NEAREST, None))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "negative"), SIGNS)
def test_every_bin_and_sign_on_photographs(
    name: str, negative: bool, channels: int, patches: np.ndarray, device: str
) -> None:
    images = patches if channels == 3 else grey(patches[::2])
    for magnitude in MAGNITUDES[name]:
        expected = theirs(name, magnitude, negative, images)
        assert_array_equal(ours(name, magnitude, negative, images, device), expected, err_msg=f"bin {magnitude}")


@pytest.mark.parametrize(("name", "negative"), SIGNS)
def test_every_bin_and_sign_on_cifar(
    name: str, negative: bool, cifar: tuple[np.ndarray, np.ndarray], device: str
) -> None:
    images = cifar[0][:100]
    for magnitude in MAGNITUDES[name]:
        expected = theirs(name, magnitude, negative, images)
        assert_array_equal(ours(name, magnitude, negative, images, device), expected, err_msg=f"bin {magnitude}")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 17, 33])
@pytest.mark.parametrize("name", OPERATIONS)
def test_odd_and_tiny_sizes(name: str, size: int, patches: np.ndarray, device: str) -> None:
    wide = np.concatenate([patches[:40], patches[40:80]], axis=2)
    images = np.concatenate([wide, wide[:, ::-1]], axis=1)[:, 11 : 11 + size, 7 : 7 + size]
    for magnitude, negative in ((1, False), (4, name in SIGNED), (9, False)):
        assert_array_equal(ours(name, magnitude, negative, images, device), theirs(name, magnitude, negative, images))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [28, 32, 33, 64, 224])
def test_magnitudes_are_torchvisions(name: str, size: int) -> None:
    expected = np.array([torchvision_magnitude(name, magnitude, False, size) for magnitude in range(BINS)])
    result = magnitudes(name, size)
    if name.startswith("Translate"):  # whole pixels count; before truncation linspace may fuse its multiply and add
        expected, result = np.trunc(expected), np.trunc(result)
    assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("code", "enhancer"),
    [
        (Operation.BRIGHTNESS, ImageEnhance.Brightness),
        (Operation.COLOR, ImageEnhance.Color),
        (Operation.CONTRAST, ImageEnhance.Contrast),
        (Operation.SHARPNESS, ImageEnhance.Sharpness),
    ],
)
def test_blends_at_any_factor(code: Operation, enhancer: type, patches: np.ndarray, device: str) -> None:
    factors = np.random.default_rng(2).uniform(0, 2.5, len(patches))
    factors[:4] = 0.0, 1.0, 2.0, 0.5
    parameters = np.zeros((len(patches), 6))
    parameters[:, 0] = factors
    result = operations.OPERATIONS[code](to_planes(patches, device), torch.from_numpy(parameters).to(device))
    expected = [
        np.asarray(enhancer(Image.fromarray(image)).enhance(factor))
        for image, factor in zip(patches, factors, strict=True)
    ]
    assert_array_equal(from_planes(result), np.stack(expected))


def test_contrast_rounds_a_half_mean_up(device: str) -> None:
    image = np.full((1, 4, 4, 1), 10, dtype=np.uint8)
    image[:, :2] = 11  # mean 10.5
    parameters = torch.zeros(1, 6, dtype=torch.float64, device=device)
    assert (operations.contrast(to_planes(image, device), parameters) == 11).all()


def test_shifts_on_rows_and_columns(device: str) -> None:
    image = np.arange(36, dtype=np.uint8).reshape(1, 6, 6, 1)
    parameters = torch.from_numpy(geometry.affine(0.0, 2, -1, 1.0, 6).astype(np.float64))[None].to(device)
    expected = np.zeros_like(image)
    expected[:, :5, 2:] = image[:, 1:, :4]
    assert_array_equal(from_planes(operations.affine(to_planes(image, device), parameters)), expected)


@pytest.mark.parametrize("size", [32, 31])
def test_rotation_at_random_angles(size: int, patches: np.ndarray, device: str) -> None:
    images = patches[:, :size, :size]
    angle = np.random.default_rng(3).uniform(-180, 180, len(images))
    rows = torch.from_numpy(geometry.rotation(angle, size).astype(np.float64)).to(device)
    drawn = iter(angle)
    expected = each(images, lambda image: TF.rotate(image, next(drawn)))
    assert_array_equal(from_planes(operations.affine(to_planes(images, device), rows)), expected)


@pytest.mark.parametrize("size", [32, 31])
def test_affine_maps_at_random(size: int, patches: np.ndarray, device: str) -> None:
    rng = np.random.default_rng(4)
    images = patches[:, :size, :size]
    angle, scale = rng.uniform(-180, 180, len(images)), rng.uniform(0.5, 1.6, len(images))
    shift = rng.integers(-9, 10, (2, len(images)))
    rows = torch.from_numpy(geometry.affine(angle, *shift, scale, size).astype(np.float64)).to(device)
    drawn = iter(zip(angle, shift.T.tolist(), scale, strict=True))

    def move(image: Image.Image) -> Image.Image:
        degrees, translate, enlarge = next(drawn)
        return TF.affine(image, angle=degrees, translate=translate, scale=enlarge, shear=[0.0, 0.0])

    assert_array_equal(from_planes(operations.affine(to_planes(images, device), rows)), each(images, move))


@pytest.mark.parametrize("padding", [0, 1, 4, 32])
def test_crop_and_flip(padding: int, patches: np.ndarray, device: str) -> None:
    rng = np.random.default_rng(4)
    corner, flip = rng.integers(0, 2 * padding + 1, (len(patches), 2)), rng.random(len(patches)) < 0.5
    result = operations.crop_and_flip(
        to_planes(patches, device), torch.from_numpy(corner).to(device), torch.from_numpy(flip).to(device), padding
    )
    rows = iter(zip(corner.tolist(), flip, strict=True))

    def cut(image: Image.Image) -> Image.Image:
        (top, left), mirrored = next(rows)
        image = TF.crop(TF.pad(image, padding), top, left, 32, 32)
        return TF.hflip(image) if mirrored else image

    assert_array_equal(from_planes(result), each(patches, cut))
    assert 0 < flip.sum() < len(flip)


def test_boxes_are_pasted_inside_and_nowhere_else(device: str) -> None:
    images = torch.zeros(3, 2, 5, 6, dtype=torch.uint8, device=device)
    box = torch.tensor([[1, 3, 2, 6], [0, 5, 0, 6], [2, 2, 0, 6]], device=device)
    result = operations.paste_boxes(images, images + 255, box)
    expected = torch.zeros_like(images)
    expected[0, :, 1:3, 2:6] = 255
    expected[1] = 255
    assert torch.equal(result, expected)


@pytest.mark.parametrize("code", list(operations.OPERATIONS))
def test_rows_do_not_see_each_other(code: Operation, patches: np.ndarray, device: str) -> None:
    rng = np.random.default_rng(5)
    parameters = np.zeros((len(patches), 6))
    parameters[:, 0] = rng.integers(0, 256, len(patches)) if code != Operation.AFFINE else 0
    if code == Operation.AFFINE:
        parameters[:] = geometry.rotation(rng.uniform(-30, 30, len(patches)), 32)
    elif code in (Operation.BRIGHTNESS, Operation.COLOR, Operation.CONTRAST, Operation.SHARPNESS):
        parameters[:, 0] /= 128
    planes, rows = to_planes(patches, device), torch.from_numpy(parameters).to(device)
    whole = operations.OPERATIONS[code](planes, rows)
    for start, stop in ((0, 1), (1, 8), (8, 96)):
        assert torch.equal(operations.OPERATIONS[code](planes[start:stop], rows[start:stop]), whole[start:stop])
