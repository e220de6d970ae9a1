"""Several teachers as one: the mean of their logits, live and stored, whatever their order; and mistakes."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from titn.cache import fill
from titn.config import TeacherConfig, TrainConfig
from titn.data.dataset import load_dataset
from titn.errors import UserError
from titn.models.sizes import Sizes
from titn.network import NetworkSpec, save_network, weights_digest
from titn.teachers.answers import MeanOfLogits, TeacherAnswers, fold_batch_norms
from titn.teachers.architectures import create_teacher
from titn.teachers.find import load_teachers
from titn.train import train
from titn.training import checkpoint
from titn.training.run import Run
from titn.training.teacher_cache import FOLDER, TeacherCache

QUIET = Console(quiet=True)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of two teachers, "one" and "other", of digits."""
    root = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("one", "other")):
        config = TeacherConfig(
            limit_train=96, epochs=1, teacher="small_cnn", seed=seed, name=name, device="cpu", runs_dir=str(root)
        )
        train(config, console=QUIET)
    return root


def student(runs: Path, folder: Path, **settings: object) -> TrainConfig:
    given = {"teacher": f"{runs}/one,{runs}/other", "model": "vit", "epochs": 2, **settings}
    config = TrainConfig(limit_train=96, depth=1, batch_size=48, device="cpu", runs_dir=str(folder))
    return config.changed(**given)


def weights(run: str) -> dict[str, Tensor]:
    return load_file(Run(Path(run)).newest_checkpoint() / checkpoint.MODEL)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_logits_are_the_mean(runs: Path) -> None:
    data = load_dataset("digits", limit_train=96)
    paths = [runs / "one", runs / "other"]
    mean = load_teachers(paths, data).network.eval()
    images = torch.randn(5, 1, 32, 32)
    with torch.no_grad():
        each = [load_teachers([path], data).network.eval()(images) for path in paths]
        torch.testing.assert_close(mean(images), (each[0] + each[1]) / 2)
        found = torch.softmax(mean(images), 1)
    geometric = (torch.softmax(each[0], 1) * torch.softmax(each[1], 1)).sqrt()
    torch.testing.assert_close(found, geometric / geometric.sum(1, keepdim=True))
    decisions = TeacherAnswers(mean, CPU, fast=True).decisions(images)
    assert torch.equal(decisions, (each[0] + each[1]).argmax(1))


def test_half_precision_is_averaged_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits = MeanOfLogits([nn.Linear(4, 3), nn.Linear(4, 3)])(torch.randn(2, 4))
    assert logits.dtype == torch.float32


class Branching(nn.Module):
    """Whether it doubles depends on a value, which torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.norm(self.first(images)).mean((2, 3))
        return 2 * features if features.sum() > 0 else features


def test_each_is_folded_and_what_cannot_be_is_said() -> None:
    torch.manual_seed(0)
    network = MeanOfLogits([create_teacher("small_cnn", 3, 1, 32), Branching()]).eval()
    said: list[str] = []
    folded = fold_batch_norms(network, said.append)
    (line,) = said
    assert line.startswith("the teacher Branching cannot be traced (TraceError): its batch normalisation is not folded")
    assert sum(isinstance(each, nn.BatchNorm2d) for each in folded.modules()) == 1
    images = torch.randn(4, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(folded(images), network(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("distillation", ["hard", "standardized"])
def test_a_student_learns_the_same_from_stored_answers_in_either_order(
    runs: Path, tmp_path: Path, distillation: str
) -> None:
    config = student(runs, tmp_path, model="deit", distillation=distillation)
    live = train(config.changed(name="live"), console=QUIET)
    turned = config.changed(teacher=f"{runs}/other, {runs}/one")
    (cache,) = fill(turned, console=QUIET)
    cached = train(config.changed(name="cached", teacher_cache="only"), console=QUIET)
    alone = train(config.changed(name="alone", teacher=f"{runs}/one"), console=QUIET)
    assert not same(weights(alone.run), weights(live.run))
    if distillation == "hard":
        assert same(weights(cached.run), weights(live.run))
    else:
        for name, value in weights(live.run).items():
            torch.testing.assert_close(weights(cached.run)[name], value, atol=1e-3, rtol=1e-3)
    assert (live.teacher, live.teacher_top1) == ("small_cnn+small_cnn", None)
    each = [Run(runs / name).result() or {} for name in ("one", "other")]
    assert live.teacher_training_seconds == pytest.approx(sum(result["wall_seconds"] for result in each))
    assert live.teacher_training_passes == 2 * 96
    hashes = {weights_digest(Run(runs / name).newest_checkpoint() / checkpoint.MODEL) for name in ("one", "other")}
    of = json.loads((cache.folder / "manifest.json").read_text())["identity"]["teacher"]["mean_of"]
    assert {each["weights"] for each in of} == hashes
    assert len(list((tmp_path / FOLDER).iterdir())) == 1
    assert Run(Path(live.run)).config().teachers == (f"{runs}/one", f"{runs}/other")


def test_architectures_are_trained_first_each_once(tmp_path: Path) -> None:
    config = student(
        tmp_path, tmp_path, model="deit", teacher="small_cnn,timm:resnet10t", epochs=1, teacher_epochs=1, limit_train=48
    )
    result = train(config, console=QUIET)
    names = {path.name.rsplit("-", 1)[0] for path in tmp_path.glob("teacher-*")}
    assert names == {"teacher-digits-small_cnn", "teacher-digits-timm-resnet10t"}
    assert result.teacher is not None and set(result.teacher.split("+")) == {"small_cnn", "timm:resnet10t"}
    again = train(config, console=QUIET)
    assert same(weights(again.run), weights(result.run)) and len(list(tmp_path.glob("teacher-*"))) == 2


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("one,one", "names one twice: train another one with python -m titn.teacher --seed 1"),
        ("small_cnn,small_cnn", "names small_cnn twice"),
        ("one,", "a name is missing before or after a comma"),
        ("one,nobody", "--teacher nobody is neither a file, a folder nor a run"),
        ("one,copy.safetensors", "copy.safetensors: both have the same weights"),
        ("one,few.safetensors", "few.safetensors was trained with another number of classes"),
    ],
)
def test_mistakes(runs: Path, teacher: str, message: str) -> None:
    first = Run(runs / "one").newest_checkpoint() / checkpoint.MODEL
    (runs / "copy.safetensors").write_bytes(first.read_bytes())
    spec = NetworkSpec("small_cnn", Sizes(3, 1, 32), "digits", tuple("abc"), (0.5,), (0.5,))
    save_network(runs / "few.safetensors", create_teacher("small_cnn", 3, 1, 32), spec)
    with pytest.raises(UserError, match=message):
        train(student(runs, runs, teacher=teacher, model="deit"), console=QUIET)


def test_a_cache_cannot_be_averaged(runs: Path, tmp_path: Path) -> None:
    (cache,) = fill(student(runs, tmp_path, teacher=f"{runs}/one", epochs=1), console=QUIET)
    assert TeacherCache.open(cache.folder).epochs() == [0]
    with pytest.raises(UserError, match="only networks are averaged: name its run"):
        train(student(runs, tmp_path, teacher=f"{cache.folder},{runs}/other", model="deit"), console=QUIET)
