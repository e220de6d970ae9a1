"""Teachers by name: eight torchvision networks made to work on small images, and small ones that train fast.

Below 96 pixels torchvision's networks keep their layers and the shapes of their weights, so that ImageNet weights fit,
but shrink the image 8-fold, as is usual for CIFAR: ResNets and DenseNet get a stem of stride 1 and no max-pooling,
MobileNetV3 stride 1 in its stem and its first down-sampling block, SqueezeNet a padded stem of stride 1. From 96 pixels
on they are torchvision's own. VGG stays as it is, but where its feature map is 1x1 (32 to 63 pixels) it is folded
(`titn.teachers.vgg`), which computes the same function.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn
from torchvision import models

from titn.errors import UserError
from titn.own_parts import check_network, is_own, own_network
from titn.teachers.speed_cnn import HEAD, MINIMUM_SIZE, WIDTHS, speed_cnn
from titn.teachers.state_dict import check_fit, read_state_dict
from titn.teachers.vgg import CHANNELS, COPIES, REDUCTION, fold_weight, folded_vgg

_SMALL_BELOW = 96
# DenseNet files older than torchvision 0.3 name the layers norm.1, conv.1, norm.2 and conv.2.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


@dataclass(frozen=True)
class _Architecture:
    """How to build one teacher; `stem` and `head` name its first convolution and its classifying layer.

    `any_channels`: it is built for a number of channels; all others for three.
    """

    build: Callable[..., nn.Module]
    stem: str
    head: str
    adapt: Callable[[nn.Module], None] | None = None
    minimum_size: int = 8
    vgg: bool = False
    any_channels: bool = False


def _small_cnn(num_classes: int) -> nn.Sequential:
    """Six 3x3 convolutions with batch normalisation and ReLU, each second one halving the image, then a global average.

    9.5 M multiply-accumulates on a 32x32 image of one channel; 99 % on the held-out digits after 12 epochs.
    """

    def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    return nn.Sequential(
        *(stage(3, 32, 2), stage(32, 32, 1), stage(32, 64, 2), stage(64, 64, 1), stage(64, 128, 2), stage(128, 128, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes)),
    )


def _convolution(module: nn.Module, name: str) -> nn.Conv2d:
    return cast(nn.Conv2d, module.get_submodule(name))


def _adapt_resnet(module: nn.Module) -> None:
    _convolution(module, "conv1").stride = (1, 1)
    module.set_submodule("maxpool", nn.Identity())


def _adapt_densenet(module: nn.Module) -> None:
    _convolution(module, "features.conv0").stride = (1, 1)
    module.set_submodule("features.pool0", nn.Identity())


def _adapt_mobilenet(module: nn.Module) -> None:
    for name in ("features.0.0", "features.2.block.1.0"):
        _convolution(module, name).stride = (1, 1)


def _adapt_squeezenet(module: nn.Module) -> None:
    stem = _convolution(module, "features.0")
    stem.stride, stem.padding = (1, 1), (1, 1)


_vgg = partial(_Architecture, stem="features.0", head="classifier.6", minimum_size=REDUCTION, vgg=True)
_ARCHITECTURES = {
    "densenet121": _Architecture(models.densenet121, "features.conv0", "classifier", _adapt_densenet),
    "mobilenet_v3_large": _Architecture(models.mobilenet_v3_large, "features.0.0", "classifier.3", _adapt_mobilenet),
    "resnet50": _Architecture(models.resnet50, "conv1", "fc", _adapt_resnet),
    "wide_resnet50_2": _Architecture(models.wide_resnet50_2, "conv1", "fc", _adapt_resnet),
    "squeezenet1_1": _Architecture(models.squeezenet1_1, "features.0", "classifier.1", _adapt_squeezenet),
    "vgg16": _vgg(models.vgg16),
    "vgg16_bn": _vgg(models.vgg16_bn),
    "vgg19": _vgg(models.vgg19),
    "small_cnn": _Architecture(_small_cnn, "0.0", "8"),
} | {
    name: _Architecture(partial(speed_cnn, name), "", HEAD, minimum_size=MINIMUM_SIZE, any_channels=True)
    for name in WIDTHS
}
TEACHERS = tuple(_ARCHITECTURES)
_TIMM = "timm:"


def is_teacher(name: str) -> bool:
    """Whether this names an architecture: one of `TEACHERS`, `timm:NAME`, or an own one."""
    return name in TEACHERS or name.startswith(_TIMM) or is_own("teacher", name)


def _architecture(name: str) -> _Architecture:
    if is_own("teacher", name):
        return _Architecture(cast(Callable[..., nn.Module], own_network(name)), "", "")
    if name.startswith(_TIMM):
        return _of_timm(name)
    if name not in _ARCHITECTURES:
        close = difflib.get_close_matches(name.lower(), TEACHERS, 1)
        hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(TEACHERS)}"
        raise UserError(f"unknown teacher {name!r}; {hint}")
    return _ARCHITECTURES[name]


def _of_timm(name: str) -> _Architecture:
    """timm's own network of that name, as it is at any image size.

    Raises:
        UserError: timm has none.
    """
    model = name.removeprefix(_TIMM)
    if not timm.is_model(model):
        known = timm.list_models()
        close = difflib.get_close_matches(model, known, 1)
        hint = f"did you mean {_TIMM}{close[0]}?" if close else f"timm.list_models() has {len(known):,}"
        raise UserError(f"timm has no model {model!r}; {hint}")
    facts = get_pretrained_cfg(model)
    stem, head = (getattr(facts, key, None) for key in ("first_conv", "classifier"))
    return _Architecture(
        partial(_timm_network, model),
        stem if isinstance(stem, str) else "",
        head if isinstance(head, str) else "",
        minimum_size=1,
    )


def _timm_network(model: str, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    options = {"num_classes": num_classes, "in_chans": in_channels}
    try:
        return cast(nn.Module, timm.create_model(model, img_size=image_size, **options))
    except TypeError:  # a network for images of any size
        return cast(nn.Module, timm.create_model(model, **options))


def create_teacher(
    name: str, num_classes: int, in_channels: int = 3, image_size: int = 32, *, fold: bool = True
) -> nn.Module:
    """A freshly initialised teacher: float images [B, in_channels, image_size, image_size] to logits [B, num_classes].

    Initialised as torchvision does it, from torch's global generator; for images of one channel the stem is summed over
    its three, so that the network computes what it would for the grey image as three equal channels.

    Args:
        name: one of `TEACHERS`, `timm:NAME` for any of timm's, or an own one.
        num_classes: number of classes.
        in_channels: channels of an image, 1 or 3.
        image_size: height and width, in pixels; at least 32 for VGG, else 8.
        fold: fold VGG where its feature map is 1x1 (`titn.teachers.vgg`); False: torchvision's layout.

    Raises:
        UserError: unknown name, neither 1 nor 3 channels, or images too small for the network.
    """
    kind = _architecture(name)
    if name not in TEACHERS:
        module = kind.build(num_classes, in_channels, image_size)
        return check_network(module, name, num_classes, in_channels, image_size)
    if in_channels not in (1, 3):
        raise UserError(f"teachers take images of 1 or 3 channels, not {in_channels}")
    if image_size < kind.minimum_size:
        raise UserError(
            f"{name} needs images of at least {kind.minimum_size} pixels, not {image_size}; use a larger --image-size"
        )
    if kind.vgg and fold and image_size < 2 * REDUCTION:
        with torch.device("meta"):
            unfolded = kind.build(num_classes=num_classes)
        module = folded_vgg(unfolded)
    elif kind.any_channels:
        return kind.build(num_classes=num_classes, in_channels=in_channels)
    else:
        module = kind.build(num_classes=num_classes)
    if kind.adapt is not None and image_size < _SMALL_BELOW:
        kind.adapt(module)
    if in_channels == 1:
        stem = _convolution(module, kind.stem)
        stem.in_channels = 1
        stem.weight = nn.Parameter(stem.weight.detach().sum(1, keepdim=True))
    return module


def load_initial_weights(module: nn.Module, name: str, path: str | Path, *, other_classes: bool = False) -> str:
    """Load a state dict of torchvision, of timm for `timm:NAME`, into a teacher of `create_teacher`.

    The module changes only if everything fits.

    VGG's first Linear is folded where the module's is; the classifier stays as initialised where the number of classes
    differs; a stem for 3 channels is summed over them for images of one.

    Args:
        module: the teacher.
        name: its name, one of `TEACHERS`.
        path: state dict in a .safetensors file or one of `torch.save`; nothing in it is executed.
        other_classes: whether the file's classes are other ones, however many: the classifier stays as initialised.

    Returns:
        One line on what was loaded and what was not.

    Raises:
        UserError: the file is missing or damaged, is no state dict, or does not fit the module.
    """
    kind, path = _architecture(name), Path(path)
    weights = {_OLD_DENSENET.sub(r"\1\2.", key): tensor for key, tensor in read_state_dict(path).items()}
    own = module.state_dict()
    notes = [f"{name} starts from {path}"]

    def shape(key: str) -> tuple[int, ...]:
        return tuple(weights[key].shape) if key in weights else ()

    stem, first, head = f"{kind.stem}.weight", "classifier.0.weight", f"{kind.head}.weight"
    if shape(stem)[1:2] == (3,) and stem in own and own[stem].shape[1] == 1:
        weights[stem] = weights[stem].sum(1, keepdim=True)
        notes.append("the stem is summed over its 3 channels")
    if kind.vgg and shape(first)[1:] == (CHANNELS * COPIES,) and own[first].shape[1] == CHANNELS:
        weights[first] = fold_weight(weights[first])
    found, wanted = shape(head), tuple(own[head].shape) if head in own else ()
    if found[1:] == wanted[1:] and found[:1] not in ((), wanted[:1]):
        weights |= {key: own[key] for key in (head, f"{kind.head}.bias")}
        notes.append(f"the classifier stays as initialised, for {wanted[0]} classes instead of the file's {found[0]}")
    elif other_classes and found == wanted and wanted:
        weights |= {key: own[key] for key in (head, f"{kind.head}.bias")}
        notes.append("the classifier stays as initialised, for other classes")
    check_fit(weights, own, name, path)
    module.load_state_dict(weights)
    return "; ".join(notes)
