"""The pixel embedding against its float64 reference: every gradient, sizes, layouts; and the reference by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from util import (
    DEVICE,
    HALF,
    TOLERANCE,
    Function,
    assert_at_most_twice_plain,
    assert_close,
    assert_compiles,
    assert_repeats,
    nan_filled_memory,
    output_and_gradients,
    present,
    randn,
    together,
    transposed_layout,
)

from titn.kernels import BackendUnavailable, pixel_embedding

NAMES = ("weight", "bias", "position")
SIZES = [(2, 3, 8, 4, 2, 12), (1, 1, 28, 7, 1, 10), (5, 3, 16, 8, 2, 24), (3, 3, 8, 8, 1, 40), (7, 1, 6, 2, 2, 1)]
"""Images, channels, image size, patch, square, output channels."""


def make_inputs(
    images: int, channels: int, side: int, patch: int, size: int, outputs: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, list[Tensor | None]]:
    """Images, and weight, bias and position."""
    values, length = channels * size**2, (patch // size) ** 2
    weight = randn(outputs, values, seed=1, scale=values**-0.5, dtype=dtype)
    parameters = [weight, randn(outputs, seed=2, dtype=dtype), randn(length, outputs, seed=3, dtype=dtype)]
    return randn(images, channels, side, side, seed=0, dtype=dtype), [*parameters]


def run(backend: str, images: Tensor, patch: int, size: int) -> Function:
    """As a function of the parameters, with the images in their dtype."""
    return lambda weight, bias, position: pixel_embedding(
        images.to(weight.dtype), weight, bias, position, patch=patch, size=size, backend=backend
    )


def check(images: Tensor, parameters: list[Tensor | None], patch: int, size: int, dy: Tensor | None = None) -> None:
    fused = run("triton", images, patch, size)
    with torch.no_grad():
        shape = fused(*parameters).shape
    dy = randn(*shape, seed=9, dtype=images.dtype) if dy is None else dy
    truth = output_and_gradients(run("torch", images, patch, size), parameters, dy, torch.float64)
    with nan_filled_memory():
        found = output_and_gradients(fused, parameters, dy)
    assert found[0].dtype == images.dtype
    assert_close(found[0], truth[0], TOLERANCE[images.dtype], "output")
    for name, actual, expected in zip(NAMES, found[1], truth[1], strict=True):
        assert (actual is None) == (expected is None)
        if actual is not None and expected is not None:
            assert_close(actual, expected, TOLERANCE[images.dtype], name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("images", "channels", "side", "patch", "size", "outputs"), SIZES)
def test_sizes(images: int, channels: int, side: int, patch: int, size: int, outputs: int, dtype: torch.dtype) -> None:
    check(*make_inputs(images, channels, side, patch, size, outputs, dtype), patch, size)


def test_layouts_and_an_absent_bias() -> None:
    images, parameters = make_inputs(*SIZES[0])
    check(images, [parameters[0], None, parameters[2]], 4, 2)
    turned = [None if t is None else transposed_layout(t) for t in parameters]
    check(transposed_layout(images), turned, 4, 2, transposed_layout(randn(2, 4, 4, 12, seed=9)))


def test_bfloat16_autocast_and_repetition() -> None:
    images, given = make_inputs(*SIZES[0])
    parameters = present(given)
    fused, plain = run("triton", images, 4, 2), run("torch", images, 4, 2)
    dy = randn(2, 4, 4, 12, seed=9)
    assert_repeats(fused, parameters, dy)
    halves = [[t.bfloat16() for t in parameters]]
    assert_at_most_twice_plain(fused, plain, halves, NAMES, [dy.bfloat16()], products=torch.bfloat16)
    with torch.autocast(DEVICE, HALF["triton"]):
        assert fused(*parameters).dtype == HALF["triton"]


def test_operators() -> None:
    images, given = make_inputs(*SIZES[0])
    weight, bias, position = present(given)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    ops, dout = torch.ops.titn, randn(2, 4, 4, 12, seed=9)
    torch.library.opcheck(ops.pixel_embedding, (images, weight, bias, position, 4, 2, torch.float32), test_utils=tests)
    torch.library.opcheck(ops.pixel_embedding_backward, (dout, images, 4, 2), test_utils=tests)
    assert_compiles(run("triton", images, 4, 2), [weight, bias, position], dout)


def test_no_images() -> None:
    images, parameters = make_inputs(0, 3, 8, 4, 2, 12)
    y, gradients = output_and_gradients(
        run("triton", images, 4, 2), parameters, torch.zeros(0, 4, 4, 12, device=DEVICE)
    )
    assert y.shape == (0, 4, 4, 12)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in present(gradients))


def test_the_reference_is_cut_by_hand() -> None:
    images, given = make_inputs(*SIZES[0])
    weight, bias, position = present(given)
    found = run("torch", images, 4, 2)(weight, bias, position)
    for n, m in ((0, 0), (1, 2), (3, 3)):
        top, left = n // 2 * 4 + m // 2 * 2, n % 2 * 4 + m % 2 * 2
        square = images[:, :, top : top + 2, left : left + 2].flatten(1)
        for actual, truth in together([found[:, n, m]], [square @ weight.T + bias + position[m]]):
            assert_close(actual, truth, 1e-5)


def test_what_does_not_fit() -> None:
    images, given = make_inputs(*SIZES[0])
    weight, bias, position = present(given)
    with pytest.raises(ValueError, match=r"images must be \[B, C, H, W\], not of 3 dimensions"):
        pixel_embedding(images[0], weight, bias, position, patch=4, size=2)
    for patch, size in ((3, 1), (4, 3), (4, 0)):
        with pytest.raises(ValueError, match=f"squares of {size} in patches of {patch} do not tile 8 x 8"):
            pixel_embedding(images, weight, bias, position, patch=patch, size=size)
    with pytest.raises(ValueError, match=r"position must have shape \[4, 12\], not \[3, 12\]"):
        pixel_embedding(images, weight, bias, position[:3], patch=4, size=2)
    with pytest.raises(BackendUnavailable, match="no gradient of the images"):
        pixel_embedding(images.requires_grad_(), weight, bias, position, patch=4, size=2, backend="triton")
    wide = make_inputs(1, 3, 8, 8, 8, 12)
    with pytest.raises(BackendUnavailable, match="192 values of a square to 12 channels, 1 pixels a patch: up to 64"):
        run("triton", wide[0], 8, 8)(*present(wide[1]))
