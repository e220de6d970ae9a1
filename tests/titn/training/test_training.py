"""A run from data to report: its folder, its result, resuming, interruption and the teacher."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from titn.config import TeacherConfig, TrainConfig
from titn.errors import UserError
from titn.evaluate import evaluate
from titn.train import train
from titn.training import checkpoint
from titn.training.run import Run

QUIET = Console(quiet=True)
SMALL = TrainConfig(
    dataset="digits", limit_train=160, depth=1, epochs=3, batch_size=32, teacher="none", seed=3, device="cpu"
)  # fmt: skip
ARGUMENTS = [
    *("--dataset", "digits", "--limit-train", "160", "--depth", "1", "--epochs", "3", "--batch-size", "32"),
    *("--teacher", "none", "--seed", "3", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an uninterrupted small run."""
    runs = tmp_path_factory.mktemp("finished")
    return Path(train(SMALL.changed(runs_dir=str(runs), name="whole"), console=QUIET).run)


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(Run(run).newest_checkpoint() / checkpoint.MODEL)


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = last_weights(one), last_weights(other)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def start(runs: Path, name: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "titn.train", *ARGUMENTS, "--runs-dir", str(runs), "--name", name, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_the_run_folder_holds_what_it_should(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    needed = {
        *("top1", "top5", "precision", "recall", "f1", "parameters", "macs", "epochs", "images_per_second"),
        *("wall_seconds", "dataset", "model", "teacher", "seed", "torch", "device", "commit"),
    }
    assert needed <= result.keys()
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert result["top1"] == lines[-1]["test_top1"]
    assert result["best_top1"] == max(line["test_top1"] for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert (finished / "report.html").stat().st_size > 10_000
    assert (finished / "config.yaml").is_file()
    assert list((finished / "tensorboard").iterdir())
    kept = [path.name for path in checkpoint.folders(finished / "checkpoints")]
    best = f"epoch-{result['best_epoch']:04d}"
    assert kept == sorted({best, "epoch-0002", "epoch-0003"})
    for folder in checkpoint.folders(finished / "checkpoints"):
        assert {path.name for path in folder.iterdir()} == {"model.safetensors", "state.safetensors", "state.json"}


def test_evaluate_gives_the_numbers_of_the_run(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    scores = evaluate(str(finished), device="cpu").scores
    assert scores == {name: result[name] for name in scores}


def test_the_same_seed_gives_the_same_run_and_another_seed_another(finished: Path, tmp_path: Path) -> None:
    same = Path(train(SMALL.changed(runs_dir=str(tmp_path), name="same"), console=QUIET).run)
    assert_same_weights(finished, same)
    other = Path(train(SMALL.changed(runs_dir=str(tmp_path), name="other", seed=4, epochs=1), console=QUIET).run)
    assert not torch.equal(last_weights(other)["patch_tokens"], last_weights(finished)["patch_tokens"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_resumes_bit_equal(finished: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "stopped")
    wait_for(tmp_path / "stopped" / "checkpoints" / "epoch-0001", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "stopped" / "result.json").exists()
    train(TrainConfig(resume=str(tmp_path / "stopped")), console=QUIET)
    assert_same_weights(finished, tmp_path / "stopped")
    first, second = Run(finished).metrics(), Run(tmp_path / "stopped").metrics()
    timings = ("images_per_second", "teacher_seconds", "seconds")
    assert [{k: v for k, v in line.items() if k not in timings} for line in first] == [
        {k: v for k, v in line.items() if k not in timings} for line in second
    ]


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.1])
def test_a_killed_run_resumes_bit_equal(finished: Path, tmp_path: Path, delay: float) -> None:
    process = start(tmp_path, "killed")
    wait_for(tmp_path / "killed" / "checkpoints" / "epoch-0001", process)
    time.sleep(delay)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"the run had ended before it was killed: {errors}"
    assert not (tmp_path / "killed" / "result.json").exists()
    train(TrainConfig(resume=str(tmp_path / "killed")), console=QUIET)
    assert_same_weights(finished, tmp_path / "killed")
    assert [line["epoch"] for line in Run(tmp_path / "killed").metrics()] == [1, 2, 3]


def test_a_student_learns_from_a_teacher_that_is_trained_once(tmp_path: Path) -> None:
    config = SMALL.changed(teacher="small_cnn", teacher_epochs=2, epochs=1, runs_dir=str(tmp_path))
    first = train(config.changed(name="first"), console=QUIET)
    (teacher,) = tmp_path.glob("teacher-digits-small_cnn-*")
    written = (teacher / "result.json").stat().st_mtime_ns
    assert first.teacher == "small_cnn"
    of_the_teacher = json.loads((teacher / "result.json").read_text())
    assert first.teacher_top1 == of_the_teacher["top1"]
    assert first.teacher_training_passes == 2 * of_the_teacher["train_images"]
    assert first.teacher_training_seconds == of_the_teacher["wall_seconds"]
    assert first.seconds_with_teacher == first.wall_seconds + of_the_teacher["wall_seconds"]
    assert Run(tmp_path / "first").metrics()[0]["teacher_agreement"] > 0
    second = train(config.changed(name="second", distillation="soft", temperature=2.0), console=QUIET)
    assert (teacher / "result.json").stat().st_mtime_ns == written
    assert second.teacher == "small_cnn"
    by_path = train(config.changed(name="third", teacher=str(teacher)), console=QUIET)
    assert_same_weights(Path(by_path.run), Path(first.run))


def test_each_distillation_trains_another_student(tmp_path: Path) -> None:
    config = SMALL.changed(teacher="small_cnn", teacher_epochs=1, epochs=1, runs_dir=str(tmp_path))
    kinds = ("hard", "soft", "standardized", "decoupled")
    results = [train(config.changed(name=kind, distillation=kind), console=QUIET) for kind in kinds]
    losses = [Run(Path(result.run)).metrics()[0]["loss"] for result in results]
    assert all(math.isfinite(loss) for loss in losses)
    assert len(set(losses)) == len(kinds)
    heads = [last_weights(Path(result.run))["head_dist.weight"] for result in results]
    assert all(head.isfinite().all() for head in heads)
    assert not any(torch.equal(one, other) for i, one in enumerate(heads) for other in heads[:i])
    stored = [yaml.safe_load((tmp_path / kind / "config.yaml").read_text())["temperature"] for kind in kinds]
    assert stored == ["auto", 1.0, 2.0, 4.0], "what was used, of the papers' values; hard has none"


def test_the_teacher_changes_what_the_student_learns(tmp_path: Path) -> None:
    config = SMALL.changed(epochs=1, runs_dir=str(tmp_path))
    alone = train(config.changed(name="alone"), console=QUIET)
    taught = train(config.changed(name="taught", teacher="small_cnn", teacher_epochs=1), console=QUIET)
    one, other = last_weights(Path(alone.run)), last_weights(Path(taught.run))
    changed = [name for name in one if not torch.equal(one[name], other[name])]
    assert {"head_dist.weight", "norm_dist.weight"} <= set(changed)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_a_teacher_resumes_with_its_optimizer(tmp_path: Path, optimizer: str) -> None:
    config = TeacherConfig(
        limit_train=64, epochs=2, batch_size=32, optimizer=optimizer, lr=1e-3, device="cpu", runs_dir=str(tmp_path)
    )  # fmt: skip
    whole = train(config.changed(name="whole"), console=QUIET)
    train(config.changed(name="part"), console=QUIET)
    part = tmp_path / "part"
    (part / "result.json").unlink()
    newest = Run(part).newest_checkpoint()
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    train(TeacherConfig(resume=str(part)), console=QUIET)
    assert_same_weights(Path(whole.run), part)


def test_resuming_a_finished_run_changes_nothing(finished: Path) -> None:
    before = last_weights(finished)
    result = json.loads((finished / "result.json").read_text())
    again = train(TrainConfig(resume=str(finished)), console=QUIET)
    assert again.top1 == result["top1"]
    assert all(torch.equal(before[name], value) for name, value in last_weights(finished).items())


def test_a_run_in_use_is_refused(finished: Path) -> None:
    holder = Run(finished)
    holder.lock()
    with pytest.raises(UserError, match="in use"):
        train(TrainConfig(resume=str(finished)), console=QUIET)
    holder.close()
