"""Affine maps from output to input pixels, in the 16.16 fixed point that Pillow samples the nearest pixel with."""

from __future__ import annotations

import numpy as np

FRACTION_BITS = 16


def affine(
    angle: np.ndarray | float,
    shift_x: np.ndarray | float,
    shift_y: np.ndarray | float,
    scale: np.ndarray | float,
    size: int,
) -> np.ndarray:
    """Rotation about the image's centre, then scaling, then a shift: torchvision's `affine` without shear.

    Args:
        angle: clockwise on the screen, in degrees.
        shift_x: to the right, in pixels.
        shift_y: downwards, in pixels.
        scale: above 1 enlarges.
        size: height and width of the images, in pixels.

    Returns:
        Coefficients, int64 [..., 6], see `fixed_point`.
    """
    radians = np.radians(angle)
    along, across = np.cos(radians) / scale, np.sin(radians) / scale
    center = size / 2
    offset_x = along * (-center - shift_x) + across * (-center - shift_y) + center
    offset_y = -across * (-center - shift_x) + along * (-center - shift_y) + center
    return fixed_point(along, across, offset_x, -across, along, offset_y)


def rotation(angle: np.ndarray | float, size: int) -> np.ndarray:
    """Rotation by `angle` degrees, counter-clockwise, about the centre; coefficients int64 [..., 6]."""
    return affine(-np.asarray(angle, dtype=np.float64), 0.0, 0.0, 1.0, size)


def shear(level_x: np.ndarray | float, level_y: np.ndarray | float) -> np.ndarray:
    """Output (x, y) reads input (x + level_x * y, y + level_y * x), corner as origin; coefficients int64 [..., 6]."""
    return fixed_point(1.0, level_x, 0.0, level_y, 1.0, 0.0)


def fixed_point(*matrix: np.ndarray | float) -> np.ndarray:
    """Rows (a, b, c, d, e, f) of real maps as 16.16 integers.

    The centre of output pixel (x, y) reads the input pixel that holds the point (a x' + b y' + c, d x' + e y' + f) with
    x' = x + 1/2, y' = y + 1/2. Pillow rounds a, b, d, e and the two values at pixel (0, 0) to 1/65536 and adds up
    integers from there; the input pixel is the integer part.

    Returns:
        int64 [..., 6]: per pixel right, per pixel down, and at pixel (0, 0), for x and then for y.
    """
    a, b, c, d, e, f = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in matrix))
    rows = np.stack([a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5], axis=-1)
    return np.floor(rows * float(1 << FRACTION_BITS) + 0.5).astype(np.int64)
