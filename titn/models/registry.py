"""The models by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from titn.errors import UserError
from titn.models.base import ImageTransformer
from titn.models.sizes import Sizes, TNTSizes, TransformerSizes, ViTSizes
from titn.models.tnt import TransformerInTransformer
from titn.models.vit import VisionTransformer

SIZES: dict[str, TransformerSizes] = {
    "titn": TNTSizes(),
    "titn_large_patch": TNTSizes(patch_size=16, pixel_size=4),
    "titn_authors": TNTSizes(second_position=True),
    "titn_patch4": TNTSizes(patch_size=4),
    "titn_patch4_small": TNTSizes(patch_size=4, depth=6),
    "titn_patch4_pixel1": TNTSizes(patch_size=4, pixel_size=1),
    "tnt": TNTSizes(distilled=False),
    "deit": ViTSizes(distilled=True),
    "vit": ViTSizes(),
}
MODELS = tuple(SIZES)
_ARCHITECTURES: dict[type[Sizes], Callable[..., ImageTransformer]] = {
    TNTSizes: TransformerInTransformer,
    ViTSizes: VisionTransformer,
}
_OPTIONS = ("drop_rate", "drop_path_rate", "kernels")


def create_model(
    name: str, num_classes: int = 100, in_channels: int = 3, image_size: int = 32, **overrides: Any
) -> ImageTransformer:
    """A freshly initialised model.

    Args:
        name: one of `MODELS`. `titn` is the paper's; `titn_patch4` has 64 patches of 4 pixels instead of 16 of 16,
            `titn_patch4_small` half its depth, `titn_patch4_pixel1` 64 patches of 16 single image pixels.
        num_classes: outputs; 0 leaves the heads out.
        in_channels: channels of the images.
        image_size: height and width of the images in pixels.
        overrides: other sizes than the name's (the fields of `TNTSizes` or `ViTSizes`: depth, patch_size, patch_dim,
            patch_heads, pool and, with a pixel stream, pixel_size, pixel_dim, pixel_heads), and drop_rate,
            drop_path_rate, kernels.

    Raises:
        UserError: no such model or option, or a value that does not fit.
    """
    known = (*(field.name for field in fields(_named(name))), *_OPTIONS)
    for option in overrides:
        if option not in known:
            raise UserError(_unknown(f"option of model {name}:", option, known))
    options = {option: overrides.pop(option) for option in _OPTIONS if option in overrides}
    return build(model_sizes(name, num_classes, in_channels, image_size, **overrides), **options)


def model_sizes(
    name: str, num_classes: int = 100, in_channels: int = 3, image_size: int = 32, **changes: Any
) -> TransformerSizes:
    """Sizes of the model `name` for such images and classes; `changes` are other fields of them.

    Raises:
        UserError: no such model, or a value that does not fit.
    """
    sizes = _named(name)
    for option in changes:
        if option not in (field.name for field in fields(sizes)):
            raise UserError(f"{name} has no {option}")
    return replace(sizes, num_classes=num_classes, in_channels=in_channels, image_size=image_size, **changes)


def build(sizes: TransformerSizes, **options: Any) -> ImageTransformer:
    """A freshly initialised model of these sizes; `options` are drop_rate, drop_path_rate and kernels."""
    return _ARCHITECTURES[type(sizes)](sizes, **options)


def _named(name: str) -> TransformerSizes:
    if name not in SIZES:
        raise UserError(_unknown("model", name, MODELS))
    return SIZES[name]


def _unknown(what: str, name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {what} {name!r}; {hint}choose from {', '.join(known)}"
