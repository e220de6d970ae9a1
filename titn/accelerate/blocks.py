"""timm's TNT and ViT blocks computed by the fused operations: subclasses that `titn.accelerate` puts in their place.

A block becomes one of these by assignment to its `__class__`: modules, parameters, buffers and hooks of the block stay
what they were, and copies and pickles know their class. (A `forward` set on the instance cannot be pickled.) What a
block does is timm 1.0.15 to 1.0.31, `timm.models.tnt.Block` and `timm.models.vision_transformer.Block`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.models import tnt, vision_transformer
from torch import Tensor, nn

from titn.accelerate.checks import acts, attention_reason, dropouts, linear_reason, mlp_reason, norm_reason, size_limit
from titn.errors import UserError
from titn.kernels import inner_block, layernorm_mlp, outer_attention, outer_block, pixels_to_patches
from titn.kernels.common.wide import WIDEST
from titn.kernels.inner_block.op import LARGEST_CHANNELS, LARGEST_HEAD, LARGEST_LENGTH
from titn.kernels.pixels_to_patches.configuration import MAX_CHANNELS, MAX_COLUMNS, MAX_WIDTH
from titn.kernels.short_attention.op import MAX_HEAD_DIMENSION

Operations = dict[str, str | None]
"""The operation that computes each part of a block; None: timm's own modules."""


class Stream(NamedTuple):
    """Names of the modules of a pre-norm Transformer layer in timm's TNT block, and the operation for all of them."""

    norm1: str
    attn: str
    norm2: str
    mlp: str
    whole: str


INNER = Stream("norm_in", "attn_in", "norm_mlp_in", "mlp_in", "inner_block")
OUTER = Stream("norm_out", "attn_out", "norm_mlp", "mlp", "outer_block")
_WHOLE: dict[str, Callable[..., Tensor]] = {"inner_block": inner_block, "outer_block": outer_block}


class _Fused(nn.Module, ABC):
    """What the two blocks share; `titn_kernels` and `titn_parts` are set by `titn.accelerate`.

    Attributes:
        parts: names of the submodules that a fused operation can compute; each stands for its norm as well.
        titn_kernels: the backend of every operation.
        titn_parts: those of `parts` that are replaced.
    """

    parts: tuple[str, ...]
    titn_kernels: str
    titn_parts: tuple[str, ...]

    @abstractmethod
    def reason(self, part: str) -> str | None:
        """Why no fused operation computes what timm's modules of `part` compute in evaluation; None: one does."""

    @abstractmethod
    def limit(self, part: str) -> str | None:
        """Why no Triton kernel has the sizes of `part`; None: one has."""

    def dropout(self, part: str) -> Any:
        """timm's dropout inside the attention or MLP `part`, on attention weights or hidden columns."""
        return dropouts(self._modules[part])[0]

    @abstractmethod
    def operations(self, training: bool | None = None) -> Operations:
        """What computes each part, as the modules are now or as they would be after `train(training)`.

        Raises:
            UserError: a module of a replaced part is no longer what it was when it was replaced.
        """

    def _fused(self, part: str, training: bool | None) -> bool:
        """Whether a fused operation computes the attention or MLP `part`: it is replaced and drops nothing inside."""
        return self._replaced(part) and not acts(self.dropout(part), training)

    def _replaced(self, part: str) -> bool:
        if part not in self.titn_parts:
            return False
        reason = self.reason(part)
        if reason is not None:
            raise UserError(f"{part} has changed since titn.accelerate: {reason}; call titn.accelerate(model) again")
        return True


