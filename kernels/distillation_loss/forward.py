# mypy: disable-error-code="no-untyped-def"
"""The kernel of the loss: every row's share and both gradients at once; and the sum of the shares in a fixed order."""

import triton
import triton.language as tl

from titn.kernels.common.tiles import sum_of_rows

HARD: tl.constexpr = tl.constexpr(1)
SOFT: tl.constexpr = tl.constexpr(2)
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
def loss_and_gradients(
    class_logits, distillation_logits, labels_a, labels_b, lam, teacher, indices, losses, class_gradient,
    distillation_gradient, B, K, weight, temperature, smoothing,
    KIND: tl.constexpr, TOP: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    """losses float32 `[B]`, each row's share of the mean, and the mean's gradients float32 `[B, K]`; a row a program.

    teacher is labels int64 `[B]` (HARD), or logits `[B, K]` or, where TOP > 0, `[B, TOP]` at classes `indices` (SOFT).
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, KP)
    to = row * K + column
    base_share, share = 1.0 / B, weight / B
    if KIND != 0:
        base_share = (1.0 - weight) / B

    z, p, log_total = _softmax(_row(class_logits, K, column))
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
        tl.store(distillation_gradient + to, share * (p - tl.where(column == t, 1.0, 0.0)), mask=column < K)
    if KIND == SOFT:
        if TOP > 0:
            t = tl.full((KP,), LOW, tl.float32)
            for j in range(TOP):
                value = tl.load(teacher + row * TOP + j).to(tl.float32)
                t = tl.where(column == tl.load(indices + row * TOP + j), value, t)
        else:
            t = _row(teacher, K, column)
        s, p, log_total = _softmax(_row(distillation_logits, K, column) / temperature)
        t, target, log_teacher = _softmax(t / temperature)
        divergence = tl.sum(target * (t - s), 0) + log_total - log_teacher
        loss += share * temperature * temperature * divergence
        tl.store(distillation_gradient + to, share * temperature * (p - target), mask=column < K)
    tl.store(losses + row, loss)


@triton.jit
def total(losses, out, B, BLOCK: tl.constexpr):
    """out `[1]` = the sum of losses float32 `[B]`, always in the same order."""
    one = tl.arange(0, 1)
    tl.store(out + one, sum_of_rows(losses, one, one < 1, B, 1, BLOCK))
