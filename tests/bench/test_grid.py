"""The grid's trainings: one change each from the same seeds and teacher, judged on images that nobody learns from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.training import grid
from titn.config import TrainConfig
from titn.errors import UserError
from titn.training.run import Run


def test_a_row_differs_from_the_base_in_its_change_only(tmp_path: Path) -> None:
    arguments = ["--dry-run", "--seeds", "1", "--try", "batch_size=16 lr=0.002", "--try", "distillation=standardized"]
    grid.main([*arguments, "--runs-dir", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    (file,) = tmp_path.glob("out/*/*.json")
    section = json.loads(file.read_text())["sections"]["grid"]
    assert [row["change"] for row in section["rows"]] == [None, *arguments[4::2]]
    for row in section["rows"]:
        (run,) = row["runs"]
        assert row["mean"] == run["top1"] and row["average_mean"] == run["average_top1"] is not None
    configs = [Run(run).config() for run in sorted((tmp_path / "runs").glob("grid-*"))]
    assert all(isinstance(config, TrainConfig) for config in configs) and len(configs) == 3
    assert {(config.batch_size, config.lr) for config in configs} == {(32, 1e-3), (16, 2e-3)}
    same = {"batch_size": 1, "lr": 1.0, "distillation": "hard", "temperature": 1.0, "name": None}
    assert len({repr(config.changed(**same)) for config in configs}) == 1


def test_differences_are_of_the_same_seed() -> None:
    run = lambda seed, top1, average: {"seed": seed, "top1": top1, "average_top1": average, "seconds": 1.0}  # noqa: E731
    base, change = grid.rows_of(
        {None: {0: run(0, 0.5, 0.6), 1: run(1, 0.3, None)}, "lr=1": {1: run(1, 0.4, None), 2: run(2, 0.9, None)}}
    )
    assert base["mean"] == pytest.approx(0.4) and base["average_mean"] == 0.6 and base["to_base"] is None
    assert change["to_base"] == {"mean": pytest.approx(0.1), "interval95": None}


@pytest.mark.parametrize(
    ("change", "words"),
    [("lr", "NAME=VALUE"), ("", "NAME=VALUE"), ("lrr=1", "did you mean lr"), ("lr=fast", "--lr must be")],
)
def test_a_wrong_change_is_one_line(change: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        grid.main(["--dry-run", "--try", change])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_values_are_yaml() -> None:
    assert grid.settings_of("lr=2e-3 mix=none batch_size=16") == {"lr": "2e-3", "mix": "none", "batch_size": 16}
    with pytest.raises(UserError, match="NAME=VALUE"):
        grid.settings_of("lr 0.1")
