"""A run's report: one HTML file with everything in it, to be opened in a browser or mailed to a colleague.

This module gathers what the report says, `figures` draws, and `template.html` is the page.
"""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jinja2
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from titn.config import TeacherConfig, TrainConfig
from titn.errors import UserError
from titn.files import write_atomic
from titn.metrics import classification_metrics, confusion_matrix
from titn.report.figures import confusion, curves
from titn.report.style import shorten
from titn.report.text import printable

if TYPE_CHECKING:
    from titn.data.dataset import Dataset

MISTAKES = 32
WORST_CLASSES = 20
CONFUSIONS = 10

_SHARES = {
    "top1": "top-1", "top5": "top-5", "precision": "precision", "recall": "recall", "f1": "F1",
    "val_top1": "validation top-1",
}  # fmt: skip
_Parsed = TypeVar("_Parsed")


def write_report(run_dir: Path, dataset: Dataset, logits: Tensor | None) -> Path:
    """Write `run_dir/report.html` from the run folder's own files and the answers to the test set.

    Reads `config.yaml`, `metrics.jsonl` (one JSON object per epoch) and, of a finished run, `result.json`; a run
    without one is reported as stopped, with the command that continues it. The page holds the metrics, curves over
    epochs, and, where there are logits, the confusion matrix, the worst classes and the test images most confidently
    got wrong. It loads nothing from elsewhere, and it appears whole or not at all.

    Args:
        run_dir: the run folder.
        dataset: the run's data set; test images uint8 `[N, H, W, C]`, C = 1 or 3.
        logits: `[N, K]`, any floating type: the model's answers to the test images, in their order, at the end of the
            last epoch in `metrics.jsonl`; None where there are none.

    Returns:
        The path of the report.

    Raises:
        UserError: a file of the run folder is missing or damaged.
        ValueError: logits and data set do not belong together, or a logit is NaN or infinite.
    """
    labels, classes = dataset.test_labels, dataset.num_classes
    if logits is not None and tuple(logits.shape) != (len(labels), classes):
        raise ValueError(f"expected logits {(len(labels), classes)} for {dataset.name}, got {tuple(logits.shape)}")
    finished = (run_dir / "result.json").exists()
    config = _read(run_dir / "config.yaml", lambda text: _mapping(yaml.safe_load(text)))
    history = _history(run_dir, finished)
    if finished:
        result = _read(run_dir / "result.json", lambda text: _mapping(json.loads(text)))
    else:
        result = _so_far(config, dataset, history, logits)
    if classes <= 5:
        result = {key: value for key, value in result.items() if key != "top5"}
        history = [{key: value for key, value in epoch.items() if not key.endswith("_top5")} for epoch in history]
    answers: dict[str, Any] = dict.fromkeys(("confusion", "classes", "mistakes"))
    if logits is not None:
        scores = logits.detach().double().cpu()
        matrix = confusion_matrix(scores, torch.from_numpy(labels)).numpy()
        answers = {
            "confusion": _confusion(matrix, dataset.class_names),
            "classes": _worst_classes(matrix, dataset.class_names),
            "mistakes": _mistakes(scores.softmax(1).numpy(), dataset),
        }
    page = _template().render(
        name=run_dir.name,
        subtitle=_subtitle(result, len(labels), finished),
        stopped=None if finished else _stopped(run_dir, config, len(history)),
        tiles=_tiles(result),
        curves=curves(history) if history else None,
        result=[(key, _number(key, value)) for key, value in result.items()],
        config=[(key, _number(key, value)) for key, value in config.items()],
        finished=finished,
        **answers,
    )
    path = run_dir / "report.html"
    write_atomic(path, page)
    return path


def _template() -> jinja2.Template:
    """The page; whatever it shows is made printable and escaped, except the drawings, which it marks as safe."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__name__, ""),
        autoescape=True,
        finalize=lambda value: value if hasattr(value, "__html__") else printable(str(value)),
        keep_trailing_newline=True,
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("template.html")


def _history(run_dir: Path, finished: bool) -> list[dict[str, Any]]:
    """The finished epochs; a run that was stopped before its first may have no file of them."""
    path = run_dir / "metrics.jsonl"
    if not finished and not path.exists():
        return []
    return _read(path, _lines)


def _so_far(
    config: Mapping[str, Any], dataset: Dataset, history: Sequence[Mapping[str, Any]], logits: Tensor | None
) -> dict[str, Any]:
    """What a stopped run's result would begin with: its last epoch, and what is trained on what."""
    student = _is_student(config)
    result: dict[str, Any] = {}
    if logits is not None:
        result |= classification_metrics(logits, torch.from_numpy(dataset.test_labels))
    elif history:
        named = {"test_top1": "top1", "test_top5": "top5", "val_top1": "val_top1"}
        result |= {name: history[-1][key] for key, name in named.items() if history[-1].get(key) is not None}
    if history and "images_per_second" in history[-1]:
        result["images_per_second"] = history[-1]["images_per_second"]
    return result | {
        "dataset": dataset.name,
        "model": config["model"] if student else config.get("teacher"),
        "teacher": config.get("teacher") if student else None,
        "epochs": f"{len(history)} of {config.get('epochs', '?')}",
    }


