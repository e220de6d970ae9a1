"""Cross-entropy under CutMix or MixUp plus a hard or soft teacher term, with both gradients in one pass.

For an image with class logits z, distillation logits s, labels a and b, and share lam of label a (B images, K classes;
arXiv 2502.16762, section 3; hard and soft terms as in DeiT, arXiv 2012.12877, equations 2 and 3):

    CE(z, y) = -(1 - e) log_softmax(z)_y - e/K sum_j log_softmax(z)_j          e: label smoothing
    base     = lam CE(z, a) + (1 - lam) CE(z, b)
    hard     = -log_softmax(s)_t                                              t: the teacher's label, not smoothed
    soft     = T^2 sum_j p_j (log p_j - log_softmax(s / T)_j)                  p = softmax(teacher / T)
    loss     = mean over images of (1 - weight) base + weight (hard or soft)

With a top-k teacher (values, indices) p is the softmax over the k kept values and zero elsewhere. kind="none" is the
mean of `base`, whatever the weight. The teacher and lam are constants: no gradient flows into them.

With P = softmax(z), S = softmax(s), S_T = softmax(s / T) and B images, the gradients are

    dz = (1 - weight) / B (P - (1 - e) (lam 1_a + (1 - lam) 1_b) - e/K)
    ds = weight / B (S - 1_t)                     (hard)
    ds = weight T / B (S_T - p)                   (soft)

All arithmetic is float32 whatever the dtype of the logits (float64 for float64 logits, backend "torch" only); the
result is a scalar of that dtype. Backend "triton" has two launches in the forward: one kernel for the rows' losses and
both gradients, and the sum of the rows in a fixed order. It keeps the gradients in float32 until the backward scales
them by the incoming one (a float16 gradient of a mean over 1024 images would underflow) in PyTorch's own operations.
Nothing waits for the device.
"""

from titn.kernels.distillation_loss.op import distillation_loss

__all__ = ["distillation_loss"]
