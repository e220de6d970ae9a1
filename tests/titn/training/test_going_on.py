"""Runs that go on: longer, from an earlier epoch, under a taken name, with another run's settings or weights."""

import io
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from titn.config import TeacherConfig, TrainConfig
from titn.data.dataset import load_dataset
from titn.errors import UserError
from titn.models import create_model
from titn.network import NetworkSpec
from titn.train import main, train
from titn.training import checkpoint
from titn.training.initial import load_student, start_from
from titn.training.run import Run, RunInUse
from titn.training.schedule import Schedule

QUIET = Console(quiet=True)
SMALL = TrainConfig(limit_train=64, depth=1, epochs=2, batch_size=32, teacher="none", device="cpu")
ARGUMENTS = (
    *("--limit-train", "64", "--depth", "1", "--batch-size", "32", "--device", "cpu", "--teacher", "none"),
    *("--epochs", "1"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(train(SMALL.changed(runs_dir=tmp_path_factory.mktemp("runs"), name="whole"), console=QUIET).run)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run of two epochs."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "copy"))


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(Run(folder).newest_checkpoint() / checkpoint.MODEL)


def test_a_finished_run_goes_on_for_more_epochs(run: Path) -> None:
    before = Run(run).metrics()
    result = train(TrainConfig(resume=str(run), epochs=3), console=QUIET)
    lines = Run(run).metrics()
    assert (result.epochs, len(lines), lines[:2]) == (3, 3, before)
    config = Run(run).config()
    assert config.epochs == 3
    assert lines[-1]["lr"] == Schedule.of(config, 64).rate(5), "of a schedule of three epochs of two steps"
    with pytest.raises(UserError, match="may add epochs to the run's 3, not take any"):
        train(TrainConfig(resume=str(run), epochs=2), console=QUIET)


def test_more_epochs_keep_the_teacher(tmp_path: Path) -> None:
    train(SMALL.changed(teacher="small_cnn", teacher_epochs=None, epochs=1, runs_dir=tmp_path, name="a"), console=QUIET)
    (teacher,) = tmp_path.glob("teacher-*")
    assert train(TrainConfig(resume="a", runs_dir=tmp_path, epochs=2), console=QUIET).teacher == "small_cnn"
    assert list(tmp_path.glob("teacher-*")) == [teacher]


def test_a_run_goes_on_from_an_earlier_epoch_at_another_rate(run: Path) -> None:
    output = io.StringIO()
    start = run / "checkpoints" / "epoch-0001"
    result = train(TrainConfig(resume=str(start), lr=1e-5), console=Console(file=output, width=300))
    assert "goes on from epoch-0001: epoch-0002" in output.getvalue()
    assert "resumed after epoch 1 of 2" in output.getvalue()
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"epoch-0001", "epoch-0002", "epoch-0002.aside1"}
    lines = Run(run).metrics()
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["lr"] < 1e-5 < lines[0]["lr"]
    assert result.epochs == 2
    aside = load_file(run / "checkpoints" / "epoch-0002.aside1" / checkpoint.MODEL)
    assert not torch.equal(aside["head.weight"], weights_of(run)["head.weight"])


def test_overwrite_replaces_a_run_and_nothing_else(run: Path) -> None:
    config = SMALL.changed(runs_dir=run.parent, name="copy", epochs=1)
    with pytest.raises(RunInUse, match="replace it with --overwrite"):
        train(config, console=QUIET)
    with Run(run), pytest.raises(RunInUse, match="in use by another process"):
        train(config.changed(overwrite=True), console=QUIET)
    assert len(Run(run).metrics()) == 2
    train(config.changed(overwrite=True), console=QUIET)
    assert len(Run(run).metrics()) == 1
    assert "overwrite:" not in (run / "config.yaml").read_text()
    assert [path.name for path in run.parent.iterdir()] == ["copy"]
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match="is no run and is left as it is"):
        train(config.changed(overwrite=True), console=QUIET)


