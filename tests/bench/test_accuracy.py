"""Accuracy over seeds: the trainings are those of titn.train, the test set stays out of development, time is kept."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bench.options import Setting
from bench.training import accuracy
from bench.training.accuracy import TOY
from titn.config import TrainConfig
from titn.data.dataset import development_split, load_dataset
from titn.data.splits import stratified_development_rows
from titn.errors import UserError
from titn.metrics import confidence_interval
from titn.train import train
from titn.training import checkpoint
from titn.training.rehearsal import Cost
from titn.training.run import Run
from titn.training.switches import compile_reasons

CPU = torch.device("cpu")
AT = Setting(CPU, small=True)


def toy(runs_dir: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(
        **({"dataset": "digits", "device": "cpu", "fast": True, "runs_dir": str(runs_dir)} | TOY | changes)
    )


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(Run(run).newest_checkpoint() / checkpoint.MODEL)


class Listening(Setting):
    """Keeps what is saved."""

    def save(self, section: str, data: Any) -> None:
        SAVED.append(json.loads(json.dumps(data, allow_nan=False)))


SAVED: list[dict[str, Any]] = []


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def saved(runs_dir: Path) -> list[accuracy.Section]:
    """What a toy measurement of two seeds saves, seed by seed; half an hour is enough for its whole recipe."""
    SAVED.clear()
    accuracy.measure(Listening(CPU, small=True), toy(runs_dir), minutes=30, seeds=2)
    return list(SAVED)


def test_a_seed_is_the_training_of_titn_train(saved: list[accuracy.Section], runs_dir: Path, tmp_path: Path) -> None:
    (teacher,) = runs_dir.glob("*small_cnn*")
    dataset = load_dataset("digits", limit_train=TOY["limit_train"])
    config = toy(tmp_path, teacher=str(teacher), seed=1, limit_train=None)
    expected = train(config, console=AT.console, dataset=dataset)
    assert saved[-1]["runs"][1]["top1"] == expected.top1
    (own,) = runs_dir.glob("accuracy-digits-test-*-seed1")
    ours, theirs = last_weights(own), last_weights(Path(expected.run))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_finished_seed_is_read_and_a_stopped_one_goes_on(saved: list[accuracy.Section], runs_dir: Path) -> None:
    first, second = (runs_dir / run["run"] for run in saved[-1]["runs"])
    kept = last_weights(second)
    (second / "result.json").unlink()
    shutil.rmtree(Run(second).newest_checkpoint())
    stamp = (first / "result.json").stat().st_mtime_ns
    again = accuracy.measure(AT, toy(runs_dir), seeds=2)
    assert [run["top1"] for run in again["runs"]] == [run["top1"] for run in saved[-1]["runs"]]
    assert (first / "result.json").stat().st_mtime_ns == stamp
    assert all(torch.equal(kept[name], value) for name, value in last_weights(second).items())


def test_each_seed_is_saved_as_it_ends(saved: list[accuracy.Section]) -> None:
    first, second = saved
    assert [run["seed"] for run in first["runs"]] == [0] and first["interval95"] is None
    assert [run["seed"] for run in second["runs"]] == [0, 1]
    assert second["planned_seeds"] == 2
    assert second["mean"] == pytest.approx((second["runs"][0]["top1"] + second["runs"][1]["top1"]) / 2)
    assert second["epochs"] == TOY["epochs"] and second["note"] == "", "time enough means the whole recipe"


def test_the_teacher_is_trained_once_and_shared(saved: list[accuracy.Section], runs_dir: Path) -> None:
    (teacher,) = runs_dir.glob("*small_cnn*")
    result = json.loads((teacher / "result.json").read_text())
    assert saved[-1]["teacher"] == {
        "name": "small_cnn", "top1": result["top1"], "epochs": 2, "seconds": result["wall_seconds"],
    }  # fmt: skip
    for run in runs_dir.glob("accuracy-*"):
        assert Run(run).config().distils_from == str(teacher)


def test_settings_name_no_folder(saved: list[accuracy.Section], runs_dir: Path) -> None:
    assert str(runs_dir) not in json.dumps(saved[-1])
    assert saved[-1]["settings"]["teacher"] == "small_cnn" and saved[-1]["settings"]["fast"] is True


@pytest.mark.skipif(bool(compile_reasons(CPU)), reason="torch.compile cannot run here")
def test_what_one_seed_compiles_the_next_ones_use(tmp_path: Path) -> None:
    """Rehearsal, teacher and three students: the compiler sees each network once."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    config = toy(tmp_path, compile="on", teacher="none", epochs=2, pool="token")
    graphs: list[int] = []

    class Counting(Setting):
        def save(self, section: str, data: Any) -> None:
            graphs.append(counters["stats"]["unique_graphs"])

    accuracy.measure(Counting(CPU, small=True), config, minutes=30, seeds=3)
    assert graphs[0] > 0 and graphs == [graphs[0]] * 3
    torch.compiler.reset()


