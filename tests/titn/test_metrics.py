"""Metrics agree with scikit-learn's, absent classes and ties of convention included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from titn.metrics import classification_metrics, confusion_matrix


def draw(rows: int, classes: int, skill: float, seed: int) -> tuple[Tensor, Tensor]:
    """Random logits [rows, classes] that favour the true label by `skill`, and labels [rows]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    logits = torch.randn(rows, classes, generator=generator)
    logits[torch.arange(rows), labels] += skill
    return logits, labels


def sklearn_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    predicted = logits.argmax(1)
    classes = logits.shape[1]
    precision, recall, f1, _ = sk.precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
    top5 = sk.top_k_accuracy_score(labels, logits.numpy(), k=5, labels=np.arange(classes)) if classes > 5 else 1.0
    return {
        "top1": sk.accuracy_score(labels, predicted),
        "top5": top5,
        "precision": precision,
        "recall": recall,
        "f1": f1,
    }


@pytest.mark.parametrize(("rows", "classes", "skill"), [(400, 10, 1.5), (2000, 100, 2.0), (37, 6, 0.0), (50, 5, 1.0)])
def test_agrees_with_scikit_learn(rows: int, classes: int, skill: float) -> None:
    logits, labels = draw(rows, classes, skill, seed=rows)
    assert classification_metrics(logits, labels) == pytest.approx(sklearn_metrics(logits, labels), rel=1e-6)
    expected = sk.confusion_matrix(labels, logits.argmax(1), labels=np.arange(classes))
    assert np.array_equal(confusion_matrix(logits, labels), expected)


def test_classes_absent_from_labels_or_predictions() -> None:
    """Class 3 is never predicted and class 4 never true: both count as 0. Classes 5 and 6 are neither: left out."""
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    predicted = torch.tensor([0, 1, 1, 1, 2, 4, 0, 2])
    logits = torch.nn.functional.one_hot(predicted, 7).float()
    ours = classification_metrics(logits, labels)
    expected = sklearn_metrics(logits, labels)
    for name in ("top1", "precision", "recall", "f1"):
        assert ours[name] == pytest.approx(expected[name], rel=1e-6)
    assert ours["recall"] == pytest.approx((1 / 2 + 1 + 1 / 2 + 0 + 0) / 5)


def test_few_rows_of_many_classes() -> None:
    logits, labels = draw(9, 100, 1.0, seed=3)
    assert classification_metrics(logits, labels) == pytest.approx(sklearn_metrics(logits, labels), rel=1e-6)


def test_top5_is_everything_with_few_classes() -> None:
    logits, labels = draw(20, 3, 0.0, seed=1)
    metrics = classification_metrics(logits, labels)
    assert metrics["top5"] == 1.0
    assert metrics["top1"] < 1.0


def test_a_tie_goes_to_the_lowest_class() -> None:
    metrics = classification_metrics(torch.zeros(4, 8), torch.tensor([0, 0, 4, 5]))
    assert (metrics["top1"], metrics["top5"]) == (0.5, 0.75)


def test_accuracy_is_exact_beyond_float32_counts() -> None:
    """One wrong among 30,000 stays visible in top1 as an exact quotient."""
    labels = torch.arange(30_000) % 10
    logits = torch.nn.functional.one_hot(labels, 10).float()
    logits[7] = torch.nn.functional.one_hot(torch.tensor(0), 10).float()
    assert classification_metrics(logits, labels)["top1"] == 29_999 / 30_000


def test_confusion_matrix_counts() -> None:
    logits = torch.eye(3)[torch.tensor([0, 2, 2, 1])]
    matrix = confusion_matrix(logits.bfloat16(), torch.tensor([0, 1, 2, 1], dtype=torch.int32))
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(3), torch.zeros(3), "expected logits"),
        (torch.zeros(3, 2), torch.zeros(4), "expected logits"),
        (torch.zeros(0, 2), torch.zeros(0), "at least one row"),
        (torch.zeros(3, 1), torch.zeros(3), "two classes"),
        (torch.full((3, 2), float("nan")), torch.zeros(3), "finite"),
        (torch.tensor([[0.0, float("inf")]]), torch.zeros(1), "finite"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), "labels must lie"),
        (torch.zeros(2, 2), torch.tensor([0, -1]), "labels must lie"),
    ],
)
def test_bad_input(logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_metrics(logits, labels.long())
    with pytest.raises(ValueError, match=message):
        confusion_matrix(logits, labels.long())
