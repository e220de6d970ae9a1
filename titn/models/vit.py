"""Vision Transformer (arXiv 2010.11929) and the distilled DeiT (arXiv 2012.12877), sized as TITN's patch stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from titn.models.base import ImageTransformer, check_divides, check_rate, check_whole
from titn.models.layers import PatchLayer, drop_path_rates, initialise, table


class VisionTransformer(ImageTransformer):
    """ViT, with `distilled` DeiT: one LayerNorm behind the last block, then the heads.

    A patch is embedded from its `in_channels * patch_size**2` values (order: channel, row, column) without a bias: the
    position table has one for each patch. The class representation is the class token unless `pool="mean"`.
    """

    norm_first = True
    stem = ("patch_embed", "tokens", "position")
    tables = ("tokens", "position")

    def __init__(
        self,
        *,
        num_classes: int = 100,
        in_channels: int = 3,
        image_size: int = 32,
        patch_size: int = 8,
        patch_dim: int = 192,
        patch_heads: int = 8,
        depth: int = 12,
        pool: str = "token",
        distilled: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        kernels: str = "auto",
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            patch_size=patch_size,
            patch_dim=patch_dim,
            pool=pool,
            distilled=distilled,
            drop_rate=drop_rate,
            kernels=kernels,
        )
        check_whole("patch_heads", patch_heads)
        check_whole("depth", depth)
        check_rate("drop_path_rate", drop_path_rate)
        check_divides("patch_dim", patch_dim, "patch_heads", patch_heads)
        self.patch_embed = nn.Linear(in_channels * patch_size**2, patch_dim, bias=False)
        self.tokens = table(self.num_tokens - self.num_patches, patch_dim)
        self.position = table(self.num_tokens, patch_dim)
        self.blocks = nn.ModuleList(
            PatchLayer(patch_dim, patch_heads, kernels, rate) for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.patch_embed.apply(initialise)
        self.blocks.apply(initialise)

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] to normalised tokens [B, T, D]."""
        self.check_images(images)
        batch, channels = images.shape[:2]
        grid = self.image_size // self.patch_size
        squares = images.reshape(batch, channels, grid, self.patch_size, grid, self.patch_size)
        patches = self.patch_embed(squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, grid**2, -1))
        extra = self.tokens.expand(batch, -1, -1).to(patches.dtype)
        tokens = torch.cat((extra[:, :1], patches, extra[:, 1:]), dim=1) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)