def test_a_name_whose_run_failed_gets_a_number(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "result.json").unlink()
    main([*ARGUMENTS, "--runs-dir", str(run.parent), "--name", "copy"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"{run} is not finished (python -m titn.train --resume {run} continues it): this run is copy-2" in said
    assert len(Run(run).metrics()) == 2
    assert len(Run(run.with_name("copy-2")).metrics()) == 1
    with pytest.raises(SystemExit):  # a finished run is never a failed one
        main([*ARGUMENTS, "--runs-dir", str(run.parent), "--name", "copy-2"])
    assert "--overwrite" in capsys.readouterr().err


def test_the_settings_of_a_run_begin_a_new_one(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(config=run / "config.yaml", runs_dir=tmp_path / "new", epochs=1)
    assert (config.name, config.depth, config.seed) == (None, 1, SMALL.seed)
    assert Path(train(config, console=QUIET).run).parent == tmp_path / "new"


def test_a_run_starts_from_another(run: Path, tmp_path: Path) -> None:
    output = io.StringIO()
    config = SMALL.changed(init=str(run), lr=1e-9, warmup_epochs=0, epochs=1, runs_dir=tmp_path / "more", name="tuned")
    tuned = train(config, console=Console(file=output, width=300))
    assert "titn starts from" in output.getvalue() and "as initialised" not in output.getvalue()
    one, other = weights_of(run), weights_of(Path(tuned.run))
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-4, rtol=1e-3)
    again = train(config.changed(init="copy", runs_dir=run.parent, name="again"), console=QUIET)
    assert again.top1 == tuned.top1
    with pytest.raises(UserError, match="no run folder"):
        train(config.changed(init="nothing", name="other"), console=QUIET)
    assert not (tmp_path / "more" / "other").exists()


def test_a_teacher_starts_from_a_run(tmp_path: Path) -> None:
    config = TeacherConfig(limit_train=64, epochs=1, batch_size=32, device="cpu", runs_dir=tmp_path, name="first")
    first = train(config, console=QUIET)
    second = train(config.changed(name="second", init="first", lr=1e-9, warmup_epochs=0), console=QUIET)
    one, other = weights_of(Path(first.run)), weights_of(Path(second.run))
    torch.testing.assert_close(one["0.0.weight"], other["0.0.weight"], atol=1e-4, rtol=1e-3)


def stored(path: Path, module: torch.nn.Module) -> Path:
    save_file(module.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("name", "given", "wanted", "words"),
    [
        ("titn", {"num_classes": 7}, {}, "heads stay as initialised, for 10 classes instead of 7"),
        ("titn", {"image_size": 64}, {}, r"resized: patch_tokens \(from 66 to 18 rows\), patch_position"),
        ("deit", {"image_size": 48}, {}, r"resized: position \(from 38 to 18 rows\)"),
        ("titn", {"in_channels": 3}, {"in_channels": 1}, "colours are summed to grey"),
        ("vit", {"in_channels": 1}, {"in_channels": 3}, "grey is spread over 3 channels"),
        ("titn", {"distilled": False}, {}, "the distillation token and its head stay as initialised"),
        ("deit", {"distilled": False}, {}, "the distillation token and its head stay as initialised"),
        ("tnt", {"distilled": True}, {}, "its distillation token is left out"),
    ],
)
def test_what_differs_is_adapted_and_said(
    name: str, given: dict[str, Any], wanted: dict[str, Any], words: str, tmp_path: Path
) -> None:
    size = {"num_classes": 10, "depth": 1}
    torch.manual_seed(0)
    source = create_model(name, **(size | given))
    module = create_model(name, **(size | wanted))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    said = load_student(module, name, stored(tmp_path / "file.safetensors", source))
    assert re.search(words, said), said
    after, from_file = module.state_dict(), source.state_dict()
    assert all(torch.equal(after[key], from_file[key]) for key in after if key.startswith("blocks."))
    assert torch.equal(after["head.weight"], (before if "heads stay" in said else from_file)["head.weight"])
    if {"in_channels"} & given.keys():
        grey = torch.rand(2, 1, 32, 32)
        one, other = source.eval(), module.eval()
        torch.testing.assert_close(
            one(grey.expand(-1, source.in_channels, -1, -1)), other(grey.expand(-1, module.in_channels, -1, -1))
        )


def test_a_table_of_the_same_values_everywhere_stays_so_when_resized(tmp_path: Path) -> None:
    source, module = (create_model("titn", 10, image_size=size, depth=1) for size in (64, 32))
    with torch.no_grad():
        source.patch_position[1:-1] = 0.25
    load_student(module, "titn", stored(tmp_path / "file.safetensors", source))
    torch.testing.assert_close(module.patch_position[1:-1], torch.full_like(module.patch_position[1:-1], 0.25))
    assert torch.equal(module.patch_position[0], source.patch_position[0])
    assert torch.equal(module.patch_position[-1], source.patch_position[-1])


def test_what_cannot_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    module = create_model("titn", 10, depth=1)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    deeper = stored(tmp_path / "deeper.safetensors", create_model("titn", 10, depth=3))
    with pytest.raises(UserError, match=r"has 3 blocks, titn has 1: say --depth 3"):
        load_student(module, "titn", deeper)
    other = stored(tmp_path / "other.safetensors", create_model("titn_large_patch", 10, depth=1))
    with pytest.raises(UserError, match="does not fit titn"):
        load_student(module, "titn", other)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_other_classes_get_new_heads_even_where_there_are_as_many(run: Path) -> None:
    data = load_dataset("digits")
    spec = NetworkSpec(
        "titn", create_model("titn", 10, 1, depth=1).sizes, "x", tuple("abcdefghij"), data.mean, data.std
    )
    said = start_from(spec.build(), spec, str(run), "runs")
    assert "the heads stay as initialised, for other classes" in said


@pytest.mark.parametrize("wrapped", [lambda w: {"model": w, "epoch": 3}, lambda w: {"state_dict": w, "arch": "titn"}])
def test_checkpoints_of_other_programs_are_understood(wrapped: Any, tmp_path: Path) -> None:
    source, module = create_model("titn", 10, depth=1), create_model("titn", 10, depth=1)
    weights = {f"module.{key}": value for key, value in source.state_dict().items()}
    torch.save(wrapped(weights), tmp_path / "file.pth")
    load_student(module, "titn", tmp_path / "file.pth")
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in module.state_dict().items())


def test_a_teacher_named_by_a_path_is_found_where_the_runs_were_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(TeacherConfig(limit_train=64, epochs=1, batch_size=32, device="cpu", name="teacher"), console=QUIET)
    train(SMALL.changed(teacher="runs/teacher", name="student", epochs=1), console=QUIET)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").rename(tmp_path / "elsewhere" / "moved")
    os.chdir(tmp_path / "elsewhere")
    assert train(TrainConfig(resume="moved/student", epochs=2), console=QUIET).teacher == "small_cnn"
