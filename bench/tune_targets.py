"""The rows that `bench.tune` tunes: their kernels, the cases that time them, and what each setting may be."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.kernel_cases import Case, block, mlp, patches
from bench.tune_rows import Settings
from titn.kernels import inner_block, outer_block
from titn.kernels.common.configurations import configuration

PROGRAMS = "programs"  # of the grid: the one setting that the compiler does not see
OPERATIONS = ("inner_block", "pixels_to_patches", "layernorm_mlp", "outer_block")


@dataclass(frozen=True)
class Target:
    """A row to tune: kernel and widths in the table, what its compilations' widths hold, the case that times it."""

    kernel: str
    widths: str
    compiled: str
    case: Case
    choices: Mapping[str, tuple[int, ...]]

    def candidates(self, architecture: int) -> list[Settings]:
        """The row in use, then every combination of the choices."""
        current = dict(configuration(self.kernel, self.widths, architecture))
        combined = (
            dict(zip(self.choices, values, strict=True)) for values in itertools.product(*self.choices.values())
        )
        return [current, *(c for c in combined if c != current)]


def targets(operations: Sequence[str], *, small: bool) -> list[Target]:
    """All rows of the operations in 16-bit precision, at TITN's, TNT-S's and TNT-B's widths."""
    found = []
    grid: dict[str, tuple[int, ...]] = {"num_warps": (2, 4, 8)}
    halves = grid | {"resident": (0, 1), "shared_sums": (0, 1), "parts": (1, 3), PROGRAMS: (1, 2, 3, 4)}
    in_memory = {"num_warps": (4, 8), "unroll": (1, 2, 5), PROGRAMS: (1, 2)}
    for widths, channels, sequences in (("16", 12, 16_384), ("32", 24, 12_544), ("64", 40, 12_544)):
        case = block(inner_block, 5 if small else sequences, 16, channels, 4)
        forward = grid | {"resident_slices": (0, 2, 9), "resident_blocks": (0, 4, 9), PROGRAMS: (1, 2, 3, 4, 6)}
        backward = ("64 in memory", in_memory) if widths == "64" else (widths, halves)
        rows = {"forward": (widths, forward), "mlp_backward": backward, "attention_backward": backward}
        for name, (key, choices) in rows.items():
            found.append(Target(f"inner_block.{name}", key, f"16x{channels} 4 heads", case, choices))
    chunks = {"num_warps": (4, 8), "rows": (16, 32, 64, 128), "columns": (32, 64, 128)}
    for widths, images, count, channels, width in (
        ("16", 1024, 16, 12, 192),
        ("32", 64, 196, 24, 384),
        ("64", 64, 196, 40, 640),
    ):
        images, count = (2, 3) if small else (images, count)
        case = patches(images, count, 16, channels, width, tokens=count + 2)
        for name in ("forward", "backward"):
            found.append(Target(f"pixels_to_patches.{name}", widths, f"x{channels} to ", case, chunks))
    wide = {
        "num_warps": (4, 8),
        "num_stages": (1, 2, 3),
        "rows": (32, 64, 128),
        "columns": (64,),
        "block": (16, 32, 64),
    }
    for width, images, tokens, heads in ((192, 1024, 18, 8), (384, 128, 197, 6), (640, 128, 197, 10)):
        images = 2 if small else images
        for case in (mlp(images * tokens, width), block(outer_block, images, tokens, width, heads)):
            for name in ("forward", "backward"):
                found.append(Target(f"{case.operation}.{name}", str(width), f"{width} to ", case, wide))
    return [t for t in found if t.case.operation in operations]
