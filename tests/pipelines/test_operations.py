"""Each pixel operation against torchvision on Pillow images: all are equal bit for bit, there is no tolerance."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from numpy.testing import assert_array_equal
from PIL import Image, ImageEnhance
from pillow import each, from_planes, grey, to_planes
from torchvision.transforms import (
    AutoAugment,
    AutoAugmentPolicy,
    InterpolationMode,
    RandAugment,
    TrivialAugmentWide,
)
from torchvision.transforms.autoaugment import _apply_op

from titn.pipelines import geometry, operations
from titn.pipelines.policies.operation_rows import Operation
from titn.pipelines.policies.operation_space import (
    AUTOAUGMENT,
    RANDAUGMENT,
    SIGNED,
    TRIVIALAUGMENT,
    WITHOUT_MAGNITUDE,
    OperationSpace,
)

OPERATIONS = AUTOAUGMENT.names
SIGNS = [(name, negative) for name in OPERATIONS for negative in ((False, True) if name in SIGNED else (False,))]
THEIR_SPACES = {
    AUTOAUGMENT: lambda size: AutoAugment(AutoAugmentPolicy.CIFAR10)._augmentation_space(10, (size, size)),
    RANDAUGMENT: lambda size: RandAugment()._augmentation_space(31, (size, size)),
    TRIVIALAUGMENT: lambda size: TrivialAugmentWide()._augmentation_space(31),
}
SPACES = [
    pytest.param(space, id=name)
    for space, name in zip(THEIR_SPACES, ("autoaugment", "randaugment", "trivialaugment"), strict=True)
]


def bins(space: OperationSpace, name: str) -> range:
    """Those to be told apart."""
    return range(1 if name in WITHOUT_MAGNITUDE else space.bins)


def torchvision_magnitude(space: OperationSpace, name: str, magnitude: int, negative: bool, size: int) -> float:
    """What torchvision's policy passes on for this operation, bin and sign at this image size."""
    levels, signed = THEIR_SPACES[space](size)[name]
    level = float(levels[magnitude]) if levels.ndim else 0.0
    return -level if signed and negative else level


def ours(
    name: str, magnitude: int, negative: bool, images: np.ndarray, device: str, space: OperationSpace = AUTOAUGMENT
) -> np.ndarray:
    """The same with our table and our tensor code."""
    row = space.names.index(name)
    codes, table = space.tables(images.shape[1])
    if codes[row] == Operation.IDENTITY:
        return images
    parameters = torch.from_numpy(table[row, magnitude, int(negative)]).to(device).expand(len(images), -1)
    return from_planes(operations.OPERATIONS[Operation(codes[row])](to_planes(images, device), parameters))


def theirs(
    name: str, magnitude: int, negative: bool, images: np.ndarray, space: OperationSpace = AUTOAUGMENT
) -> np.ndarray:
    """torchvision's own dispatch on Pillow images."""
    level = torchvision_magnitude(space, name, magnitude, negative, images.shape[1])
    return each(images, lambda image: _apply_op(image, name, level, InterpolationMode.NEAREST, None))


@pytest.mark.parametrize("space", SPACES[1:])
@pytest.mark.parametrize("name", RANDAUGMENT.names)
def test_every_bin_and_sign_of_the_other_spaces(
    space: OperationSpace, name: str, patches: np.ndarray, device: str
) -> None:
    images = patches[::8]
    for magnitude in bins(space, name):
        for negative in (False, True) if name in SIGNED else (False,):
            expected = theirs(name, magnitude, negative, images, space)
            result = ours(name, magnitude, negative, images, device, space)
            assert_array_equal(result, expected, err_msg=f"bin {magnitude}, negative {negative}")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "negative"), SIGNS)
def test_every_bin_and_sign_on_photographs(
    name: str, negative: bool, channels: int, patches: np.ndarray, device: str
) -> None:
    images = patches if channels == 3 else grey(patches[::2])
    for magnitude in bins(AUTOAUGMENT, name):
        expected = theirs(name, magnitude, negative, images)
        assert_array_equal(ours(name, magnitude, negative, images, device), expected, err_msg=f"bin {magnitude}")


@pytest.mark.parametrize(("name", "negative"), SIGNS)
def test_every_bin_and_sign_on_cifar(
    name: str, negative: bool, cifar: tuple[np.ndarray, np.ndarray], device: str
) -> None:
    images = cifar[0][:100]
    for magnitude in bins(AUTOAUGMENT, name):
        expected = theirs(name, magnitude, negative, images)
        assert_array_equal(ours(name, magnitude, negative, images, device), expected, err_msg=f"bin {magnitude}")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 17, 33])
@pytest.mark.parametrize("name", OPERATIONS)
def test_odd_and_tiny_sizes(name: str, size: int, patches: np.ndarray, device: str) -> None:
    wide = np.concatenate([patches[:40], patches[40:80]], axis=2)
    images = np.concatenate([wide, wide[:, ::-1]], axis=1)[:, 11 : 11 + size, 7 : 7 + size]
    for magnitude, negative in ((1, False), (4, name in SIGNED), (9, False)):
        assert_array_equal(ours(name, magnitude, negative, images, device), theirs(name, magnitude, negative, images))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("size", [28, 32, 33, 64, 224])
def test_names_and_signs_are_torchvisions(space: OperationSpace, size: int) -> None:
    theirs = THEIR_SPACES[space](size)
    assert list(space.names) == list(theirs)
    assert [name for name in space.names if name in SIGNED] == [name for name, (_, signed) in theirs.items() if signed]


@pytest.mark.parametrize("name", RANDAUGMENT.names)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("size", [28, 32, 33, 64, 224])
def test_magnitudes_are_torchvisions(space: OperationSpace, name: str, size: int) -> None:
    if name not in space.names:
        name = "Invert"
    expected = np.array([torchvision_magnitude(space, name, bin_, False, size) for bin_ in range(space.bins)])
    assert_array_equal(space.magnitudes(name, size), expected)


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


def test_erased_boxes_are_torchvisions(patches: np.ndarray, device: str) -> None:
    rng = np.random.default_rng(6)
    parameters = np.zeros((len(patches), 6))
    corners = np.sort(rng.integers(0, 33, (len(patches), 2, 2)), axis=2)
    parameters[:, :4], parameters[:, 4] = corners.reshape(-1, 4), rng.integers(0, 256, len(patches))
    result = operations.erase(to_planes(patches, device), torch.from_numpy(parameters).to(device))
    for image, changed, row in zip(to_planes(patches, "cpu"), result.cpu(), parameters.astype(int), strict=True):
        top, bottom, left, right, value, _ = row.tolist()
        assert torch.equal(changed, TF.erase(image, top, left, bottom - top, right - left, torch.tensor(value)))


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
    if code == Operation.ERASE:
        parameters[:, :5] = rng.integers(0, 33, (len(patches), 5))
    if code == Operation.AFFINE:
        parameters[:] = geometry.rotation(rng.uniform(-30, 30, len(patches)), 32)
    elif code in (Operation.BRIGHTNESS, Operation.COLOR, Operation.CONTRAST, Operation.SHARPNESS):
        parameters[:, 0] /= 128
    planes, rows = to_planes(patches, device), torch.from_numpy(parameters).to(device)
    whole = operations.OPERATIONS[code](planes, rows)
    for start, stop in ((0, 1), (1, 8), (8, 96)):
        assert torch.equal(operations.OPERATIONS[code](planes[start:stop], rows[start:stop]), whole[start:stop])
