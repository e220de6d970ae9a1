"""--minutes: how many epochs are chosen, what is said and kept, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from titn.cache import fill
from titn.config import TrainConfig, stored_config
from titn.data.dataset import Dataset, load_dataset
from titn.errors import UserError
from titn.train import train
from titn.training import rehearsal
from titn.training.rehearsal import Cost, fit_epochs
from titn.training.repeat import repeat
from titn.training.run import Run
from titn.training.schedule import Schedule

QUIET = Console(quiet=True)
SMALL: dict[str, Any] = {"limit_train": 96, "depth": 2, "batch_size": 48, "device": "cpu"}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", "data", image_size=32, limit_train=96)


def test_the_seconds_of_a_training_are_those_of_its_parts() -> None:
    """Ten epochs: 4 small, 2 of them shallow, too; 3 plain; 4 evaluations; 3 and 3 plans of a bank of 3."""
    phases = {(True, True): 1.0, (True, False): 10.0, (False, True): 1e6, (False, False): 100.0}
    cost = Cost(once=1e3, steps=phases, ending=1e4, answers=1e5)
    config = TrainConfig(**SMALL, epochs=10, small_share=0.4, shallow_share=0.2, plain_share=0.3, eval_every=3, bank=3)
    schedule = Schedule.of(config, 96)
    assert cost.seconds(config, schedule) == 1e3 + (2 * 1 + 2 * 10 + 6 * 100) + 4 * 1e4 + 6 * 1e5
    assert cost.seconds(config.changed(bank=None), schedule) == cost.seconds(config, schedule) + 4 * 1e5
    assert cost.epoch == 10_100


def test_as_many_epochs_as_fit(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nine tenths of 201 s the teacher takes 10 + 4 * 5 = 30 s, a student 20 s and 13 s an epoch: ten epochs."""
    teacher = Cost(once=10.0, steps={(False, False): 4.0}, ending=1.0)
    student = Cost(once=20.0, steps={(False, False): 12.5}, ending=0.5)
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_: ((teacher,), student))
    config = TrainConfig(**SMALL, minutes=3.35, teacher_epochs=4, epochs=100, plain_share=0.15)
    said = io.StringIO()
    fitted = fit_epochs(config, digits, train, Console(file=said, width=200))
    assert (fitted.epochs, fitted.warmup_epochs) == (10, pytest.approx(config.warmup_epochs / 10))
    assert said.getvalue() == "--minutes 3.35: 10 epochs\n"
    assert fit_epochs(config.changed(warmup_epochs=0.5), digits, train, QUIET).warmup_epochs == 0.5
    assert fit_epochs(config.changed(epochs=7), digits, train, QUIET).epochs == 7
    with pytest.raises(UserError, match=r"--minutes 0\.5 is too little for one epoch"):
        fit_epochs(config.changed(minutes=0.5), digits, train, QUIET)


def test_a_run_says_and_keeps_what_it_chose(tmp_path: Path) -> None:
    """A real rehearsal of teacher and student in every phase, in a time that is enough for what --epochs allows."""
    config = TrainConfig(
        **SMALL, epochs=3, minutes=60, small_share=0.67, shallow_share=0.34, teacher_epochs=1, teacher_cache="auto",
        runs_dir=str(tmp_path), name="run",
    )  # fmt: skip
    said = io.StringIO()
    train(config, console=Console(file=said, width=300))
    assert "--minutes 60: 3 epochs, all that --epochs asks for" in said.getvalue()
    stored = stored_config(tmp_path / "run" / "config.yaml")
    assert (stored.epochs, stored.minutes) == (3, None)
    assert sorted(path.name.partition("-")[0] for path in tmp_path.iterdir()) == ["run", "teacher", "teacher"]
    again = io.StringIO()
    train(TrainConfig(resume=str(tmp_path / "run")), console=Console(file=again, width=300))
    assert "--minutes" not in again.getvalue() and len(Run(tmp_path / "run").metrics()) == 3


def test_it_is_for_one_training(tmp_path: Path) -> None:
    config = TrainConfig(**SMALL, minutes=1, runs_dir=str(tmp_path))
    with pytest.raises(UserError, match="--minutes is for one run"):
        repeat(config.changed(seeds=2), lambda one: train(one, console=QUIET), QUIET)
    with pytest.raises(UserError, match="--minutes is for a training"):
        fill(config, console=QUIET)
    assert not list(tmp_path.iterdir())
