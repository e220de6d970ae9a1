"""The report of real digits, read back as HTML: complete, self-contained, true to the logits, safe with any name."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from dataclasses import replace
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
    assert f"said {said} {sure:.1f} % is {data.test_labels[first]} · #{first}" in " ".join(page.text.split())


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


SHOWN = {
    "<script>alert(1)</script>": "<script>alert(1)</script>",
    "$x_1$ & $y$": "$x_1$ & $y$",
    "猫 [bold]": "猫 [bold]",
    'a"b\' xmlns="x"': 'a"b\' xmlns="x"',
    "{{ name }}": "{{ name }}",
    "caf\udce9": r"caf\xe9",
    "x" * 300: "xxxxxxxxxxxxxxxxx…",
    "\\frac{": "\\frac{",
    "#0a0b0c": "#0a0b0c",
    "two\nlines \ud800": r"two\x0alines \ud800",
}


def test_class_names_are_text(tmp_path: Path) -> None:
    """In the tables and at both axes of the matrix; a long one is cut."""
    data, logits = digits()
    data = dataset(data.train_images, data.train_labels, data.test_images, data.test_labels, tuple(SHOWN))
    page = Page(write_report(run_folder(tmp_path / "names", data, logits), data, logits))
    assert page.count["script"] == 0
    for name in SHOWN.values():
        assert page.text.count(name[:17]) >= 3, name


def test_run_folder_and_settings_are_text(tmp_path: Path) -> None:
    data, logits = digits()
    run = run_folder(tmp_path / "<b>[red]&amp;", data, logits)
    (run / "config.yaml").write_text('dataset: <i>photos</i>\nteacher: "caf\\uDCE9"\nmodel: titn\n')
    page = Page(write_report(run, data, logits))
    assert page.text.count("<b>[red]&amp;") == 2
    assert "<i>photos</i>" in page.text
    assert r"caf\xe9" in page.text
    assert not {"b", "i"} & {tag for tag, _, value in page.attributes if "red" in value}


def test_mistakes_carry_the_names_of_their_files(tmp_path: Path) -> None:
    data, logits = digits()
    files = [f"test/{label}/<{i}> \udcff.png" for i, label in enumerate(data.test_labels)]
    data = replace(data, test_names=tuple(files))
    text = Page(write_report(run_folder(tmp_path / "run", data, logits), data, logits)).text
    wrong = np.flatnonzero(logits.argmax(1).numpy() != data.test_labels)
    surest = wrong[np.argsort(-torch.softmax(logits, 1).amax(1).numpy()[wrong], kind="stable")][:MISTAKES]
    shown = re.findall(r"test/\d/<\d+> \\xff\.png", text)
    assert shown == [files[i].replace("\udcff", r"\xff") for i in surest]


@pytest.mark.parametrize(("classes", "shown"), [(5, False), (6, True)])
@pytest.mark.parametrize("stopped", [False, True])
def test_top_5_is_shown_of_more_than_five_classes(classes: int, shown: bool, stopped: bool, tmp_path: Path) -> None:
    source, logits = digits()
    rows = source.test_labels < classes
    images, labels = source.test_images[rows], source.test_labels[rows]
    data, logits = (
        dataset(images, labels, images, labels, tuple(SHOWN)[:classes]),
        logits[torch.from_numpy(rows), :classes],
    )
    run = run_folder(tmp_path / "few", data, logits)
    if stopped:
        (run / "result.json").unlink()
    for answers in (logits, None):
        text = Page(write_report(run, data, answers)).text
        assert ("top-5" in text, "top5" in text, "test top-5" in text) == (shown, shown, shown)


def stopped_run(path: Path, data: Dataset, logits: Tensor, lines: int, config: str) -> Path:
    run = run_folder(path, data, logits, epochs=max(lines, 1))
    (run / "result.json").unlink()
    (run / "config.yaml").write_text(config)
    if lines == 0:
        (run / "metrics.jsonl").unlink()
    return run


def test_a_stopped_run_says_where_and_how_to_continue(tmp_path: Path) -> None:
    data, logits = digits()
    config = "dataset: digits\nmodel: titn\nteacher: small_cnn\nepochs: 12\n"
    run = stopped_run(tmp_path / "my run", data, logits, 3, config)
    page = Page(write_report(run, data, logits))
    text = " ".join(page.text.split())
    assert "This run is not finished: it was stopped after epoch 3 of 12." in text
    assert f"python -m titn.train --resume '{run}'" in text
    assert "titn on digits, distilled from small_cnn. Metrics are the last finished epoch's" in text
    assert f"{100 * classification_metrics(logits, torch.from_numpy(data.test_labels))['f1']:.2f} %" in text
    assert page.count["svg"] == 2 and page.images()


def test_a_stopped_run_without_answers_shows_its_last_epoch(tmp_path: Path) -> None:
    data, logits = digits()
    run = stopped_run(tmp_path / "run", data, logits, 2, "dataset: digits\nteacher: small_cnn\nepochs: 5\n")
    page = Page(write_report(run, data, None))
    assert "stopped after epoch 2 of 5." in page.text
    assert f"python -m titn.teacher --resume {run}" in page.text
    assert "small_cnn on digits. " in page.text
    assert "60.00 %top-1" in page.text
    assert (page.count["svg"], page.images()) == (1, [])


def test_a_run_stopped_before_its_first_epoch(tmp_path: Path) -> None:
    data, logits = digits()
    run = stopped_run(tmp_path / "run", data, logits, 0, "dataset: digits\nmodel: vit\nteacher: none\nepochs: 5\n")
    page = Page(write_report(run, data, None))
    assert "stopped before the end of epoch 1 of 5." in page.text
    assert "No epoch was finished, so there are no curves yet." in page.text
    assert "Metrics are" not in page.text
    assert page.count["svg"] == 0


def test_the_same_run_gives_the_same_bytes(digits_run: tuple[Path, Dataset, Tensor]) -> None:
    run, data, logits = digits_run
    before = (run / "report.html").read_bytes()
    assert write_report(run, data, logits).read_bytes() == before


@pytest.mark.parametrize("content", ['{"top1": 0.9', "[1, 2]", "é"])
@pytest.mark.parametrize("name", ["result.json", "config.yaml", "metrics.jsonl"])
def test_a_damaged_file_is_named(name: str, content: str, tmp_path: Path) -> None:
    data, logits = digits()
    run = run_folder(tmp_path / "run", data, logits)
    (run / name).write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=f"{name} is damaged"):
        write_report(run, data, logits)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl"])
def test_a_file_missing_from_a_finished_run_is_named(name: str, tmp_path: Path) -> None:
    data, logits = digits()
    run = run_folder(tmp_path / "run", data, logits)
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
