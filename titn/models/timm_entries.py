"""Our models in timm's registry: `timm.create_model("titn", num_classes=..., in_chans=..., img_size=...)`.

A name that timm already has for something else gets the prefix `titn_`. As in timm, a distilled model returns
the average of its two heads until `set_distilled_training(True)`.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model

from titn.errors import UserError
from titn.models.base import ImageTransformer, pool_from_timm
from titn.models.registry import MODELS, create_model

__all__: list[str] = []  # timm appends the names it registers

TIMM_NAMES = {name: f"titn_{name}" if is_model(name) else name for name in MODELS}
"""timm's name of each of our models."""


def _default_cfg(name: str) -> dict[str, Any]:
    pixels = name not in ("vit", "deit")
    return {
        "url": "",
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.5071, 0.4865, 0.4409),  # CIFAR-100's own
        "std": (0.2673, 0.2564, 0.2762),
        "first_conv": "pixel_embed" if pixels else "patch_embed",
        "classifier": "head" if name in ("tnt", "vit") else ("head", "head_dist"),
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs({TIMM_NAMES[name]: _default_cfg(name) for name in MODELS})


def _build(
    model: str,
    *,
    in_chans: int = 3,
    img_size: int | tuple[int, int] = 32,
    num_classes: int = 100,
    global_pool: str | None = None,
    **overrides: Any,
) -> ImageTransformer:
    if isinstance(img_size, (tuple, list)):
        if len(set(img_size)) != 1:
            raise UserError(f"img_size must be square, not {tuple(img_size)}")
        img_size = img_size[0]
    if global_pool is not None:
        overrides["pool"] = pool_from_timm(global_pool)
    module = create_model(model, num_classes, in_chans, img_size, **overrides)
    module.set_distilled_training(False)
    return module


def _entry(name: str) -> Any:
    def build(**arguments: Any) -> ImageTransformer:
        return _build(name, **arguments)

    def entry(pretrained: bool = False, **arguments: Any) -> ImageTransformer:
        return build_model_with_cfg(build, TIMM_NAMES[name], pretrained, **arguments)

    entry.__name__ = entry.__qualname__ = TIMM_NAMES[name]
    return entry


for _name in MODELS:
    register_model(_entry(_name))
