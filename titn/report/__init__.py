"""A run's report: one HTML file with everything in it, to be opened in a browser or mailed to a colleague."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from titn.errors import UserError
from titn.files import write_atomic
from titn.metrics import confusion_matrix
from titn.report import page
from titn.report.figures import confusion, curves
from titn.report.style import shorten

if TYPE_CHECKING:
    from titn.data.dataset import Dataset

MISTAKES = 32
WORST_CLASSES = 20
CONFUSIONS = 10

_SHARES = {"top1": "top-1", "top5": "top-5", "precision": "precision", "recall": "recall", "f1": "F1"}
_Parsed = TypeVar("_Parsed")


def write_report(run_dir: Path, dataset: Dataset, logits: Tensor) -> Path:
    """Write `run_dir/report.html` from the run folder's own files and the answers to the test set.

    Reads `result.json`, `config.yaml` and `metrics.jsonl` (one JSON object an epoch). The page holds the metrics,
    curves over epochs, the confusion matrix, the worst classes and the test images most confidently got wrong. It
    loads nothing from elsewhere, and it appears whole or not at all.

    Args:
        run_dir: the run folder.
        dataset: the run's data set; test images uint8 `[N, H, W, C]`, C = 1 or 3.
        logits: `[N, K]`, any floating type: the model's answers to the test images, in their order.

    Returns:
        The path of the report.

    Raises:
        UserError: a file of the run folder is missing or damaged.
        ValueError: logits and data set do not belong together, or a logit is NaN or infinite.
    """
    labels, classes = dataset.test_labels, dataset.num_classes
    if tuple(logits.shape) != (len(labels), classes):
        raise ValueError(f"expected logits {(len(labels), classes)} for {dataset.name}, got {tuple(logits.shape)}")
    result = _read(run_dir / "result.json", json.loads)
    config = _read(run_dir / "config.yaml", yaml.safe_load)
    history = _read(run_dir / "metrics.jsonl", lambda text: [json.loads(line) for line in text.splitlines()])
    scores = logits.detach().double().cpu()
    matrix = confusion_matrix(scores, torch.from_numpy(labels)).numpy()
    content = page.page(
        f"{run_dir.name} · TITN",
        page.tag("h1", run_dir.name),
        page.tag("p", _subtitle(result, len(labels))),
        _tiles(result),
        page.section("Training", "One point an epoch, as metrics.jsonl has them.", page.Html(curves(history))),
        _confusion(matrix, dataset.class_names),
        _worst_classes(matrix, dataset.class_names),
        _mistakes(scores.softmax(1).numpy(), dataset),
        _run(result, config),
    )
    path = run_dir / "report.html"
    write_atomic(path, content)
    return path


def _subtitle(result: Mapping[str, Any], images: int) -> str:
    words = [str(result[key]) for key in ("model", "dataset") if key in result]
    teacher = result.get("teacher")
    taught = f", distilled from {teacher}" if teacher and teacher != "none" else ""
    return f"{' on '.join(words)}{taught}. Metrics are over all {images:,} test images."


def _tiles(result: Mapping[str, Any]) -> page.Html:
    numbers = [(_number(key, result[key]), name) for key, name in _SHARES.items() if key in result]
    if "images_per_second" in result:
        numbers.append((f"{result['images_per_second']:,.0f}", "training images/s"))
    tiles = (page.tag("div", page.tag("b", number), page.tag("span", name), class_="tile") for number, name in numbers)
    return page.tag("div", *tiles, class_="tiles")


def _confusion(matrix: NDArray[np.int64], names: Sequence[str]) -> page.Html:
    off_diagonal = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-off_diagonal, axis=None, kind="stable")[:CONFUSIONS]
    pairs = [divmod(int(flat), len(matrix)) for flat in order if off_diagonal.flat[flat]]
    totals = matrix.sum(1)
    rows = [
        (shorten(names[true]), shorten(names[said]), f"{matrix[true, said]} of {totals[true]}") for true, said in pairs
    ]
    return page.section(
        "Confusion matrix",
        "Each row is one true class; blue is right, red is wrong. Opacity is the square root of the share of the row, "
        "so that rare mistakes show. Classes stand in the data set's order.",
        page.tag(
            "div",
            page.tag("div", page.Html(confusion(matrix, names))),
            page.tag(
                "div", page.tag("h2", "Most frequent mistakes"), page.table(("true", "predicted", "images"), rows)
            ),
            class_="pair",
        ),
    )


def _worst_classes(matrix: NDArray[np.int64], names: Sequence[str]) -> page.Html:
    totals, right = matrix.sum(1), np.diag(matrix)
    present = np.flatnonzero(totals)
    accuracy = right[present] / totals[present]
    worst = np.argsort(accuracy, kind="stable")[:WORST_CLASSES]
    rows = [
        (
            shorten(names[present[i]], 40),
            page.bar(accuracy[i]),
            f"{100 * accuracy[i]:.1f} %",
            f"{right[present[i]]} of {totals[present[i]]}",
        )
        for i in worst
    ]
    shown = f"The {len(worst)} worst of {len(present)} classes" if len(worst) < len(present) else "All classes"
    absent = len(names) - len(present)
    note = f" {absent} without test images are left out." if absent else ""
    return page.section(
        "Accuracy per class",
        f"{shown}, worst first.{note}",
        page.table(("class", "", "accuracy", "right"), rows),
    )


def _mistakes(probabilities: NDArray[np.float64], dataset: Dataset) -> page.Html:
    predicted = probabilities.argmax(1)
    confidence = probabilities.max(1)
    wrong = np.flatnonzero(predicted != dataset.test_labels)
    chosen = wrong[np.argsort(-confidence[wrong], kind="stable")[:MISTAKES]]
    figures = []
    for i in chosen:
        true, said = (shorten(dataset.class_names[k], 30) for k in (dataset.test_labels[i], predicted[i]))
        caption = page.tag(
            "figcaption",
            page.tag("span", "said ", class_="soft"),
            page.tag("span", said, class_="wrong"),
            f" {100 * confidence[i]:.1f}\N{NO-BREAK SPACE}%",
            page.Html("<br>"),
            page.tag("span", "is ", class_="soft"),
            page.tag("span", true, class_="right"),
            page.tag("span", f" · #{i}", class_="soft"),
        )
        figures.append(page.tag("figure", page.picture(dataset.test_images[i], f"test image {i}, a {true}"), caption))
    explanation = (
        f"{len(chosen)} of {len(wrong):,} wrong answers: what the model said and how sure it was, what the image is, "
        "and its number in the test set."
        if len(wrong)
        else "Not one test image was got wrong."
    )
    return page.section("Most confidently wrong", explanation, page.tag("div", *figures, class_="images"))


def _run(result: Mapping[str, Any], config: Mapping[str, Any]) -> page.Html:
    settings = page.table((), [(key, _number(key, value)) for key, value in config.items()])
    return page.section(
        "Run",
        "result.json and config.yaml of the run folder.",
        page.table((), [(key, _number(key, value)) for key, value in result.items()]),
        page.tag("details", page.tag("summary", "Configuration"), settings),
    )


def _number(key: str, value: Any) -> str:
    """A value as people read it: shares in percent, large counts with separators, times in minutes."""
    if key.rpartition("_")[2] in _SHARES and isinstance(value, int | float):
        return f"{100 * value:.2f} %"
    if key == "macs" and isinstance(value, int | float):
        return f"{value / 1e6:,.2f} M"
    if key.endswith("seconds") and isinstance(value, int | float):
        minutes, seconds = divmod(value, 60)
        return f"{minutes:.0f} min {seconds:.0f} s" if minutes else f"{seconds:.1f} s"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return str(value) if key == "seed" else f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_number(name, item)}" for name, item in value.items())
    return ", ".join(_number(key, item) for item in value) if isinstance(value, list) else str(value)


def _read(path: Path, parse: Callable[[str], _Parsed]) -> _Parsed:
    try:
        return parse(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing, so there is no report; train the run again or continue it") from None
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it or train the run again") from None
