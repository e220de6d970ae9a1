"""The patch-level Transformer block.

For tokens x [B, T, D], H heads of width D / H (TNT, arXiv 2103.00112, equations 3 and 4):

    q, k, v = split(LN1(x) Wqkv^T + bqkv)
    m = x + concat_h(softmax(q_h k_h^T / sqrt(D / H)) v_h) Wo^T + bo
    y = m + gelu(LN2(m) W1^T + b1) W2^T + b2

`outer_attention` is the first half, with or without its residual, `outer_block` both; the second half alone is
`titn.kernels.layernorm_mlp`. The Triton forward of `outer_block` is three kernels: LayerNorm with the product for q, k
and v, attention (`short_attention`, up to 72 tokens), and the tail: projection with bias and residual, and the MLP
half. Whole rows stay on the chip, 128 of them at D = 192, so LayerNorm costs no pass over memory; two float32
statistics a row are kept for the backward. That is three kernels as well, which also write the operands of four library
products for the gradients of the weights in their dtype, and one sum of partial rows. In PyTorch's plain operations the
same takes 14 and 24 launches, compiled 10 and 15 (`python -m bench.launches`). The gradient that arrives at the
residual is added within the backward of LayerNorm.

The native backend (csrc/outer_attention.cpp, csrc/layernorm_mlp.cpp) does the same on a CPU in float32, each half in
one operator: tasks of about 48 rows stay in the caches from the first product to the last, LayerNorm's scale and shift
are folded into the packed weights, and the gradients of the weights follow every 288 rows or so. It keeps q, k and v,
and the hidden columns before GELU.
"""

from titn.kernels.outer_block.op import outer_attention, outer_block

__all__ = ["outer_attention", "outer_block"]
