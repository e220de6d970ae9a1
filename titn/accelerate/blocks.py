"""timm's TNT and ViT blocks computed by the fused operations: subclasses that `titn.accelerate` puts in their place.

A block becomes one of these by assignment to its `__class__`, as in `torch.nn.utils.parametrize`: it stays the same
object wherever it is held (a model that is one block, a block that stands in two places), with its attributes, modules,
parameters, buffers and hooks; copies and pickles know their class. (A `forward` set on the instance cannot be pickled,
and a module in the block's place would have to pass all of the block's attributes on.) What a block does is timm 1.0.15
to 1.0.31, `timm.models.tnt.Block` and `timm.models.vision_transformer.Block`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.models import tnt, vision_transformer
from torch import Tensor, nn

from titn.accelerate.checks import acts, attention_reason, linear_reason, mlp_reason, norm_reason, size_limit
from titn.errors import UserError
from titn.kernels import (
    AttentionWeights,
    MlpWeights,
    inner_block,
    layernorm_mlp,
    outer_attention,
    outer_block,
    pixels_to_patches,
)
from titn.kernels.common.wide import WIDEST
from titn.kernels.inner_block.op import LARGEST_CHANNELS, LARGEST_HEAD, LARGEST_LENGTH
from titn.kernels.pixels_to_patches.op import MAX_CHANNELS, MAX_COLUMNS, MAX_WIDTH
from titn.kernels.short_attention.op import MAX_HEAD_DIMENSION


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


class Plan(NamedTuple):
    """What a block does in one mode, by part: the operation (None: timm's own modules), and the parts whose branch goes
    through dropout, drop path or a scale before it is added."""

    operations: dict[str, str | None]
    branches: tuple[str, ...] = ()


class Fused(nn.Module, ABC):
    """What the two blocks share.

    Attributes:
        parts: names of the submodules that a fused operation can compute; each stands for its norm as well.
        titn_kernels: the backend of every operation.
        titn_replaced: those of `parts` that are replaced.
        titn_training, titn_evaluation: the plans, made by `fuse`.
        titn_kinds: classes of the block's modules, and of those within replaced parts, as they were.
    """

    parts: tuple[str, ...]
    titn_kernels: str
    titn_replaced: list[str]
    titn_training: Plan
    titn_evaluation: Plan
    titn_kinds: list[type]

    @abstractmethod
    def reason(self, part: str) -> str | None:
        """Why no fused operation computes what timm's modules of `part` compute in evaluation; None: one does."""

    @abstractmethod
    def limit(self, part: str) -> str | None:
        """Why no Triton kernel has the sizes of `part`; None: one has."""

    @abstractmethod
    def plan(self, training: bool) -> Plan:
        """How the block computes in this mode."""

    def fuse(self, kernels: str) -> dict[str, str | None]:
        """Plans both modes for this backend; gives the reason why not, or None, for each part."""
        reasons = {part: self.reason(part) for part in self.parts}
        if kernels == "triton":
            reasons = {part: reason or self.limit(part) for part, reason in reasons.items()}
        self.titn_kernels = kernels
        self.titn_replaced = [part for part, reason in reasons.items() if reason is None]
        self.titn_training, self.titn_evaluation = self.plan(True), self.plan(False)
        self.titn_kinds = self._kinds()
        return reasons

    def unfuse(self) -> None:
        """Forgets what `fuse` wrote."""
        del self.titn_kernels, self.titn_replaced, self.titn_training, self.titn_evaluation, self.titn_kinds

    def _kinds(self) -> list[type]:
        modules: Any = self._modules
        found = [*map(type, modules.values())]
        for part in self.titn_replaced:
            found += map(type, modules[part]._modules.values())
        return found

    def _current(self) -> Plan:
        """The plan of this mode.

        Raises:
            UserError: a module has another class than when it was replaced.
        """
        if self._kinds() != self.titn_kinds:
            raise UserError("a module has changed since titn.accelerate: call titn.accelerate(model) again")
        return self.titn_training if self.training else self.titn_evaluation


class FusedTNTBlock(Fused, tnt.Block):
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
        plan = self._current()
        pixel_embed = self._layer(pixel_embed, INNER, plan)
        patch_embed = self._project(pixel_embed, patch_embed, plan)
        return pixel_embed, self._layer(patch_embed, OUTER, plan)

    def reason(self, part: str) -> str | None:
        if part == "proj":
            if getattr(self, "norm2_proj", None) is not None:
                return "the norm behind the projection (norm2_proj) is not part of the fused operation"
            return norm_reason(self.norm1_proj) or linear_reason(self, "proj")
        norm1, attn, norm2, mlp = self._modules_of(INNER if part in INNER else OUTER)
        return attention_reason(norm1, attn) if part.startswith("attn") else mlp_reason(norm2, mlp)

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

    def plan(self, training: bool) -> Plan:
        operations: dict[str, str | None] = {"proj": "pixels_to_patches" if "proj" in self.titn_replaced else None}
        branches = []
        path = acts(self.drop_path, training)
        for stream in (INNER, OUTER):
            norm1, attn, norm2, mlp = self._modules_of(stream)
            attention = stream.attn in self.titn_replaced and not acts(attn.attn_drop, training)
            perceptron = stream.mlp in self.titn_replaced and not acts(mlp.drop1, training)
            behind = {
                stream.attn: attention and (path or acts(attn.proj_drop, training)),
                stream.mlp: perceptron and (path or acts(mlp.drop2, training)),
            }
            branches += [part for part, dropped in behind.items() if dropped]
            if attention and perceptron and not any(behind.values()) and norm1.eps == norm2.eps:
                operations[stream.attn] = operations[stream.mlp] = stream.whole
            else:
                operations[stream.attn] = "outer_attention" if attention else None
                operations[stream.mlp] = "layernorm_mlp" if perceptron else None
        return Plan(operations, tuple(branches))

    def _modules_of(self, stream: Stream) -> list[Any]:
        modules: Any = self._modules
        return [modules[name] for name in stream[:4]]

    def _layer(self, x: Tensor, stream: Stream, plan: Plan) -> Tensor:
        """One layer of the stream x [S, L, C]."""
        norm1, attn, norm2, mlp = self._modules_of(stream)
        settings = {"num_heads": attn.num_heads, "eps": norm1.eps, "backend": self.titn_kernels}
        if plan.operations[stream.attn] == stream.whole:
            return _WHOLE[stream.whole](x, _attention_weights(norm1, attn), _mlp_weights(norm2, mlp), **settings)
        if plan.operations[stream.attn] is None:
            x = x + self.drop_path(attn(norm1(x)))
        else:
            operation = partial(outer_attention, x, _attention_weights(norm1, attn), **settings)
            x = _residual(x, operation, stream.attn in plan.branches, attn.proj_drop, self.drop_path)
        if plan.operations[stream.mlp] is None:
            return x + self.drop_path(mlp(norm2(x)))
        operation = partial(layernorm_mlp, x, _mlp_weights(norm2, mlp), eps=norm2.eps, backend=self.titn_kernels)
        return _residual(x, operation, stream.mlp in plan.branches, mlp.drop2, self.drop_path)

    def _project(self, pixels: Tensor, patches: Tensor, plan: Plan) -> Tensor:
        """Pixels [B * N, L, C] added to rows 1..N of patches [B, 1 + N, D]."""
        batch, tokens, _ = patches.shape
        if plan.operations["proj"] is not None:
            norm, proj = self.norm1_proj, self.proj
            pixels = pixels.reshape(batch, tokens - 1, *pixels.shape[1:])
            parameters = (norm.weight, norm.bias, proj.weight, proj.bias)
            return pixels_to_patches(pixels, patches, *parameters, eps=norm.eps, backend=self.titn_kernels)
        if getattr(self, "norm2_proj", None) is None:
            rows = self.proj(self.norm1_proj(pixels).reshape(batch, tokens - 1, -1))
        else:
            rows = self.norm2_proj(self.proj(self.norm1_proj(pixels.reshape(batch, tokens - 1, -1))))
        return torch.cat((patches[:, :1], patches[:, 1:] + rows), dim=1)


class FusedViTBlock(Fused, vision_transformer.Block):
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
        plan = self._current()
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), *args, **kwargs)))
        if plan.operations["mlp"] is None:
            return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        weights = _mlp_weights(self.norm2, self.mlp)
        operation = partial(layernorm_mlp, x, weights, eps=self.norm2.eps, backend=self.titn_kernels)
        return _residual(x, operation, "mlp" in plan.branches, self.mlp.drop2, self.ls2, self.drop_path2)

    def reason(self, part: str) -> str | None:
        return mlp_reason(self.norm2, self.mlp)

    def limit(self, part: str) -> str | None:
        return size_limit(("channels", self.mlp.fc1.in_features, WIDEST))

    def plan(self, training: bool) -> Plan:
        if "mlp" not in self.titn_replaced or acts(self.mlp.drop1, training):
            return Plan({"mlp": None})
        behind = (self.mlp.drop2, self.ls2, self.drop_path2)
        return Plan({"mlp": "layernorm_mlp"}, ("mlp",) if any(acts(module, training) for module in behind) else ())


def _residual(x: Tensor, operation: Callable[..., Tensor], branch: bool, *behind: nn.Module) -> Tensor:
    """x + the operation; `branch`: sent through the modules behind it before it is added."""
    if not branch:
        return operation(residual=True)
    found = operation(residual=False)
    for module in behind:
        found = module(found)
    return x + found


def _attention_weights(norm: Any, attn: Any) -> AttentionWeights:
    """timm's q/k and v as one [3 C, C] product of rows q, k, v."""
    weight = torch.cat((attn.qk.weight, attn.v.weight))
    bias = None if attn.qk.bias is None else torch.cat((attn.qk.bias, attn.v.bias))
    return AttentionWeights(norm.weight, norm.bias, weight, bias, attn.proj.weight, attn.proj.bias)


def _mlp_weights(norm: Any, mlp: Any) -> MlpWeights:
    return MlpWeights(norm.weight, norm.bias, mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)
