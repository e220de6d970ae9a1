"""The class and the distillation head on the last tokens: pooling, LayerNorm and linear layer of each.

For tokens x [B, T, D] of B images, the first P of which are pooled, and K classes (arXiv 2502.16762, section 3):

    class logits         LN1(mean of x[:, :P] over tokens) W1^T + b1        [B, K]; P = 1: of the class token alone
    distillation logits  LN2(x[:, T - 1]) W2^T + b2                         [B, K]

Means, statistics and all gradients of parameters are float32 whatever x is; the products are in the dtype of W.
Backend "triton" computes both heads in one kernel forward. The backward is one kernel, which writes the gradient of
every token, two library products for the gradients of W1 and W2, and a sum of partial rows.
"""

from titn.kernels.class_heads.op import HeadWeights, class_heads

__all__ = ["HeadWeights", "class_heads"]
