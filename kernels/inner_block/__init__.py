"""The pixel-level Transformer block as one operation.

For every sequence of L tokens with C channels, H heads of width D = C / H and a hidden width F (TNT, arXiv:2103.00112,
equation 1):

    q, k, v = split(LN1(x) Wqkv^T + bqkv)
    m = x + concat_h(softmax(q_h k_h^T / sqrt(D)) v_h) Wo^T + bo
    y = m + gelu(LN2(m) W1^T + b1) W2^T + b2

with the exact (erf) GELU. Statistics, softmax, residual sums and weight gradients are float32 whatever the inputs are;
the operands of the products are in the dtype of x. The Triton backend packs the weights, computes the forward in one
kernel and writes y and m; the backward recomputes the rest from x and m in one kernel for each half, and reduces the
weight gradients of its programs in a fixed order. From 32 channels on, in 16 bits, up to 16 tokens, the sums of a
program are kept in memory instead of registers (backward_wide.py). The largest error of its GELU is 1e-6.

The CUDA backend (csrc/inner_block.cu) gives a sequence of 16 tokens of 12 channels to one warp, in whose registers
everything stays; weights are packed and gradients unpacked as for Triton. It takes bfloat16: the largest error of its
GELU is 8e-5, of the slope 4e-4. Float32 is refused, as tensor cores would round it to TF32. Softmax takes no maxima off
its scores unless a sum of exponentials leaves 2^-100 .. 2^100; those sequences are done again, with them.

The native backend (csrc/inner_block.cpp) does the same on a CPU with one sequence in each lane of a vector. Its tokens
are float32 or bfloat16 and all else float32, products included. The largest error of its GELU is 5e-7.
"""

from titn.kernels.inner_block.op import inner_block

__all__ = ["inner_block"]
