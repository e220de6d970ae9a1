"""Our models in timm's registry: `timm.create_model("titn", num_classes=..., in_chans=..., img_size=...)`.

A name that timm already has for something else gets the prefix `titn_`. As in timm, a distilled model returns
the average of its two heads until `set_distilled_training(True)`.

`pretrained_cfg`, from which timm makes the preprocessing, says what the model was made for. With weights that
`titn.network.save_network` wrote (`checkpoint_path=RUN/checkpoints/epoch-0032/model.safetensors`, or
`pretrained=True, pretrained_cfg_overlay={"file": RUN}`) sizes that are not given, mean, deviation and class names are
the file's.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model

from titn.errors import UserError
from titn.models.base import ImageTransformer, pool_from_timm
from titn.models.metadata import StoredNetwork
from titn.models.registry import MODELS, SIZES, create_model
from titn.models.sizes import ViTSizes, check_whole

__all__: list[str] = []  # timm appends the names it registers

TIMM_NAMES = {name: f"titn_{name}" if is_model(name) else name for name in MODELS}
"""timm's name of each of our models."""

_WEIGHTS = "model.safetensors"
_CIFAR100 = {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)}


def _default_cfg(name: str) -> dict[str, Any]:
    sizes = SIZES[name]
    return {
        "url": "",
        "num_classes": sizes.num_classes,
        "input_size": (sizes.in_channels, sizes.image_size, sizes.image_size),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",  # as titn.data.decoding resizes
        **_CIFAR100,
        "first_conv": "patch_embed" if isinstance(sizes, ViTSizes) else "pixel_embed",
        "classifier": ("head", "head_dist") if sizes.distilled else "head",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs({TIMM_NAMES[name]: _default_cfg(name) for name in MODELS})


def _build(
    model: str,
    *,
    in_chans: int,
    img_size: int | tuple[int, int],
    num_classes: int,
    global_pool: str | None = None,
    **overrides: Any,
) -> ImageTransformer:
    if global_pool is not None:
        overrides["pool"] = pool_from_timm(global_pool)
    module = create_model(model, num_classes, in_chans, _side(img_size), **overrides)
    module.set_distilled_training(False)
    return module


def _entry(name: str) -> Any:
    def build(**arguments: Any) -> ImageTransformer:
        return _build(name, **arguments)

    def entry(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> ImageTransformer:
        overlay = dict(pretrained_cfg_overlay or {})
        if overlay.get("file"):
            overlay["file"] = str(_weights_file(Path(overlay["file"])))
        stored = _stored(name, _checkpoint_path(sys._getframe(1)) or overlay.get("file"))
        if stored is not None:
            arguments = {**options(stored), **arguments}
        if pretrained_cfg is None:
            overlay = {**(_made_for(name, arguments) if stored is None else _trained_for(stored)), **overlay}
        if "img_size" in arguments:
            arguments["img_size"] = _side(arguments["img_size"])
        return build_model_with_cfg(
            build,
            TIMM_NAMES[name],
            pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=overlay,
            **arguments,
        )

    entry.__name__ = entry.__qualname__ = TIMM_NAMES[name]
    return entry


def _made_for(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Entries of pretrained_cfg for a model without weights: the arguments' sizes, statistics for these channels."""
    own = SIZES[name]
    channels = check_whole("in_chans", arguments.get("in_chans", own.in_channels))
    side = _side(arguments.get("img_size", own.image_size))
    classes = check_whole("num_classes", arguments.get("num_classes", own.num_classes), at_least=0)
    statistics = _CIFAR100 if channels == 3 else {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    return {"num_classes": classes, "input_size": (channels, side, side), **statistics}


def _trained_for(stored: StoredNetwork) -> dict[str, Any]:
    """Entries of pretrained_cfg for the weights in a file."""
    sizes = stored.sizes
    return {
        "num_classes": sizes.num_classes,
        "input_size": (sizes.in_channels, sizes.image_size, sizes.image_size),
        "mean": stored.mean,
        "std": stored.std,
        "label_names": stored.class_names,
    }


def options(stored: StoredNetwork) -> dict[str, Any]:
    """The sizes in a file that pretrained_cfg has no place for, as arguments of the model."""
    in_cfg = ("num_classes", "in_channels", "image_size")
    return {name: value for name, value in asdict(stored.sizes).items() if name not in in_cfg}


def _stored(name: str, path: str | Path | None) -> StoredNetwork | None:
    """What is known of the weights that will be loaded into the model `name`; None for weights of other programs.

    Raises:
        UserError: the file is another model's.
    """
    if path is None or Path(path).suffix != ".safetensors":
        return None
    stored = StoredNetwork.read(path)
    if stored is not None and stored.name != name:
        known = (
            f"ask timm for {TIMM_NAMES[stored.name]!r}" if stored.name in MODELS else "timm has no such teacher of ours"
        )
        raise UserError(f"{path} holds the weights of {stored.name}, not of {name}; {known}")
    return stored


def _checkpoint_path(caller: FrameType) -> Path | None:
    """`checkpoint_path` of the call of timm.create_model that builds the model.

    timm tells no model of it and loads the file after the model is made, without the file's metadata: the calling
    frame is the only place where it stands.

    Raises:
        UserError: it is a folder.
    """
    if caller.f_code is not timm.create_model.__code__ or not caller.f_locals["checkpoint_path"]:
        return None
    path = Path(caller.f_locals["checkpoint_path"])
    if path.is_dir():
        raise UserError(f"timm loads a file, and {path} is a folder: give checkpoint_path={str(_weights_file(path))!r}")
    return path


def _weights_file(path: Path) -> Path:
    """`path`, or the weights in this checkpoint, or those that were last saved in this run.

    Raises:
        UserError: a folder without weights.
    """
    if not path.is_dir():
        return path
    found = [path / _WEIGHTS, *sorted(path.glob(f"checkpoints/epoch-*/{_WEIGHTS}"))]
    files = [file for file in found if file.is_file()]
    if not files:
        raise UserError(f"{path} is neither a run nor a checkpoint: it holds no {_WEIGHTS}")
    return max(files, key=lambda file: file.stat().st_mtime_ns)


def _side(img_size: Any) -> int:
    """timm's `img_size`, a number or (height, width), as the side of a square."""
    sides = {
        check_whole("img_size", side) for side in (img_size if isinstance(img_size, (tuple, list)) else [img_size])
    }
    if len(sides) != 1:
        raise UserError(f"img_size must be square, not {tuple(img_size)}")
    return sides.pop()


for _name in MODELS:
    register_model(_entry(_name))
