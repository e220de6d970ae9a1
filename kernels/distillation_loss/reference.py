"""The distillation loss in plain PyTorch: the specification, and the backend "torch"."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _log_softmax(logits: Tensor) -> Tensor:
    return F.log_softmax(_wide(logits), dim=-1)


def mixed_cross_entropy(logits: Tensor, labels_a: Tensor, labels_b: Tensor, lam: Tensor, smoothing: float) -> Tensor:
    """`lam CE(logits, a) + (1 - lam) CE(logits, b)` of each image, `[B]`.

    Args:
        logits: `[B, K]`.
        labels_a, labels_b: int64 `[B]`.
        lam: `[B]`, the share of label a.
        smoothing: label smoothing, mass in [0, 1) spread evenly over all K classes.
    """
    log_p = _log_softmax(logits)
    picked = log_p.gather(1, torch.stack((labels_a, labels_b), dim=1))
    lam = lam.to(log_p.dtype)
    mixed = lam * picked[:, 0] + (1.0 - lam) * picked[:, 1]
    return -(1.0 - smoothing) * mixed - smoothing * log_p.mean(dim=-1)


def hard_term(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the distillation logits `[B, K]` with the teacher's labels int64 `[B]`: `[B]`."""
    return -_log_softmax(logits).gather(1, labels[:, None])[:, 0]


def soft_term(logits: Tensor, values: Tensor, indices: Tensor | None, temperature: float) -> Tensor:
    """T^2 KL(softmax(values / T) || softmax(logits / T)) of each image, `[B]`.

    Args:
        logits: `[B, K]`.
        values: the teacher's logits `[B, K]`, or `[B, k]` of them.
        indices: int64 `[B, k]`, the distinct classes of the k values; None: all K in order.
        temperature: T > 0.
    """
    log_s = _log_softmax(_wide(logits) / temperature)
    log_p = _log_softmax(_wide(values) / temperature)
    if indices is not None:
        log_s = log_s.gather(1, indices)
    return temperature**2 * (log_p.exp() * (log_p - log_s)).sum(dim=-1)


def loss(
    class_logits: Tensor,
    distillation_logits: Tensor | None,
    labels_a: Tensor,
    labels_b: Tensor,
    lam: Tensor,
    teacher: Tensor | None,
    indices: Tensor | None,
    kind: str,
    weight: float,
    temperature: float,
    smoothing: float,
) -> Tensor:
    """The package's mean loss, a scalar; `teacher` is labels, logits or top-k values (with `indices`)."""
    base = mixed_cross_entropy(class_logits, labels_a, labels_b, lam, smoothing)
    if kind == "none":
        return base.mean()
    assert distillation_logits is not None and teacher is not None
    term = (
        hard_term(distillation_logits, teacher)
        if kind == "hard"
        else soft_term(distillation_logits, teacher, indices, temperature)
    )
    return ((1.0 - weight) * base + weight * term).mean()
