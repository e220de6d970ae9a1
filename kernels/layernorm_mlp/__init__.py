"""LayerNorm and the MLP behind it, with its residual, as one operation.

For every row of D channels and a hidden width F (TNT, arXiv 2103.00112, equation 4; ViT, arXiv 2010.11929, equation 3):

    y = x + gelu(LN(x) W1^T + b1) W2^T + b2

with the exact (erf) GELU; `residual=False` leaves out the x. Statistics, GELU, residual sums and all gradients of
parameters are float32; the operands of the products are in autocast's dtype, or that of x.

The Triton forward is one kernel: a tile of rows goes through all hidden columns in blocks, which never leave the chip.
It keeps x and two statistics a row for the backward, nothing of hidden width: at 18,432 x 192 in bfloat16 that is
7.2 MB, where plain PyTorch keeps 71 MB (x, normalised x, hidden columns before and behind GELU). The backward
recomputes the hidden columns in one kernel, which yields the gradient of x, the operands of the two weight gradients
(two library products, with 64 MB of operands that live as long as they run) and a partial row of all vectors'
gradients for every tile, which a last kernel sums in a fixed order. The largest error of its GELU is 1e-6.

The native backend (csrc/layernorm_mlp.cpp) is the second half of `titn.kernels.outer_block` on a CPU. It keeps the
hidden columns before GELU; the largest error of its GELU is 5e-7.
"""

from titn.kernels.layernorm_mlp.op import layernorm_mlp

__all__ = ["layernorm_mlp"]
