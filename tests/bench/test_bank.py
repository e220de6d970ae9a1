"""The bank's trainings: what differs between them, what is taken up again, and what their numbers are of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from bench.training import bank
from bench.training.accuracy import TOY
from bench.training.paired import part_of, top1_of, trained
from titn.config import TrainConfig
from titn.data.dataset import development_split, load_dataset
from titn.training import checkpoint
from titn.training.run import Run, RunInUse

QUIET = Console(quiet=True)


def main(folder: Path) -> dict:
    """The section that the command writes, of one seed."""
    for old in folder.glob("out/*/*.json"):
        old.unlink()
    bank.main(["--dry-run", "--seeds", "1", "--runs-dir", str(folder / "runs"), "--out", str(folder / "out")])
    (file,) = folder.glob("out/*/*.json")
    section: dict = json.loads(file.read_text())["sections"]["bank"]
    return section


def test_trainings_differ_in_the_bank_only_and_are_trained_once(tmp_path: Path) -> None:
    section = main(tmp_path)
    assert [row["bank"] for row in section["rows"]] == [1, 4, 16, None]
    runs = sorted((tmp_path / "runs").glob("bank-*"))
    configs = [Run(run).config() for run in runs]
    assert {config.epochs_in_turn for config in configs} == {1, 4, 16, None}
    (same,) = {repr(config.changed(bank=None, name=None)) for config in configs}
    assert "teacher-digits-small_cnn" in same
    assert len(list((tmp_path / "runs" / "teacher-cache").glob("*/manifest.json"))) == 1
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("model.safetensors")}
    assert main(tmp_path) == section
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("model.safetensors")} == stamps


def test_the_last_epoch_is_judged_on_the_whole_development_split(tmp_path: Path) -> None:
    whole = development_split(load_dataset("digits"))
    data = part_of(whole, 96, 20)
    assert len(data.train_labels) == 96 and len(data.test_labels) == 20
    learned, held_out = ({image.tobytes() for image in images} for images in (data.train_images, whole.test_images))
    assert learned <= {image.tobytes() for image in whole.train_images} and not learned & held_out
    config = TrainConfig(
        **{"dataset": "digits", **TOY, "limit_train": None, "teacher": "none"},
        runs_dir=str(tmp_path),
        name="one",
        device="cpu",
    )
    run = trained(config, data, QUIET)
    right = top1_of(run, whole, torch.device("cpu")) * len(whole.test_labels)
    assert right == pytest.approx(round(right)), "a number of images of the whole split"


def test_a_training_is_left_to_who_has_it_and_taken_up_after(tmp_path: Path) -> None:
    data = part_of(development_split(load_dataset("digits")), 96, 20)
    config = TrainConfig(
        **{"dataset": "digits", **TOY, "limit_train": None, "teacher": "none"},
        runs_dir=str(tmp_path),
        name="one",
        device="cpu",
    )
    finished = trained(config, data, QUIET)
    (finished.folder / "result.json").unlink()
    finished.newest_checkpoint().rename(tmp_path / "gone")
    with Run(finished.folder), pytest.raises(RunInUse):
        trained(config, data, QUIET)
    again = trained(config, data, QUIET)
    assert again.result() is not None and len(again.metrics()) == TOY["epochs"]
    for name in (checkpoint.MODEL, "state.safetensors"):
        one, other = (load_file(folder / name) for folder in (again.newest_checkpoint(), tmp_path / "gone"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_differences_are_taken_seed_by_seed() -> None:
    rows = bank.rows_of({1: {0: 0.4, 1: 0.5}, 4: {}, 16: {2: 0.5}, None: {0: 0.5, 1: 0.7}})
    first, second, third, fresh = rows
    assert first["to_fresh"]["mean"] == pytest.approx(-0.15)
    half = 12.7062 * 0.05  # t of one degree of freedom at 97.5 %, from a table, times the deviation of the mean
    assert first["to_fresh"]["interval95"] == pytest.approx([-0.15 - half, -0.15 + half], rel=1e-4)
    assert (second["mean"], second["to_fresh"], third["to_fresh"], fresh["to_fresh"]) == (None,) * 4
    assert fresh["mean"] == pytest.approx(0.6)
