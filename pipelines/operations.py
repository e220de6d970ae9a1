"""Pixel operations on batches of uint8 images with a row of parameters each, equal to Pillow's bit for bit.

Every operation takes images, uint8 [n, C, H, W] with C = 1 (grey) or 3 (RGB), and parameters, float64 [n, 6] (see
`Operation`), and returns uint8 [n, C, H, W]. Real arithmetic is done in the precision Pillow uses, one rounding per
operation, so that results depend neither on the batch nor on the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from titn.pipelines.geometry import FRACTION_BITS
from titn.pipelines.policies.operation_rows import Operation

LUMA = (19595, 38470, 7471)  # ITU-R 601 weights of R, G, B in 1/65536, as Pillow converts RGB to L


def crop_and_flip(images: Tensor, corner: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Pad with black, cut back to size at a corner, then mirror left and right.

    Args:
        images: uint8 [n, C, H, W].
        corner: top and left in the padded image, int64 [n, 2], 0 to 2 * padding.
        flip: bool [n].
        padding: pixels on each side.

    Returns:
        uint8 [n, C, H, W].
    """
    height, width = images.shape[2:]
    if padding:
        windows = torch.nn.functional.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        every = torch.arange(len(images), device=images.device)
        images = windows[every, :, corner[:, 0], corner[:, 1]]
    return select(flip.view(-1, 1, 1, 1), images.flip(3), images)


def paste_boxes(images: Tensor, partners: Tensor, box: Tensor) -> Tensor:
    """CutMix on pixels: `partners` inside each box, int64 [n, 4] (top, bottom, left, right), `images` elsewhere."""
    row = torch.arange(images.shape[2], device=images.device)
    column = torch.arange(images.shape[3], device=images.device)
    top, bottom, left, right = box.view(-1, 4, 1).unbind(1)
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    return select((rows[:, :, None] & columns[:, None, :])[:, None], partners, images)


def erase(images: Tensor, parameters: Tensor) -> Tensor:
    """A box filled with one byte on every channel."""
    box = parameters[:, :4].to(torch.int64)
    return paste_boxes(images, parameters[:, 4].to(torch.uint8).view(-1, 1, 1, 1).expand_as(images), box)


