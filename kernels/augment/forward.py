# mypy: disable-error-code="no-untyped-def"
"""The kernel: one program augments one image, and its partner before it; an image is one tile of packed pixels.

Names besides the package's: S: pixels of a side; P: pixels of an image, padded. A pixel is an int32 with channel c in
bits 8 c to 8 c + 7. The tile stays in registers, and pixels of other threads come by `tl.gather` through shared memory.
Loops over `channels`, which is C but known at run time only, stay loops: unrolled they take a third more code, and
sharpness more registers than there are.
"""

import triton
import triton.language as tl

from titn.kernels.common.device import interpreting

if interpreting():
    from titn.kernels.common.interpreter import mend

    mend()

AFFINE: tl.constexpr = tl.constexpr(1)
BRIGHTNESS: tl.constexpr = tl.constexpr(2)
COLOR: tl.constexpr = tl.constexpr(3)
CONTRAST: tl.constexpr = tl.constexpr(4)
SHARPNESS: tl.constexpr = tl.constexpr(5)
POSTERIZE: tl.constexpr = tl.constexpr(6)
SOLARIZE: tl.constexpr = tl.constexpr(7)
AUTOCONTRAST: tl.constexpr = tl.constexpr(8)
EQUALIZE: tl.constexpr = tl.constexpr(9)
INVERT: tl.constexpr = tl.constexpr(10)
ERASE: tl.constexpr = tl.constexpr(11)

HEAD: tl.constexpr = tl.constexpr(4)  # id, top, left, flip
SLOT: tl.constexpr = tl.constexpr(7)  # code, six parameters
BOX: tl.constexpr = tl.constexpr(1)
BLEND: tl.constexpr = tl.constexpr(2)
EVERY: tl.constexpr = tl.constexpr(0x010101)  # a byte times this is the byte in every channel


@triton.jit
def _byte(pixels, c):
    return (pixels >> (8 * c)) & 255


@triton.jit
def _blended(start, value, factor):
    """start + factor * (value - start) in float32, clipped and truncated, as Pillow's `blend`."""
    begin = start.to(tl.float32)
    mixed = (value.to(tl.float32) - begin) * factor + begin
    return tl.minimum(tl.maximum(mixed, 0.0), 255.0).to(tl.int32)


@triton.jit
def _luma(pixels, C: tl.constexpr):
    """Grey levels, ITU-R 601 in 1/65536 as Pillow converts RGB to L."""
    if C == 1:
        grey = pixels & 255
    else:
        grey = (_byte(pixels, 0) * 19595 + _byte(pixels, 1) * 38470 + _byte(pixels, 2) * 7471 + (1 << 15)) >> 16
    return grey


@triton.jit
def _stored(images, row, padding, S: tl.constexpr, C: tl.constexpr, P: tl.constexpr):
    """The image of a row of the plan, cropped from its black border, then mirrored."""
    p = tl.arange(0, P)
    from_right = tl.load(row + 3) != 0
    column = tl.where(from_right, S - 1 - p % S, p % S)
    y = p // S + tl.load(row + 1) - padding
    x = column + tl.load(row + 2) - padding
    inside = (y >= 0) & (y < S) & (x >= 0) & (x < S) & (p < S * S)
    image = images + tl.load(row).to(tl.int64) * (C * S * S)
    pixels = tl.zeros((P,), tl.int32)
    for c in tl.static_range(C):
        pixels |= tl.load(image + c * S * S + y * S + x, mask=inside, other=0).to(tl.int32) << (8 * c)
    return pixels


@triton.jit
def _affine(pixels, parameters, S: tl.constexpr, P: tl.constexpr):
    """Nearest pixel at 16.16 fixed-point coordinates, black outside."""
    p = tl.arange(0, P)
    column, row = p % S, p // S
    x = (tl.load(parameters + 2) + tl.load(parameters + 1) * row + tl.load(parameters) * column) >> 16
    y = (tl.load(parameters + 5) + tl.load(parameters + 4) * row + tl.load(parameters + 3) * column) >> 16
    inside = (x >= 0) & (x < S) & (y >= 0) & (y < S)
    return tl.where(inside, tl.gather(pixels, tl.where(inside, y * S + x, 0), 0), 0)


