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
def sum_kernel(partial, out, programs, width, BLOCK: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """out [width] from partial [programs, width], float32; one program for BLOCK columns."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + column, sum_of_rows(partial, column, column < width, programs, width, ROWS), mask=column < width)


def summed(partial: Tensor) -> Tensor:
    """Float32 [programs, width] to its sum over programs [width]."""
    programs, width = partial.shape
    out = partial.new_empty(width)
    with torch.cuda.device_of(partial):
        sum_kernel[triton.cdiv(width, BLOCK),](partial, out, programs, width, BLOCK=BLOCK, ROWS=ROWS, **OPTIONS)
    return out
