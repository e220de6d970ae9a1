"""Transformer in Transformer: TNT, its distilled TITN and the authors' variant of it.

Sources: Rahman et al., "A Transformer-in-Transformer Network Utilizing Knowledge Distillation for Image Recognition",
arXiv 2502.16762; Han et al., "Transformer in Transformer", NeurIPS 2021.
"""

from __future__ import annotations

from torch import Tensor, nn

from titn.models.base import ImageTransformer, check_divides, check_rate, check_whole
from titn.models.layers import PatchLayer, PixelLayer, PixelsToPatches, drop_path_rates, initialise, table


class TNTBlock(nn.Module):
    """One step of both streams: the pixel layer, pixels into patches, the patch layer."""

    def __init__(
        self,
        pixels: int,
        pixel_dim: int,
        pixel_heads: int,
        patch_dim: int,
        patch_heads: int,
        drop_path: float | None,
        kernels: str,
    ) -> None:
        super().__init__()
        self.pixel = PixelLayer(pixel_dim, pixel_heads, kernels)
        self.merge = PixelsToPatches(pixels, pixel_dim, patch_dim, kernels)
        self.patch = PatchLayer(patch_dim, patch_heads, kernels, drop_path)

    def forward(self, pixels: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [B, N, M, C] and patches [B, T, D] to both of the same shapes."""
        pixels = self.pixel(pixels)
        return pixels, self.patch(self.merge(pixels, patches))


class TransformerInTransformer(ImageTransformer):
    """TITN (`distilled`) or TNT: N patches per image, M pixels per patch, each pixel a square of `pixel_size`.

    A pixel is embedded from the `in_channels * pixel_size**2` values of its square (order: channel, row, column);
    patches and the pixels of a patch are in row-major order. The patch tokens are a learned table plus a position
    table, and the image enters them only through the pixels. `second_position` adds the authors' second position table.
    """

    norm_first = False
    stem = ("pixel_embed", "pixel_position", "patch_tokens", "patch_position", "second_position")

    def __init__(
        self,
        *,
        num_classes: int = 100,
        in_channels: int = 3,
        image_size: int = 32,
        patch_size: int = 8,
        pixel_size: int = 2,
        patch_dim: int = 192,
        pixel_dim: int = 12,
        patch_heads: int = 8,
        pixel_heads: int = 4,
        depth: int = 12,
        pool: str = "mean",
        distilled: bool = True,
        second_position: bool = False,
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
        for name, value in (
            ("pixel_size", pixel_size),
            ("pixel_dim", pixel_dim),
            ("patch_heads", patch_heads),
            ("pixel_heads", pixel_heads),
            ("depth", depth),
        ):
            check_whole(name, value)
        check_rate("drop_path_rate", drop_path_rate)
        check_divides("patch_size", patch_size, "pixel_size", pixel_size)
        check_divides("patch_dim", patch_dim, "patch_heads", patch_heads)
        check_divides("pixel_dim", pixel_dim, "pixel_heads", pixel_heads)
        self.pixel_size = pixel_size
        pixels = (patch_size // pixel_size) ** 2
        self.pixel_embed = nn.Linear(in_channels * pixel_size**2, pixel_dim)
        self.pixel_position = table(pixels, pixel_dim)
        self.patch_tokens = table(self.num_tokens, patch_dim)
        self.patch_position = table(self.num_tokens, patch_dim)
        self.second_position = table(self.num_tokens, patch_dim) if second_position else None
        self.blocks = nn.ModuleList(
            TNTBlock(pixels, pixel_dim, pixel_heads, patch_dim, patch_heads, rate, kernels)
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.tables = ("pixel_position", "patch_tokens", "patch_position")
        if second_position:
            self.tables += ("second_position",)
        self.pixel_embed.apply(initialise)
        self.blocks.apply(initialise)

    def embed_pixels(self, images: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] to pixels [B, N, M, C]."""
        batch, channels = images.shape[:2]
        patches, pixels = self.image_size // self.patch_size, self.patch_size // self.pixel_size
        squares = images.reshape(batch, channels, patches, pixels, self.pixel_size, patches, pixels, self.pixel_size)
        squares = squares.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(batch, patches**2, pixels**2, -1)
        return self.pixel_embed(squares) + self.pixel_position

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] to patch tokens [B, T, D] behind the last block."""
        self.check_images(images)
        pixels = self.embed_pixels(images)
        constants = self.patch_tokens + self.patch_position
        if self.second_position is not None:
            constants = constants + self.second_position
        patches = constants.repeat(len(images), 1, 1)
        for block in self.blocks:
            pixels, patches = block(pixels, patches)
        return patches
