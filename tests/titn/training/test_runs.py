"""Runs as people have them: moved, renamed, resumed otherwise, started together, on other data, with odd names."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits

from titn.config import TeacherConfig, TrainConfig
from titn.errors import UserError
from titn.evaluate import evaluate
from titn.kernels.common import native
from titn.train import train
from titn.training import checkpoint, switches
from titn.training.run import Run, RunInUse

QUIET = Console(quiet=True)
SMALL = TrainConfig(limit_train=64, depth=1, epochs=1, batch_size=32, teacher="none", device="cpu")
ARGUMENTS = (
    *("--limit-train", "64", "--depth", "1", "--epochs", "1", "--batch-size", "32", "--device", "cpu"),
    *("--teacher-epochs", "1"),
)


def spoken(config: TrainConfig | TeacherConfig, width: int = 400) -> str:
    """What a training prints."""
    output = io.StringIO()
    train(config, console=Console(file=output, width=width))
    return output.getvalue()


def start(runs: Path, *more: str, **variables: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "titn.train", *ARGUMENTS, "--runs-dir", str(runs), *more]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), **variables}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: "subprocess.Popen[str]") -> str:
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return output


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of images with a name that no shell or markup likes, three classes of 12 digits each."""
    scans = load_digits()
    folder = tmp_path / "my [old] photos [b] & more"
    for digit in range(3):
        (folder / f"[{digit}] <b>").mkdir(parents=True)
        for number, scan in enumerate(scans.images[scans.target == digit][:12]):
            Image.fromarray((scan * 15).astype("uint8")).save(folder / f"[{digit}] <b>" / f"{number}.png")
    return folder


