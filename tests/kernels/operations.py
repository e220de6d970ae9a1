"""Every operation at a small size, as a function of the tensors that take gradients: for what holds for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from util import DEVICE, Inputs, block_shapes, randn, weights

from titn.kernels import (
    HeadWeights,
    MlpWeights,
    class_heads,
    distillation_loss,
    inner_block,
    layernorm_mlp,
    outer_attention,
    outer_block,
    passing_pixels,
    pixels_to_patches,
    short_attention,
)

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Operation:
    """One operation in one form.

    Attributes:
        run: (inputs, backend) to the output.
        tokens: shapes of the activations, whose first dimension is the batch where it is 3 or more.
        parameters: shapes of the parameters.
    """

    run: Callable[[Inputs, str], Tensor]
    tokens: Shapes
    parameters: Shapes

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.tokens, *self.parameters)

    def by(self, backend: str) -> Callable[..., Tensor]:
        """As a function of its inputs."""
        return lambda *inputs: self.run(inputs, backend)

    def draw(
        self, dtype: torch.dtype = torch.float32, parameters: torch.dtype | None = None, seed: int = 0, batch: int = 0
    ) -> list[Tensor]:
        """Tokens in `dtype`, parameters in theirs (None: the same); `batch`: the tokens' first dimension (0: as is)."""
        kinds = [dtype] * len(self.tokens) + [parameters or dtype] * len(self.parameters)
        shapes = [(batch or shape[0], *shape[1:]) for shape in self.tokens.values()]
        found = []
        for i, (name, shape, kind) in enumerate(
            zip(self.names, [*shapes, *self.parameters.values()], kinds, strict=True)
        ):
            norm = "norm" in name and name.endswith("weight")
            scale = 1.0 if name in self.tokens else shape[-1] ** -0.5 if len(shape) == 2 else 0.3
            found.append((randn(*shape, seed=100 * seed + i, scale=scale) + float(norm)).to(kind))
        return found

    def gradient(self, dtype: torch.dtype = torch.float32, seed: int = 99, batch: int = 0) -> Tensor:
        """An incoming gradient of the output's shape."""
        with torch.no_grad():
            shape = self.by("torch")(*self.draw(batch=batch)).shape
        return randn(*shape, seed=seed, dtype=dtype)


def _block(function: Callable[..., Tensor], heads: int, **options: Any) -> Callable[[Inputs, str], Tensor]:
    return lambda t, backend: function(t[0], *weights(t[1:]), num_heads=heads, backend=backend, **options)


def _mlp(residual: bool) -> Callable[[Inputs, str], Tensor]:
    return lambda t, backend: layernorm_mlp(t[0], MlpWeights(*t[1:]), residual=residual, backend=backend)  # type: ignore[arg-type]


def _passing(t: Inputs, backend: str) -> Tensor:
    """Patches and what comes of the pixels behind them, in one row for an image."""
    patches, pixels = passing_pixels(*t, backend=backend)  # type: ignore[arg-type]
    return torch.cat((patches.flatten(1), pixels.square().flatten(1).to(patches.dtype)), dim=1)


def _heads(t: Inputs, backend: str) -> Tensor:
    """Both logits side by side."""
    first, second = HeadWeights(*t[1:5]), HeadWeights(*t[5:])  # type: ignore[arg-type]
    return torch.cat(class_heads(t[0], (first, second), pooled=4, backend=backend), dim=1)  # type: ignore[arg-type]


def _attention(t: Inputs, backend: str, **options: Any) -> Tensor:
    return short_attention(*t, backend=backend, **options)  # type: ignore[arg-type]


def _loss(t: Inputs, backend: str, kind: str) -> Tensor:
    z, s = t
    assert z is not None
    batch, classes = z.shape
    a = torch.arange(batch, device=DEVICE) % classes
    answers = torch.cos(torch.outer(a + 1.0, torch.arange(classes, device=DEVICE) + 1.0))
    teacher: Any = {"hard": (a + 2) % classes, "top-k": tuple(answers.topk(5))}.get(kind, answers)
    lam = (a + 1.0) / (batch + 1)
    options: dict[str, Any] = {"kind": "soft" if kind == "top-k" else kind, "temperature": 2.5, "label_smoothing": 0.1}
    return distillation_loss(z, s, a, (a + 1) % classes, lam, teacher, backend=backend, **options)


_HALF = dict(list(block_shapes(12, 20).items())[:6])
_MLP: Shapes = {name.replace("norm2", "norm"): shape for name, shape in list(block_shapes(12, 20).items())[6:]}
_PATCHES: Shapes = {"norm_weight": (12,), "norm_bias": (12,), "weight": (32, 48), "bias": (32,)}
_HEAD: Shapes = {"norm_weight": (12,), "norm_bias": (12,), "weight": (7, 12), "bias": (7,)}
_HEADS: Shapes = _HEAD | {f"other_{name}": shape for name, shape in _HEAD.items()}
_LOGITS: Shapes = {"class_logits": (7, 10), "distillation_logits": (7, 10)}

OPERATIONS = {
    "inner_block": Operation(_block(inner_block, 4), {"x": (3, 16, 12)}, block_shapes(12, 48)),
    "outer_block": Operation(_block(outer_block, 2), {"x": (3, 5, 12)}, block_shapes(12, 20)),
    "outer_block of 80 tokens": Operation(_block(outer_block, 2), {"x": (2, 80, 12)}, block_shapes(12, 20)),
    "outer_attention": Operation(_block(outer_attention, 2, residual=False), {"x": (3, 5, 12)}, _HALF),
    "layernorm_mlp": Operation(_mlp(True), {"x": (2, 3, 12)}, _MLP),
    "layernorm_mlp alone": Operation(_mlp(False), {"x": (2, 3, 12)}, _MLP),
    "pixels_to_patches": Operation(
        lambda t, backend: pixels_to_patches(*t, backend=backend),  # type: ignore[arg-type]
        {"pixels": (3, 4, 4, 12), "patches": (3, 6, 32)},
        _PATCHES,
    ),
    "passing_pixels": Operation(_passing, {"pixels": (3, 4, 4, 12), "patches": (3, 6, 32)}, _PATCHES),
    "class_heads": Operation(_heads, {"x": (3, 6, 12)}, _HEADS),
    "short_attention": Operation(_attention, {"qkv": (3, 16, 3, 4, 3)}, {}),
    "short_attention of 40 tokens": Operation(_attention, {"qkv": (2, 40, 3, 1, 8)}, {}),
    "short_attention of three": Operation(_attention, dict.fromkeys(("q", "k", "v"), (3, 2, 5, 3)), {}),
    "distillation_loss": Operation(partial(_loss, kind="hard"), _LOGITS, {}),
    "distillation_loss soft": Operation(partial(_loss, kind="soft"), _LOGITS, {}),
    "distillation_loss top-k": Operation(partial(_loss, kind="top-k"), _LOGITS, {}),
    "distillation_loss standardized": Operation(partial(_loss, kind="standardized"), _LOGITS, {}),
    "distillation_loss decoupled": Operation(partial(_loss, kind="decoupled"), _LOGITS, {}),
}

NATIVE_OPERATIONS = (
    "inner_block",
    "outer_block",
    "outer_attention",
    "layernorm_mlp",
    "layernorm_mlp alone",
    "pixels_to_patches",
    "passing_pixels",
)
"""Those that the backend "native" has."""
