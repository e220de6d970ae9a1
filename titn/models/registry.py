"""The models by name."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from titn.errors import UserError
from titn.models.base import ImageTransformer
from titn.models.tnt import TransformerInTransformer
from titn.models.vit import VisionTransformer

_ARCHITECTURES: dict[str, tuple[type[ImageTransformer], dict[str, Any]]] = {
    "titn": (TransformerInTransformer, {}),
    "titn_large_patch": (TransformerInTransformer, {"patch_size": 16, "pixel_size": 4}),
    "titn_authors": (TransformerInTransformer, {"second_position": True}),
    "titn_patch4": (TransformerInTransformer, {"patch_size": 4}),
    "titn_patch4_small": (TransformerInTransformer, {"patch_size": 4, "depth": 6}),
    "titn_patch4_pixel1": (TransformerInTransformer, {"patch_size": 4, "pixel_size": 1}),
    "tnt": (TransformerInTransformer, {"distilled": False}),
    "deit": (VisionTransformer, {"distilled": True}),
    "vit": (VisionTransformer, {}),
}
MODELS = tuple(_ARCHITECTURES)


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
        overrides: constructor arguments of the model: depth, patch_size, patch_dim, patch_heads, pool, drop_rate,
            drop_path_rate, kernels and, with a pixel stream, pixel_size, pixel_dim, pixel_heads.

    Raises:
        UserError: no such model or option, or a value that does not fit.
    """
    if name not in _ARCHITECTURES:
        raise UserError(_unknown("model", name, MODELS))
    architecture, settings = _ARCHITECTURES[name]
    known = tuple(inspect.signature(architecture).parameters)
    for option in overrides:
        if option not in known:
            raise UserError(_unknown(f"option of model {name}:", option, known))
    arguments = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return architecture(**{**settings, **arguments, **overrides})


def _unknown(what: str, name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {what} {name!r}; {hint}choose from {', '.join(known)}"
