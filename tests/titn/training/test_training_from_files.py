"""Training from files that are decoded for every batch: the run is the one from the same images in memory."""

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from rich.console import Console

from titn.cache import fill, verify
from titn.config import TrainConfig
from titn.data import decoding
from titn.data.cache import FROM_FILES
from titn.data.dataset import Dataset, load_dataset
from titn.errors import UserError
from titn.evaluate import evaluate
from titn.pipelines import DaliPipeline, image_files
from titn.pipelines.dali_pipeline import PACKAGE
from titn.pipelines.image_files import UndecodableImage
from titn.train import train
from titn.training.run import Run

if DaliPipeline.reasons(torch.device("cpu"), 32):
    pytest.skip(f"{PACKAGE} is not installed: training from files was not tested", allow_module_level=True)

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Some 270 test images of CIFAR-10, of three classes, as JPEG and PNG files, and a cache of their own."""
    table = pyarrow.parquet.read_table(shared_data / "cifar10" / "test-00000-of-00001.parquet").slice(0, 900)
    root = tmp_path_factory.mktemp("files") / "cifar"
    for number, (image, label) in enumerate(zip(table["img"].to_pylist(), table["label"].to_pylist(), strict=True)):
        if label < 3:
            path = root / f"class{label}" / f"{number}.{'jpg' if number % 3 else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.open(io.BytesIO(image["bytes"])).save(path, **({"quality": 92} if number % 3 else {}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TITN_CACHE", str(root.parent / "cache"))
        yield root


def settings(folder: Path, runs: Path, **changes: object) -> TrainConfig:
    common = {"teacher": "none", "depth": 1, "epochs": 2, "batch_size": 48, "device": "cpu", "pipeline": "dali"}
    return TrainConfig(dataset=str(folder), runs_dir=str(runs), seed=3, **(common | {"mix": "cutmix"} | changes))


def measured(run: str) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    clock = ("seconds", "images_per_second", "peak_memory_mib", "time")
    return [{name: value for name, value in line.items() if name not in clock} for line in Run(Path(run)).metrics()]


def check_same(one: Dataset, other: Dataset) -> None:
    assert one.in_files and not other.in_files
    assert (one.identity(), one.fingerprint) == (other.identity(), other.fingerprint)
    for name in ("mean", "std", "class_names", "test_names"):
        assert getattr(one, name) == getattr(other, name)
    assert one.notes == (FROM_FILES, *other.notes)
    np.testing.assert_array_equal(np.asarray(one.test_images), other.test_images)
    np.testing.assert_array_equal(one.train_labels, other.train_labels)
    np.testing.assert_array_equal(one.train_keys, other.train_keys)


@pytest.mark.parametrize("size", [32, 20])
@pytest.mark.parametrize("limit", [None, 100])
def test_it_is_the_same_data_set(folder: Path, size: int, limit: int | None) -> None:
    options = {"image_size": size, "limit_train": limit}
    for _ in range(2):  # decoded, and from what is kept of it
        check_same(load_dataset(folder, in_files=True, **options), load_dataset(folder, **options))


def test_the_run_is_that_of_the_images_in_memory(folder: Path, tmp_path: Path) -> None:
    config = settings(folder, tmp_path)
    files = train(config.changed(name="files"), console=QUIET)
    memory = train(config.changed(name="memory"), console=QUIET, dataset=load_dataset(folder))
    assert measured(files.run) == measured(memory.run)  # files of the right size have the same bytes
    assert Run(Path(files.run)).dataset() == Run(Path(memory.run)).dataset()
    assert evaluate(files.run).scores["top1"] == files.top1


def test_resized_files_lead_to_nearly_the_same_losses(folder: Path, tmp_path: Path) -> None:
    config = settings(folder, tmp_path, image_size=24)
    files = measured(train(config.changed(name="files"), console=QUIET).run)
    data = load_dataset(folder, image_size=24)
    memory = measured(train(config.changed(name="memory"), console=QUIET, dataset=data).run)
    for one, other in zip(files, memory, strict=True):  # bytes are off by 0.2 on average, a thousandth of their range
        assert one["loss"] == pytest.approx(other["loss"], rel=0.01)


def test_answers_of_a_teacher_are_kept(folder: Path, tmp_path: Path) -> None:
    config = settings(folder, tmp_path, teacher="small_cnn", teacher_epochs=1)
    live = train(config.changed(name="live"), console=QUIET)
    fill(config, console=QUIET)
    found = verify(config, 20, console=QUIET)
    assert found.records == found.same_decision == 20
    stored = train(config.changed(name="stored", teacher_cache="only"), console=QUIET)
    assert [line["loss"] for line in measured(stored.run)] == [line["loss"] for line in measured(live.run)]


def test_what_does_not_fit_into_memory_is_streamed_and_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TITN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(decoding, "available_memory", lambda: 2**10)
    said = Console(file=io.StringIO(), width=200)
    config = settings(folder, tmp_path, epochs=1, pipeline="auto")
    train(config.changed(name="auto"), console=said)
    text = said.file.getvalue()
    assert "pipeline      dali" in text and f"{FROM_FILES}: " in text
    with pytest.raises(UserError, match=r"of memory are free; .* --pipeline dali on a folder of image files"):
        train(config.changed(name="torch", pipeline="torch"), console=QUIET)
    with pytest.raises(UserError, match="--pipeline torch needs the images in memory; use --pipeline dali"):
        train(
            config.changed(name="torch", pipeline="torch"), console=QUIET, dataset=load_dataset(folder, in_files=True)
        )


def test_what_is_known_of_files_is_kept_until_one_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_dataset(folder, in_files=True)
    decoded: list[Path] = []

    def decode(file: Path, size: int) -> np.ndarray:
        decoded.append(file)
        return by_pillow(file, size)

    by_pillow = image_files.by_pillow
    monkeypatch.setattr(image_files, "by_pillow", decode)
    assert load_dataset(folder, in_files=True).identity() == first.identity() and not decoded
    os.utime(first.train_images.paths[0])
    assert load_dataset(folder, in_files=True).identity() == first.identity() and decoded


def test_a_file_that_goes_is_named(folder: Path, tmp_path: Path) -> None:
    own = shutil.copytree(folder, tmp_path / "own")
    data = load_dataset(own, in_files=True)
    data.train_images.paths[5].unlink()
    with pytest.raises(UndecodableImage, match=f"image {data.train_images.paths[5]}: .*No such file"):
        train(settings(own, tmp_path, epochs=1), console=QUIET, dataset=data)
