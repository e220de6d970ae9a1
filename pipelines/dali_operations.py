# ruff: noqa: SIM108 (a choice that DALI makes per sample has to be a statement)
"""Pixel operations of a plan as NVIDIA DALI graphs: `operations.py` again, for groups of images with the same codes.

A DALI sample is a group: F images, uint8 [F, H, W, C] of layout FHWC, where F differs from sample to sample. Operators
and branches cost per sample, which grouping spreads over many images. Everything here only adds operators to the DALI
pipeline that is being defined; each exists for the CPU and for the GPU. `equalize` and `autocontrast` have two forms:
several of DALI's operators, and, on the CPU alone and many times as fast, native code that counts a channel's levels.
"""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali import math as dali_math

from titn.pipelines import dali_native
from titn.pipelines.operations import LUMA
from titn.pipelines.policies.operation_rows import Operation

Node = Any
"""A DALI DataNode: an edge of the graph."""

_EXACT_PASSES = 17  # of equalize: every count is exact up to 65 x 65 pixels


@dataclass(frozen=True)
class Shape:
    """Size of the images and where the graph runs.

    Attributes:
        size: height and width, in pixels.
        channels: 1 or 3.
        device: "cpu" or "gpu".
        native: whether native code is called where there is some; on the CPU only.
    """

    size: int
    channels: int
    device: str
    native: bool

    def constant(self, values: np.ndarray) -> Node:
        """A constant tensor on the device."""
        return types.Constant(values, device=self.device)

    def place(self, node: Node) -> Node:
        """A node that was fed from the host, on the device."""
        return node.gpu() if self.device == "gpu" else node


def apply(images: Node, code: Node, rows: Node, shape: Shape) -> Node:
    """One slot of the plan.

    Args:
        images: uint8 [F, H, W, C] on the device.
        code: an `Operation`, int32 scalar on the host: the same for all images of a group.
        rows: parameters, float32 [F, 2, 3] on the host: those of `OperationRows`, and `affine_matrices` for AFFINE.
        shape: what the graph is for.

    Returns:
        uint8 [F, H, W, C].
    """
    if code == Operation.IDENTITY.value:
        changed = images
    elif code <= Operation.SHARPNESS.value:
        if code == Operation.AFFINE.value:
            changed = affine(images, rows)
        else:
            changed = _blended(images, code, rows, shape)
    elif code <= Operation.SOLARIZE.value:
        changed = _bits(images, code, rows, shape)
    elif code == Operation.AUTOCONTRAST.value:
        changed = autocontrast(images, shape)
    elif code == Operation.EQUALIZE.value:
        changed = equalize(images, shape)
    elif code == Operation.INVERT.value:
        changed = images ^ _byte(255)
    else:
        changed = erase(images, rows, shape)
    return changed


def crop_and_flip(images: Node, paste: dict[str, Node], flip: Node | None, shape: Shape) -> Node:
    """Pixels within the crop's border moved to where the crop shows them, on black; then mirrored left and right.

    Args:
        images: uint8 [F, H, W, C] on the device.
        paste: arguments of `multi_paste` on the F images below each other; none where nothing is cropped.
        flip: int32 scalar on the host, the same for all images of a group; None: no image is mirrored.
        shape: what the graph is for.
    """
    if paste:
        images = rows_of_images(fn.multi_paste(column(images, shape), **paste), shape)
    return images if flip is None else fn.flip(images, horizontal=flip)


def column(images: Node, shape: Shape) -> Node:
    """F images below each other: [F, H, W, C] to [F H, W, C]."""
    return fn.reshape(images, shape=[-1, shape.size, shape.channels], layout="HWC")


def rows_of_images(images: Node, shape: Shape) -> Node:
    """The inverse of `column`."""
    return fn.reshape(images, shape=[-1, shape.size, shape.size, shape.channels], layout="FHWC")


def affine(images: Node, rows: Node) -> Node:
    """Nearest pixel, black outside."""
    return fn.warp_affine(images, matrix=fn.per_frame(rows), fill_value=0, interp_type=types.INTERP_NN)


