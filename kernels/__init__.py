"""Fused operations with their plain references; each takes a `backend`, and none falls back silently.

`augment` alone has one backend: its plain reference is the torch pipeline of titn.pipelines.
"""

from titn.kernels.augment import augment, augment_reasons
from titn.kernels.class_heads import HeadWeights, class_heads
from titn.kernels.common.backend import BackendUnavailable
from titn.kernels.common.weights import AttentionWeights, MlpWeights
from titn.kernels.distillation_loss import distillation_loss, loss_and_sums
from titn.kernels.inner_block import inner_block
from titn.kernels.layernorm_mlp import layernorm_mlp
from titn.kernels.outer_block import outer_attention, outer_block
from titn.kernels.pixel_embedding import pixel_embedding
from titn.kernels.pixels_to_patches import passing_pixels, pixels_to_patches
from titn.kernels.short_attention import short_attention

__all__ = [
    "AttentionWeights",
    "BackendUnavailable",
    "HeadWeights",
    "MlpWeights",
    "augment",
    "augment_reasons",
    "class_heads",
    "distillation_loss",
    "inner_block",
    "layernorm_mlp",
    "loss_and_sums",
    "outer_attention",
    "outer_block",
    "passing_pixels",
    "pixel_embedding",
    "pixels_to_patches",
    "short_attention",
]
