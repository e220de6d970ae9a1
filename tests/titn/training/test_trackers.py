"""Where curves go: TensorBoard's files, and the trackers that are installed here, without a network."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from titn.config import TrainConfig
from titn.errors import UserError
from titn.train import train
from titn.training import trackers
from titn.training.run import Run

SMALL = TrainConfig(limit_train=64, depth=1, epochs=2, batch_size=32, teacher="none", device="cpu", name="run")
PACKAGES = ("wandb", "trackio", "mlflow")


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    """Steps and values of a TensorBoard curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(each.step, each.value) for each in events.Scalars(name)]


def test_tensorboard_holds_the_lines_of_the_metrics_and_goes_on(tmp_path: Path) -> None:
    train(SMALL.changed(runs_dir=tmp_path), console=Console(quiet=True))
    train(TrainConfig(resume="run", runs_dir=tmp_path, epochs=3), console=Console(quiet=True))
    lines = Run(tmp_path / "run").metrics()
    found = curve(tmp_path / "run" / "tensorboard", "loss")
    assert [step for step, _ in found] == [1, 2, 3]
    assert [value for _, value in found] == pytest.approx([line["loss"] for line in lines])


def test_none_writes_none_and_says_nothing_of_it(tmp_path: Path) -> None:
    train(SMALL.changed(runs_dir=tmp_path, tracker="none", epochs=1), console=Console(quiet=True))
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert len(Run(tmp_path / "run").metrics()) == 1


@pytest.mark.parametrize("name", PACKAGES)
def test_an_absent_package_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == name else find(package))
    with pytest.raises(UserError, match=f"--tracker {name} needs the package {name}: pip install {name}"):
        train(SMALL.changed(runs_dir=tmp_path, tracker=name), console=Console(quiet=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", PACKAGES)
def test_a_tracker_takes_every_epoch(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: its tracker did not run")
    program = (
        "import sys; from titn.train import main\n"
        "main(['--limit-train', '64', '--depth', '1', '--epochs', '2', '--batch-size', '32', '--teacher', 'none',"
        f" '--device', 'cpu', '--name', 'run', '--tracker', {name!r}])"
    )
    local = {
        "WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, **local}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "runs" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    if name == "mlflow":
        look = (
            "import json, mlflow; client = mlflow.MlflowClient()\n"
            "(run,) = client.search_runs([client.get_experiment_by_name('titn').experiment_id])\n"
            "print(json.dumps([each.value for each in client.get_metric_history(run.info.run_id, 'loss')]))"
        )
        shown = subprocess.run(
            [sys.executable, "-c", look], cwd=tmp_path, env={**os.environ, **local}, capture_output=True, text=True
        )
        assert json.loads(shown.stdout) == [line["loss"] for line in lines], shown.stderr
    elif name == "wandb":
        (file,) = (tmp_path / "runs" / "run").glob("wandb/offline-run-*/*.wandb")
        assert file.stat().st_size > 1000
    else:
        assert list((tmp_path / "trackio").glob("*titn*"))


def test_a_tracker_that_cannot_begin_is_one_line() -> None:
    words = r"^--tracker mlflow could not begin: no server; is it up\?$"
    with pytest.raises(UserError, match=words), trackers._beginning("mlflow"):
        raise ConnectionError("no server;\n  is it up?")