def test_what_can_be_checked_is_checked_before_a_teacher_is_trained(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    taught = SMALL.changed(teacher="small_cnn", teacher_epochs=1, runs_dir=tmp_path)
    with pytest.raises(RunInUse, match="exists already and is no run"):
        train(taught.changed(name="taken"), console=QUIET)
    with pytest.raises(UserError, match="vgg16 needs images of at least 32 pixels"):
        train(taught.changed(teacher="vgg16", image_size=16, crop_padding=0), console=QUIET)
    with pytest.raises(UserError, match="no setting 'optimiser'"):
        train(taught.changed(teacher_settings={"optimiser": "sgd"}), console=QUIET)
    with pytest.raises(UserError, match="needs --batch-size 2 or more"):
        train(TeacherConfig(limit_train=64, batch_size=1, device="cpu", runs_dir=tmp_path), console=QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_run_that_was_copied_is_the_same_run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = train(SMALL.changed(dataset=photos.name, limit_train=None), console=QUIET)
    there = tmp_path / "else where"
    shutil.copytree(result.run, there / "copy")
    monkeypatch.chdir(there)
    assert evaluate("copy").scores["top1"] == result.top1
    with pytest.raises(UserError, match="is no run and no checkpoint"):
        train(SMALL.changed(teacher=str(photos)), console=QUIET)
    photos.rename(there / photos.name)
    with pytest.raises(UserError, match="if the data has moved, say where it lies with --data-dir"):
        evaluate("copy")
    for data_dir in (there, there / photos.name):
        assert evaluate("copy", data_dir=str(data_dir)).scores["top1"] == result.top1
    again = train(TrainConfig(resume="copy", data_dir=there), console=QUIET)
    assert again.top1 == result.top1


def test_files_of_a_run_obey_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        result = train(SMALL.changed(runs_dir=tmp_path), console=QUIET)
    finally:
        os.umask(before)
    files = [path for path in Path(result.run).rglob("*") if path.is_file() and path.name != ".lock"]
    assert files
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {path.name: "0o640" for path in files}


def test_resuming_on_other_data_is_refused_and_named(photos: Path, tmp_path: Path) -> None:
    config = SMALL.changed(dataset=str(photos), limit_train=None, runs_dir=tmp_path / "runs", name="run")
    train(config, console=QUIET)
    folder = photos / "[0] <b>"
    shutil.copy(folder / "0.png", folder / "new.png")
    Image.open(folder / "1.png").rotate(90).save(folder / "newer.png")
    before = (tmp_path / "runs" / "run" / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"is not what it was when .*run was begun \(.*images"):
        train(TrainConfig(resume=str(tmp_path / "runs" / "run")), console=QUIET)
    assert (tmp_path / "runs" / "run" / "config.yaml").read_bytes() == before
    with pytest.raises(UserError, match=r"is not the data set that .*run was trained on: .*images"):
        evaluate(str(tmp_path / "runs" / "run"))


def test_names_of_folders_are_shown_and_made_into_names_of_runs(photos: Path, tmp_path: Path) -> None:
    config = SMALL.changed(dataset=f"{photos}/", limit_train=None, runs_dir=tmp_path / "runs [b]")
    assert "my [old] photos [b] & more" in spoken(config)
    (run,) = (tmp_path / "runs [b]").iterdir()
    assert run.name.startswith("my-old-photos-b-more-titn-2")
    assert train(TrainConfig(resume=run.name, runs_dir=run.parent), console=QUIET).run == str(run)


@pytest.mark.parametrize("front", ["python", "yaml"])
def test_resume_refuses_other_settings_wherever_they_are_said(front: str, tmp_path: Path) -> None:
    result = train(SMALL.changed(runs_dir=tmp_path), console=QUIET)
    (tmp_path / "more.yaml").write_text("depth: 5\n")
    said: dict[str, Any] = {"depth": 5} if front == "python" else {"config": tmp_path / "more.yaml"}
    with pytest.raises(UserError, match="drop --depth"):
        train(TrainConfig(resume=result.run, **said), console=QUIET)


def test_a_run_that_diverged_goes_on_at_another_rate(tmp_path: Path) -> None:
    wild = SMALL.changed(optimizer="sgd", lr=1e30, warmup_epochs=0, epochs=2, runs_dir=tmp_path, name="wild")
    with pytest.raises(UserError, match=r"python -m titn.train --resume .*wild --lr") as raised:
        train(wild, console=QUIET)
    assert "move" not in str(raised.value)
    train(TrainConfig(resume="wild", runs_dir=tmp_path, lr=0.01), console=QUIET)
    run = Run(tmp_path / "wild")
    assert run.config().lr == 0.01
    history = [json.loads(line) for line in (run.folder / "history.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in history] == [1e30, 0.01]
    assert (run.folder / "report.html").is_file()


def test_a_failed_run_says_why_in_its_report_and_lets_go_of_its_lock(tmp_path: Path) -> None:
    kept: list[BaseException] = []  # as a notebook keeps the last exception, and with it every frame
    try:
        train(SMALL.changed(optimizer="sgd", lr=1e30, epochs=2, runs_dir=tmp_path, name="wild"), console=QUIET)
    except UserError as error:
        kept.append(error)
    assert kept
    with Run(tmp_path / "wild"):
        assert (tmp_path / "wild" / "report.html").is_file()


def test_a_teacher_is_its_own_and_says_in_what_it_is_another(tmp_path: Path) -> None:
    taught = SMALL.changed(teacher="small_cnn", teacher_epochs=1, runs_dir=tmp_path)
    first = spoken(taught.changed(name="first", seed=1, mix="mixup"))
    assert "to be trained first" in first
    assert "--mix, --seed of the student: its teacher's are set by --teacher-settings" in first
    assert len(list(tmp_path.glob("teacher-*"))) == 1
    assert "to be trained first" not in spoken(taught.changed(name="second", seed=2))
    third = spoken(taught.changed(name="third", teacher_epochs=2))
    assert "is another teacher: epochs 1, not 2" in third
    assert len(list(tmp_path.glob("teacher-*"))) == 2
    (teacher,) = (
        path.name for path in tmp_path.glob("teacher-*") if "epochs: 1\n" in (path / "config.yaml").read_text()
    )
    assert train(taught.changed(name="fourth", teacher=teacher), console=QUIET).teacher == "small_cnn"


def test_an_interrupted_teacher_is_taken_up_by_the_next_student(tmp_path: Path) -> None:
    taught = SMALL.changed(teacher="small_cnn", teacher_epochs=1, runs_dir=tmp_path)
    train(taught.changed(name="first"), console=QUIET)
    (teacher,) = tmp_path.glob("teacher-*")
    (teacher / "result.json").unlink()
    shutil.rmtree(teacher / "checkpoints")
    assert train(taught.changed(name="second"), console=QUIET).teacher == "small_cnn"
    assert (teacher / "result.json").is_file()


def test_starts_in_one_moment_get_a_run_each_and_share_a_teacher(tmp_path: Path) -> None:
    students = [start(tmp_path, "--teacher", "small_cnn") for _ in range(3)]
    for student in students:
        finish(student)
    folders = [path for path in tmp_path.iterdir() if not path.name.startswith("teacher-")]
    assert len(folders) == 3
    assert all(Run(folder).result() for folder in folders)
    assert len(list(tmp_path.glob("teacher-*"))) == 1


def test_several_processes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    process = start(tmp_path / "runs", "--teacher", "none", WORLD_SIZE="2", RANK="0")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert errors.startswith("error: 2 processes were started")
    assert errors.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_an_output_that_cannot_show_a_name_does_not_end_a_training(photos: Path, tmp_path: Path) -> None:
    renamed = photos.rename(photos.with_name("Vögel ✓"))
    more = ("--teacher", "none", "--dataset", str(renamed), "--limit-train", "20")
    output = finish(start(tmp_path / "runs", *more, PYTHONIOENCODING="ascii"))
    assert "V\\xf6gel \\u2713: 20 training" in output


@pytest.mark.parametrize("width", [80, 140])
def test_the_progress_line_is_whole(width: int, tmp_path: Path) -> None:
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=True, color_system=None, legacy_windows=False)
    train(SMALL.changed(runs_dir=tmp_path, epochs=2), console=console)
    lines = [line for line in output.getvalue().replace("\r", "\n").split("\n") if "epoch 2/2" in line and "/4" in line]
    assert lines
    for line in lines:
        assert "…" not in line
        assert "images/s" in line or "/s" in line
        assert line.rstrip()[-7:].count(":") == 2, line


def test_without_a_terminal_every_epoch_has_a_line_with_the_time_left(tmp_path: Path) -> None:
    lines = [line for line in spoken(SMALL.changed(runs_dir=tmp_path, epochs=2), 80).splitlines() if "epoch " in line]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    assert all(line.endswith(" left") for line in lines)


def test_a_compiler_that_does_not_work_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\necho internal compiler error >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(UserError, match=r"does not work \(internal compiler error"):
        switches.select(SMALL.changed(compile="on"))
    chosen = switches.select(SMALL.changed(fast=True))
    (row,) = (row for row in chosen.rows if row.name == "compile")
    assert (row.on, chosen.compile) == (False, False)
    assert "internal compiler error" in row.reasons[0]
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(broken))
    with pytest.raises(UserError, match="is no folder that can be written"):
        switches.select(SMALL.changed(compile="on"))


@pytest.mark.skipif(bool(switches.compile_reasons(torch.device("cpu"))), reason="no working C++ compiler")
def test_the_form_of_compilation_is_said() -> None:
    (row,) = (row for row in switches.select(SMALL.changed(compile="on")).rows if row.name == "compile")
    assert (row.value, row.on) == ("on", True)
    assert "block by block" in row.reasons[0]


def kernels_row(chosen: switches.Switches) -> switches.Switch:
    return next(row for row in chosen.rows if row.name == "kernels")


@pytest.mark.skipif(native.ABSENT is not None, reason=str(native.ABSENT))
@pytest.mark.parametrize("asked", [{"fast": True}, {"kernels": "native"}])
def test_fast_takes_native_code_on_a_cpu(asked: dict[str, Any]) -> None:
    chosen = switches.select(SMALL.changed(compile="off", device="cpu", **asked))
    assert (kernels_row(chosen).value, kernels_row(chosen).on, chosen.kernels) == ("native", True, "auto")
    assert chosen.backend == "native"
    assert kernels_row(chosen).reasons[0].startswith(f"{native.path()} code for both streams' blocks")


def test_the_absence_of_native_code_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ABSENT", "no C++ compiler was found")
    chosen = switches.select(SMALL.changed(fast=True, compile="off", device="cpu"))
    assert (kernels_row(chosen).value, kernels_row(chosen).on, chosen.kernels) == ("torch", False, "auto")
    assert kernels_row(chosen).reasons == ("native: no C++ compiler was found",)
    assert chosen.backend == "torch"
    with pytest.raises(UserError, match="--kernels native cannot run here: no C"):
        switches.select(SMALL.changed(kernels="native", device="cpu"))


def test_gradients_do_not_add_up_in_a_cuda_graph() -> None:
    with pytest.raises(UserError, match=r"--cuda-graph on cannot run here: .*--accumulate adds gradients up"):
        switches.select(SMALL.changed(cuda_graph="on", accumulate=2))


def test_a_copy_beside_our_checkpoints_is_not_ours(tmp_path: Path) -> None:
    result = train(SMALL.changed(runs_dir=tmp_path, epochs=2), console=QUIET)
    root = Path(result.run) / "checkpoints"
    shutil.copytree(root / "epoch-0002", root / "epoch-0009-copy")
    assert checkpoint.newest(root) == root / "epoch-0002"
    (root / "epoch-0001").rename(root / "epoch-10000")
    assert [path.name for path in checkpoint.folders(root)] == ["epoch-0002", "epoch-10000"]


def test_validation_chooses_the_best_epoch(photos: Path, tmp_path: Path) -> None:
    for part, names in (("train", range(8)), ("val", (8, 9)), ("test", (10, 11))):
        for label in sorted(path for path in photos.iterdir() if path.name.startswith("[")):
            (photos / part / label.name).mkdir(parents=True)
            for number in names:
                shutil.move(label / f"{number}.png", photos / part / label.name)
    for label in [path for path in photos.iterdir() if path.name.startswith("[")]:
        label.rmdir()
    config = SMALL.changed(dataset=str(photos), limit_train=None, batch_size=8, epochs=3, runs_dir=tmp_path / "runs")
    result = train(config, console=QUIET)
    lines = Run(Path(result.run)).metrics()
    chosen = max(lines, key=lambda line: (line["val_top1"], -line["epoch"]))
    assert (result.best_epoch, result.best_top1) == (chosen["epoch"], chosen["val_top1"])
    assert result.top1 == lines[-1]["test_top1"]


def test_a_data_set_at_hand_contradicts_no_setting(tmp_path: Path) -> None:
    from titn.data.dataset import load_dataset

    dataset = load_dataset("digits", limit_train=64)
    assert train(SMALL.changed(runs_dir=tmp_path), console=QUIET, dataset=dataset).train_images == 64
    for change in ({"limit_train": 32}, {"image_size": 16}):
        with pytest.raises(UserError, match="the data set given has 64 training images of 32 pixels"):
            train(SMALL.changed(runs_dir=tmp_path, **change), console=QUIET, dataset=dataset)


def test_the_callers_settings_of_torch_do_not_matter_or_are_refused(tmp_path: Path) -> None:
    plain = train(SMALL.changed(runs_dir=tmp_path, name="plain"), console=QUIET)
    with torch.no_grad():
        other = train(SMALL.changed(runs_dir=tmp_path, name="other"), console=QUIET)
    assert other.top1 == plain.top1
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(UserError, match="torch's default dtype is"):
            train(SMALL.changed(runs_dir=tmp_path, name="third"), console=QUIET)
    finally:
        torch.set_default_dtype(torch.float32)
