"""The paper's tables: what their rows train and share, what is read again, what is said of rows that are not run."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from bench.options import Setting
from bench.training import paper
from bench.training.paper import Share, Training, cut, data_of, finished, of_entry, shares
from bench.training.paper_tables import DATASETS, TABLES, Entry, Facts
from titn.config import TrainConfig
from titn.data.dataset import load_dataset
from titn.errors import UserError
from titn.profile import profile
from titn.training.run import Run

QUIET = Console(quiet=True)
counted = functools.cache(profile)
TOY = TrainConfig(**paper.TOY, device="cpu", fast=True, tracker="none")
ENTRIES = [(table, entry) for table, entries in TABLES.items() for entry in entries]


def main(folder: Path, *arguments: str) -> dict[str, Any]:
    """The result file that the command writes."""
    for old in folder.glob("out/*/*.json"):
        old.unlink()
    paper.main([*arguments, "--dry-run", "--runs-dir", str(folder / "runs"), "--out", str(folder / "out")])
    (file,) = folder.glob("out/*/*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.mark.parametrize(("table", "entry"), ENTRIES, ids=[f"{table}: {entry.label}" for table, entry in ENTRIES])
def test_a_row_differs_from_the_recipe_in_what_the_table_is_about(table: str, entry: Entry) -> None:
    for dataset, facts in entry.paper.items():
        assert dataset in DATASETS
        if facts.gflops is not None:
            classes = 1000 if entry.is_teacher else 100
            assert round(counted(entry.network, classes).paper_gflops, 2) == facts.gflops
        recipe = TrainConfig(dataset=dataset, fast=True)
        config = of_entry(recipe, entry)
        if entry.is_teacher:
            trained = config.teacher_training(entry.network)
            assert trained.teacher == entry.network and trained.epochs == recipe.epochs
            assert trained.optimizer == entry.settings.get("optimizer", "sgd")
        else:
            assert (config.model, config.mix) == (entry.network, entry.settings.get("mix", recipe.mix))
            assert config.teacher_training("vgg16_bn") == recipe.teacher_training("vgg16_bn"), (
                "students share one teacher"
            )


def test_the_papers_own_numbers() -> None:
    """A few, as arXiv 2502.16762 prints them."""
    by_label = {(table, entry.label): entry for table, entry in ENTRIES}
    titn = by_label["students", "TITN"].paper["cifar100"]
    assert titn == Facts(0.7471, pytest.approx(0.9228), 0.72, 0.75, 0.74, 5.85, 111.40)  # type: ignore[arg-type]
    assert by_label["optimisers", "RMSprop"].paper["cifar100"].top1 == pytest.approx(0.7341)
    assert by_label["patch", "TITN (Large Patch)"].paper["cifar10"].top1 == pytest.approx(0.8539)
    assert by_label["mixup", "TITN (MixUp)"].paper["cifar100"].top5 == pytest.approx(0.9253)
    assert by_label["students", "ViT"].paper["mnist"].top1 == pytest.approx(0.994)


def test_rows_are_trained_once_and_evaluated_once(tmp_path: Path) -> None:
    content = main(tmp_path, "--table", "mixup", "--split", "development")
    section = content["sections"]["paper"]
    assert content["finished"] and (section["table"], section["split"]) == ("mixup", "development")
    plain, mixed = section["rows"]
    assert [row["label"] for row in section["rows"]] == ["TITN", "TITN (MixUp)"]
    assert (plain["settings"]["mix"], mixed["settings"]["mix"]) == ("none", "mixup")
    assert plain["settings"]["teacher"] == mixed["settings"]["teacher"]
    for row in section["rows"]:
        (run,) = row["runs"]
        folder = Run(tmp_path / "runs" / run["run"])
        result, lines = folder.result(), folder.metrics()
        assert result is not None
        assert run["top1"] == result["top1"] == row["mean"]["top1"] and row["interval95"] is None
        assert [line["test_top1"] is not None for line in lines] == [False, True]
        assert row["curve"] == [[line["epoch"], line["train_top1"]] for line in lines]
        assert row["reason"] == "" and row["paper"]["top1"] > 0.7
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("model.safetensors")}
    assert main(tmp_path, "--table", "mixup", "--split", "development")["sections"]["paper"] == section
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("model.safetensors")} == stamps


def test_what_the_time_does_not_allow_is_not_run_and_what_is_there_is_read(tmp_path: Path) -> None:
    config, data = cut(TOY.changed(runs_dir=str(tmp_path)), load_dataset("digits", limit_train=96), Share(), "test")
    teacher, vit = TABLES["students"][:2]
    teacher = paper.toy_of(teacher)
    first = Training(teacher, of_entry(config, teacher))
    student = Training(vit, of_entry(config, vit))
    for training in (first, student):
        with pytest.raises(UserError, match="not run: the time was over"):
            finished(training, data, QUIET, over=True)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    runs = [finished(training, data, QUIET, over=False) for training in (first, student)]
    for training, run in zip((first, student), runs, strict=True):
        assert finished(training, data, QUIET, over=True).folder == run.folder
    assert re.fullmatch(r"paper-digits-vit-\w{8}-seed0", runs[1].folder.name)
    assert runs[1].config().distils_from == "none", "a ViT has no distillation token"
    result = runs[1].result()
    assert result is not None and result["model"] == "vit"


def test_of_a_development_split_the_students_see_a_part(tmp_path: Path) -> None:
    whole = data_of(TOY.changed(limit_train=None), "development", None)
    _, data = cut(TOY.changed(limit_train=None), whole, Share(images=100), "development")
    assert len(data.train_labels) == 100 and len(data.test_labels) == len(whole.test_labels)
    held_out = {image.tobytes() for image in whole.test_images}
    assert not held_out & {image.tobytes() for image in data.train_images}
    assert not held_out & {image.tobytes() for image in load_dataset("digits").test_images}


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (2000.0, Share(None, 11)),  # 0.9 * 2000 s at 0.1 s an image, less a third of 360: 17,880 = 12.4 * 1437
        (1000.0, Share(1110, 8)),
        (100.0, None),
    ],
)
def test_time_is_shared_between_images_and_epochs(
    seconds: float, expected: Share | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [entry for entry in TABLES["students"] if entry.label in ("TITN", "ViT")]
    costs = {"vgg16_bn": 0.05, "titn": 0.03, "vit": 0.02}
    monkeypatch.setattr(paper, "rehearsed", lambda *_: costs)
    whole = load_dataset("digits")
    if expected is None:
        with pytest.raises(UserError, match="too little time for digits: its rows need about"):
            shares(TrainConfig(dataset="cifar100"), entries, whole, 1.0, 1)
        return
    found = shares(TrainConfig(dataset="cifar100"), entries, whole, seconds, 1)
    images = found.images or len(whole.train_labels)
    trained = images * np.float64(found.epochs) + len(whole.test_labels) / 3
    assert trained * sum(costs.values()) <= 0.9 * seconds < (trained + images + 8) * sum(costs.values())
    assert (found.images is None) == (expected.images is None) and found.epochs >= paper.FEWEST_EPOCHS


def test_a_rehearsal_is_of_the_rows_own_networks_and_leaves_nothing(tmp_path: Path) -> None:
    whole = load_dataset("digits", limit_train=96)
    entries = [paper.toy_of(TABLES["optimisers"][0])]
    costs = paper.rehearsed(TOY.changed(runs_dir=str(tmp_path)), entries, whole)
    assert list(costs) == ["small_cnn"] and 0 < costs["small_cnn"] < 60
    assert not list(tmp_path.iterdir())


def test_what_a_rehearsal_decided_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decided = [Share(64, 9), Share(1, 1)]
    monkeypatch.setattr(paper, "shares", lambda *_: decided.pop(0))
    config, whole = TOY.changed(runs_dir=str(tmp_path)), load_dataset("digits", limit_train=96)
    given: dict[str, Any] = {"entries": TABLES["patch"], "whole": whole, "seeds": 1, "split": "test"}
    at = Setting(torch.device("cpu"), small=True)
    for _ in range(2):
        assert paper.remembered(at, config, seconds=60.0, **given) == Share(64, 9)
    assert paper.remembered(at, config, seconds=61.0, **given) == Share(1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "mixup", "--dataset", "mnist"], "the paper's table of mixup has no mnist: it has cifar100"),
        (["--table", "figures"], "invalid choice"),
    ],
)
def test_what_the_paper_does_not_have(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        paper.main([*arguments, "--dry-run"])
    assert caught.value.code == 2 and message in capsys.readouterr().err