@pytest.mark.parametrize(("target", "reached"), [(0.0, True), (1.1, False)])
def test_time_to_the_target_is_that_of_the_first_epoch_there(
    target: float, reached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(accuracy.TARGETS, "digits", target)
    found = accuracy.measure(Setting(CPU), toy(tmp_path, teacher="none"), seeds=1)
    (run,) = tmp_path.glob("accuracy-*")
    lines = Run(run).metrics()
    assert found["target"] == target and found["teacher"] is None
    assert found["runs"][0]["seconds_to_target"] == (lines[0]["seconds"] if reached else None)
    assert found["runs"][0]["top1"] == lines[-1]["test_top1"]


def test_development_evaluates_on_training_images_that_are_not_learned(tmp_path: Path) -> None:
    found = accuracy.measure(AT, toy(tmp_path), seeds=1, epochs=1, split="development")
    data = load_dataset("digits", limit_train=TOY["limit_train"])
    held_out = int(stratified_development_rows(data.train_labels).sum())
    for run in (path.parent for path in tmp_path.glob("*/config.yaml")):
        result = json.loads((run / "result.json").read_text())
        assert result["test_images"] == held_out
        assert result["train_images"] == len(data.train_labels) - held_out
    assert (found["split"], found["epochs"]) == ("development", 1)
    assert "shortened to 1" in found["note"]


def test_the_development_split_is_a_fixed_stratified_tenth_of_the_training_images() -> None:
    data = load_dataset("digits")
    split = development_split(data)
    whole = [image.tobytes() for image in data.train_images]
    assert sorted(image.tobytes() for image in (*split.train_images, *split.test_images)) == sorted(whole)
    for label in range(10):
        assert abs((split.test_labels == label).sum() - (data.train_labels == label).sum() / 10) <= 0.5
    assert (development_split(load_dataset("digits")).test_images == split.test_images).all()
    assert split.fingerprint != data.fingerprint
    with pytest.raises(UserError, match="two or more"):
        development_split(load_dataset("digits", limit_train=10))


def test_the_interval_is_students() -> None:
    low, high = confidence_interval([0.5, 0.6, 0.7]) or (0.0, 0.0)
    half = 4.302653 * 0.1 / 3**0.5  # t of two degrees of freedom at 97.5 %, from a table
    assert (low, high) == (pytest.approx(0.6 - half), pytest.approx(0.6 + half))
    assert confidence_interval([0.7]) is None


def test_epochs_follow_from_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = toy(tmp_path, epochs=50, teacher_epochs=25, limit_train=None)
    data = load_dataset("digits", limit_train=96)
    real = accuracy.rehearse(recipe, data, train)
    assert all(cost.once >= 0 and cost.epoch > 0 for cost in (*real[0], real[1]))
    costs = (Cost(10.0, {(False, False): 4.0}),), Cost(5.0, {(False, False): 2.0}, ending=0.5, answers=0.5)
    monkeypatch.setattr(accuracy, "rehearse", lambda *_: costs)
    config, student = accuracy.fit_epochs(recipe, data, 2, time.perf_counter() + 180, AT)
    # nine tenths of 180 s; an epoch of two students and half a teacher takes 2 x 3 + 4 / 2 s
    assert (config.epochs, config.teacher_epochs, student) == (20, 10, costs[1])


def test_shortened_trainings_can_be_made() -> None:
    """The recipe's warm-up must leave room for what follows it, however short a training gets."""
    for epochs in (1, 2, 7):
        config = accuracy.shortened(TrainConfig(dataset="digits"), epochs)
        assert config.warmup_epochs < config.epochs == epochs
        assert config.teacher_training("small_cnn").epochs == config.teacher_epochs


@pytest.mark.parametrize(
    ("changes", "arguments", "note"),
    [
        ({}, {"minutes": 1e-4, "seeds": 3, "epochs": 1}, "seeds from 1 on left out"),
        ({"teacher": "none", "lr": 1e30, "warmup_epochs": 0.0, "optimizer": "sgd"}, {"seeds": 1}, "seed 0 failed: "),
    ],
)
def test_what_is_missing_is_named(changes: dict, arguments: dict, note: str, tmp_path: Path) -> None:
    found = accuracy.measure(AT, toy(tmp_path, **changes), **arguments)
    assert note in found["note"]
    assert found["planned_seeds"] == arguments["seeds"]
    if "failed" in note:
        assert found["runs"] == [] and found["mean"] is None and "no longer finite" in found["note"]
    else:
        assert len(found["runs"]) == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> Callable[[], None]:
        return lambda: accuracy.main(
            ["--dry-run", *arguments, "--runs-dir", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
        )

    run("--seeds", "1", "--epochs", "1")()
    (file,) = (tmp_path / "out").glob("*/*.json")
    section = json.loads(file.read_text())["sections"]["accuracy"]
    assert section["dataset"] == "digits" and [run["seed"] for run in section["runs"]] == [0]
    assert "top-1, last epoch" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        run("--minutes", "0.001")()
    assert stop.value.code == 2
    assert "too little time for one epoch of 5 seeds" in capsys.readouterr().err
