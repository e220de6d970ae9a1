"""Small convolutional teachers that train fast, in the manner of the CIFAR speed runs (arXiv 2404.00498).

    image ── 2x2 patches, whitened ── stage ── stage ── stage ── largest of each channel ── linear ── x 1/9 ── logits
    stage:   3x3 convolution ── max-pooling 2x2 ── norm ── GELU ── 3x3 convolution ── norm ── GELU

Whitening needs no look at the data: the filters of the first layer are the cosines of a 2x2 patch, per colour of an
opponent basis, which are nearly uncorrelated in natural images, and batch normalisation brings each to variance 1. Each
has its negative beside it, so that GELU loses neither sign. All of it is trained further. The first filters of a
convolution start as the identity, so that a deep network begins as a shallow one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

WIDTHS = {
    "cnn_7m": (16, 32, 64),
    "cnn_17m": (32, 64, 64),
    "cnn_118m": (64, 256, 256),
    "cnn_302m": (128, 384, 384),
}
"""Channels of the three stages, by a name that says the million multiply-accumulates at 3x32x32."""
HEAD = "27"
"""Name of the classifying layer."""
MINIMUM_SIZE = 9
"""Height and width, in pixels, that three poolings after the patches leave something of."""
LOGIT_SCALE = 1 / 9


class ChannelsLast(nn.Module):
    """Brings [B, C, H, W] into the memory layout in which small convolutions are fastest; the values stay."""

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)


class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def speed_cnn(name: str, num_classes: int, in_channels: int) -> nn.Sequential:
    """A fresh network: float images [B, in_channels, H, W], sides of at least 9, to logits [B, num_classes].

    Args:
        name: a key of `WIDTHS`.
        num_classes: number of classes.
        in_channels: channels of an image, 1 or 3.
    """
    basis = patch_basis(in_channels)
    width = 2 * len(basis)
    stem = nn.Conv2d(in_channels, width, 2, bias=False)
    with torch.no_grad():
        stem.weight.copy_(torch.cat([basis, -basis]))
    layers: list[nn.Module] = [stem, ChannelsLast(), nn.BatchNorm2d(width), nn.GELU()]
    for outputs in WIDTHS[name]:
        layers += [_convolution(width, outputs), nn.MaxPool2d(2), nn.BatchNorm2d(outputs), nn.GELU()]
        layers += [_convolution(outputs, outputs), nn.BatchNorm2d(outputs), nn.GELU()]
        width = outputs
    head = nn.Linear(width, num_classes, bias=False)
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), head, Scale(LOGIT_SCALE))


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight[:inputs])
    return layer


def patch_basis(channels: int) -> Tensor:
    """Orthonormal filters float32 [4 channels, channels, 2, 2]: the cosines of a patch for each colour of a basis."""
    line = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)
    colours = torch.ones(1, 1)
    if channels == 3:
        opponents = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
        colours = nn.functional.normalize(opponents, dim=1)
    return torch.einsum("kc,ai,bj->kabcij", colours, line, line).reshape(-1, channels, 2, 2)
