"""The layers of the pixel and the patch stream; the fused operations do their arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from titn.kernels import (
    AttentionWeights,
    MlpWeights,
    inner_block,
    layernorm_mlp,
    outer_attention,
    outer_block,
    passing_pixels,
)

MLP_RATIO = 4
LAYER_NORM_EPS = 1e-5


class _TransformerLayer(nn.Module):
    """Parameters of one pre-norm Transformer layer of width `dim`; q, k and v are packed as rows q, k, v of `qkv`."""

    def __init__(self, dim: int, heads: int, kernels: str) -> None:
        super().__init__()
        self.heads = heads
        self.kernels = kernels
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def attention(self) -> AttentionWeights:
        """The weights of the attention half."""
        return AttentionWeights(*_parameters(self.norm1, self.qkv, self.proj))

    def mlp(self) -> MlpWeights:
        """The weights of the MLP half."""
        return MlpWeights(*_parameters(self.norm2, self.fc1, self.fc2))


class PixelLayer(_TransformerLayer):
    """The inner Transformer layer (TNT equation 1), over the pixels of every patch."""

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, N, M, C] to [B, N, M, C]: attention among the M pixels of each patch, then the MLP, both residual."""
        settings: Any = {"num_heads": self.heads, "eps": LAYER_NORM_EPS, "backend": self.kernels}
        return inner_block(pixels.flatten(0, 1), self.attention(), self.mlp(), **settings).view(pixels.shape)


class PixelsToPatches(nn.Module):
    """Adds every patch's normalised and projected pixels to its token (TNT equation 2)."""

    def __init__(self, pixels: int, pixel_dim: int, patch_dim: int, kernels: str) -> None:
        super().__init__()
        self.kernels = kernels
        self.norm = nn.LayerNorm(pixel_dim, eps=LAYER_NORM_EPS)
        self.proj = nn.Linear(pixels * pixel_dim, patch_dim)

    def forward(self, pixels: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [B, N, M, C] and patches [B, T, D] to patches [B, T, D], of which rows 1..N change, and the pixels."""
        return passing_pixels(
            pixels,
            patches,
            self.norm.weight,
            self.norm.bias,
            self.proj.weight,
            self.proj.bias,
            eps=LAYER_NORM_EPS,
            backend=self.kernels,
        )


class PatchLayer(_TransformerLayer):
    """The outer Transformer layer, over the tokens of an image.

    `drop_path` is the probability of leaving out a residual branch for an image in training (stochastic depth,
    arXiv 1603.09382); None builds no such branch at all.
    """

    keep: Tensor | None

    def __init__(self, dim: int, heads: int, kernels: str, drop_path: float | None = None) -> None:
        super().__init__(dim, heads, kernels)
        # a tensor, so that layers that differ only in their rate share one compilation
        self.register_buffer("keep", None if drop_path is None else torch.tensor(1.0 - drop_path), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        settings: Any = {"eps": LAYER_NORM_EPS, "backend": self.kernels}
        attention, mlp = self.attention(), self.mlp()
        if self.keep is None or not self.training:
            return outer_block(patches, attention, mlp, num_heads=self.heads, **settings)
        branch = outer_attention(patches, attention, num_heads=self.heads, residual=False, **settings)
        patches = patches + self._drop_path(branch)
        return patches + self._drop_path(layernorm_mlp(patches, mlp, residual=False, **settings))

    def product_weights(self) -> list[Tensor]:
        """The matrices [N, K] of its four linear layers."""
        return [layer.weight for layer in (self.qkv, self.proj, self.fc1, self.fc2)]

    def _drop_path(self, branch: Tensor) -> Tensor:
        assert self.keep is not None
        kept = torch.rand(branch.shape[0], 1, 1, device=branch.device) < self.keep
        return branch * (kept / self.keep).to(branch.dtype)


def _parameters(*modules: nn.LayerNorm | nn.Linear) -> list[Any]:
    return [parameter for module in modules for parameter in (module.weight, module.bias)]


def drop_path_rates(rate: float, depth: int) -> list[float | None]:
    """Rates of `depth` blocks, rising linearly from 0 to `rate`; all None where `rate` is 0."""
    if rate == 0.0:
        return [None] * depth
    return [rate * index / max(depth - 1, 1) for index in range(depth)]


def initialise(module: nn.Module) -> None:
    """Linear weights truncated normal of variance 1 / fan-in (LeCun et al., 1998), biases zero, norms identity.

    DeiT's and TNT's standard deviation of 0.02 is meant for wider networks: here it hides the image for the first
    hundreds of steps. One epoch of SGD over 6,000 MNIST images at rate 0.02 ended at a loss of 2.31 with it, at 1.88
    with this.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def table(rows: int, dim: int) -> nn.Parameter:
    """A learned table [rows, dim] from a truncated normal of std 0.02."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(rows, dim), std=0.02))