@triton.jit
def _in_box(box, S: tl.constexpr, P: tl.constexpr):
    """Which pixels lie in the box at a pointer: top, bottom, left, right."""
    p = tl.arange(0, P)
    rows = (p // S >= tl.load(box)) & (p // S < tl.load(box + 1))
    return rows & (p % S >= tl.load(box + 2)) & (p % S < tl.load(box + 3))


@triton.jit
def _color(pixels, factor, channels, C: tl.constexpr):
    """Blend from the grey levels; grey images stay as they are."""
    if C > 1:
        grey = _luma(pixels, C)
        for c in range(channels):
            value = _byte(pixels, c)
            pixels ^= (value ^ _blended(grey, value, factor)) << (8 * c)
    return pixels


@triton.jit
def _sharpness(pixels, factor, channels, S: tl.constexpr, C: tl.constexpr, P: tl.constexpr):
    """Blend from a 3x3 smoothing, (sum of the nine + 4 * centre) / 13 rounded; the border is not smoothed."""
    p = tl.arange(0, P)
    column, row = p % S, p // S
    interior = (column > 0) & (column < S - 1) & (row > 0) & (row < S - 1)
    # a sum of three bytes has 10 bits: the three channels' sums fit one word
    wide = (pixels & 0xFF) | ((pixels & 0xFF00) << 2) | ((pixels & 0xFF0000) << 4)
    wide += tl.gather(wide, tl.maximum(p - 1, 0), 0) + tl.gather(wide, tl.minimum(p + 1, P - 1), 0)
    above = tl.gather(wide, tl.maximum(p - S, 0), 0)
    below = tl.gather(wide, tl.minimum(p + S, P - 1), 0)
    for c in range(channels):
        value = _byte(pixels, c)
        total = 4 * value
        for part in tl.static_range(3):
            word = wide if part == 0 else above if part == 1 else below
            total += (word >> (10 * c)) & 1023
        smooth = tl.where(interior, (2 * total + 13) // 26, value)
        pixels ^= (value ^ _blended(smooth, value, factor)) << (8 * c)
    return pixels


@triton.jit
def _stretched(value, valid):
    """Table [256] of autocontrast for one channel: its range to 0..255, in float64 and truncated as in Pillow."""
    level = tl.arange(0, 256)
    low, high = tl.min(tl.where(valid, value, 255), 0), tl.max(tl.where(valid, value, 0), 0)
    scale = 255.0 / tl.maximum(high - low, 1).to(tl.float64)
    table = level.to(tl.float64) * scale + -low.to(tl.float64) * scale
    table = tl.minimum(tl.maximum(table, 0.0), 255.0).to(tl.int32)
    return tl.where(high > low, table, level)


@triton.jit
def _equalized(value, valid, S: tl.constexpr):
    """Table [256] of equalize for one channel by Pillow's integer rule."""
    level = tl.arange(0, 256)
    count = tl.histogram(value, 256, mask=valid)
    brightest = tl.sum(tl.where(level == tl.max(tl.where(valid, value, 0), 0), count, 0), 0)
    step = (S * S - brightest) // 255
    below = tl.cumsum(count, 0) - count
    return tl.where(step > 0, tl.minimum((step // 2 + below) // tl.maximum(step, 1), 255), level)


@triton.jit
def _table(pixels, code, parameter, factor, channels, S: tl.constexpr, C: tl.constexpr, P: tl.constexpr):
    """What each of 256 values becomes, packed by channel, of the operations that look at nothing but a value."""
    level = tl.arange(0, 256)
    valid = tl.arange(0, P) < S * S
    table = level * EVERY
    if code == BRIGHTNESS:
        table = _blended(tl.zeros((256,), tl.int32), level, factor) * EVERY
    elif code == CONTRAST:
        mean = (2 * tl.sum(tl.where(valid, _luma(pixels, C), 0), 0) + S * S) // (2 * S * S)
        table = _blended(mean, level, factor) * EVERY
    elif code == POSTERIZE:
        table = (level & parameter) * EVERY
    elif code == SOLARIZE:
        table = tl.where(level >= parameter, 255 - level, level) * EVERY
    elif code == INVERT:
        table = (255 - level) * EVERY
    elif code == AUTOCONTRAST:
        table = tl.zeros((256,), tl.int32)
        for c in range(channels):
            table |= _stretched(_byte(pixels, c), valid) << (8 * c)
    elif code == EQUALIZE:
        table = tl.zeros((256,), tl.int32)
        for c in range(channels):
            table |= _equalized(_byte(pixels, c), valid, S) << (8 * c)
    return table


@triton.jit
def _looked_up(table, pixels, C: tl.constexpr, P: tl.constexpr):
    result = tl.zeros((P,), tl.int32)
    for c in tl.static_range(C):
        result |= tl.gather(table, _byte(pixels, c), 0) & (255 << (8 * c))
    return result


@triton.jit
def _augmented(images, row, slots, padding, channels, S: tl.constexpr, C: tl.constexpr, P: tl.constexpr):
    """The image of a row of the plan: crop, mirror, and the operations of its slots."""
    pixels = _stored(images, row, padding, S, C, P)
    for slot in range(slots):
        at = row + HEAD + SLOT * slot
        code = tl.load(at)
        parameter = tl.load(at + 1)
        factor = parameter.to(tl.float32, bitcast=True)
        if code == AFFINE:
            pixels = _affine(pixels, at + 1, S, P)
        elif code == ERASE:
            pixels = tl.where(_in_box(at + 1, S, P), tl.load(at + 5) * EVERY, pixels)
        elif code == COLOR:
            pixels = _color(pixels, factor, channels, C)
        elif code == SHARPNESS:
            pixels = _sharpness(pixels, factor, channels, S, C, P)
        elif code != 0:
            pixels = _looked_up(_table(pixels, code, parameter, factor, channels, S, C, P), pixels, C, P)
    return pixels


@triton.jit(do_not_specialize=["slots", "padding"])
def augment(
    images, rows, pairs, box, lam, scale, offset, out, slots, padding, channels,
    MIX: tl.constexpr, S: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """out [B, C, S, S], normalised; a program an image. The package says what the other tensors hold."""
    b = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, P)
    passes = 1
    if MIX == BOX:
        place = box + 4 * b
        empty = (tl.load(place) >= tl.load(place + 1)) | (tl.load(place + 2) >= tl.load(place + 3))
        passes = tl.where(empty, 1, 2)
    elif MIX == BLEND:
        passes = 2
    pixels = tl.zeros((P,), tl.int32)
    partner = pixels
    for i in range(passes):  # the partner where there is one, then the image itself
        partner = pixels
        row = tl.load(pairs + 2 * b + passes - 1 - i).to(tl.int64)
        pixels = _augmented(images, rows + row * (HEAD + SLOT * slots), slots, padding, channels, S, C, P)
    if MIX == BOX:
        pixels = tl.where(_in_box(place, S, P), partner, pixels)
    for c in tl.static_range(C):
        value = _byte(pixels, c).to(tl.float32) * tl.load(scale + c) - tl.load(offset + c)
        if MIX == BLEND:
            other = _byte(partner, c).to(tl.float32) * tl.load(scale + c) - tl.load(offset + c)
            value = value * tl.load(lam + b) + other * (1.0 - tl.load(lam + b))
        tl.store(out + (b * C + c) * (S * S) + p, value.to(out.dtype.element_ty), mask=p < S * S)
