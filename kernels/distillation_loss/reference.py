"""The distillation loss in plain PyTorch: the specification, and the backend "torch"."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6
LOW = -1e30


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _z_score(logits: Tensor) -> Tensor:
    return F.layer_norm(_wide(logits), logits.shape[1:], eps=EPS)


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


def standardized_term(logits: Tensor, values: Tensor, temperature: float) -> Tensor:
    """`soft_term` of the z-scores of logits and values, both `[B, K]`: `[B]` (arXiv 2403.01427)."""
    return soft_term(_z_score(logits), _z_score(values), None, temperature)


def _two_parts(log_p: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of the label `[B]`, of not the label `[B]`, of every class where it is not the label `[B, K]`."""
    others = log_p.scatter(1, labels[:, None], LOW)
    return log_p.gather(1, labels[:, None])[:, 0], others.logsumexp(dim=-1), F.log_softmax(others, dim=-1)


def decoupled_term(logits: Tensor, values: Tensor, labels: Tensor, temperature: float, beta: float) -> Tensor:
    """T^2 (TCKD + beta NCKD) of each image, `[B]` (arXiv 2203.08679).

    Args:
        logits, values: of the student and the teacher, `[B, K]`, K at least 2.
        labels: int64 `[B]`, the target classes.
        temperature: T > 0.
        beta: weight of the other classes.
    """
    log_q, log_rest_q, log_others_q = _two_parts(_log_softmax(_wide(logits) / temperature), labels)
    log_p, log_rest_p, log_others_p = _two_parts(_log_softmax(_wide(values) / temperature), labels)
    target_class = log_p.exp() * (log_p - log_q) + log_rest_p.exp() * (log_rest_p - log_rest_q)
    other_classes = (log_others_p.exp() * (log_others_p - log_others_q)).sum(dim=-1)
    return temperature**2 * (target_class + beta * other_classes)


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
    beta: float,
) -> Tensor:
    """The package's mean loss, a scalar; `teacher` is labels, logits or top-k values (with `indices`)."""
    base = mixed_cross_entropy(class_logits, labels_a, labels_b, lam, smoothing)
    if kind == "none":
        return base.mean()
    assert distillation_logits is not None and teacher is not None
    match kind:
        case "hard":
            term = hard_term(distillation_logits, teacher)
        case "soft":
            term = soft_term(distillation_logits, teacher, indices, temperature)
        case "standardized":
            term = standardized_term(distillation_logits, teacher, temperature)
        case _:
            first, second = (
                decoupled_term(distillation_logits, teacher, labels, temperature, beta)
                for labels in (labels_a, labels_b)
            )
            term = lam.to(first.dtype) * first + (1.0 - lam.to(first.dtype)) * second
    return ((1.0 - weight) * base + weight * term).mean()


@torch.no_grad()
def sums(
    loss: Tensor,
    class_logits: Tensor,
    distillation_logits: Tensor | None,
    labels: Tensor,
    teacher: Tensor | None,
    indices: Tensor | None,
) -> Tensor:
    """The loss of all images, those whose class logits say `labels`, and those that agree with the teacher: `[3]`."""
    correct = (class_logits.argmax(1) == labels).sum()
    agreed = torch.zeros_like(correct)
    if teacher is not None and distillation_logits is not None:
        decision = teacher if teacher.dim() == 1 else teacher.argmax(1)
        if indices is not None:
            decision = indices.gather(1, decision[:, None])[:, 0]
        agreed = (distillation_logits.argmax(1) == decision).sum()
    return torch.stack([loss.double() * labels.shape[0], correct.double(), agreed.double()])
