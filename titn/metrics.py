"""Exact classification metrics over a whole test set, never averages of batch means; intervals of means over runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from scipy.stats import t as student_t  # type: ignore[import-untyped]
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """top1, top5, and macro precision, recall and f1, each between 0 and 1.

    Classes rank by logit, equal logits by index. `top5` looks among the first five, among all where K < 5. Macro
    averages give each class the same weight. A ratio with a zero denominator counts as 0 (a class never predicted has
    precision 0); a class found neither among the labels nor among the predictions is left out.
    scikit-learn gives the same with `average="macro", zero_division=0`.

    Args:
        logits: `[N, K]`, any floating type, K >= 2; scores in any monotonic scale.
        labels: `[N]`, integers in 0..K-1.

    Raises:
        ValueError: wrong shapes, no rows, a label out of range, or a NaN or infinite logit.
    """
    ranked, targets = _ranked(logits, labels)
    classes = ranked.shape[1]
    predicted = ranked[:, 0]
    hits = ranked[:, :5] == targets[:, None]
    return {
        "top1": hits[:, 0].double().mean().item(),
        "top5": hits.any(1).double().mean().item(),
        "precision": multiclass_precision(predicted, targets, classes, average="macro", zero_division=0).item(),
        "recall": multiclass_recall(predicted, targets, classes, average="macro", zero_division=0).item(),
        "f1": multiclass_f1_score(predicted, targets, classes, average="macro", zero_division=0).item(),
    }


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Number of images of true class i predicted as class j.

    Args:
        logits: `[N, K]`, any floating type, K >= 2.
        labels: `[N]`, integers in 0..K-1.

    Returns:
        int64 `[K, K]` on the device of `logits`; rows are true classes, columns predicted ones, and the sum is N.

    Raises:
        ValueError: as `classification_metrics`.
    """
    ranked, targets = _ranked(logits, labels)
    return multiclass_confusion_matrix(ranked[:, 0], targets, ranked.shape[1])


def _ranked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Classes from the largest logit down, int64 [N, K], and int64 labels [N] on the same device."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"expected logits [N, K] and labels [N], got {tuple(logits.shape)} and {tuple(labels.shape)}")
    if logits.shape[0] == 0 or logits.shape[1] < 2:
        raise ValueError(f"expected at least one row and two classes, got logits {tuple(logits.shape)}")
    targets = labels.to(logits.device, torch.int64)
    if not logits.isfinite().all():
        raise ValueError("logits must be finite; these hold NaN or infinity")
    if targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise ValueError(f"labels must lie in 0..{logits.shape[1] - 1}, got {targets.min()}..{targets.max()}")
    return logits.argsort(dim=1, descending=True, stable=True), targets


def confidence_interval(values: Sequence[float]) -> list[float] | None:
    """The two ends of the 95 % interval of the mean, by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    half = float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return [mean - half, mean + half]