def _is_student(config: Mapping[str, Any]) -> bool:
    return "model" in config


def _stopped(run_dir: Path, config: Mapping[str, Any], epochs: int) -> dict[str, str]:
    """Where the run was stopped, and the command that continues it."""
    of = f"of {config.get('epochs', '?')}"
    program = (TrainConfig if _is_student(config) else TeacherConfig).program
    return {
        "where": f"after epoch {epochs} {of}" if epochs else f"before the end of epoch 1 {of}",
        "command": f"{program} --resume {shlex.quote(str(run_dir))}",
    }


def _subtitle(result: Mapping[str, Any], images: int, finished: bool) -> str:
    words = [str(result[key]) for key in ("model", "dataset") if result.get(key)]
    teacher = result.get("teacher")
    taught = f", distilled from {teacher}" if teacher and teacher != "none" else ""
    when = "Metrics are" if finished else "Metrics are the last finished epoch's,"
    return f"{' on '.join(words)}{taught}." + (f" {when} over all {images:,} test images." if "top1" in result else "")


def _tiles(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(number, what it is)."""
    tiles = [(_number(key, result[key]), name) for key, name in _SHARES.items() if key in result]
    speed = result.get("images_per_second")
    if isinstance(speed, int | float):
        tiles.append((f"{speed:,.0f}", "training images/s"))
    return tiles


def _confusion(matrix: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """The picture, and the most frequent mistakes as (true class, predicted class, images)."""
    off_diagonal = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-off_diagonal, axis=None, kind="stable")[:CONFUSIONS]
    pairs = [divmod(int(flat), len(matrix)) for flat in order if off_diagonal.flat[flat]]
    totals = matrix.sum(1)
    return {
        "picture": confusion(matrix, names),
        "pairs": [
            (shorten(names[true]), shorten(names[said]), f"{matrix[true, said]} of {totals[true]}")
            for true, said in pairs
        ],
    }


def _worst_classes(matrix: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """What is shown, and (class, accuracy in percent, right of all) of each class, worst first."""
    totals, right = matrix.sum(1), np.diag(matrix)
    present = np.flatnonzero(totals)
    accuracy = 100 * right[present] / totals[present]
    worst = np.argsort(accuracy, kind="stable")[:WORST_CLASSES]
    shown = f"The {len(worst)} worst of {len(present)} classes" if len(worst) < len(present) else "All classes"
    absent = len(names) - len(present)
    return {
        "shown": f"{shown}, worst first.{f' {absent} without test images are left out.' if absent else ''}",
        "rows": [
            (shorten(names[k], 40), f"{accuracy[i]:.1f}", f"{right[k]} of {totals[k]}")
            for i, k in zip(worst, present[worst], strict=True)
        ],
    }


def _mistakes(probabilities: NDArray[np.float64], dataset: Dataset) -> dict[str, Any]:
    """The number of wrong answers, and the surest of them."""
    predicted = probabilities.argmax(1)
    confidence = probabilities.max(1)
    wrong = np.flatnonzero(predicted != dataset.test_labels)
    chosen = wrong[np.argsort(-confidence[wrong], kind="stable")[:MISTAKES]]
    files = dataset.test_names
    return {
        "wrong": len(wrong),
        "files": files is not None,
        "images": [
            {
                "number": i,
                "file": None if files is None else files[i],
                "true": shorten(dataset.class_names[dataset.test_labels[i]], 30),
                "said": shorten(dataset.class_names[predicted[i]], 30),
                "sure": f"{100 * confidence[i]:.1f}",
                "source": _png(dataset.test_images[i]),
            }
            for i in chosen
        ],
    }


def _png(pixels: NDArray[np.uint8]) -> str:
    """uint8 `[H, W, C]`, C = 1 or 3, as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _number(key: str, value: Any) -> str:
    """A value as people read it: shares in percent, large counts with separators, times in minutes."""
    if key.rpartition("_")[2] in _SHARES and isinstance(value, int | float):
        return f"{100 * value:.2f} %"
    if key == "macs" and isinstance(value, int | float):
        return f"{value / 1e6:,.2f} M"
    if key.endswith("seconds") and isinstance(value, int | float):
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes} min {seconds} s" if minutes else f"{value:.1f} s"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return str(value) if key == "seed" else f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_number(name, item)}" for name, item in value.items())
    return ", ".join(_number(key, item) for item in value) if isinstance(value, list) else str(value)


def _lines(text: str) -> list[dict[str, Any]]:
    lines = [_mapping(json.loads(line)) for line in text.splitlines()]
    if not all(isinstance(line.get("epoch"), int) for line in lines):
        raise ValueError("a line without an epoch")
    return lines


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"names and values were expected, not {type(value).__name__}")
    return value


def _read(path: Path, parse: Callable[[str], _Parsed]) -> _Parsed:
    try:
        return parse(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing, so there is no report; train the run again or continue it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}), so there is no report") from None
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it or train the run again") from None