class FusedTNTBlock(_Fused, tnt.Block):
    """timm's TNT block; parts: both attentions, both MLPs, and the projection of pixels into patches."""

    parts = ("attn_in", "mlp_in", "proj", "attn_out", "mlp")
    attn_in: Any
    attn_out: Any
    norm1_proj: Any
    proj: Any
    drop_path: Any
    norm2_proj: Any

    def forward(self, pixel_embed: Tensor, patch_embed: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [B * N, L, C] and patches [B, 1 + N, D] to both of the same shapes."""
        operations = self.operations()
        pixel_embed = self._layer(pixel_embed, INNER, operations)
        patch_embed = self._project(pixel_embed, patch_embed, operations)
        return pixel_embed, self._layer(patch_embed, OUTER, operations)

    def reason(self, part: str) -> str | None:
        modules: Any = self._modules
        if part == "proj":
            if modules.get("norm2_proj") is not None:
                return "the norm behind the projection (norm2_proj) is not part of the fused operation"
            return norm_reason(modules["norm1_proj"]) or linear_reason(modules, "proj")
        stream = INNER if part in INNER else OUTER
        if part == stream.attn:
            return attention_reason(modules[stream.norm1], modules[stream.attn])
        return mlp_reason(modules[stream.norm2], modules[stream.mlp])

    def limit(self, part: str) -> str | None:
        width, channels = self.proj.out_features, self.attn_in.proj.in_features
        length = self.proj.in_features // channels
        if part == "mlp":
            return size_limit(("channels", width, WIDEST))
        if part == "attn_out":
            return size_limit(("channels a head", self.attn_out.head_dim, MAX_HEAD_DIMENSION))
        if part == "proj":
            columns = ("columns", length * channels, MAX_COLUMNS)
            return size_limit(("channels", channels, MAX_CHANNELS), columns, ("channels of a patch", width, MAX_WIDTH))
        head = ("channels a head", self.attn_in.head_dim, LARGEST_HEAD)
        return size_limit(("channels", channels, LARGEST_CHANNELS), ("pixels", length, LARGEST_LENGTH), head)

    def operations(self, training: bool | None = None) -> Operations:
        found: Operations = {"proj": "pixels_to_patches" if self._replaced("proj") else None}
        modules: Any = self._modules
        drops = acts(modules["drop_path"], training)
        for stream in (INNER, OUTER):
            norm1, attn, norm2, mlp = (modules[name] for name in stream[:4])
            attention, perceptron = self._fused(stream.attn, training), self._fused(stream.mlp, training)
            whole = attention and perceptron and not drops and norm1.eps == norm2.eps
            if whole and not acts(dropouts(attn)[1], training) and not acts(dropouts(mlp)[1], training):
                found[stream.attn] = found[stream.mlp] = stream.whole
            else:
                found[stream.attn] = "outer_attention" if attention else None
                found[stream.mlp] = "layernorm_mlp" if perceptron else None
        return found

    def _layer(self, x: Tensor, stream: Stream, operations: Operations) -> Tensor:
        """One layer of the stream x [S, L, C]."""
        modules: Any = self._modules
        norm1, attn, norm2, mlp = (modules[name] for name in stream[:4])
        if operations[stream.attn] == stream.whole:
            return _WHOLE[stream.whole](
                x,
                *_attention_parameters(norm1, attn),
                *_mlp_parameters(norm2, mlp),
                num_heads=attn.num_heads,
                eps=norm1.eps,
                backend=self.titn_kernels,
            )
        if operations[stream.attn] is None:
            x = x + self.drop_path(attn(norm1(x)))
        else:
            settings = {"num_heads": attn.num_heads, "eps": norm1.eps, "backend": self.titn_kernels}
            parameters = _attention_parameters(norm1, attn)
            x = _residual(x, partial(outer_attention, x, *parameters, **settings), attn.proj_drop, self.drop_path)
        if operations[stream.mlp] is None:
            return x + self.drop_path(mlp(norm2(x)))
        return _mlp_half(x, norm2, mlp, self.titn_kernels, self.drop_path)

    def _project(self, pixels: Tensor, patches: Tensor, operations: Operations) -> Tensor:
        """Pixels [B * N, L, C] added to rows 1..N of patches [B, 1 + N, D]."""
        batch, tokens, _ = patches.shape
        if operations["proj"] is not None:
            norm, proj = self.norm1_proj, self.proj
            pixels = pixels.reshape(batch, tokens - 1, *pixels.shape[1:])
            parameters = (norm.weight, norm.bias, proj.weight, proj.bias)
            return pixels_to_patches(pixels, patches, *parameters, eps=norm.eps, backend=self.titn_kernels)
        if getattr(self, "norm2_proj", None) is None:
            rows = self.proj(self.norm1_proj(pixels).reshape(batch, tokens - 1, -1))
        else:
            rows = self.norm2_proj(self.proj(self.norm1_proj(pixels.reshape(batch, tokens - 1, -1))))
        return torch.cat((patches[:, :1], patches[:, 1:] + rows), dim=1)


class FusedViTBlock(_Fused, vision_transformer.Block):
    """timm's ViT block with its MLP half fused; attention, masks included, is timm's own."""

    parts = ("mlp",)
    norm1: Any
    attn: Any
    ls1: Any
    drop_path1: Any
    norm2: Any
    mlp: Any
    ls2: Any
    drop_path2: Any

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[B, T, D] to [B, T, D]; further arguments are those of timm's attention."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), *args, **kwargs)))
        if self.operations()["mlp"] is None:
            return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return _mlp_half(x, self.norm2, self.mlp, self.titn_kernels, self.ls2, self.drop_path2)

    def reason(self, part: str) -> str | None:
        return mlp_reason(self.norm2, self.mlp)

    def limit(self, part: str) -> str | None:
        return size_limit(("channels", self.mlp.fc1.in_features, WIDEST))

    def operations(self, training: bool | None = None) -> Operations:
        return {"mlp": "layernorm_mlp" if self._fused("mlp", training) else None}


def _mlp_half(x: Tensor, norm: Any, mlp: Any, kernels: str, *behind: nn.Module) -> Tensor:
    operation = partial(layernorm_mlp, x, *_mlp_parameters(norm, mlp), eps=norm.eps, backend=kernels)
    return _residual(x, operation, mlp.drop2, *behind)


def _residual(x: Tensor, operation: Callable[..., Tensor], *behind: nn.Module) -> Tensor:
    """x + the branch, sent through the modules behind it where they do anything."""
    if not any(acts(module) for module in behind):
        return operation(residual=True)
    branch = operation(residual=False)
    for module in behind:
        branch = module(branch)
    return x + branch


def _attention_parameters(norm: Any, attn: Any) -> tuple[Any, ...]:
    """Norm, q/k/v as one [3 C, C] product of rows q, k, v, and projection; weights and biases."""
    weight = torch.cat((attn.qk.weight, attn.v.weight))
    bias = None if attn.qk.bias is None else torch.cat((attn.qk.bias, attn.v.bias))
    return norm.weight, norm.bias, weight, bias, attn.proj.weight, attn.proj.bias


def _mlp_parameters(norm: Any, mlp: Any) -> tuple[Any, ...]:
    return norm.weight, norm.bias, mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias
