"""The report of real digits, read back as HTML: complete, self-contained, true to the logits, safe with any name."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from titn.data.dataset import Dataset
from titn.errors import UserError
from titn.metrics import classification_metrics
from titn.report import MISTAKES, WORST_CLASSES, write_report

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; a tag closed in the wrong order is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text("utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def images(self) -> list[np.ndarray]:
        """Pixels of the embedded test images."""
        sources = [value for tag, name, value in self.attributes if (tag, name) == ("img", "src")]
        prefix = "data:image/png;base64,"
        assert all(source.startswith(prefix) for source in sources)
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source[len(prefix) :])))) for source in sources]


def digits() -> tuple[Dataset, Tensor]:
    """Scanned digits, one channel, the last 360 as test images, and a nearest-centroid classifier's logits for them."""
    pixels, labels = load_digits(return_X_y=True)
    images = np.kron(pixels.reshape(-1, 8, 8, 1), np.ones((1, 4, 4, 1)))
    images = np.round(images * (255 / 16)).astype(np.uint8)
    cut = len(images) - 360
    centroids = np.stack([pixels[:cut][labels[:cut] == digit].mean(0) for digit in range(10)])
    distances = ((pixels[cut:, None] - centroids[None]) ** 2).sum(-1)
    names = tuple(str(digit) for digit in range(10))
    return dataset(images[:cut], labels[:cut], images[cut:], labels[cut:], names), torch.from_numpy(-distances / 100)


def dataset(
    train_images: np.ndarray, train_labels: np.ndarray, images: np.ndarray, labels: np.ndarray, names: tuple[str, ...]
) -> Dataset:
    channels = images.shape[-1]
    return Dataset(
        name="digits",
        train_images=train_images,
        train_labels=train_labels.astype(np.int64),
        test_images=images,
        test_labels=labels.astype(np.int64),
        class_names=names,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
        fingerprint="0" * 64,
    )


def epoch_line(epoch: int) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "loss": 2.0 / epoch,
        "train_top1": 1 - 0.9 / epoch,
        "test_top1": 1 - 0.8 / epoch,
        "test_top5": 1 - 0.3 / epoch,
        "test_loss": 1.5 / epoch,
        "lr": 0.1 / epoch,
        "images_per_second": 600.0 + epoch,
        "seconds": 2.0,
        "teacher_agreement": 1 - 0.7 / epoch,
    }


def run_folder(path: Path, data: Dataset, logits: Tensor, epochs: int = 3) -> Path:
    path.mkdir()
    result = classification_metrics(logits, torch.from_numpy(data.test_labels)) | {
        "parameters": 5_835_284,
        "macs": 110_672_640,
        "epochs": epochs,
        "images_per_second": 612.5,
        "wall_seconds": 95.0,
        "dataset": data.name,
        "model": "titn",
        "teacher": "small_cnn",
        "commit": None,
    }
    (path / "result.json").write_text(json.dumps(result))
    (path / "config.yaml").write_text("dataset: digits\nmodel: titn\nlr: 0.1\nflip: false\n")
    lines = (json.dumps(epoch_line(epoch)) for epoch in range(1, epochs + 1))
    (path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset, Tensor]:
    data, logits = digits()
    run = run_folder(tmp_path_factory.mktemp("runs") / "first-run", data, logits)
    assert write_report(run, data, logits) == run / "report.html"
    return run, data, logits


def test_is_whole_and_leaves_no_temporary_file(digits_run: tuple[Path, Dataset, Tensor]) -> None:
    run, _, _ = digits_run
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "metrics.jsonl", "report.html", "result.json"]
    page = Page(run / "report.html")
    assert page.count["html"] == page.count["body"] == 1
    assert page.count["section"] == 5
    assert page.count["svg"] == 2
    identifiers = Counter(value for _, name, value in page.attributes if name == "id")
    assert [identifier for identifier, times in identifiers.items() if times > 1] == []


def test_needs_nothing_from_elsewhere(digits_run: tuple[Path, Dataset, Tensor]) -> None:
    run, _, _ = digits_run
    text = (run / "report.html").read_text("utf-8")
    assert "://" not in text
    assert "@import" not in text
    page = Page(run / "report.html")
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.count)
    for _, name, value in page.attributes:
        if name in {"src", "href", "xlink:href", "srcset"}:
            assert value.startswith(("data:image/png;base64,", "#"))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_shows_the_numbers_of_the_run(digits_run: tuple[Path, Dataset, Tensor]) -> None:
    run, data, logits = digits_run
    text = Page(run / "report.html").text
    metrics = classification_metrics(logits, torch.from_numpy(data.test_labels))
    for name in ("top1", "top5", "precision", "recall", "f1"):
        assert f"{100 * metrics[name]:.2f} %" in text
    for shown in ("first-run", "titn on digits, distilled from small_cnn", "5,835,284", "110.67 M", "1 min 35 s"):
        assert shown in text
    for panel in ("Loss", "Accuracy (%)", "Learning rate", "Images per second", "agreement with the teacher"):
        assert panel in text


def test_shows_the_images_most_confidently_got_wrong(digits_run: tuple[Path, Dataset, Tensor]) -> None:
    run, data, logits = digits_run
    probabilities = torch.softmax(logits, 1).numpy()
    wrong = np.flatnonzero(probabilities.argmax(1) != data.test_labels)
    surest = wrong[np.argsort(-probabilities.max(1)[wrong], kind="stable")][:MISTAKES]
    page = Page(run / "report.html")
    shown = page.images()
    assert 0 < len(shown) == len(surest)
    for pixels, i in zip(shown, surest, strict=True):
        assert np.array_equal(pixels, data.test_images[i, ..., 0])
    first = surest[0]
    said, sure = probabilities[first].argmax(), 100 * probabilities[first].max()
    assert f"said {said} {sure:.1f}\N{NO-BREAK SPACE}%is {data.test_labels[first]} · #{first}" in page.text


def test_one_epoch_without_a_teacher_or_a_mistake(tmp_path: Path) -> None:
    data, _ = digits()
    logits = torch.nn.functional.one_hot(torch.from_numpy(data.test_labels), 10).float()
    run = run_folder(tmp_path / "one", data, logits, epochs=1)
    line = epoch_line(1) | {"teacher_agreement": None, "test_loss": float("nan")}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    page = Page(write_report(run, data, logits))
    assert page.images() == []
    assert "Not one test image was got wrong." in page.text
    assert "agreement with the teacher" not in page.text


def test_a_hundred_classes_in_colour(tmp_path: Path) -> None:
    """The three last of 100 classes have no images; every third image is given the class after its own."""
    source, _ = digits()
    images = np.repeat(source.test_images, 3, axis=-1)
    images[..., 1] //= 2
    labels = np.arange(360) % 97
    names = tuple(f"kind-{k:02d}" for k in range(100))
    data = dataset(images, labels, images, labels, names)
    logits = torch.nn.functional.one_hot(torch.from_numpy((labels + (np.arange(360) % 3 == 0)) % 100), 100) * 3.0
    logits[0] *= 2  # the surest mistake
    page = Page(write_report(run_folder(tmp_path / "hundred", data, logits), data, logits))
    assert f"The {WORST_CLASSES} worst of 97 classes, worst first. 3 without test images are left out." in page.text
    assert np.array_equal(page.images()[0], images[0])
    assert "kind-98" not in page.text


def test_class_names_are_text(tmp_path: Path) -> None:
    data, logits = digits()
    names = ("<script>alert(1)</script>", "$x_1$ & $y$", "猫", 'a"b', "{name}", "a'b", "x" * 300, "\\frac{", "é", " ")
    data = dataset(data.train_images, data.train_labels, data.test_images, data.test_labels, names)
    path = write_report(run_folder(tmp_path / "names", data, logits), data, logits)
    page = Page(path)
    assert page.count["script"] == 0
    assert "<script>alert(1)</script>" in page.text
    assert page.text.count("$x_1$ & $y$") >= 3
    assert "猫" in page.text


def test_the_same_run_gives_the_same_bytes(digits_run: tuple[Path, Dataset, Tensor]) -> None:
    run, data, logits = digits_run
    before = (run / "report.html").read_bytes()
    assert write_report(run, data, logits).read_bytes() == before


@pytest.mark.parametrize("name", ["result.json", "config.yaml", "metrics.jsonl"])
def test_a_missing_or_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    data, logits = digits()
    run = run_folder(tmp_path / "run", data, logits)
    (run / name).write_text('{"top1": 0.9')
    with pytest.raises(UserError, match=f"{name} is damaged"):
        write_report(run, data, logits)
    (run / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        write_report(run, data, logits)
    assert not (run / "report.html").exists()


def test_logits_of_another_data_set_are_refused(digits_run: tuple[Path, Dataset, Tensor]) -> None:
    run, data, logits = digits_run
    with pytest.raises(ValueError, match="expected logits"):
        write_report(run, data, logits[:-1])
    with pytest.raises(ValueError, match="expected logits"):
        write_report(run, data, logits[:, :-1])
