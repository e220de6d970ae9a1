"""The proof of the cache: a student learns the same, bit for bit, from a live teacher and from stored answers.

Three epochs with hard labels and CutMix on the CPU in float32, on real CIFAR-10 images and on digits. The cache is
filled by the run itself, ahead of it, at another batch size, from the third epoch on, by two processes at once, and by
processes that are killed.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from stored_data import copy_shard

from titn.cache import fill
from titn.config import TeacherConfig, TrainConfig
from titn.errors import UserError
from titn.teachers.find import Teacher
from titn.train import train
from titn.training import checkpoint
from titn.training.run import Run
from titn.training.teacher_cache import FOLDER, TeacherCache

QUIET = Console(quiet=True)
EPOCHS = 3


@pytest.fixture(scope="module", params=["digits", "cifar10"])
def student(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """The training of a student whose teacher, a small network, is there already."""
    runs = tmp_path_factory.mktemp("runs")
    data = {}
    if request.param == "cifar10":
        shared = request.getfixturevalue("shared_data") / "cifar10" / "test-00000-of-00001.parquet"
        copy_shard(shared, runs / "data" / "cifar10", 300)
        data = {"dataset": "cifar10", "data_dir": str(runs / "data")}
    common = {**data, "limit_train": 200, "device": "cpu", "runs_dir": str(runs)}
    taught = TeacherConfig(**common, teacher="small_cnn", epochs=2, name="teacher")
    train(taught, console=QUIET)
    return TrainConfig(
        **common, teacher=str(runs / "teacher"), depth=1, epochs=EPOCHS, batch_size=48, mix="cutmix", seed=7
    )


@pytest.fixture(scope="module")
def taught_live(student: TrainConfig) -> dict[str, torch.Tensor]:
    """The weights that a live teacher leads to."""
    return weights(student.changed(name="live"))


@pytest.fixture
def fresh(student: TrainConfig, tmp_path: Path) -> TrainConfig:
    """The same training in a runs folder of its own, without a cache."""
    return student.changed(runs_dir=str(tmp_path))


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    """What a student has learned in the end."""
    result = train(config, console=QUIET)
    return load_file(Run(Path(result.run)).newest_checkpoint() / checkpoint.MODEL)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def the_cache(config: TrainConfig) -> TeacherCache:
    (folder,) = (Path(config.runs_dir) / FOLDER).iterdir()
    return TeacherCache.open(folder)


def command(config: TrainConfig) -> list[str]:
    """The flags of a training, as a user types them."""
    flags = {name: getattr(config, name) for name in config.said}
    words = [word for name, value in flags.items() for word in ("--" + name.replace("_", "-"), str(value))]
    return [sys.executable, "-m", "titn.cache", "fill", *words]


def start(config: TrainConfig) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.Popen(command(config), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def forbid_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(teacher: Teacher) -> None:
        raise AssertionError("the teacher's network was loaded")

    monkeypatch.setattr(Teacher, "network", property(refuse))


def test_live_filling_and_cached_students_are_bit_equal(
    fresh: TrainConfig, taught_live: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert same(weights(fresh.changed(teacher_cache="auto", name="filling")), taught_live)
    forbid_the_network(monkeypatch)
    assert same(weights(fresh.changed(teacher_cache="only", name="cached")), taught_live)
    assert same(weights(fresh.changed(teacher_cache="auto", name="again")), taught_live)
    untaught = weights(fresh.changed(teacher="none", name="untaught"))
    assert not same(untaught, taught_live)


@pytest.mark.parametrize("teacher_batch", [1, 17, 200])
def test_filled_at_another_batch_size(
    fresh: TrainConfig, taught_live: dict[str, torch.Tensor], teacher_batch: int
) -> None:
    fill(fresh, console=QUIET, teacher_batch=teacher_batch)
    assert same(weights(fresh.changed(teacher_cache="only")), taught_live)


def test_filled_from_the_third_epoch_on(fresh: TrainConfig, taught_live: dict[str, torch.Tensor]) -> None:
    (cache,) = fill(fresh, console=QUIET)
    for epoch in (0, 1):
        cache.path(epoch).unlink()
    before = cache.path(2).stat().st_mtime_ns
    with pytest.raises(UserError, match=rf"lacks epoch 1 \(and 1 more\) of {EPOCHS}"):
        train(fresh.changed(teacher_cache="only"), console=QUIET)
    assert same(weights(fresh.changed(teacher_cache="auto")), taught_live)
    assert cache.epochs() == [0, 1, 2]
    assert cache.path(2).stat().st_mtime_ns == before


def test_filled_by_two_processes_at_once(fresh: TrainConfig, taught_live: dict[str, torch.Tensor]) -> None:
    both = [start(fresh) for _ in range(2)]
    for process in both:
        output, errors = process.communicate(timeout=600)
        assert process.returncode == 0, output + errors
    assert the_cache(fresh).epochs() == [0, 1, 2]
    assert same(weights(fresh.changed(teacher_cache="only")), taught_live)


def test_filled_by_processes_that_are_killed(fresh: TrainConfig, taught_live: dict[str, torch.Tensor]) -> None:
    """Each is killed a random moment after it has begun to write; what is there by then stays as it is."""
    moments = random.Random(0)
    written: dict[Path, bytes] = {}
    killed = 0
    for _ in range(3):
        process = start(fresh)
        while process.poll() is None and not list(Path(fresh.runs_dir).glob(f"{FOLDER}/*/.lock")):
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        for path, data in written.items():
            assert path.read_bytes() == data
        written |= {path: path.read_bytes() for path in Path(fresh.runs_dir).glob(f"{FOLDER}/*/epoch-*")}
    assert killed
    (cache,) = fill(fresh, console=QUIET)
    assert {path.name for path in cache.folder.iterdir()} == {
        *(".lock", "manifest.json", "epoch-0001.safetensors", "epoch-0002.safetensors", "epoch-0003.safetensors")
    }
    assert same(weights(fresh.changed(teacher_cache="only")), taught_live)


def test_a_student_that_is_stopped_while_it_fills_goes_on_bit_equal(
    fresh: TrainConfig, taught_live: dict[str, torch.Tensor]
) -> None:
    config = fresh.changed(teacher_cache="auto", name="stopped")
    line = [*command(config)]
    line[2:4] = ["titn.train"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while process.poll() is None and not list(Path(fresh.runs_dir).glob(f"{FOLDER}/*/.lock")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert same(weights(TrainConfig(resume=str(Path(fresh.runs_dir) / "stopped"))), taught_live)


def test_one_cache_serves_other_students(fresh: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    live = weights(fresh.changed(model="deit", batch_size=32, lr=0.01, name="live"))
    fill(fresh, console=QUIET)
    forbid_the_network(monkeypatch)
    cached = weights(fresh.changed(model="deit", batch_size=32, lr=0.01, teacher_cache="only", name="cached"))
    assert same(cached, live)


def test_a_bank_replays_its_epochs(fresh: TrainConfig) -> None:
    turns = fresh.changed(epochs=4, bank=2)
    live = weights(turns.changed(name="live"))
    assert not same(live, weights(turns.changed(bank=None, name="fresh-views")))
    (cache,) = fill(turns, console=QUIET)
    assert cache.epochs() == [0, 1]
    assert same(weights(turns.changed(teacher_cache="only", name="cached")), live)


def test_a_cache_moves_without_its_teacher(
    fresh: TrainConfig, taught_live: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    (cache,) = fill(fresh, console=QUIET)
    there = tmp_path / "there"
    shutil.copytree(cache.folder, there / FOLDER / cache.folder.name)
    copied = shutil.copytree(cache.folder, tmp_path / "a copy")
    for number, folder in enumerate((there / FOLDER / cache.folder.name, copied)):
        config = fresh.changed(runs_dir=str(there), teacher=str(folder), teacher_cache="only", name=f"{number}")
        assert same(weights(config), taught_live)
        with pytest.raises(UserError, match=r"it differs in seed \(7, not 8\)"):
            train(config.changed(seed=8, name="other"), console=QUIET)
    with pytest.raises(UserError, match="holds a teacher's answers, not its network"):
        train(config.changed(teacher_cache="off", name="live"), console=QUIET)


def test_soft_targets_are_the_live_ones_rounded(fresh: TrainConfig) -> None:
    """Half precision of logits below their largest: the weights of a short training are equal to within 1e-3."""
    soft = fresh.changed(distillation="soft", epochs=1)
    live = weights(soft.changed(name="live"))
    cached = weights(soft.changed(name="filling", teacher_cache="auto"))
    assert the_cache(soft).targets == "logits"
    assert not same(cached, weights(fresh.changed(epochs=1, name="hard")))
    for name, value in live.items():
        torch.testing.assert_close(cached[name], value, atol=1e-3, rtol=1e-3)


def test_the_manifest_tells_what_was_measured(fresh: TrainConfig) -> None:
    (cache,) = fill(fresh, console=QUIET)
    measured = json.loads((cache.folder / "manifest.json").read_text())["measured"]
    agreement = measured["agreement_with_plain_float32"]
    assert agreement["images"] == 200
    assert 0 < agreement["largest_difference"] < 1e-4
    assert agreement["same_decision"] == 1.0
