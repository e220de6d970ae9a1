"""Whatever a user gets wrong is one line, exit code 2, and nothing half-written."""

import io
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from titn.config import TeacherConfig, TrainConfig
from titn.errors import UserError
from titn.evaluate import evaluate, main
from titn.train import train
from titn.training import checkpoint
from titn.training.run import Run

QUIET = Console(quiet=True)
SMALL = TrainConfig(limit_train=64, depth=1, epochs=1, batch_size=32, teacher="none", device="cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    return Path(train(SMALL.changed(runs_dir=str(runs), name="small"), console=QUIET).run)


@pytest.fixture
def broken(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "broken", symlinks=True))


def test_the_command_prints_one_line_and_leaves_with_2(tmp_path: Path) -> None:
    for arguments in (
        ["titn.train", "--dataset", "no-such-set"],
        ["titn.train", "--model", "titan"],
        ["titn.train", "--device", "cuda:99"],
        ["titn.evaluate", "no-such-run"],
        ["titn.teacher", "--teacher", "vgg61"],
    ):
        command = [sys.executable, "-m", *arguments, *([] if "evaluate" in arguments[0] else ["--runs-dir", "r"])]
        path = {"PYTHONPATH": str(Path(__file__).parents[3])}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **path})
        assert done.returncode == 2, done
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "titan"}, "unknown model 'titan'"),
        ({"teacher": "vgg61"}, "--teacher vgg61"),
        ({"dataset": "no-such-set"}, "no-such-set"),
        ({"image_size": 30}, "30"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "toaster"}, "toaster"),
        ({"kernels": "cuda"}, "--kernels must be one of auto, torch, triton, native, not 'cuda'"),
        ({"amp": "fp16"}, "--amp fp16"),
        ({"cuda_graph": "on"}, "--cuda-graph on"),
        ({"limit_train": 10**6}, "10"),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        train(SMALL.changed(runs_dir=str(tmp_path / "runs"), **changes), console=QUIET)  # type: ignore[arg-type]
    assert words in str(raised.value)
    assert not (tmp_path / "runs").exists()


def test_two_classes_cannot_be_learnt_from_standardised_logits(image_folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(image_folder / "digit2")
    config = TrainConfig(
        dataset=str(image_folder), distillation="standardized", teacher="small_cnn", device="cpu",
        runs_dir=str(tmp_path / "runs"),
    )  # fmt: skip
    with pytest.raises(UserError, match="choose another --distillation"):
        train(config, console=QUIET)
    assert not (tmp_path / "runs").exists()


def test_a_resumed_run_is_not_told_of_settings_that_nobody_said(finished: Path) -> None:
    output = io.StringIO()
    train(TrainConfig(resume=str(finished)), console=Console(file=output, width=300))
    assert "resumed after epoch" in output.getvalue()
    assert "has no effect" not in output.getvalue()


def test_a_name_that_is_taken_is_refused(finished: Path) -> None:
    with pytest.raises(UserError, match="--resume"):
        train(SMALL.changed(runs_dir=str(finished.parent), name=finished.name), console=QUIET)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no longer finite"):
        config = SMALL.changed(
            optimizer="sgd", lr=1e30, warmup_epochs=0.0, epochs=3, runs_dir=str(tmp_path), name="nan"
        )
        train(config, console=QUIET)
    for folder in checkpoint.folders(tmp_path / "nan" / "checkpoints"):
        checkpoint.verify(folder)


def test_a_run_of_the_other_kind_is_named_with_its_command(finished: Path, tmp_path: Path) -> None:
    teacher = train(TeacherConfig(limit_train=64, epochs=1, device="cpu", runs_dir=str(tmp_path)), console=QUIET)
    with pytest.raises(UserError, match=r"is a run of python -m titn.teacher: python -m titn.teacher --resume"):
        train(TrainConfig(resume=teacher.run), console=QUIET)
    with pytest.raises(UserError, match=r"python -m titn.train --resume"):
        train(TeacherConfig(resume=str(finished)), console=QUIET)


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_is_named(broken: Path, name: str, damage: str) -> None:
    file = Run(broken).newest_checkpoint() / name
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "flip":
        content = bytearray(file.read_bytes())
        content[-1] ^= 255
        file.write_bytes(content)
    else:
        file.unlink()
    for attempt in (lambda: train(TrainConfig(resume=str(broken)), console=QUIET), lambda: evaluate(str(broken))):
        with pytest.raises(UserError, match="epoch-0001"):
            attempt()


def test_a_checkpoint_of_another_model_is_refused(broken: Path, tmp_path: Path) -> None:
    other = train(SMALL.changed(model="vit", runs_dir=str(tmp_path), name="vit"), console=QUIET)
    target = Run(broken).newest_checkpoint()
    shutil.rmtree(target)
    shutil.copytree(Run(Path(other.run)).newest_checkpoint(), target)
    with pytest.raises(UserError, match="another network"):
        train(TrainConfig(resume=str(broken)), console=QUIET)


def test_a_foreign_file_is_no_teacher(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(b"not a safetensors file")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        train(SMALL.changed(teacher=str(foreign), runs_dir=str(tmp_path / "runs")), console=QUIET)


def test_a_teacher_of_other_images_is_refused(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    from PIL import Image

    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            for index in range(3):
                pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{index}.png")
    with pytest.raises(UserError, match="another number of classes"):
        config = SMALL.changed(dataset=str(folder), limit_train=None, teacher=str(finished))
        train(config.changed(runs_dir=str(tmp_path / "runs")), console=QUIET)


class _Bomb:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (os.mkdir, ("executed",))


def test_a_pickle_is_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(_Bomb()))
    torch.save({"weights": _Bomb()}, tmp_path / "bomb2.pth")
    for name in ("bomb.pth", "bomb2.pth"):
        with pytest.raises(UserError, match=name):
            train(TeacherConfig(init=name, epochs=1, limit_train=64, device="cpu"), console=QUIET)
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "runs").exists()


def test_a_file_that_cannot_be_written_whole_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """As on a full disk: the kernel refuses every file to grow beyond 200 kB, in the middle of the first checkpoint."""
    command = [
        *(sys.executable, "-m", "titn.train", "--limit-train", "64", "--depth", "1", "--epochs", "1", "--teacher"),
        *("none", "--device", "cpu", "--runs-dir", str(tmp_path), "--name", "full"),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list((tmp_path / "full" / "checkpoints").iterdir()) == []


def test_evaluate_prints_json(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(finished), "--json", "--device", "cpu"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["top1"] == json.loads((finished / "result.json").read_text())["top1"]
