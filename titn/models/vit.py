"""Vision Transformer (arXiv 2010.11929) and the distilled DeiT (arXiv 2012.12877), sized as TITN's patch stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from titn.models.base import ImageTransformer
from titn.models.layers import PatchLayer, drop_path_rates, initialise, table
from titn.models.sizes import ViTSizes, check_rate


class VisionTransformer(ImageTransformer):
    """ViT, with `distilled` DeiT: one LayerNorm behind the last block, then the heads.

    A patch is embedded from its `in_channels * patch_size**2` values (order: channel, row, column) without a bias: the
    position table has one for each patch. The class representation is the class token unless `pool="mean"`.
    """

    norm_first = True
    stem = ("patch_embed", "tokens", "position")
    tables = ("tokens", "position")

    def __init__(
        self, sizes: ViTSizes, *, drop_rate: float = 0.0, drop_path_rate: float = 0.0, kernels: str = "auto"
    ) -> None:
        super().__init__(sizes, drop_rate=drop_rate, kernels=kernels)
        width, heads = sizes.patch_dim, sizes.patch_heads
        rates = drop_path_rates(check_rate("drop_path_rate", drop_path_rate), sizes.depth)
        self.patch_embed = nn.Linear(sizes.in_channels * sizes.patch_size**2, width, bias=False)
        self.tokens = table(sizes.num_tokens - sizes.num_patches, width)
        self.position = table(sizes.num_tokens, width)
        self.blocks = nn.ModuleList(PatchLayer(width, heads, kernels, rate) for rate in rates)
        self.patch_embed.apply(initialise)
        self.blocks.apply(initialise)

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] to normalised tokens [B, T, D]."""
        self.check_images(images)
        images = self._shrunk(images)
        batch, channels, side, _ = images.shape
        size = self.sizes.patch_size
        grid = side // size
        squares = images.reshape(batch, channels, grid, size, grid, size)
        patches = self.patch_embed(squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, grid**2, -1))
        extra = self.tokens.expand(batch, -1, -1).to(patches.dtype)
        tokens = torch.cat((extra[:, :1], patches, extra[:, 1:]), dim=1) + self._at_patches(self.position)
        for block in self._running():
            tokens = block(tokens)
        return self.norm(tokens)
