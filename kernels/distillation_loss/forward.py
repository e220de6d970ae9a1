# mypy: disable-error-code="no-untyped-def"
"""The kernel of the loss: every row's share and both gradients at once; and the sum of the shares in a fixed order."""

import triton
import triton.language as tl

from titn.kernels.common.tiles import sum_of_rows

HARD: tl.constexpr = tl.constexpr(1)
SOFT: tl.constexpr = tl.constexpr(2)
STANDARDIZED: tl.constexpr = tl.constexpr(3)
DECOUPLED: tl.constexpr = tl.constexpr(4)
EPS: tl.constexpr = tl.constexpr(1e-6)
LOW: tl.constexpr = tl.constexpr(-1e30)


@triton.jit
def _row(pointer, K, column):
    """A program's row of a `[B, K]` tensor in float32, LOW beyond K: its exponential is zero."""
    at = tl.program_id(0).to(tl.int64) * K + column
    return tl.where(column < K, tl.load(pointer + at, mask=column < K, other=0.0).to(tl.float32), LOW)


@triton.jit
def _softmax(x):
    """Of `[KP]`: x minus its largest entry, the softmax, and the logarithm of its denominator."""
    x = x - tl.max(x, 0)
    e = tl.exp(x)
    total = tl.sum(e, 0)
    return x, e * (1.0 / total), tl.log(total)


@triton.jit
def _entry(x, column, label, K):
    """Entry `label` of x, NaN where there is none: a label out of range must not pass unseen."""
    return tl.where((label >= 0) & (label < K), tl.sum(tl.where(column == label, x, 0.0), 0), float("nan"))


@triton.jit
def _standardized(x, column, K):
    """Of `[KP]`: the z-score, LOW beyond K, and the reciprocal deviation."""
    centred = tl.where(column < K, x - tl.sum(tl.where(column < K, x, 0.0), 0) / K, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / K + EPS)
    return tl.where(column < K, centred * scale, LOW), scale


@triton.jit
def _two_parts(x, log_total, column, label):
    """Of logits x `[KP]` whose exponentials sum to exp(log_total): log-probability of the label, of not the label, and
    `[KP]` of every class where it is not the label."""
    others = tl.where(column == label, LOW, x)
    largest = tl.max(others, 0)
    log_rest = largest + tl.log(tl.sum(tl.exp(others - largest), 0))
    own = tl.sum(tl.where(column == label, x, 0.0), 0)
    return own - log_total, log_rest - log_total, others - log_rest


@triton.jit
def _decoupled(s, log_total, t, log_teacher, column, label, beta):
    """D(label) of the package's formulas and d(label) `[KP]`, its gradient by s."""
    log_q, log_rest_q, log_others_q = _two_parts(s, log_total, column, label)
    log_p, log_rest_p, log_others_p = _two_parts(t, log_teacher, column, label)
    q, p = tl.exp(log_q), tl.exp(log_p)
    others_q, others_p = tl.exp(log_others_q), tl.exp(log_others_p)
    target_class = p * (log_p - log_q) + tl.exp(log_rest_p) * (log_rest_p - log_rest_q)
    other_classes = tl.sum(others_p * (log_others_p - log_others_q), 0)
    gradient = (q - p) * (tl.where(column == label, 1.0, 0.0) - others_q) + beta * (others_q - others_p)
    return target_class + beta * other_classes, gradient


