"""The patch-level Transformer block.

For tokens x [B, T, D], H heads of width D / H (TNT, arXiv 2103.00112, equations 3 and 4):

    q, k, v = split(LN1(x) Wqkv^T + bqkv)
    m = x + concat_h(softmax(q_h k_h^T / sqrt(D / H)) v_h) Wo^T + bo
    y = m + gelu(LN2(m) W1^T + b1) W2^T + b2
"""

from titn.kernels.outer_block.op import outer_attention, outer_block

__all__ = ["outer_attention", "outer_block"]
