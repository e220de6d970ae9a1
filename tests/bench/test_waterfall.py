"""The waterfall: whole trainings that differ by one switch, on the same batches, answers and number of steps."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from bench.options import Setting
from bench.training import waterfall
from bench.training.waterfall import Training, fresh_teacher, some_images, steps
from titn.config import TrainConfig
from titn.data.dataset import load_dataset
from titn.errors import UserError
from titn.kernels.common.backend import interpreting
from titn.train import train
from titn.training.run import Run
from titn.training.switches import compile_reasons, native_bfloat16, select
from titn.training.targets import CachedTeacher, LiveTeacher

CPU = torch.device("cpu")
AT = Setting(CPU, small=True)
CIFAR = TrainConfig(dataset="cifar100", device="cpu")
SMALL = TrainConfig(
    dataset="digits", depth=1, image_size=16, batch_size=16, bank=1, device="cpu", **waterfall.REFERENCE
)


def test_it_goes_from_the_reference_to_fast_one_switch_at_a_time() -> None:
    trainings = [one.config for one in steps(CIFAR) if one.config is not None]
    first, last = (select(each) for each in (trainings[0], trainings[-1]))
    assert [row.value for row in first.rows] == [row.value for row in select(CIFAR).rows]
    assert [row.value for row in last.rows] == [row.value for row in select(CIFAR.changed(fast=True)).rows]
    for before, after in itertools.pairwise(trainings):
        differing = [name for name in waterfall.REFERENCE if getattr(before, name) != getattr(after, name)]
        assert len(differing) == 1


def test_every_switch_of_fast_is_there_with_a_reason_where_it_is_off() -> None:
    rows = {one.name: one for one in steps(CIFAR)}
    names = {f"+ {row.name.replace('-', ' ')}" for row in select(CIFAR.changed(fast=True)).rows if row.name != "device"}
    assert set(rows) == {"reference", *names}
    for row in rows.values():
        assert bool(row.reason) == (row.config is None)
    assert rows["+ cuda graph"].reason == "no GPU"


@pytest.mark.parametrize("stored", ["off", "auto"])
def test_what_is_timed_is_what_titn_train_does(stored: Any, tmp_path: Path) -> None:
    """Two epochs of two steps, by hand and by titn.train, with the same teacher: the same losses, to the last bit."""
    config = SMALL.changed(runs_dir=str(tmp_path), limit_train=32, epochs=2, teacher_cache=stored, warmup_epochs=0.0)
    dataset = load_dataset("digits", image_size=16, limit_train=32)
    teacher = fresh_teacher(config, dataset, tmp_path / "teacher.safetensors")
    training = Training(config, dataset, teacher)
    assert isinstance(training.targets, CachedTeacher if stored == "auto" else LiveTeacher)
    for _ in range(4):
        training()
    run = train(config.changed(teacher=str(teacher.weights)), console=Console(quiet=True), dataset=dataset).run
    losses = torch.stack(training.losses).reshape(2, 2).mean(1)
    assert losses.tolist() == [line["loss"] for line in Run(Path(run)).metrics()]
    assert training.loss(2) == losses[1]


def test_the_teacher_tells_images_apart(tmp_path: Path) -> None:
    """Fresh weights alone answer every image alike, which would make an easy target."""
    dataset = load_dataset("digits", image_size=16, limit_train=256)
    teacher = fresh_teacher(SMALL, dataset, tmp_path / "teacher.safetensors")
    images = torch.from_numpy(np.moveaxis(dataset.train_images, 3, 1)).float() / 255
    with torch.no_grad():
        answers = teacher.network.eval()((images - dataset.mean[0]) / dataset.std[0]).argmax(1)
    assert answers.bincount(minlength=10).max() < 0.9 * len(images)


def test_a_batch_that_the_data_set_cannot_fill_is_refused() -> None:
    with pytest.raises(UserError, match="less than a batch of 5,000"):
        some_images(SMALL.changed(batch_size=5000), AT)


def test_the_waterfall_writes_what_it_measured(tmp_path: Path) -> None:
    waterfall.main(["--dry-run", "--rounds", "2", "--out", str(tmp_path)])
    (file,) = tmp_path.glob("*/*.json")
    section = json.loads(file.read_text())["sections"]["waterfall"]
    rows = {row["name"]: row for row in section["rows"]}
    assert list(rows) == [one.name for one in steps(SMALL, small=True)]
    assert section["steps"] == waterfall.WARM_UPS + 2
    measured = [row for row in section["rows"] if "images_per_second" in row]
    assert {"reference", "+ teacher cache"} <= {row["name"] for row in measured}
    assert ("images_per_second" in rows["+ compile"]) == (not compile_reasons(CPU))
    assert rows["reference"]["ratio_to_last"] is None and rows["reference"]["fill_images_per_second"] is None
    assert rows["+ teacher cache"]["fill_images_per_second"] > 0
    for row in measured[1:]:
        assert row["ratio_to_last"]["repetitions"] == row["ratio_to_first"]["repetitions"] == 2
    if not native_bfloat16(CPU):
        losses = [row["loss"] for row in measured]
        assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-4)
    if interpreting():
        assert rows["+ kernels"]["switch"] == "--kernels triton" and "images_per_second" in rows["+ kernels"]
        assert ("images_per_second" in rows["+ amp"]) == native_bfloat16(CPU)
