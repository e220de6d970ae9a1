"""The sum of the programs' partial rows, always in the same order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from titn.kernels.common.tiles import sum_of_rows

BLOCK, ROWS = 32, 64
OPTIONS = {"num_warps": 4, "num_stages": 1}


@triton.jit
def sum_kernel(  # type: ignore[no-untyped-def]
    first, second, out, programs, width, more_programs, more_width, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    """out [width + more_width] from first [programs, width] and second [more_programs, more_width], float32.

    One program for BLOCK columns of either; second may be None, its width 0.
    """
    block, blocks = tl.program_id(0), tl.cdiv(width, BLOCK)
    if block < blocks:
        column = block * BLOCK + tl.arange(0, BLOCK)
        total = sum_of_rows(first, column, column < width, programs, width, ROWS)
        tl.store(out + column, total, mask=column < width)
    elif second is not None:
        column = (block - blocks) * BLOCK + tl.arange(0, BLOCK)
        total = sum_of_rows(second, column, column < more_width, more_programs, more_width, ROWS)
        tl.store(out + width + column, total, mask=column < more_width)


def summed(partial: Tensor, more: Tensor | None = None) -> Tensor:
    """Float32 [programs, width] to its sum over programs [width], and behind it that of more, in one launch."""
    programs, width = partial.shape
    more_programs, more_width = (0, 0) if more is None else more.shape
    out = partial.new_empty(width + more_width)
    blocks = triton.cdiv(width, BLOCK) + triton.cdiv(more_width, BLOCK)
    with torch.cuda.device_of(partial):
        sum_kernel[blocks,](
            partial, more, out, programs, width, more_programs, more_width, BLOCK=BLOCK, ROWS=ROWS, **OPTIONS
        )
    return out
