"""Transformer in Transformer: TNT, its distilled TITN and the authors' variant of it.

Sources: Rahman et al., "A Transformer-in-Transformer Network Utilizing Knowledge Distillation for Image Recognition",
arXiv 2502.16762; Han et al., "Transformer in Transformer", NeurIPS 2021.
"""

from __future__ import annotations

from torch import Tensor, nn

from titn.kernels import pixel_embedding
from titn.kernels.common.wide import WIDEST
from titn.kernels.pixel_embedding.op import MAX_OUTPUTS, MAX_PIXELS, MAX_VALUES
from titn.models.base import ImageTransformer
from titn.models.layers import PatchLayer, PixelLayer, PixelsToPatches, drop_path_rates, initialise, table
from titn.models.sizes import TNTSizes, check_rate


class TNTBlock(nn.Module):
    """One step of both streams: the pixel layer, pixels into patches, the patch layer."""

    def __init__(self, sizes: TNTSizes, drop_path: float | None, kernels: str) -> None:
        super().__init__()
        self.pixel = PixelLayer(sizes.pixel_dim, sizes.pixel_heads, kernels)
        self.merge = PixelsToPatches(sizes.num_pixels, sizes.pixel_dim, sizes.patch_dim, kernels)
        self.patch = PatchLayer(sizes.patch_dim, sizes.patch_heads, kernels, drop_path)

    def forward(self, pixels: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [B, N, M, C] and patches [B, T, D] to both of the same shapes."""
        patches, pixels = self.merge(self.pixel(pixels), patches)
        return pixels, self.patch(patches)


class TransformerInTransformer(ImageTransformer):
    """TITN (`distilled`) or TNT: N patches per image, M pixels per patch, each pixel a square of `pixel_size`.

    A pixel is embedded from the `in_channels * pixel_size**2` values of its square (order: channel, row, column);
    patches and the pixels of a patch are in row-major order. The patch tokens are a learned table plus a position
    table, and the image enters them only through the pixels. `second_position` adds the authors' second position table.
    """

    sizes: TNTSizes
    norm_first = False
    stem = ("pixel_embed", "pixel_position", "patch_tokens", "patch_position", "second_position")

    def __init__(
        self, sizes: TNTSizes, *, drop_rate: float = 0.0, drop_path_rate: float = 0.0, kernels: str = "auto"
    ) -> None:
        super().__init__(sizes, drop_rate=drop_rate, kernels=kernels)
        tokens, width = sizes.num_tokens, sizes.patch_dim
        rates = drop_path_rates(check_rate("drop_path_rate", drop_path_rate), sizes.depth)
        self.pixel_embed = nn.Linear(sizes.in_channels * sizes.pixel_size**2, sizes.pixel_dim)
        self.pixel_position = table(sizes.num_pixels, sizes.pixel_dim)
        self.patch_tokens = table(tokens, width)
        self.patch_position = table(tokens, width)
        self.second_position = table(tokens, width) if sizes.second_position else None
        self.blocks = nn.ModuleList(TNTBlock(sizes, rate, kernels) for rate in rates)
        self.tables = ("pixel_position", "patch_tokens", "patch_position")
        if sizes.second_position:
            self.tables += ("second_position",)
        self.pixel_embed.apply(initialise)
        self.blocks.apply(initialise)

    def embed_pixels(self, images: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] to pixels [B, N, M, C]."""
        return pixel_embedding(
            images,
            self.pixel_embed.weight,
            self.pixel_embed.bias,
            self.pixel_position,
            patch=self.sizes.patch_size,
            size=self.sizes.pixel_size,
            backend=self.end_kernels,
        )

    def ends_fit(self) -> bool:
        """Whether the kernels of pixel embedding and heads have these sizes."""
        values = self.pixel_embed.in_features, self.sizes.pixel_dim, self.sizes.num_pixels
        largest = MAX_VALUES, MAX_OUTPUTS, MAX_PIXELS
        return self.embed_dim <= WIDEST and all(n <= most for n, most in zip(values, largest, strict=True))

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] to patch tokens [B, T, D] behind the last block."""
        self.check_images(images)
        pixels = self.embed_pixels(self._shrunk(images))
        constants = self.patch_tokens + self.patch_position
        if self.second_position is not None:
            constants = constants + self.second_position
        patches = self._at_patches(constants).repeat(images.shape[0], 1, 1)
        for block in self._running():
            pixels, patches = block(pixels, patches)
        return patches
