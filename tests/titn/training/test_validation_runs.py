"""Training with a validation split: what chooses the best epoch, when the test images are scored, patience."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from titn.config import TrainConfig
from titn.data.dataset import load_dataset
from titn.errors import UserError
from titn.evaluate import evaluate
from titn.train import train
from titn.training.result import show_result
from titn.training.run import Run

QUIET = Console(quiet=True)
SMALL = TrainConfig(
    limit_train=160, depth=1, epochs=3, batch_size=32, teacher="none", device="cpu", validation=0.1, average=0.9
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(train(SMALL.changed(runs_dir=tmp_path_factory.mktemp("runs"), name="whole"), console=QUIET).run)


def test_the_best_is_chosen_on_validation_and_the_test_is_scored_at_the_end(finished: Path) -> None:
    run = Run(finished)
    lines, result = run.metrics(), run.result()
    assert result is not None
    assert [line["test_top1"] is None for line in lines] == [True, True, False]
    assert all(line["val_top1"] is not None and line["val_top1_average"] is not None for line in lines)
    chosen = max(lines, key=lambda line: (line["val_top1"], -line["epoch"]))
    assert (result["best_epoch"], result["best_top1"]) == (chosen["epoch"], chosen["val_top1"])
    assert result["top1"] == lines[-1]["test_top1"]
    assert result["average_top1"] == lines[-1]["test_top1_average"]
    assert result["best_test_top1"] == evaluate(str(finished), weights="best").scores["top1"]
    assert evaluate(str(finished), split="val").scores["top1"] == lines[-1]["val_top1"]
    assert len(evaluate(str(finished), split="val").labels) == result["val_images"]


def test_what_was_chosen_where_is_said(tmp_path: Path) -> None:
    output = io.StringIO()
    console = Console(file=output, width=300)
    result = train(SMALL.changed(runs_dir=tmp_path, epochs=1), console=console)
    show_result(replace(result, best_top1=0.5, best_test_top1=0.25, best_epoch=7), console)
    assert f"160 training, {result.val_images} validation and {result.test_images} test images" in output.getvalue()
    assert "25.00%, epoch 7, best on validation (50.00%)" in output.getvalue()


def test_patience_ends_a_training_that_gets_no_better(tmp_path: Path) -> None:
    config = SMALL.changed(runs_dir=tmp_path, name="still", lr=1e-12, warmup_epochs=0, epochs=9, patience=2, average=0)
    result = train(config, console=QUIET)
    lines = Run(tmp_path / "still").metrics()
    assert (result.epochs, result.best_epoch, len(lines)) == (3, 1, 3)
    assert [line["test_top1"] is None for line in lines] == [True, True, False]
    assert result.top1 == lines[-1]["test_top1"]
    again = train(TrainConfig(resume=result.run), console=QUIET)
    assert (again.epochs, again.top1) == (3, result.top1)
    assert len(Run(tmp_path / "still").metrics()) == 3


def test_patience_on_test_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--patience needs a validation split.*--validation 0.1"):
        train(SMALL.changed(validation=0.0, patience=2, runs_dir=tmp_path), console=QUIET)
    assert not list(tmp_path.iterdir())


def test_a_data_set_at_hand_is_split_once_and_its_teacher_sees_no_validation_image(tmp_path: Path) -> None:
    whole = load_dataset("digits", limit_train=160)
    config = SMALL.changed(limit_train=None, epochs=1, teacher="small_cnn", teacher_epochs=1, runs_dir=tmp_path)
    result = train(config, console=QUIET, dataset=whole)
    (teacher,) = tmp_path.glob("teacher-*-small_cnn-*")
    assert result.train_images + result.val_images == 160
    stored = Run(teacher).dataset()
    assert (stored["train"], stored["val"]["images"]) == (
        Run(Path(result.run)).dataset()["train"], result.val_images,
    )  # fmt: skip
