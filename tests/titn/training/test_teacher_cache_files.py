"""What the cache's files are: refused by name when they are damaged or another's, small, verified, and moved whole."""

import io
import json
import math
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from titn.cache import fill, main
from titn.config import TeacherConfig, TrainConfig
from titn.data.dataset import load_dataset
from titn.errors import UserError
from titn.pipelines import Augmentation
from titn.pipelines.augmentation import Mix
from titn.pipelines.dali_pipeline import DaliPipeline
from titn.settings import fields_of, flag
from titn.teachers.answers import TeacherAnswers
from titn.train import train
from titn.training.cache_archive import export_cache, import_cache
from titn.training.switches import select
from titn.training.targets import StoredAnswers, kept_answers
from titn.training.teacher_cache import (
    DamagedRecords,
    MissingRecords,
    TeacherCache,
    cache_identity,
    differences,
    epochs_in_words,
    kept_targets,
)

QUIET = Console(quiet=True)
CPU = torch.device("cpu")
NEEDS_DALI = pytest.mark.skipif(bool(DaliPipeline.reasons(CPU, 32)), reason="DALI is not installed")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A training of two epochs whose cache is full."""
    runs = str(tmp_path_factory.mktemp("runs"))
    common: dict[str, Any] = {"limit_train": 64, "device": "cpu", "runs_dir": runs}
    for seed in (0, 1):
        train(TeacherConfig(**common, epochs=1, seed=seed, name=f"teacher{seed}"), console=QUIET)
    config = TrainConfig(
        **common, teacher=f"{runs}/teacher0", depth=1, epochs=2, batch_size=32, mix="cutmix", teacher_cache="only"
    )
    fill(config, console=QUIET)
    return config


@pytest.fixture
def own(student: TrainConfig, tmp_path: Path) -> tuple[TrainConfig, TeacherCache]:
    """The training with a copy of its runs folder and cache, to be damaged."""
    shutil.copytree(student.runs_dir, tmp_path / "runs")
    (folder,) = (tmp_path / "runs" / "teacher-cache").iterdir()
    config = student.changed(runs_dir=str(tmp_path / "runs"), teacher=str(tmp_path / "runs" / "teacher0"))
    return config, TeacherCache.open(folder)


@pytest.fixture
def small(tmp_path: Path) -> TeacherCache:
    """A cache of 20 random decisions for one epoch."""
    identity = cache_identity(
        load_dataset("digits", limit_train=20),
        Augmentation(),
        0,
        teacher={"architecture": "small_cnn", "weights": "0" * 64},
        precision="float32",
        targets="hard",
    )
    cache = TeacherCache.at(tmp_path, identity, "digits")
    cache.create({})
    cache.write(0, {"labels": np.random.default_rng(0).integers(0, 10, 20).astype(np.uint8)})
    return cache


def flags(config: TrainConfig) -> list[str]:
    return [word for name in config.said for word in (flag(name), str(getattr(config, name)))]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": 1}, r"seed \(0, not 1\)"),
        ({"crop_padding": 1}, r"augmentation.crop_padding \(2, not 1\)"),
        ({"flip": True}, r"augmentation.flip \(False, not True\)"),
        ({"augmentation": "cifar10"}, r"augmentation.policy \(none, not cifar10\)"),
        ({"mix_alpha": 1.0}, r"augmentation.mix_alpha \(0.5, not 1.0\)"),
        ({"mix": "mixup"}, r"augmentation.mix \(cutmix, not mixup\)"),
        ({"limit_train": 60}, r"data \(64 training images became 60\)"),
        ({"teacher": "teacher1"}, r"teacher.weights \(\w{12}, not \w{12}\)"),
        ({"distillation": "soft"}, r"targets \(hard, not logits\)"),
        ({"distillation": "soft", "cache_top_k": 3}, r"targets \(hard, not top-3\)"),
        pytest.param({"pipeline": "dali"}, r"pipeline \(none, not dali\)", marks=NEEDS_DALI),
    ],
)
def test_what_does_not_match_is_refused_by_name(student: TrainConfig, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(
        UserError, match=rf"^--teacher-cache only: .* is not there; the nearest, .*, differs in {field}:"
    ):
        train(student.changed(**changes), console=QUIET)


@pytest.mark.parametrize(("mix", "same"), [("cutmix", True), ("cutmix_batch", False)])
def test_the_batch_size_matters_only_where_a_batch_shares_its_box(mix: Mix, same: bool) -> None:
    data = load_dataset("digits", limit_train=20)
    one, other = (
        cache_identity(data, Augmentation(mix=mix, mix_batch=batch), 0, teacher={}, precision="float32", targets="hard")
        for batch in (32, 64)
    )
    assert differences(one, other) == ([] if same else ["augmentation.mix_batch (32, not 64)"])


def test_every_damaged_byte_of_an_epoch_is_noticed(small: TeacherCache) -> None:
    """Or harmless: one kind of white space for another in the header."""
    intact, records = small.path(0).read_bytes(), small.read(0)
    refused = 0
    for place in range(len(intact)):
        for change in (0x01, 0x20, 0x80, 0xFF):
            damaged = bytearray(intact)
            damaged[place] ^= change
            small.path(0).write_bytes(damaged)
            try:
                found = small.read(0)
            except DamagedRecords as error:
                assert str(small.path(0)) in str(error)
                assert "titn.cache fill" in str(error)
                refused += 1
            else:
                assert found.keys() == records.keys()
                assert np.array_equal(found["labels"], records["labels"])
    assert refused > 0.98 * 4 * len(intact)
    for length in range(len(intact)):
        small.path(0).write_bytes(intact[:length])
        with pytest.raises(DamagedRecords):
            small.read(0)


def test_every_damaged_byte_of_the_manifest_is_noticed(small: TeacherCache) -> None:
    path = small.folder / "manifest.json"
    intact = path.read_bytes()
    refused = 0
    for place in range(len(intact)):
        damaged = bytearray(intact)
        damaged[place] ^= 0x01
        path.write_bytes(damaged)
        try:
            assert TeacherCache.open(small.folder).identity == small.identity
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 0.8 * len(intact)


def test_files_of_another_epoch_or_cache_are_refused(small: TeacherCache, tmp_path: Path) -> None:
    shutil.copy(small.path(0), small.path(1))
    with pytest.raises(DamagedRecords, match=r"epoch-0002\.safetensors belongs to epoch 1"):
        small.read(1)
    other = TeacherCache.at(tmp_path, small.identity | {"seed": 1}, "digits")
    other.create({})
    shutil.copy(small.path(0), other.path(0))
    with pytest.raises(DamagedRecords, match="belongs to another cache"):
        other.read(0)
    shutil.copy(small.folder / "manifest.json", other.folder / "manifest.json")
    with pytest.raises(UserError, match=r"is the cache of another run: it differs in seed \(0, not 1\)"):
        TeacherCache.at(tmp_path, other.identity, "digits")


def test_a_damaged_epoch_is_refused_named_and_filled_again(own: tuple[TrainConfig, TeacherCache]) -> None:
    config, cache = own
    intact = cache.path(1).read_bytes()

    def damage() -> None:
        damaged = bytearray(intact)
        damaged[-5] ^= 1
        cache.path(1).write_bytes(damaged)

    damage()
    with pytest.raises(UserError, match=r"epoch-0002.safetensors is damaged \(its checksum differs\)"):
        train(config.changed(name="refused"), console=QUIET)
    assert not (Path(config.runs_dir) / "refused").exists()
    said = io.StringIO()
    train(config.changed(teacher_cache="auto", name="mended"), console=Console(file=said, width=400))
    assert f"{cache.path(1)} was damaged: it is filled again" in said.getvalue()
    assert cache.path(1).read_bytes() == intact
    damage()
    fill(config, console=QUIET)
    assert cache.path(1).read_bytes() == intact


def test_without_a_cache_or_a_teacher_there_is_one_clear_line(own: tuple[TrainConfig, TeacherCache]) -> None:
    config, cache = own
    with pytest.raises(UserError, match=r"lacks epoch 3 \(and 2 more\) of 5: fill it with python -m titn.cache fill"):
        train(config.changed(epochs=5), console=QUIET)
    with pytest.raises(UserError, match="is still to be trained"):
        train(config.changed(teacher="small_cnn"), console=QUIET)
    with pytest.raises(UserError, match="no answers to store"):
        fill(config.changed(teacher="none"), console=QUIET)
    cache.path(0).unlink()
    with pytest.raises(MissingRecords, match="lacks epoch 1 of 2"):
        train(config, console=QUIET)


def test_verify_finds_a_wrong_label(own: tuple[TrainConfig, TeacherCache], capsys: pytest.CaptureFixture[str]) -> None:
    config, cache = own
    arguments = ["verify", "--sample", "1000", *flags(config)]
    main(arguments)
    assert "128 of 128 decisions are the same" in capsys.readouterr().out
    labels = cache.read(1)["labels"].copy()
    labels[5] = (labels[5] + 1) % 10
    cache.write(1, {"labels": labels})
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 1
    assert "127 of 128 decisions are the same" in capsys.readouterr().out
    cache.path(0).write_bytes(b"")
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "epoch-0001.safetensors is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("top_k", [None, 3])
def test_verify_of_logits(
    own: tuple[TrainConfig, TeacherCache], top_k: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = own
    soft = config.changed(distillation="soft", cache_top_k=top_k)
    (cache,) = fill(soft, console=QUIET)
    assert cache.targets == ("logits" if top_k is None else "top-3")
    main(["verify", *flags(soft)])
    words = capsys.readouterr().out.split()
    assert words[-2] == "apart" or float(words[-2]) < 0.01


def test_an_archive_brings_the_same_files(own: tuple[TrainConfig, TeacherCache], tmp_path: Path) -> None:
    _, cache = own
    assert export_cache(cache, tmp_path / "one.tar") == 2
    with pytest.raises(UserError, match="exists already"):
        export_cache(cache, tmp_path / "one.tar")
    there, new = import_cache(tmp_path / "one.tar", tmp_path / "elsewhere")
    assert (new, there.epochs()) == (2, [0, 1])
    for path in cache.folder.iterdir():
        assert (there.folder / path.name).read_bytes() == path.read_bytes()
    there.path(0).unlink()
    assert import_cache(tmp_path / "one.tar", tmp_path / "elsewhere")[1] == 1
    export_cache(there, tmp_path / "two.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


@pytest.mark.parametrize("damage", ["byte", "short", "member", "path", "foreign"])
def test_a_damaged_archive_writes_nothing(own: tuple[TrainConfig, TeacherCache], damage: str, tmp_path: Path) -> None:
    file = tmp_path / "cache.tar"
    export_cache(own[1], file)
    data = bytearray(file.read_bytes())
    with tarfile.open(file) as archive:
        last = archive.getmembers()[-1]
    if damage == "byte":
        data[last.offset_data + last.size - 3] ^= 1
    elif damage == "short":
        del data[last.offset_data + 10 :]
    elif damage == "member":
        del data[last.offset :]
    elif damage == "path":
        with tarfile.open(file, "a") as archive:
            archive.addfile(tarfile.TarInfo("../outside"), io.BytesIO())
        data = bytearray(file.read_bytes())
    else:
        data = bytearray(b"no archive")
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"cache\.tar"):
        import_cache(file, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "outside").exists()


def test_info_export_and_import_are_commands(
    own: tuple[TrainConfig, TeacherCache], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, cache = own
    runs = ["--runs-dir", config.runs_dir]
    main(["info", *runs])
    shown = capsys.readouterr().out
    assert "1 to 2" in shown
    main(["info", cache.folder.name, *runs])
    assert "100.00% of 64 images" in capsys.readouterr().out
    main(["export", str(tmp_path / "a.tar"), *runs])
    main(["import", str(tmp_path / "a.tar"), "--runs-dir", str(tmp_path / "r")])
    assert "2 new epochs, now 1 to 2" in capsys.readouterr().out
    for wrong in (
        ["fil"],
        ["info", "nothing", *runs],
        ["import", str(tmp_path / "none.tar")],
        ["verify", "--sample", "0"],
    ):
        with pytest.raises(SystemExit) as left:
            main(wrong)
        assert left.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def cifar100(folder: Path, targets: str) -> TeacherCache:
    """An empty cache for as many images and classes as CIFAR-100 has."""
    identity: dict[str, Any] = {
        "format": 1,
        "targets": targets,
        "teacher": {"architecture": "vgg16_bn", "weights": "0" * 64},
        "data": {"class_names": [str(number) for number in range(100)]},
    }
    cache = TeacherCache(folder / targets, identity)
    cache.create({})
    return cache


class Table(nn.Module):
    """A teacher that knows its answers by heart: images [B, 1, 1, 1] hold row numbers."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.get_buffer("logits")
        return logits[images.flatten().long()]


