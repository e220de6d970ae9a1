"""Softmax attention over very many short sequences: `O = softmax(scale Q K^T) V` for each of S sequences and H heads.

L is 1 to 72 tokens, d 1 to 64, S any number: the pixel-level attention (16 tokens, 4 heads x 3), packed several to a
warp where L is smaller, and the patch-level one (18 tokens, 8 heads x 24; 66 at patch 4). Vaswani et al. 2017, eq. 1.

With P = softmax(scale Q K^T), row by row, and incoming gradient G, the gradients are

    dV = P^T G        dP = G V^T        delta = rowsum(P o dP)
    dS = scale P o (dP - delta)         dQ = dS K         dK = dS^T Q

Only q, k and v are kept for backward, which computes P again: at these lengths that costs less than reading it.
Products take operands in the dtype of q and accumulate in float32; softmax, delta and sums are float32; P and dS are
rounded to the dtype of q before the next product (nothing is rounded for float32), and the forward kernels divide by
the sum of the rounded weights. Results are the same bits from run to run: every element is written by one program.
"""

from titn.kernels.short_attention.op import short_attention

__all__ = ["short_attention"]
