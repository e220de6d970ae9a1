"""Cross-entropy under CutMix or MixUp plus a teacher's term of one of four kinds, with both gradients in one pass.

For an image with class logits z, distillation logits s, the teacher's logits t, labels a and b, and share lam of label
a (B images, K classes; arXiv 2502.16762, section 3):

    CE(z, y) = -(1 - e) log_softmax(z)_y - e/K sum_j log_softmax(z)_j          e: label smoothing
    base     = lam CE(z, a) + (1 - lam) CE(z, b)
    loss     = mean over images of (1 - weight) base + weight term

kind="none" is the mean of `base`, whatever the weight. The other kinds differ in the term; T is the temperature:

    hard          -log_softmax(s)_c, c the teacher's label, not smoothed
    soft          T^2 KL(softmax(t / T) || softmax(s / T))
    standardized  T^2 KL(softmax(Z(t) / T) || softmax(Z(s) / T)), Z(x) = (x - mean(x)) / sqrt(var(x) + 1e-6)
    decoupled     T^2 (lam D(a) + (1 - lam) D(b)), D(y) = TCKD(y) + beta NCKD(y)

hard, soft: DeiT, arXiv 2012.12877, equations 2 and 3. With a top-k teacher (values, indices) the teacher's softmax is
over the k kept values, and zero elsewhere.

standardized: Sun et al., "Logit Standardization in Knowledge Distillation", arXiv 2403.01427; var has the divisor K.
The student has to match the teacher's logits up to their mean and size, and those of s are left open. The 1e-6 is not
the paper's: it gives a row of equal logits a gradient. The z-scores of two logits are 1 and -1 whatever they are, so
that there is nothing to learn where K = 2.

decoupled: Zhao et al., "Decoupled Knowledge Distillation", arXiv 2203.08679. With p = softmax(t / T) and
q = softmax(s / T)

    TCKD(y) = KL((p_y, 1 - p_y) || (q_y, 1 - q_y))                  label or not
    NCKD(y) = KL(p without y || q without y), each divided by its sum      which of the others

so that soft is T^2 (TCKD(y) + (1 - p_y) NCKD(y)) for any y. The paper's factor alpha of TCKD stays at its 1: the weight
sets the size of the whole term, beta the ratio of its parts. A mixed image has two labels, and the term is mixed as the
cross-entropy is: each label in turn is the target, and the other one is among the rest. Where K = 2 NCKD is zero.

The teacher and lam are constants: no gradient flows into them. With P = softmax(z), S = softmax(s), and p and q of the
kind (for "standardized" of Z(t) and Z(s)), the gradients are

    dz = (1 - weight) / B (P - (1 - e) (lam 1_a + (1 - lam) 1_b) - e/K)
    ds = weight / B (S - 1_c)                                            hard
    ds = weight T / B (q - p)                                            soft
    ds = r (g - Z(s) mean(g Z(s))), g = weight T / B (q - p)             standardized; r = 1 / sqrt(var(s) + 1e-6)
    ds = weight T / B (lam d(a) + (1 - lam) d(b))                        decoupled
    d(y) = (q_y - p_y) (1_y - q') + beta (q' - p')                       ' : without y, divided by the sum, 0 at y

All arithmetic is float32 whatever the dtype of the logits (float64 for float64 logits, backend "torch" only); the
result is a scalar of that dtype. Backend "triton" has two launches in the forward: one kernel for the rows' losses and
both gradients, and the sums of the rows in a fixed order; `loss_and_sums` has the counts of right answers from the same
two. It keeps the gradients in float32 until the backward, a third launch, scales them by the incoming one: a float16
gradient of a mean over 1024 images would underflow. Nothing waits for the device.
"""

from titn.kernels.distillation_loss.op import distillation_loss, loss_and_sums

__all__ = ["distillation_loss", "loss_and_sums"]