@pytest.mark.parametrize(("targets", "most"), [("hard", 15 * 2**20), ("top-8", 0.4e9)])
def test_sizes_for_cifar100_and_300_epochs(targets: str, most: float, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    answers = TeacherAnswers(Table(5 * torch.randn(50_000, 100, generator=generator)), CPU)
    cache = cifar100(tmp_path, targets)
    cache.write(0, kept_answers(answers, torch.arange(50_000.0).view(-1, 1, 1, 1), targets, 100))
    assert 300 * cache.path(0).stat().st_size <= most


@pytest.mark.parametrize("classes", [10, 257])
def test_stored_logits_against_float64(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(40, classes, generator=generator) + 30
    images, ids = torch.arange(40.0).view(-1, 1, 1, 1), torch.randperm(40, generator=generator)
    answers = TeacherAnswers(Table(logits), CPU)

    def stored(targets: str) -> Tensor:
        return StoredAnswers(kept_answers(answers, images, targets, classes), classes, CPU)(ids)

    assert torch.equal(stored("hard"), logits[ids].argmax(1))
    expected = torch.softmax(logits[ids].double(), 1)
    assert (torch.softmax(stored("logits").double(), 1) - expected).abs().max() < 3e-4
    found = torch.softmax(stored("top-4").double(), 1)
    kept, where = expected.topk(4, dim=1)
    assert (found.gather(1, where) - kept).abs().max() < 3e-4
    rest = found.scatter(1, where, math.nan)
    for row, left in zip(rest, 1 - kept.sum(1), strict=True):
        others = row[~row.isnan()]
        assert len(others) == classes - 4
        assert others.max() - others.min() < 1e-12
        assert abs(others.sum().item() - left.item()) < 1e-3


def test_more_than_256_classes_take_two_bytes(tmp_path: Path) -> None:
    logits = torch.eye(300) * 5
    kept = kept_answers(TeacherAnswers(Table(logits), CPU), torch.arange(300.0).view(-1, 1, 1, 1), "hard", 300)
    assert kept["labels"].dtype == np.uint16
    assert kept["labels"].tolist() == list(range(300))
    cache = cifar100(tmp_path, "hard")
    cache.write(0, kept)
    assert cache.read(0)["labels"].tolist() == list(range(300))
    few = kept_answers(TeacherAnswers(Table(torch.eye(256)), CPU), torch.arange(256.0).view(-1, 1, 1, 1), "hard", 256)
    assert few["labels"].dtype == np.uint8
    assert few["labels"].tolist() == list(range(256))


def test_what_is_kept_follows_from_the_distillation() -> None:
    assert kept_targets("hard", 5, 10) == "hard"
    assert kept_targets("soft", None, 10) == "logits"
    assert kept_targets("soft", 3, 10) == "top-3"
    assert kept_targets("soft", 10, 10) == "logits"


def test_epochs_are_counted_from_one() -> None:
    assert epochs_in_words([]) == "none"
    assert epochs_in_words([4, 0, 1, 2, 9, 10]) == "1 to 3, 5, 10 to 11"


@pytest.mark.parametrize(
    ("settings", "value", "why"),
    [
        ({}, "off", "--fast switches it on"),
        ({"fast": True}, "auto", ""),
        ({"teacher_cache": "auto"}, "auto", ""),
        ({"fast": True, "teacher_cache": "off"}, "off", ""),
        ({"teacher_cache": "only"}, "only", ""),
        ({"fast": True, "teacher": "none"}, "off", "no teacher"),
    ],
)
def test_the_switch_says_what_is_on_and_why(settings: dict[str, Any], value: str, why: str) -> None:
    (row,) = (row for row in select(TrainConfig(device="cpu", **settings)).rows if row.name == "teacher-cache")
    assert (row.value, row.on, "; ".join(row.reasons)) == (value, value != "off", why)


def test_settings_without_effect_are_said() -> None:
    said: Callable[..., list[str]] = lambda **settings: TrainConfig(**settings).without_effect  # noqa: E731
    assert "--teacher-cache has no effect without a teacher" in said(teacher="none", teacher_cache="auto")
    assert "--cache-top-k has no effect with --distillation hard" in said(cache_top_k=3)


def test_the_teacher_itself_has_no_such_settings() -> None:
    assert not {"teacher_cache", "bank", "cache_top_k"} & fields_of(TeacherConfig).keys()
    assert "teacher-cache" not in {row.name for row in select(TeacherConfig(device="cpu")).rows}


def test_a_manifest_of_a_later_version_is_refused(small: TeacherCache) -> None:
    path = small.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["identity"]["format"] = 99
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamagedRecords, match="has cache format 99"):
        TeacherCache.open(small.folder)
