"""The exact folding of VGG for images whose feature map is a single pixel."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

REDUCTION = 32  # the five poolings of VGG
CHANNELS, COPIES = 512, 49


def fold_vgg(module: nn.Module) -> nn.Module:
    """Fold a torchvision VGG, in place, for images whose feature map is 1x1 (32 to 63 pixels).

    torchvision repeats that one pixel to 7x7 before the first Linear (25088 -> 4096), so its weight summed over the 49
    copies (512 -> 4096) is the same function (exact to rounding) with 98.6 M parameters and multiply-accumulates fewer.
    Another feature map is an error of shapes afterwards, never another result.

    Args:
        module: torchvision's vgg16, vgg16_bn or vgg19, any dtype and device.

    Returns:
        `module`, its `avgpool` an identity and `classifier.0` a Linear(512, 4096).
    """
    wide = cast(nn.Linear, module.get_submodule("classifier.0"))
    narrow = nn.Linear(CHANNELS, wide.out_features, device="meta")
    narrow.weight = nn.Parameter(fold_weight(wide.weight.detach()))
    narrow.bias = wide.bias
    module.set_submodule("classifier.0", narrow)
    module.set_submodule("avgpool", nn.Identity())
    return module


def fold_weight(weight: Tensor) -> Tensor:
    """Sum the first Linear's weight [out, 512 * 49] over the 49 pixels of each channel: [out, 512]."""
    return weight.unflatten(1, (CHANNELS, COPIES)).sum(2)


def initialise_folded(module: nn.Module) -> None:
    """torchvision's initialisation of VGG, in the folded layout, from torch's global generator.

    The first Linear is drawn with standard deviation 0.07, that of a sum of 49 weights of 0.01: the same distribution
    of functions as the unfolded network's, and close to He's sqrt(2 / 512) = 0.0625. A step of gradient descent moves
    the folded weight once, not 49 copies, so at the same rate it moves 49 times less than the copies' sum would.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, layer.bias))
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
        elif isinstance(layer, nn.Linear):
            folded = layer.in_features == CHANNELS
            nn.init.normal_(layer.weight, 0, 0.01 * math.sqrt(COPIES) if folded else 0.01)
            nn.init.zeros_(layer.bias)


def folded_vgg(unfolded: nn.Module) -> nn.Module:
    """A folded VGG from an unfolded one on the meta device, with memory and fresh weights of its own."""
    module = fold_vgg(unfolded).to_empty(device=torch.get_default_device())
    initialise_folded(module)
    return module
