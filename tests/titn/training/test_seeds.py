"""Several seeds of one training, and the table of all runs."""

import csv
import io
import json
import math
import statistics
from pathlib import Path

import pytest
from rich.console import Console

from titn import runs
from titn.config import TrainConfig
from titn.errors import UserError
from titn.train import main, train
from titn.training.repeat import in_words
from titn.training.run import Run

ARGUMENTS = (
    *("--limit-train", "64", "--depth", "1", "--batch-size", "32", "--device", "cpu", "--teacher", "none"),
    *("--epochs", "1", "--tracker", "none", "--name", "three", "--seeds", "3", "--seed", "4"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds, the second of which was stopped and taken up again, and another run."""
    root = tmp_path_factory.mktemp("runs")
    main([*ARGUMENTS, "--runs-dir", str(root)])
    stopped = root / "three-seed5"
    (stopped / "result.json").unlink()
    main([*ARGUMENTS, "--runs-dir", str(root)])
    other = TrainConfig(limit_train=64, depth=2, epochs=1, batch_size=32, teacher="none", device="cpu", runs_dir=root)
    train(other.changed(name="other", drop_path=0.1), console=Console(quiet=True))
    return root


def test_each_seed_has_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = sorted(path.name for path in folder.iterdir())
    assert found == ["other", "three-seed4", "three-seed5", "three-seed6"]
    results = [Run(folder / name).result() for name in found[1:]]
    tops = [result["top1"] for result in results if result]
    assert [result["seed"] for result in results if result] == [4, 5, 6]
    main([*ARGUMENTS, "--runs-dir", str(folder)])
    said = capsys.readouterr().out
    assert said.count("taken as it is") == 3
    assert f"top-1 {in_words(tops)}" in said
    half = 4.302652729911275 * statistics.stdev(tops) / math.sqrt(3)  # the table's 97.5 % point of t with 2 degrees
    assert f"{statistics.fmean(tops) - half:.2%} to {statistics.fmean(tops) + half:.2%}" in in_words(tops)


def test_other_settings_under_the_name_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*ARGUMENTS, "--runs-dir", str(folder), "--drop-path", "0.2"])
    assert "three-seed4 was trained with drop_path 0.0, not 0.2: give another --name" in capsys.readouterr().err
    with pytest.raises(UserError, match="train takes one seed, not --seeds 2"):
        train(TrainConfig(seeds=2, runs_dir=folder), console=Console(quiet=True))


def test_the_table_of_runs_is_sorted_chosen_and_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.main(["--runs-dir", str(folder), "--sort", "top1", "--csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    tops = [float(row["top1"]) for row in rows]
    assert len(rows) == 4 and tops == sorted(tops, reverse=True)
    by_name = {row["run"]: row for row in rows}
    assert (by_name["other"]["depth"], by_name["three-seed6"]["seed"]) == ("2", "6")
    assert "epochs" in rows[0] and "optimizer" not in rows[0], "of the settings, those that differ"
    runs.main(["--runs-dir", str(folder), "--dataset", "digits", "--json"])
    assert len(json.loads(capsys.readouterr().out)) == 4
    runs.main(["--runs-dir", str(folder), "--dataset", "mnist"])
    assert "no runs" in capsys.readouterr().out


def test_the_table_fits_80_columns(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    runs.main(["--runs-dir", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = "".join("".join(line.split("│")[1] for line in lines if "│" in line).split())
    assert all(name in text for name in ("three-seed4", "three-seed5", "three-seed6", "other"))
