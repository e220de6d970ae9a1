"""Accuracy over seeds: the trainings are those of titn.train, the test set stays out of development, time is kept."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from bench import accuracy, rehearsal
from titn.config import TrainConfig, resolve, settle_batch
from titn.data.dataset import development_split, load_dataset
from titn.data.splits import stratified_development_rows
from titn.errors import UserError
from titn.network import NetworkSpec
from titn.train import train
from titn.training import checkpoint
from titn.training.run import Run
from titn.training.switches import select

CPU = torch.device("cpu")
QUIET = Console(quiet=True)
TOY = TrainConfig(dataset="digits", device="cpu", **accuracy.TOY)


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(Run(run).newest_checkpoint() / checkpoint.MODEL)


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def saved(runs_dir: Path) -> list[accuracy.Result]:
    """What a toy measurement of two seeds hands over, seed by seed, and in the end."""
    steps: list[accuracy.Result] = []
    found = accuracy.measure(
        "digits", 30, CPU, data_dir="data", seeds=2, console=QUIET, runs_dir=runs_dir, small=True, save=steps.append
    )
    return [*steps, found]


def test_a_seed_is_the_training_of_titn_train(saved: list[accuracy.Result], runs_dir: Path, tmp_path: Path) -> None:
    (teacher,) = runs_dir.glob("teacher-*")
    config = replace(TOY, fast=True, teacher=str(teacher), runs_dir=str(tmp_path), seed=1)
    expected = train(config, console=QUIET)
    assert saved[-1]["runs"][1]["top1"] == expected.top1
    (own,) = runs_dir.glob("accuracy-digits-test-*-seed1")
    ours, theirs = last_weights(own), last_weights(Path(expected.run))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_each_seed_is_written_as_it_ends(saved: list[accuracy.Result]) -> None:
    first, second, last = saved
    assert [run["seed"] for run in first["runs"]] == [0]
    assert first["interval95"] is None
    assert [run["seed"] for run in second["runs"]] == [0, 1]
    assert second == last
    assert last["planned_seeds"] == 2
    assert last["mean"] == pytest.approx((last["runs"][0]["top1"] + last["runs"][1]["top1"]) / 2)
    json.dumps(last, allow_nan=False)


def test_time_enough_means_the_whole_recipe(saved: list[accuracy.Result]) -> None:
    assert saved[-1]["epochs"] == accuracy.TOY["epochs"]
    assert saved[-1]["note"] == ""


def test_the_teacher_is_trained_once_and_shared(saved: list[accuracy.Result], runs_dir: Path) -> None:
    (teacher,) = runs_dir.glob("teacher-*")
    result = json.loads((teacher / "result.json").read_text())
    assert saved[-1]["teacher"] == {
        "name": "small_cnn", "top1": result["top1"], "epochs": 1, "seconds": result["wall_seconds"],
    }  # fmt: skip
    for run in runs_dir.glob("accuracy-*"):
        assert Run(run).config().teacher == str(teacher)  # type: ignore[attr-defined]


def test_settings_name_no_folder(saved: list[accuracy.Result], runs_dir: Path) -> None:
    assert str(runs_dir) not in json.dumps(saved[-1])
    assert saved[-1]["settings"]["teacher"] == "small_cnn"
    assert saved[-1]["settings"]["fast"] is True


@pytest.mark.parametrize(("target", "reached"), [(0.0, True), (1.1, False)])
def test_time_to_the_target_is_that_of_the_first_epoch_there(
    target: float, reached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(accuracy.TARGETS, "digits", target)
    settings = accuracy.TOY | {"teacher": "none", "epochs": 2}
    found = accuracy.measure(
        "digits", None, CPU, data_dir="data", seeds=1, console=QUIET, runs_dir=tmp_path, settings=settings
    )
    (run,) = tmp_path.glob("accuracy-*")
    lines = Run(run).metrics()
    assert found["target"] == target
    assert found["teacher"] is None
    assert found["runs"][0]["seconds_to_target"] == (lines[0]["seconds"] if reached else None)
    assert found["runs"][0]["top1"] == lines[-1]["test_top1"]


def test_development_evaluates_on_training_images_that_are_not_learned(tmp_path: Path) -> None:
    found = accuracy.measure(
        "digits", None, CPU, data_dir="data", seeds=1, console=QUIET, runs_dir=tmp_path, small=True, epochs=1,
        split="development",
    )  # fmt: skip
    data = load_dataset("digits", limit_train=accuracy.TOY["limit_train"])
    held_out = int(stratified_development_rows(data.train_labels).sum())
    for run in tmp_path.iterdir():
        result = json.loads((run / "result.json").read_text())
        assert result["test_images"] == held_out
        assert result["train_images"] == len(data.train_labels) - held_out
    assert found["split"] == "development"
    assert found["epochs"] == 1
    assert "shortened to 1" in found["note"]


def test_the_development_split_is_a_fixed_stratified_tenth_of_the_training_images() -> None:
    data = load_dataset("digits")
    split = development_split(data)
    whole = [image.tobytes() for image in data.train_images]
    parts = [image.tobytes() for image in (*split.train_images, *split.test_images)]
    assert sorted(parts) == sorted(whole)
    sizes, held_out = np.bincount(data.train_labels), np.bincount(split.test_labels)
    assert (np.abs(held_out - sizes / 10) <= 0.5).all()
    again = development_split(load_dataset("digits"))
    assert np.array_equal(again.test_images, split.test_images)
    assert (split.mean, split.std, split.class_names) == (data.mean, data.std, data.class_names)
    assert split.fingerprint != data.fingerprint


def test_one_image_a_class_gives_no_development_split() -> None:
    with pytest.raises(UserError, match="two or more"):
        development_split(load_dataset("digits", limit_train=10))


def test_the_interval_is_students() -> None:
    low, high = accuracy.interval([0.5, 0.6, 0.7]) or (0.0, 0.0)
    half = 4.302653 * 0.1 / 3**0.5  # t of two degrees of freedom at 97.5 %, from a table
    assert (low, high) == (pytest.approx(0.6 - half), pytest.approx(0.6 + half))
    assert accuracy.interval([0.7]) is None


def test_epochs_follow_from_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = resolve(replace(TOY, epochs=50, teacher_epochs=25))
    data = load_dataset("digits", limit_train=96)
    settled = settle_batch(recipe, 96)
    real = rehearsal.rehearse(settled, select(settled), data, NetworkSpec.of(settled, data).build(), None)
    assert real.once >= 0
    assert real.epoch > 0
    costs = iter([rehearsal.Cost(once=10.0, epoch=4.0), rehearsal.Cost(once=5.0, epoch=3.0)])
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_: next(costs))
    deadline = rehearsal.Deadline.after(3)
    config, student = rehearsal.fit_epochs(recipe, data, 2, deadline, QUIET)
    # 162 s of 180, less 10 and 2 x 5 s; an epoch of two students and half a teacher takes 2 x 3 + 4 / 2 s
    assert config.epochs == 17
    assert config.teacher_epochs in (8, 9)
    assert student.epoch == 3.0


def test_too_little_time_is_an_error_of_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dry-run", "--minutes", "0.001", "--device", "cpu", "--runs-dir", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        accuracy.main([*arguments, "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "too little time for one epoch of 5 seeds" in capsys.readouterr().err


def test_a_seed_that_no_longer_fits_is_left_out(tmp_path: Path) -> None:
    found = accuracy.measure(
        "digits", 1e-4, CPU, data_dir="data", seeds=3, console=QUIET, runs_dir=tmp_path, small=True, epochs=1
    )
    assert len(found["runs"]) == 1
    assert "seeds from 1 on left out" in found["note"]
    assert found["planned_seeds"] == 3


def test_a_seed_that_diverges_is_named(tmp_path: Path) -> None:
    settings = accuracy.TOY | {"teacher": "none", "epochs": 1, "lr": 1e30, "warmup_epochs": 0.0, "optimizer": "sgd"}
    found = accuracy.measure(
        "digits", None, CPU, data_dir="data", seeds=1, console=QUIET, runs_dir=tmp_path, settings=settings
    )
    assert found["runs"] == []
    assert found["mean"] is None
    assert found["note"].startswith("seed 0 failed: ")
    assert "no longer finite" in found["note"]


def test_the_command_writes_the_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dry-run", "--seeds", "1", "--epochs", "1", "--device", "cpu", "--runs-dir", str(tmp_path / "runs")]
    accuracy.main([*arguments, "--out", str(tmp_path / "out")])
    (file,) = (tmp_path / "out").glob("*/*.json")
    section = json.loads(file.read_text())["sections"]["accuracy"]
    assert section["dataset"] == "digits"
    assert [run["seed"] for run in section["runs"]] == [0]
    assert "top-1, last epoch" in capsys.readouterr().out
