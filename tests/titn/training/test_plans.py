"""The last epochs of a training may be plain: crop and flip alone, with answers of the teacher of their own."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from numpy.testing import assert_array_equal
from rich.console import Console
from safetensors.torch import load_file
from stop_after import StopAfter

from titn.cache import fill, verify
from titn.config import TeacherConfig, TrainConfig
from titn.data.dataset import Dataset, load_dataset
from titn.errors import Interrupted, UserError
from titn.train import train
from titn.training import checkpoint
from titn.training.plans import EpochPlans
from titn.training.run import Run
from titn.training.schedule import Schedule
from titn.training.teacher_cache import FOLDER

QUIET = Console(quiet=True)
SMALL = {
    "limit_train": 96, "depth": 1, "batch_size": 48, "augmentation": "cifar10", "mix": "cutmix", "erase": 0.5,
    "device": "cpu", "epochs": 4, "plain_share": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", "data", image_size=32, limit_train=96)


def plans(digits: Dataset, **changes: object) -> EpochPlans:
    config = TrainConfig(**(SMALL | changes))
    return EpochPlans.of(config, Schedule.of(config, 96), digits)


@pytest.mark.parametrize(
    ("epochs", "share", "plain"), [(20, 0.15, 3), (1, 0.15, 0), (4, 1.0, 4), (5, 0.0, 0), (50, 0.15, 8)]
)
def test_the_last_epochs_are_plain(digits: Dataset, epochs: int, share: float, plain: int) -> None:
    found = [plans(digits, epochs=epochs, plain_share=share)._augmentation(epoch) for epoch in range(epochs)]
    full = found[0] if share < 1 else replace(found[0], policy="cifar10", mix="cutmix", erase=0.5)
    assert found == [full] * (epochs - plain) + [replace(full, policy="none", mix="none", erase=0.0)] * plain


def test_a_plain_plan_keeps_order_crop_and_flip(digits: Dataset) -> None:
    full, plain = plans(digits, plain_share=0.0).draw(3), plans(digits).draw(3)
    for name in ("order", "crop", "flip"):
        assert_array_equal(getattr(plain, name), getattr(full, name))
    assert (plain.policy, plain.erase, plain.mixes) == (None, None, False) and (plain.lam == 1).all()
    assert full.policy is not None and full.mixes and full.fingerprint != plain.fingerprint


def test_a_bank_serves_plain_epochs_too(digits: Dataset) -> None:
    turns = plans(digits, epochs=10, plain_share=0.4, bank=4)
    assert [turns.draw(epoch).epoch for epoch in range(10)] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert list(turns.numbers.values()) == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert list(plans(digits, epochs=10, plain_share=0.4).numbers.values()) == [[*range(6)], [*range(6, 10)]]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(Run(folder).newest_checkpoint() / checkpoint.MODEL)


def same(one: Path, other: Path) -> bool:
    pairs = weights(one), weights(other)
    return pairs[0].keys() == pairs[1].keys() and all(torch.equal(pairs[0][name], pairs[1][name]) for name in pairs[0])


@pytest.mark.parametrize("bank", [None, 1])
def test_stored_answers_to_plain_epochs_are_the_live_ones(tmp_path: Path, bank: int | None) -> None:
    """A student with a cache, filled ahead or while it trains, interrupted in a plain epoch, is the live one."""
    common = {"limit_train": 96, "device": "cpu", "runs_dir": str(tmp_path)}
    train(TeacherConfig(**common, teacher="small_cnn", epochs=1, name="teacher"), console=QUIET)
    config = TrainConfig(**(SMALL | common), teacher=str(tmp_path / "teacher"), bank=bank)
    train(config.changed(name="live"), console=QUIET)
    with pytest.raises(UserError, match="is not there"):
        train(config.changed(plain_share=0.0, name="none", teacher_cache="only"), console=QUIET)
    cached = config.changed(teacher_cache="auto", name="filling")
    with pytest.raises(Interrupted):
        train(cached, console=QUIET, callbacks=[StopAfter(5)])
    train(TrainConfig(resume=str(tmp_path / "filling")), console=QUIET)
    assert same(tmp_path / "filling", tmp_path / "live")
    found = fill(config, console=QUIET)
    assert [cache.epochs() for cache in found] == ([[0, 1], [2, 3]] if bank is None else [[0], [0]])
    assert [cache.identity["augmentation"]["mix"] for cache in found] == ["cutmix", "none"]
    assert len(list((tmp_path / FOLDER).iterdir())) == 2
    assert verify(config, 40, console=QUIET).same_decision == 40
    said = io.StringIO()
    train(config.changed(name="cached", teacher_cache="only"), console=Console(file=said, width=300))
    assert same(tmp_path / "cached", tmp_path / "live")
    assert said.getvalue().count("Teacher cache:") == 4
    found[1].path(found[1].epochs()[0]).unlink()
    with pytest.raises(UserError, match="lacks epoch"):
        train(config.changed(name="lacking", teacher_cache="only"), console=QUIET)
