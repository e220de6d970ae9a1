"""What all our image Transformers share: input and options, class and distillation heads, timm's conventions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titn.errors import UserError
from titn.kernels import HeadWeights, class_heads
from titn.models.layers import LAYER_NORM_EPS, PatchLayer, PixelLayer, PixelsToPatches
from titn.models.sizes import TransformerSizes, check_choice, check_rate

KERNELS = ("auto", "torch", "triton", "native")


class ImageTransformer(nn.Module, ABC):
    """An image Transformer whose tokens are class token, N patches and, if `distilled`, a distillation token last.

    `forward` takes images `[B, in_channels, image_size, image_size]` and returns class logits `[B, num_classes]`. With
    a distillation token, training mode returns `(class_logits, distillation_logits)` and evaluation mode the
    average of the two; `set_distilled_training(False)` makes training return the average as well. `train_in_part` lets
    training mode shrink the images and leave out the last blocks.

    Raises:
        UserError: a rate or backend that there is not, or images of another size than the model's.
    """

    sizes: TransformerSizes
    blocks: nn.ModuleList
    tables: tuple[str, ...]
    """Names of the bare parameter tables: no weight decay, and not in the paper's parameter column."""
    stem: tuple[str, ...]
    """Names of the parts before the blocks."""
    norm_first: bool
    """Whether one LayerNorm serves all tokens before pooling, or each head has its own behind it."""
    _between: Tensor | None
    end_kernels: str = "torch"
    """Backend of what stands before and behind the blocks; "triton" where a captured step has found that it fits."""

    def __init__(self, sizes: TransformerSizes, *, drop_rate: float, kernels: str) -> None:
        super().__init__()
        self.sizes = sizes
        self.in_channels = self.in_chans = sizes.in_channels
        self.image_size = sizes.image_size
        self.num_patches, self.num_tokens = sizes.num_patches, sizes.num_tokens
        self.num_features = self.head_hidden_size = self.embed_dim = sizes.patch_dim
        self.distilled = self.distilled_training = sizes.distilled
        self.kernels = kernels
        self.training_grid: int | None = None
        self.training_blocks: int | None = None
        self.register_buffer("_between", None, persistent=False)
        self.norm = nn.LayerNorm(self.embed_dim, eps=LAYER_NORM_EPS)
        self.head_drop = nn.Dropout(check_rate("drop_rate", drop_rate))
        self.head = self._linear_head()
        if self.distilled:
            self.norm_dist = nn.Identity() if self.norm_first else nn.LayerNorm(self.embed_dim, eps=LAYER_NORM_EPS)
            self.head_dist = self._linear_head()

    @property
    def num_classes(self) -> int:
        """Outputs of each head; 0 where the model returns features."""
        return self.sizes.num_classes

    @property
    def pool(self) -> str:
        """Class representation: "mean" or "token"."""
        return self.sizes.pool

    @property
    def kernels(self) -> str:
        """Backend of the fused operations: "auto", "torch", "triton" or "native"; may be set at any time."""
        return self._kernels

    @kernels.setter
    def kernels(self, name: str) -> None:
        check_choice("kernels", name, KERNELS)
        self._kernels = name
        for module in self.modules():
            if isinstance(module, (PixelLayer, PixelsToPatches, PatchLayer)):
                module.kernels = name

    @abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] to tokens [B, T, D] behind the last block (and the shared norm, if any)."""

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens [B, T, D] to logits, or to what the heads see, averaged over them: [B, D]."""
        if self._fused_heads and not pre_logits:
            logits, distillation_logits = self._both_heads(tokens)
            return self._answer(logits, distillation_logits)
        features = tokens[:, : self._pooled(tokens)].mean(1) if self.pool == "mean" else tokens[:, 0]
        features = self.head_drop(features if self.norm_first else self.norm(features))
        if not self.distilled:
            return features if pre_logits else self.head(features)
        distillation = self.head_drop(self.norm_dist(tokens[:, -1]))
        if pre_logits:
            return (features + distillation) / 2
        return self._answer(self.head(features), self.head_dist(distillation))

    @property
    def _fused_heads(self) -> bool:
        if self.end_kernels != "triton" or not self.distilled or self.norm_first or self.num_classes == 0:
            return False
        return self.head_drop.p == 0.0 or not self.training

    def _both_heads(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        pairs: Any = ((self.norm, self.head), (self.norm_dist, self.head_dist))
        first, second = (HeadWeights(norm.weight, norm.bias, head.weight, head.bias) for norm, head in pairs)
        pooled = self._pooled(tokens) if self.pool == "mean" else 1
        return class_heads(tokens, (first, second), pooled=pooled, eps=LAYER_NORM_EPS, backend=self.end_kernels)

    def _pooled(self, tokens: Tensor) -> int:
        """Class token and patches, of whichever number."""
        return tokens.shape[1] - int(self.distilled)

    def _answer(self, logits: Tensor, distillation_logits: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.training and self.distilled_training:
            return logits, distillation_logits
        return (logits + distillation_logits) / 2

    def product_weights(self) -> list[Tensor]:
        """The matrices [K, D] of the heads, where a kernel takes them in the dtype of its products."""
        heads: list[Any] = [self.head, self.head_dist] if self._fused_heads else []
        return [head.weight for head in heads]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images to logits; see the class."""
        return self.forward_head(self.forward_features(images))

    def check_images(self, images: Tensor) -> None:
        """Raise UserError unless `images` is a batch of the model's size."""
        expected = (self.in_channels, self.image_size, self.image_size)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise UserError(
                f"the model takes images [batch, {', '.join(map(str, expected))}], not {list(images.shape)}; "
                "give create_model their in_channels and image_size"
            )

    def train_in_part(self, *, grid: int | None = None, blocks: int | None = None) -> None:
        """What training mode computes from now on; evaluation mode computes everything in any case.

        Args:
            grid: patches per side G to which images [B, C, S, S] are shrunk, bilinearly with antialiasing. Tables over
                the patches are interpolated bilinearly where the smaller image's patches have their centres, and
                learn through that. None: the images as they are.
            blocks: how many of the blocks are run, the first ones; None: all.
        """
        self.training_grid, self.training_blocks, self._between = grid, blocks, None
        if grid is not None:
            side = self.image_size // self.sizes.patch_size
            axis = F.interpolate(torch.eye(side, dtype=torch.float64)[None], size=grid, mode="linear")[0].mT
            self._between = torch.kron(axis, axis).to(self.norm.weight)

    def silence_blocks(self, first: int) -> None:
        """Zero what the blocks from `first` on add to both streams, so that they pass on what they are given."""
        for part in (each for block in list(self.blocks)[first:] for each in block.modules()):
            outputs = [part.proj, part.fc2] if isinstance(part, (PixelLayer, PatchLayer)) else []
            for linear in [part.proj] if isinstance(part, PixelsToPatches) else outputs:
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)

    def _shrunk(self, images: Tensor) -> Tensor:
        """Images [B, C, S, S] as this mode sees them."""
        if not self.training or self.training_grid is None:
            return images
        return F.interpolate(images, (self.training_grid * self.sizes.patch_size,) * 2, mode="bilinear", antialias=True)

    def _at_patches(self, table: Tensor) -> Tensor:
        """A table [T, D] over the tokens of a whole image, for the tokens of an image as this mode sees it."""
        if not self.training or self._between is None:
            return table
        first, patches, last = table.split([1, self.num_patches, len(table) - 1 - self.num_patches])
        with torch.autocast(table.device.type, enabled=False):
            patches = self._between @ patches
        return torch.cat((first, patches, last))

    def _running(self) -> Iterator[nn.Module]:
        """The blocks that this mode runs."""
        return islice(self.blocks, self.training_blocks if self.training else None)

    def set_distilled_training(self, enable: bool = True) -> None:
        """Whether training mode returns both heads' logits (True) or their average (False), as in timm.

        Raises:
            UserError: `enable` on a model without a distillation token.
        """
        if enable and not self.distilled:
            raise UserError("this model has no distillation token; use titn or deit to distil")
        self.distilled_training = enable

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The class head, with a distillation token both heads."""
        return (self.head, self.head_dist) if self.distilled else self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New heads for `num_classes` (0: none, the model returns features); `global_pool` is "avg" or "token"."""
        pool = self.pool if global_pool is None else pool_from_timm(global_pool)
        self.sizes = replace(self.sizes, num_classes=num_classes, pool=pool)
        device, dtype = self.norm.weight.device, self.norm.weight.dtype
        self.head = self._linear_head().to(device, dtype)
        if self.distilled:
            self.head_dist = self._linear_head().to(device, dtype)

    def no_weight_decay(self) -> set[str]:
        """Names of the tables of tokens and positions."""
        return set(self.tables)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's parameter groups for layer-wise learning rates: stem, blocks, heads."""
        return {"stem": f"^(?:{'|'.join(self.stem)})", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    def _linear_head(self) -> nn.Module:
        """Small weights, so that training starts near the uniform distribution."""
        if self.num_classes == 0:
            return nn.Identity()
        head = nn.Linear(self.embed_dim, self.num_classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head


def pool_from_timm(global_pool: str) -> str:
    """Our name of timm's `global_pool`: "avg" is "mean"; "token" is the same."""
    check_choice("global_pool", global_pool, ("avg", "token"))
    return "mean" if global_pool == "avg" else "token"
