"""Tuned launch configurations, one table for all operations: (kernel, widths, architecture) to its settings.

An architecture is a compute capability such as 90; 0 stands for any without an entry of its own. Nothing is tuned while
training, so that every process of a run launches the same kernels.
"""

from __future__ import annotations

from collections.abc import Mapping

CONFIGURATIONS: dict[tuple[str, str, int], Mapping[str, int]] = {
    # Inner block, by padded channels. Residence of weights, shared_sums and parts: kernels/inner_block/forward.py and
    # backward.py; unroll: backward_wide.py, whose kernels it chooses; "programs", where given: on a multiprocessor,
    # else as many as it holds.
    ("inner_block.forward", "16", 0): {"num_warps": 4, "resident_slices": 9, "resident_blocks": 9},
    ("inner_block.forward", "32", 0): {"num_warps": 4, "resident_slices": 2, "resident_blocks": 4},
    ("inner_block.forward", "64", 0): {"num_warps": 4, "resident_slices": 0, "resident_blocks": 0},
    ("inner_block.mlp_backward", "16", 0): {"num_warps": 4, "resident": 1, "shared_sums": 0, "parts": 1},
    ("inner_block.mlp_backward", "32", 0): {"num_warps": 4, "resident": 0, "shared_sums": 1, "parts": 3},
    ("inner_block.mlp_backward", "64", 0): {"num_warps": 8, "resident": 0, "shared_sums": 1, "parts": 1},
    ("inner_block.mlp_backward", "64 in memory", 0): {"num_warps": 8, "unroll": 1},
    ("inner_block.attention_backward", "16", 0): {
        "num_warps": 4,
        "resident": 1,
        "shared_sums": 0,
        "parts": 1,
    },
    ("inner_block.attention_backward", "32", 0): {
        "num_warps": 4,
        "resident": 0,
        "shared_sums": 1,
        "parts": 2,
    },
    ("inner_block.attention_backward", "64", 0): {
        "num_warps": 8,
        "resident": 0,
        "shared_sums": 1,
        "parts": 1,
    },
    ("inner_block.attention_backward", "64 in memory", 0): {"num_warps": 8, "unroll": 1},
    # pixels_to_patches, by padded channels: kernels/pixels_to_patches/launch.py. columns: of a chunk of pixels.
    ("pixels_to_patches.forward", "16", 0): {"num_warps": 8, "rows": 32, "columns": 64},
    ("pixels_to_patches.forward", "16", 90): {"num_warps": 8, "rows": 64, "columns": 64},
    ("pixels_to_patches.forward", "16", 100): {"num_warps": 8, "rows": 64, "columns": 64},
    ("pixels_to_patches.forward", "16 fp32", 0): {"num_warps": 8, "rows": 32, "columns": 32},
    ("pixels_to_patches.forward", "32", 0): {"num_warps": 8, "rows": 32, "columns": 64},
    ("pixels_to_patches.forward", "32", 90): {"num_warps": 8, "rows": 64, "columns": 64},
    ("pixels_to_patches.forward", "32", 100): {"num_warps": 8, "rows": 64, "columns": 64},
    ("pixels_to_patches.forward", "32 fp32", 0): {"num_warps": 8, "rows": 32, "columns": 32},
    ("pixels_to_patches.forward", "64", 0): {"num_warps": 8, "rows": 32, "columns": 64},
    ("pixels_to_patches.forward", "64", 90): {"num_warps": 8, "rows": 64, "columns": 64},
    ("pixels_to_patches.forward", "64", 100): {"num_warps": 8, "rows": 64, "columns": 64},
    ("pixels_to_patches.forward", "64 fp32", 0): {"num_warps": 8, "rows": 16, "columns": 32},
    ("pixels_to_patches.backward", "16", 0): {"num_warps": 8, "rows": 32, "columns": 64},
    ("pixels_to_patches.backward", "16", 90): {"num_warps": 8, "rows": 64, "columns": 64},
    ("pixels_to_patches.backward", "16", 100): {"num_warps": 8, "rows": 64, "columns": 64},
    ("pixels_to_patches.backward", "16 fp32", 0): {"num_warps": 8, "rows": 16, "columns": 32},
    ("pixels_to_patches.backward", "32", 0): {"num_warps": 8, "rows": 32, "columns": 64},
    ("pixels_to_patches.backward", "32", 90): {"num_warps": 8, "rows": 64, "columns": 64},
    ("pixels_to_patches.backward", "32", 100): {"num_warps": 8, "rows": 64, "columns": 64},
    ("pixels_to_patches.backward", "32 fp32", 0): {"num_warps": 8, "rows": 16, "columns": 32},
    ("pixels_to_patches.backward", "64", 0): {"num_warps": 8, "rows": 32, "columns": 64},
    ("pixels_to_patches.backward", "64 fp32", 0): {"num_warps": 8, "rows": 16, "columns": 32},
    # Wide rows, by the width up to which the entry holds (or "fp32"): kernels/common/wide.py. The entries
    # for any architecture stay below 99 KB of shared memory.
    ("layernorm_mlp.forward", "192", 0): {"num_warps": 8, "num_stages": 1, "rows": 64, "columns": 64, "block": 32},
    ("layernorm_mlp.forward", "192", 80): {"num_warps": 8, "num_stages": 2, "rows": 64, "columns": 64, "block": 32},
    ("layernorm_mlp.forward", "192", 90): {"num_warps": 8, "num_stages": 2, "rows": 128, "columns": 64, "block": 64},
    ("layernorm_mlp.forward", "192", 100): {"num_warps": 8, "num_stages": 2, "rows": 128, "columns": 64, "block": 64},
    ("layernorm_mlp.forward", "384", 0): {"num_warps": 8, "num_stages": 2, "rows": 32, "columns": 64, "block": 32},
    ("layernorm_mlp.forward", "384", 90): {"num_warps": 8, "num_stages": 2, "rows": 64, "columns": 64, "block": 32},
    ("layernorm_mlp.forward", "384", 100): {"num_warps": 8, "num_stages": 2, "rows": 64, "columns": 64, "block": 32},
    ("layernorm_mlp.forward", "640", 0): {"num_warps": 8, "num_stages": 1, "rows": 32, "columns": 64, "block": 32},
    ("layernorm_mlp.forward", "640", 80): {"num_warps": 8, "num_stages": 2, "rows": 32, "columns": 64, "block": 32},
    ("layernorm_mlp.forward", "640", 90): {"num_warps": 8, "num_stages": 1, "rows": 64, "columns": 64, "block": 32},
    ("layernorm_mlp.forward", "640", 100): {"num_warps": 8, "num_stages": 2, "rows": 32, "columns": 64, "block": 32},
    ("layernorm_mlp.forward", "fp32", 0): {"num_warps": 8, "num_stages": 1, "rows": 16, "columns": 64, "block": 16},
    ("layernorm_mlp.backward", "192", 0): {"num_warps": 8, "num_stages": 1, "rows": 64, "columns": 64, "block": 32},
    ("layernorm_mlp.backward", "192", 80): {"num_warps": 8, "num_stages": 2, "rows": 64, "columns": 64, "block": 32},
    ("layernorm_mlp.backward", "192", 90): {"num_warps": 8, "num_stages": 2, "rows": 128, "columns": 64, "block": 32},
    ("layernorm_mlp.backward", "192", 100): {"num_warps": 8, "num_stages": 2, "rows": 128, "columns": 64, "block": 32},
    ("layernorm_mlp.backward", "384", 0): {"num_warps": 8, "num_stages": 1, "rows": 32, "columns": 64, "block": 32},
    ("layernorm_mlp.backward", "384", 80): {"num_warps": 8, "num_stages": 2, "rows": 32, "columns": 64, "block": 32},
    ("layernorm_mlp.backward", "384", 90): {"num_warps": 8, "num_stages": 2, "rows": 64, "columns": 64, "block": 16},
    ("layernorm_mlp.backward", "384", 100): {"num_warps": 8, "num_stages": 1, "rows": 64, "columns": 64, "block": 32},
    ("layernorm_mlp.backward", "640", 90): {"num_warps": 8, "num_stages": 2, "rows": 32, "columns": 128, "block": 32},
    ("layernorm_mlp.backward", "640", 0): {"num_warps": 8, "num_stages": 1, "rows": 32, "columns": 128, "block": 32},
    ("layernorm_mlp.backward", "fp32", 0): {"num_warps": 8, "num_stages": 1, "rows": 16, "columns": 64, "block": 16},
    ("outer_block.forward", "192", 0): {"num_warps": 8, "num_stages": 2, "rows": 64, "columns": 64, "block": 64},
    ("outer_block.forward", "192", 80): {"num_warps": 8, "num_stages": 3, "rows": 128, "columns": 64, "block": 64},
    ("outer_block.forward", "192", 90): {"num_warps": 8, "num_stages": 3, "rows": 128, "columns": 64, "block": 64},
    ("outer_block.forward", "192", 100): {"num_warps": 8, "num_stages": 3, "rows": 128, "columns": 64, "block": 64},
    ("outer_block.forward", "384", 0): {"num_warps": 8, "num_stages": 2, "rows": 64, "columns": 64, "block": 32},
    ("outer_block.forward", "640", 0): {"num_warps": 8, "num_stages": 1, "rows": 32, "columns": 64, "block": 32},
    ("outer_block.forward", "640", 90): {"num_warps": 8, "num_stages": 2, "rows": 64, "columns": 64, "block": 32},
    ("outer_block.forward", "fp32", 0): {"num_warps": 8, "num_stages": 1, "rows": 16, "columns": 64, "block": 16},
    ("outer_block.backward", "192", 0): {"num_warps": 8, "num_stages": 2, "rows": 64, "columns": 64, "block": 64},
    ("outer_block.backward", "192", 90): {"num_warps": 8, "num_stages": 3, "rows": 128, "columns": 64, "block": 64},
    ("outer_block.backward", "192", 100): {"num_warps": 8, "num_stages": 3, "rows": 128, "columns": 64, "block": 64},
    ("outer_block.backward", "384", 0): {"num_warps": 8, "num_stages": 2, "rows": 64, "columns": 64, "block": 32},
    ("outer_block.backward", "640", 0): {"num_warps": 8, "num_stages": 1, "rows": 32, "columns": 64, "block": 32},
    ("outer_block.backward", "640", 90): {"num_warps": 8, "num_stages": 2, "rows": 64, "columns": 64, "block": 32},
    ("outer_block.backward", "fp32", 0): {"num_warps": 8, "num_stages": 1, "rows": 16, "columns": 64, "block": 16},
    ("outer_block.tail_forward", "192", 0): {"num_warps": 8, "num_stages": 1, "rows": 64, "columns": 64, "block": 32},
    ("outer_block.tail_forward", "192", 80): {"num_warps": 8, "num_stages": 2, "rows": 64, "columns": 64, "block": 32},
    ("outer_block.tail_forward", "192", 90): {"num_warps": 8, "num_stages": 2, "rows": 128, "columns": 64, "block": 64},
    ("outer_block.tail_forward", "192", 100): {
        "num_warps": 8,
        "num_stages": 2,
        "rows": 128,
        "columns": 64,
        "block": 64,
    },
    ("outer_block.tail_forward", "384", 0): {"num_warps": 8, "num_stages": 2, "rows": 32, "columns": 64, "block": 32},
    ("outer_block.tail_forward", "384", 90): {"num_warps": 8, "num_stages": 2, "rows": 64, "columns": 64, "block": 32},
    ("outer_block.tail_forward", "384", 100): {"num_warps": 8, "num_stages": 2, "rows": 64, "columns": 64, "block": 32},
    ("outer_block.tail_forward", "640", 0): {"num_warps": 8, "num_stages": 1, "rows": 32, "columns": 64, "block": 32},
    ("outer_block.tail_forward", "640", 80): {"num_warps": 8, "num_stages": 2, "rows": 32, "columns": 64, "block": 32},
    ("outer_block.tail_forward", "640", 90): {"num_warps": 8, "num_stages": 1, "rows": 64, "columns": 64, "block": 32},
    ("outer_block.tail_forward", "640", 100): {"num_warps": 8, "num_stages": 2, "rows": 32, "columns": 64, "block": 32},
    ("outer_block.tail_forward", "fp32", 0): {"num_warps": 8, "num_stages": 1, "rows": 16, "columns": 64, "block": 16},
    ("outer_block.tail_backward", "192", 0): {"num_warps": 8, "num_stages": 2, "rows": 32, "columns": 64, "block": 32},
    ("outer_block.tail_backward", "192", 90): {
        "num_warps": 8,
        "num_stages": 2,
        "rows": 128,
        "columns": 64,
        "block": 32,
    },
    ("outer_block.tail_backward", "192", 100): {
        "num_warps": 8,
        "num_stages": 2,
        "rows": 128,
        "columns": 64,
        "block": 32,
    },
    ("outer_block.tail_backward", "384", 0): {"num_warps": 8, "num_stages": 1, "rows": 32, "columns": 64, "block": 32},
    ("outer_block.tail_backward", "384", 80): {"num_warps": 8, "num_stages": 2, "rows": 32, "columns": 64, "block": 32},
    ("outer_block.tail_backward", "384", 90): {"num_warps": 8, "num_stages": 2, "rows": 64, "columns": 64, "block": 16},
    ("outer_block.tail_backward", "384", 100): {
        "num_warps": 8,
        "num_stages": 1,
        "rows": 64,
        "columns": 64,
        "block": 32,
    },
    ("outer_block.tail_backward", "640", 90): {
        "num_warps": 8,
        "num_stages": 2,
        "rows": 32,
        "columns": 128,
        "block": 32,
    },
    ("outer_block.tail_backward", "640", 0): {"num_warps": 8, "num_stages": 1, "rows": 32, "columns": 128, "block": 32},
    ("outer_block.tail_backward", "fp32", 0): {"num_warps": 8, "num_stages": 1, "rows": 16, "columns": 64, "block": 16},
}

TUNED: dict[tuple[str, str, int], Mapping[str, int]] = {
    # Tuned rows, written by bench.tune: begin
    # Tuned rows: end
}
CONFIGURATIONS |= TUNED


def configuration(kernel: str, widths: str, architecture: int) -> Mapping[str, int]:
    """Settings of `kernel` for `widths`: those of `architecture`, else those for any.

    Raises:
        KeyError: the table holds neither.
    """
    own = CONFIGURATIONS.get((kernel, widths, architecture))
    return own if own is not None else CONFIGURATIONS[(kernel, widths, 0)]