def _blended(images: Node, code: Node, rows: Node, shape: Shape) -> Node:
    factor = _value(rows, shape)
    if code == Operation.BRIGHTNESS.value:
        changed = _to_bytes(images * factor)
    elif code == Operation.COLOR.value:
        changed = images if shape.channels == 1 else _blend(luma(images, shape), images, factor)
    elif code == Operation.CONTRAST.value:
        changed = _blend(_mean_luma(images, shape), images, factor)
    else:
        changed = _blend(_smooth(images, shape), images, factor)
    return changed


def _blend(start: Node, images: Node, factor: Node) -> Node:
    """start + factor * (images - start) in float32 as Pillow's `blend`, clipped and truncated.

    In its branch: DALI 2.4 computes a batch wrongly in which some samples broadcast a scalar and others nothing.
    """
    begin = fn.cast(start, dtype=types.FLOAT)
    return _to_bytes((images - begin) * factor + begin)


def luma(images: Node, shape: Shape) -> Node:
    """Grey levels as Pillow's, uint8 [F, H, W, 1]."""
    if shape.channels == 1:
        return images
    weighted = fn.coord_transform(images, M=list(map(float, LUMA)), T=[32768.0], dtype=types.FLOAT)  # exact: below 2^24
    return _to_bytes(weighted * (1 / 65536))


def _mean_luma(images: Node, shape: Shape) -> Node:
    """The mean grey level rounded half up, int32 [F, 1, 1, 1]."""
    pixels = shape.size**2
    total = fn.reductions.sum(luma(images, shape), axes=[1, 2, 3], keep_dims=True)
    mean = (fn.cast(total, dtype=types.INT64) * 2 + pixels) // (2 * pixels)
    return fn.reshape(fn.cast(mean, dtype=types.INT32), shape=[-1, 1, 1, 1], layout="FHWC")


def _smooth(images: Node, shape: Shape) -> Node:
    """(sum of the nine + 4 * centre) / 13 rounded, never from a half; the border as it is. uint8 [F, H, W, C]."""
    if shape.size < 3:
        return images
    weights = np.full((3, 3), 1 / 13, dtype=np.float32)
    weights[1, 1] = 5 / 13
    inside = np.zeros((1, shape.size, shape.size, 1), dtype=np.uint8)
    inside[:, 1:-1, 1:-1] = 1
    smooth = fn.filter(images, shape.constant(weights))
    return smooth * shape.constant(inside) + images * shape.constant(1 - inside)


def _bits(images: Node, code: Node, rows: Node, shape: Shape) -> Node:
    """Posterize keeps the bits of a mask; solarize inverts values from a threshold on."""
    value = fn.cast(_value(rows, shape), dtype=types.UINT8)
    if code == Operation.POSTERIZE.value:
        changed = images & value
    else:
        changed = images ^ ((images >= value) * _byte(255))
    return changed


def autocontrast(images: Node, shape: Shape) -> Node:
    """Stretch each channel's range to 0..255 in float64 as Pillow does, truncated; a constant channel stays."""
    if shape.native:
        return dali_native.call("autocontrast", images)
    low = fn.cast(fn.reductions.min(images, axes=[1, 2], keep_dims=True), dtype=types.FLOAT64)
    high = fn.cast(fn.reductions.max(images, axes=[1, 2], keep_dims=True), dtype=types.FLOAT64)
    flat = fn.cast(low == high, dtype=types.FLOAT64)
    scale = (255.0 / (high - low + flat)) * (1.0 - flat) + flat
    return _to_bytes(images * scale + (-low) * scale * (1.0 - flat))


