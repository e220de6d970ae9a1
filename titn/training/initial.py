"""Where a training starts from: the weights of another run, of a file of ours, or someone else's state dict."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from titn.errors import UserError
from titn.inference import find_weights
from titn.models.base import ImageTransformer
from titn.network import NetworkSpec
from titn.teachers.architectures import load_initial_weights
from titn.teachers.state_dict import check_fit, read_state_dict

_DISTILLATION = ("head_dist.", "norm_dist.")


def start_from(module: nn.Module, spec: NetworkSpec, source: str, runs_dir: str) -> str:
    """Load weights into a module that `spec` built; it changes only if they fit.

    Args:
        module: a student or a teacher.
        spec: what it is to be trained for.
        source: a run's folder or name (its last epoch's weights), a checkpoint folder, or a file: safetensors or one of
            `torch.save`.
        runs_dir: folder of run folders.

    Returns:
        One line on what was loaded, what was adapted and what stays as initialised.

    Raises:
        UserError: there is no such run or file, it is damaged, or it is another network's.
    """
    path = find_weights(source, runs_dir=runs_dir)
    stored = NetworkSpec.read(path) if path.suffix == ".safetensors" else None
    other_classes = stored is not None and stored.class_names != spec.class_names
    if not isinstance(module, ImageTransformer):
        return load_initial_weights(module, spec.name, path, other_classes=other_classes)
    return load_student(module, spec.name, path, other_classes=other_classes)


def load_student(module: ImageTransformer, name: str, path: Path, *, other_classes: bool = False) -> str:
    """Load a state dict into a student; the module changes only if everything fits.

    Heads stay as initialised where the number of classes differs or `other_classes` says so; tables over patches are
    resized (bicubic) to another image size; a distillation token that the file lacks stays as initialised, one that the
    student lacks is left out; weights for 3 channels are summed for images of one, and the reverse spread evenly.

    Args:
        module: the student.
        name: its name, for messages.
        path: state dict in a .safetensors file or one of `torch.save`; nothing in it is executed.
        other_classes: whether the file's classes are other ones, however many.

    Returns:
        One line on what was loaded and what was not.

    Raises:
        UserError: the file is missing or damaged, is no state dict, or does not fit the module.
    """
    weights, own, notes = read_state_dict(path), module.state_dict(), [f"{name} starts from {path}"]
    blocks = {key.split(".")[1] for key in weights if key.startswith("blocks.")}
    if blocks and len(blocks) != len(module.blocks):
        raise UserError(f"{path} has {len(blocks)} blocks, {name} has {len(module.blocks)}: say --depth {len(blocks)}")
    distilled = any(key.startswith(_DISTILLATION) for key in weights)
    if distilled and not module.distilled:
        weights = {key: value for key, value in weights.items() if not key.startswith(_DISTILLATION)}
        notes.append("its distillation token is left out")
    elif module.distilled and not distilled:
        weights |= {key: own[key] for key in own if key.startswith(_DISTILLATION)}
        notes.append("the distillation token and its head stay as initialised")
    if (classes := _number_of_classes(weights, own)) is not None or other_classes:
        weights |= {key: own[key] for key in own if key.startswith(("head.", "head_dist."))}
        now = f"for {module.num_classes} classes instead of {classes}" if classes else "for other classes"
        notes.append(f"the heads stay as initialised, {now}")
    resized = []
    for key in module.tables:
        if key in weights and weights[key].ndim == 2 and weights[key].shape[1:] == own[key].shape[1:]:
            before = len(weights[key])
            weights[key] = _fitted(weights[key], own[key], distilled, module)
            if len(weights[key]) - module.distilled != before - distilled:
                resized.append(f"{key} (from {before} to {len(own[key])} rows)")
    if resized:
        notes.append(f"resized: {', '.join(resized)}")
    stem = "pixel_embed.weight" if "pixel_embed.weight" in own else "patch_embed.weight"
    if stem in weights and weights[stem].ndim == 2 and weights[stem].shape[0] == own[stem].shape[0]:
        weights[stem], changed = _for_channels(weights[stem], own[stem], module.in_channels)
        if changed:
            notes.append("colours are summed to grey" if module.in_channels == 1 else "grey is spread over 3 channels")
    check_fit(weights, own, name, path)
    module.load_state_dict(weights)
    return "; ".join(notes)


def _number_of_classes(weights: dict[str, Tensor], own: dict[str, Tensor]) -> int | None:
    """Rows of the file's head where they are not the module's."""
    head = weights.get("head.weight")
    if head is None or "head.weight" not in own or head.shape[1:] != own["head.weight"].shape[1:]:
        return None
    return None if head.shape == own["head.weight"].shape else head.shape[0]


def _fitted(table: Tensor, own: Tensor, distilled: bool, module: ImageTransformer) -> Tensor:
    """A table [class token, patches, distillation token] for the module's patches and tokens.

    One without patches (a ViT's tokens, a TITN's pixel positions) only gains or loses the distillation token.
    """
    extra = table[-1:] if distilled else own[-1:]
    if len(own) == module.num_tokens:
        patches = len(table) - 1 - distilled
        grid, wanted = math.isqrt(max(patches, 0)), math.isqrt(module.num_patches)
        if grid * grid != patches or not grid:
            return table
        kept = resample_abs_pos_embed(table[None, : patches + 1], [wanted, wanted], [grid, grid])[0]
    elif len(own) == module.num_tokens - module.num_patches:
        kept = table[:1]
    else:
        return table
    return torch.cat([kept, extra]) if module.distilled else kept


def _for_channels(weight: Tensor, own: Tensor, channels: int) -> tuple[Tensor, bool]:
    """The first layer [width, channels * values] for as many channels as the module's images have."""
    values = own.shape[1] // channels
    if channels == 1 and weight.shape[1] == 3 * values:
        return weight.unflatten(1, (3, values)).sum(1), True
    if channels == 3 and weight.shape[1] == values:
        return weight.repeat(1, 3) / 3, True
    return weight, False