@triton.jit
def loss_and_gradients(
    class_logits, distillation_logits, labels_a, labels_b, lam, teacher, indices, losses, class_gradient,
    distillation_gradient, B, K, weight, temperature, smoothing, beta,
    KIND: tl.constexpr, TOP: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    """losses float32 `[3, B]` and the mean's gradients float32 `[B, K]`; a row a program.

    losses: each row's share of the mean, and 1 where the largest class logit is that of labels_a, and where the largest
    distillation logit is the teacher's; equal logits rank by class. teacher is labels int64 `[B]` (HARD) or logits
    `[B, K]`, of SOFT where TOP > 0 `[B, TOP]` at classes `indices`.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, KP)
    to = row * K + column
    base_share, share = 1.0 / B, weight / B
    if KIND != 0:
        base_share = (1.0 - weight) / B

    z, p, log_total = _softmax(_row(class_logits, K, column))
    agreed = 0.0
    a = tl.load(labels_a + row)
    b = tl.load(labels_b + row)
    m = tl.load(lam + row)
    picked = m * _entry(z, column, a, K) + (1.0 - m) * _entry(z, column, b, K)
    mean = tl.sum(tl.where(column < K, z, 0.0), 0) / K
    loss = base_share * (log_total - (1.0 - smoothing) * picked - smoothing * mean)
    target = tl.where(column == a, m, 0.0) + tl.where(column == b, 1.0 - m, 0.0)
    gradient = base_share * (p - (1.0 - smoothing) * target - smoothing / K)
    tl.store(class_gradient + to, gradient, mask=column < K)

    if KIND == HARD:
        s, p, log_total = _softmax(_row(distillation_logits, K, column))
        t = tl.load(teacher + row)
        loss += share * (log_total - _entry(s, column, t, K))
        agreed = tl.where(tl.argmax(s, 0) == t, 1.0, 0.0)
        tl.store(distillation_gradient + to, share * (p - tl.where(column == t, 1.0, 0.0)), mask=column < K)
    if KIND >= SOFT:
        if TOP > 0:
            t = tl.full((KP,), LOW, tl.float32)
            for j in range(TOP):
                value = tl.load(teacher + row * TOP + j).to(tl.float32)
                t = tl.where(column == tl.load(indices + row * TOP + j), value, t)
        else:
            t = _row(teacher, K, column)
        x = _row(distillation_logits, K, column)
        agreed = tl.where(tl.argmax(x, 0) == tl.argmax(t, 0), 1.0, 0.0)
        if KIND == STANDARDIZED:
            x, scale = _standardized(x, column, K)
            t, _ = _standardized(t, column, K)
        s, p, log_total = _softmax(x / temperature)
        t, target, log_teacher = _softmax(t / temperature)
        if KIND == DECOUPLED:
            first, by_first = _decoupled(s, log_total, t, log_teacher, column, a, beta)
            second, by_second = _decoupled(s, log_total, t, log_teacher, column, b, beta)
            divergence = m * first + (1.0 - m) * second
            gradient = m * by_first + (1.0 - m) * by_second
        else:
            divergence = tl.sum(target * (t - s), 0) + log_total - log_teacher
            gradient = p - target
        loss += share * temperature * temperature * divergence
        gradient = share * temperature * gradient
        if KIND == STANDARDIZED:
            gradient = scale * (gradient - x * (tl.sum(gradient * x, 0) / K))
        tl.store(distillation_gradient + to, gradient, mask=column < K)
    tl.store(losses + row, loss)
    tl.store(losses + B + row, tl.where(tl.argmax(z, 0) == a, 1.0, 0.0))
    tl.store(losses + 2 * B + row, agreed)


@triton.jit
def total(losses, out, sums, B, BLOCK: tl.constexpr):
    """out `[1]` = the sum of losses[0] of float32 `[3, B]`, and sums float64 `[3]`: B times that, and the other two.

    Always in the same order.
    """
    one = tl.arange(0, 1)
    mean = sum_of_rows(losses, one, one < 1, B, 1, BLOCK)
    tl.store(out + one, mean)
    tl.store(sums + one, mean.to(tl.float64) * B)
    for i in tl.static_range(1, 3):
        tl.store(sums + i + one, sum_of_rows(losses + i * B, one, one < 1, B, 1, BLOCK).to(tl.float64))


@triton.jit
def scaled(class_gradient, distillation_gradient, incoming, class_out, distillation_out, n, BLOCK: tl.constexpr):
    """Both gradients [n] times the incoming one, in the dtypes of the outputs; the second may be None."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    scale = tl.load(incoming).to(tl.float32)
    first = tl.load(class_gradient + at, mask=at < n, other=0.0)
    tl.store(class_out + at, (first * scale).to(class_out.dtype.element_ty), mask=at < n)
    if distillation_gradient is not None:
        second = tl.load(distillation_gradient + at, mask=at < n, other=0.0)
        tl.store(distillation_out + at, (second * scale).to(distillation_out.dtype.element_ty), mask=at < n)