def equalize(images: Node, shape: Shape) -> Node:
    """Flatten each channel's histogram by Pillow's integer rule; a channel with too few levels stays.

    Pillow maps a level to min(255, (step // 2 + below) // step), where `below` of n pixels are darker and step is
    (n - number of brightest) // 255. DALI's operator maps it to round(255 (c - z) / (t - z)), where c of t pixels are
    not brighter and z have the lowest level there is. On the negative, with one more pixel at 0 and others at 255 until
    t - z = 255 k, that is round((n - below) / k): k passes with j = 0..k-1 of the added pixels moved to level 1 add
    up to n - below + (k - 1) / 2 exactly, by Hermite's identity, k odd so that nothing lies on a half.
    """
    if shape.native:
        return dali_native.call("equalize", images)
    pixels, channels = shape.size**2, shape.channels
    passes = _passes(pixels)
    planes = fn.reshape(fn.transpose(images, perm=[0, 3, 1, 2]), shape=[-1, 1, pixels], layout="FHW")  # [F C, 1, n]
    negative = dali_math.max(planes ^ _byte(255), _byte(1))
    zeros = fn.slice(planes, start=[0], shape=[1], axes=[2]) & _byte(0)  # [F C, 1, 1]
    flattened = []
    for added in _added_pixels(pixels, passes):
        padded = fn.cat(negative, shape.constant(added.reshape(1, 1, -1)) + zeros, axis=2)
        flattened.append(fn.slice(fn.equalize(padded), start=[0], shape=[pixels], axes=[2]))
    each = types.Constant(passes // len(flattened), dtype=types.INT32)
    total = functools.reduce(operator.add, flattened[1:], flattened[0] * each)
    excess = (passes - 1) // 2 if len(flattened) > 1 else 0  # of total over n - below
    brightest = planes == fn.reductions.max(planes, axes=[2], keep_dims=True)
    most = fn.reductions.sum(fn.cast(brightest, dtype=types.UINT8), axes=[2], keep_dims=True)  # [F C, 1, 1]
    step = (pixels - fn.cast(most, dtype=types.INT32)) // 255
    few = fn.cast(step == 0, dtype=types.FLOAT)
    scale = (1.0 - few) / dali_math.max(step, 1)
    # (step // 2 + below - (step - 1) / 2) / step never lies on a half: rounded it is the whole division
    start = (pixels + excess + 0.5 - 0.5 * step + step // 2) * scale
    table = fn.cast(start - total * scale + planes * few, dtype=types.UINT8)  # saturates
    table = table | ((planes == _byte(255)) * _byte(255))  # 254 and 255 share a level of the negative
    table = fn.reshape(table, shape=[-1, channels, shape.size, shape.size], layout="FCHW")
    return fn.transpose(table, perm=[0, 2, 3, 1], output_layout="FHWC")


def _passes(pixels: int) -> int:
    """The smallest odd k whose 255 k pixels are all of them and k - 1 more."""
    passes = math.ceil(pixels / 255) | 1
    return passes if 255 * passes - pixels >= passes - 1 else passes + 2


def _added_pixels(pixels: int, passes: int) -> np.ndarray:
    """Pixels that `equalize` adds, uint8 [passes, ...]; one row for images of more than `_EXACT_PASSES` passes."""
    added = 255 * passes - pixels
    moved = np.arange(passes) if passes <= _EXACT_PASSES else np.zeros(1)
    levels = np.where(np.arange(added) < moved[:, None], 1, 255)
    return np.pad(levels, ((0, 0), (1, 0))).astype(np.uint8)


def erase(images: Node, rows: Node, shape: Shape) -> Node:
    """A box filled with one byte on every channel."""
    flat = fn.reshape(shape.place(rows), shape=[-1, 6])
    top, bottom, left, right, value = (
        fn.reshape(fn.slice(flat, start=[index], shape=[1], axes=[1]), shape=[-1, 1, 1, 1], layout="FHWC")
        for index in range(5)
    )
    place = np.arange(shape.size, dtype=np.float32)
    row, column = shape.constant(place.reshape(1, -1, 1, 1)), shape.constant(place.reshape(1, 1, -1, 1))
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)  # [F, H, W, 1]
    outside = fn.cast(inside ^ True, dtype=types.UINT8)
    return images * outside + fn.cast(inside, dtype=types.UINT8) * fn.cast(value, dtype=types.UINT8)


def _value(rows: Node, shape: Shape) -> Node:
    """The first parameter, float32 [F, 1, 1, 1] on the device."""
    first = fn.slice(rows, start=[0, 0], shape=[1, 1], axes=[1, 2])
    return fn.reshape(shape.place(first), shape=[-1, 1, 1, 1], layout="FHWC")


def _to_bytes(values: Node) -> Node:
    return fn.cast(dali_math.floor(values), dtype=types.UINT8)  # saturates


def _byte(value: int) -> types.ScalarConstant:
    """A uint8 constant: with plain integers DALI's arithmetic goes to int32."""
    return types.Constant(value, dtype=types.UINT8)
