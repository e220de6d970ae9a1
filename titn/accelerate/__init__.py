"""Fused operations for other people's models: the blocks of timm's TNT and the MLPs of its ViT and DeiT."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from timm.models import tnt, vision_transformer
from torch import nn

from titn.accelerate.blocks import Fused, FusedTNTBlock, FusedViTBlock
from titn.errors import UserError

KERNELS = ("auto", "torch", "triton")
_FUSED: dict[type[nn.Module], type[Fused]] = {
    tnt.Block: FusedTNTBlock,
    vision_transformer.Block: FusedViTBlock,
}
_ORIGINAL: dict[type[nn.Module], type[nn.Module]] = {fused: original for original, fused in _FUSED.items()}


@dataclass
class Acceleration:
    """What `accelerate` did to a model; `print` shows it, blocks alike on one line.

    Attributes:
        model: the model, changed in place.
        kernels: the backend that its operations are called with.
        replaced: the operation that computes a submodule and its norm, by the submodule's name.
        kept: why a submodule is computed by timm's own code, always or in training, by its name.
    """

    model: nn.Module = field(repr=False)
    kernels: str
    replaced: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    def undo(self) -> None:
        """Give the model its own blocks back; the same as `titn.restore(model)`."""
        restore(self.model)

    def __str__(self) -> str:
        lines = [f"replaced, kernels={self.kernels!r}:", *_lines(self.replaced)]
        return "\n".join([*lines, *(("kept:", *_lines(self.kept)) if self.kept else ())])


def accelerate(model: nn.Module, *, kernels: str = "auto") -> Acceleration:
    """Compute the blocks of a timm model with titn's fused operations, in place; `restore` takes it back.

    Replaced are, wherever in `model` they are: both attentions, both MLPs and, in legacy models, the projection of
    pixels in the blocks of `timm.models.tnt.TNT`; the MLP half of `timm.models.vision_transformer.Block` (ViT, DeiT and
    other models made of it). Modules, parameters, state dict, modes, checkpointing of activations, copies and pickles
    stay as they were; `torch.compile` goes through. Drop path and layer scale are applied outside of the operations. A
    second call starts afresh. Replaced submodules are read, not called, and what a block computes is decided here:
    call `accelerate` again after a change of a block's modules, hooks or rates. A forward pass that finds a module of
    another class raises a UserError; other changes are not seen. Under autocast the Triton kernels may keep the stream
    of pixels in autocast's dtype, where timm's own sums are in float32.

    Args:
        model: on any device, in any floating dtype; no data is read.
        kernels: "auto" (each operation's own choice: its Triton kernels on a GPU, its native code on a CPU, PyTorch
            where there is neither), "torch" or "triton".
            "triton" keeps what is too large for the kernels; where they cannot run for another reason (device, dtype),
            the forward pass raises BackendUnavailable.

    Raises:
        UserError: an unknown backend, or nothing in the model can be replaced.
    """
    if kernels not in KERNELS:
        raise UserError(f"unknown kernels {kernels!r}; choose from {', '.join(KERNELS)}")
    if not isinstance(model, nn.Module):
        raise UserError(f"titn.accelerate needs a torch.nn.Module, not {type(model).__name__}")
    restore(model)
    result = Acceleration(model, kernels)
    for name, block in _blocks(model):
        if type(block) not in _FUSED:
            result.kept[name] = f"{type(block).__name__} is no block that has fused operations"
        elif "forward" in vars(block):
            result.kept[name] = "it has a forward of its own"
        else:
            _replace(name, block, result)
    if not result.replaced:
        if not result.kept:
            raise UserError(f"{type(model).__name__} has none of the blocks of timm's TNT, ViT or DeiT to replace")
        (name, reason), *others = result.kept.items()
        more = f" and {len(others)} more" if others else ""
        raise UserError(f"nothing in {type(model).__name__} can be replaced: {name}: {reason}{more}")
    return result


def restore(model: nn.Module) -> None:
    """Give a model, or a copy of it, back the blocks that `accelerate` replaced; harmless where there are none.

    Raises:
        UserError: a replaced block has since been given another class by other code.
    """
    blocks = [(name, module) for name, module in model.named_modules() if isinstance(module, Fused)]
    for name, block in blocks:
        if type(block) not in _ORIGINAL:
            raise UserError(f"{name} has become {type(block).__name__} since titn.accelerate: undo that first")
    for _, block in blocks:
        block.unfuse()
        object.__setattr__(block, "__class__", _ORIGINAL[type(block)])


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of timm's blocks in the model, and of what a TNT or ViT has in place of them."""
    found: dict[int, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, tuple(_FUSED)):
            found.setdefault(id(module), name)
        elif isinstance(module, (tnt.TNT, vision_transformer.VisionTransformer)):
            prefix = f"{name}." if name else ""
            found.update((id(b), f"{prefix}blocks.{key}") for key, b in module.blocks.named_children())
    modules = {id(module): module for module in model.modules()}
    return ((name, modules[key]) for key, name in found.items())


def _replace(name: str, block: nn.Module, result: Acceleration) -> None:
    """Make timm's `block` a fused one if any of its parts can be, and write to `result` what became of each."""
    block.__class__ = _FUSED[type(block)]
    assert isinstance(block, Fused)
    reasons = block.fuse(result.kernels)
    evaluation, training = block.titn_evaluation.operations, block.titn_training.operations
    prefix = f"{name}." if name else ""
    for part, reason in reasons.items():
        if reason is not None:
            result.kept[f"{prefix}{part}"] = reason
            continue
        result.replaced[f"{prefix}{part}"] = _label(evaluation[part], training[part])
        if training[part] is None:
            module: Any = block.get_submodule(part)
            rate = (module.attn_drop if hasattr(module, "attn_drop") else module.drop1).p
            result.kept[f"{prefix}{part}"] = f"in training, dropout {rate} inside it is not part of the fused operation"
    if isinstance(block, FusedViTBlock):
        result.kept[f"{prefix}attn"] = "of ViT blocks only the MLP half is replaced"
    if all(reasons.values()):
        restore(block)


def _label(evaluation: str | None, training: str | None) -> str:
    if evaluation == training:
        return str(evaluation)
    return f"{evaluation} in evaluation" + (f", {training} in training" if training else "")


def _lines(entries: dict[str, str]) -> list[str]:
    """One line for all entries that differ in one number of their names only."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, text in entries.items():
        number = re.search(r"(?<=\.)\d+(?=\.)|(?<=\.)\d+$|^\d+(?=\.)", name)
        form = name if number is None else f"{name[: number.start()]}{{}}{name[number.end() :]}"
        groups.setdefault((form, text), []).append("" if number is None else number.group())
    return [f"  {form.replace('{}', _range(numbers))}: {text}" for (form, text), numbers in groups.items()]


def _range(numbers: list[str]) -> str:
    first, last = numbers[0], numbers[-1]
    if len(numbers) == 1 or not first:
        return first
    consecutive = [int(n) for n in numbers] == list(range(int(first), int(last) + 1))
    return f"{first}-{last}" if consecutive else "{" + ",".join(numbers) + "}"