def select(condition: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """torch.where on uint8 by masking bits: on the CPU, for masks that broadcast, a tenth of its time."""
    mask = condition.to(torch.uint8).neg_()  # 0 or 255
    return (chosen ^ other).bitwise_and_(mask).bitwise_xor_(other)


def affine(images: Tensor, parameters: Tensor) -> Tensor:
    """Nearest pixel at 16.16 fixed-point coordinates, black outside."""
    n, channels, height, width = images.shape
    right_x, down_x, start_x, right_y, down_y, start_y = parameters.to(torch.int32).view(n, 6, 1, 1).unbind(1)
    column = torch.arange(width, dtype=torch.int32, device=images.device)
    row = torch.arange(height, dtype=torch.int32, device=images.device)[:, None]
    x = (start_x + down_x * row + right_x * column) >> FRACTION_BITS  # [n, H, W]
    y = (start_y + down_y * row + right_y * column) >> FRACTION_BITS
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    source = ((y * width + x) * inside).view(n, 1, -1).to(torch.int64)
    pixels = images.reshape(n, channels, -1).gather(2, source.expand(-1, channels, -1))
    return pixels.view_as(images) * inside[:, None]


def brightness(images: Tensor, parameters: Tensor) -> Tensor:
    """Blend from black."""
    return _to_bytes(images.to(torch.float32) * _factor(parameters))


def color(images: Tensor, parameters: Tensor) -> Tensor:
    """Blend from the image's grey levels; grey images stay as they are."""
    return images if images.shape[1] == 1 else _blend(_luma(images), images, parameters)


def contrast(images: Tensor, parameters: Tensor) -> Tensor:
    """Blend from the mean grey level, rounded half up."""
    pixels = images.shape[2] * images.shape[3]
    total = _luma(images).sum((1, 2, 3), keepdim=True, dtype=torch.int64)
    return _blend((2 * total + pixels) // (2 * pixels), images, parameters)


def sharpness(images: Tensor, parameters: Tensor) -> Tensor:
    """Blend from a 3x3 smoothing, (sum of the nine + 4 * centre) / 13 rounded; the border is not smoothed."""
    if min(images.shape[2:]) < 3:
        return images
    pixels = images.to(torch.float32)
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * pixels[..., 1:-1, 1:-1]
    smooth = pixels.clone()
    # Sums are whole and total / 13 + 1/2 is never within 1/26 of a whole number: float32 rounds as integers would.
    smooth[..., 1:-1, 1:-1] = (total * (1 / 13) + 0.5).floor_()
    return _blend(smooth, pixels, parameters)


def posterize(images: Tensor, parameters: Tensor) -> Tensor:
    """Keep the bits of a mask."""
    return images & parameters[:, 0].to(torch.uint8).view(-1, 1, 1, 1)


def solarize(images: Tensor, parameters: Tensor) -> Tensor:
    """Invert the values at or above a threshold from 0 to 255."""
    above = images >= parameters[:, 0].to(torch.uint8).view(-1, 1, 1, 1)
    return images ^ above.to(torch.uint8).neg_()


def invert(images: Tensor, parameters: Tensor) -> Tensor:
    """255 minus the value."""
    return ~images


def autocontrast(images: Tensor, parameters: Tensor) -> Tensor:
    """Stretch each channel's range to 0..255; a constant channel stays."""
    low, high = (level.double()[..., None] for level in torch.aminmax(images.flatten(2), dim=2))
    level = torch.arange(256, dtype=torch.float64, device=images.device)
    scale = torch.full_like(low, 255.0) / (high - low).clamp_(min=1)  # number / tensor would round twice
    stretched = (level * scale + -low * scale).clamp_(0, 255)  # float64 as in Pillow, truncated
    return _look_up(torch.where(high > low, stretched, level), images)


def equalize(images: Tensor, parameters: Tensor) -> Tensor:
    """Flatten each channel's histogram by Pillow's integer rule; a channel with too few levels stays."""
    flat = images.flatten(2)
    ones = torch.ones((), dtype=torch.int32, device=images.device)
    histogram = torch.zeros((*flat.shape[:2], 256), dtype=torch.int32, device=images.device)
    histogram.scatter_add_(2, flat.to(torch.int64), ones.expand(flat.shape))
    brightest = histogram.gather(2, flat.amax(2, keepdim=True).to(torch.int64))
    step = (flat.shape[2] - brightest) // 255
    below = histogram.cumsum(2, dtype=torch.int32) - histogram
    table = ((step // 2 + below) // step.clamp(min=1)).clamp_(max=255)
    level = torch.arange(256, dtype=torch.int32, device=images.device)
    return _look_up(torch.where(step > 0, table, level), images)


OPERATIONS: dict[Operation, Callable[[Tensor, Tensor], Tensor]] = {
    Operation.AFFINE: affine,
    Operation.BRIGHTNESS: brightness,
    Operation.COLOR: color,
    Operation.CONTRAST: contrast,
    Operation.SHARPNESS: sharpness,
    Operation.POSTERIZE: posterize,
    Operation.SOLARIZE: solarize,
    Operation.AUTOCONTRAST: autocontrast,
    Operation.EQUALIZE: equalize,
    Operation.INVERT: invert,
    Operation.ERASE: erase,
}


def _luma(images: Tensor) -> Tensor:
    """Grey levels, int32 [n, 1, H, W]; the image itself where it is grey."""
    if images.shape[1] == 1:
        return images.to(torch.int32)
    red, green, blue = images.to(torch.int32).unbind(1)
    return ((red * LUMA[0] + green * LUMA[1] + blue * LUMA[2] + (1 << 15)) >> 16)[:, None]


def _factor(parameters: Tensor) -> Tensor:
    return parameters[:, 0].to(torch.float32).view(-1, 1, 1, 1)


def _blend(start: Tensor, images: Tensor, parameters: Tensor) -> Tensor:
    """start + factor * (images - start) in float32, clipped and truncated, as Pillow's `blend`."""
    begin = start.to(torch.float32)
    return _to_bytes((images.to(torch.float32) - begin).mul_(_factor(parameters)).add_(begin))


def _to_bytes(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)


def _look_up(table: Tensor, images: Tensor) -> Tensor:
    """table, [n, C, 256] of whole or real numbers from 0 to 255 (truncated), at every pixel."""
    return table.to(torch.uint8).gather(2, images.flatten(2).to(torch.int64)).view_as(images)
