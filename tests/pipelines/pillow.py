"""Between uint8 arrays, tensors and Pillow images."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_pillow(image: np.ndarray) -> Image.Image:
    """uint8 [H, W, C] as mode RGB, or L for one channel."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def from_pillow(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, C]."""
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def each(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """`change` applied by Pillow to every image, uint8 [N, H, W, C]."""
    return np.stack([from_pillow(change(to_pillow(image))) for image in images])


def to_planes(images: np.ndarray, device: str) -> Tensor:
    """uint8 [N, C, H, W] on `device`."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)


def from_planes(images: Tensor) -> np.ndarray:
    """uint8 [N, H, W, C]."""
    return images.permute(0, 2, 3, 1).cpu().numpy()


def grey(images: np.ndarray) -> np.ndarray:
    """The green channel alone, uint8 [N, H, W, 1]."""
    return images[:, :, :, 1:2]
