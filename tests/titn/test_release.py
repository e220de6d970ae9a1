"""A published run: weights that load, numbers that are theirs, and a recipe that trains the same network again."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file

import titn
from titn import export
from titn.__main__ import main as titn_command
from titn.config import TeacherConfig, TrainConfig
from titn.data.dataset import load_dataset
from titn.errors import UserError
from titn.inference import load
from titn.network import weights_digest
from titn.release import halved, portable, release
from titn.train import train
from titn.training.run import Run

QUIET = Console(quiet=True)
TINY = {"limit_train": 64, "epochs": 2, "batch_size": 32, "device": "cpu", "tracker": "none"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TITN of one block, with averaged weights, and the run of its teacher; and one that was never begun."""
    root = tmp_path_factory.mktemp("place") / "runs"
    train(TeacherConfig(teacher="small_cnn", name="cnn", runs_dir=str(root), **TINY), console=QUIET)
    student = TrainConfig(depth=1, teacher="cnn", average=0.5, name="digits", runs_dir=str(root), **TINY)
    train(student, console=QUIET)
    (root / "torn").mkdir()
    (root / "torn" / "config.yaml").write_bytes((root / "digits" / "config.yaml").read_bytes())
    return root


@pytest.fixture(scope="module")
def published(runs: Path) -> Path:
    folder, _ = release("digits", runs.parent / "out", device="cpu", runs_dir=str(runs))
    return folder


def test_the_weights_are_the_runs_in_half_precision(runs: Path, published: Path) -> None:
    stored, own = load_file(published / "digits.safetensors"), load(runs / "digits").network.state_dict()
    assert stored.keys() == own.keys()
    for name, value in own.items():
        dtype = np.float16 if value.ndim > 1 else np.float32
        np.testing.assert_array_equal(stored[name], value.numpy().astype(dtype))
    model = titn.load(published / "digits.safetensors")
    assert model.spec == load(runs / "digits").spec
    assert {value.dtype for value in model.network.state_dict().values()} == {torch.float32}


def test_the_numbers_are_those_of_the_published_weights(runs: Path, published: Path) -> None:
    dataset, model = load_dataset("digits"), titn.load(published / "digits.safetensors")
    said = [found.classes[0] for found in model.predict(dataset.test_images)]
    right = np.mean([int(word) == label for word, label in zip(said, dataset.test_labels, strict=True)])
    numbers = json.loads((published / "digits.json").read_text())
    assert numbers["test"]["top1"] == pytest.approx(right, abs=1e-12)
    result = json.loads((runs / "digits" / "result.json").read_text())
    assert numbers["run"] == {key: value for key, value in result.items() if key != "run"}
    assert [line["epoch"] for line in numbers["epochs"]] == [1, 2]
    card = (published / "digits.md").read_text()
    for fact in (f"| top1 | {right:.4f} |", f"| teacher_top1 | {result['teacher_top1']:.4f} |", "float16", "depth: 1"):
        assert fact in card


def test_nothing_published_names_a_folder_of_this_machine(runs: Path, published: Path) -> None:
    names = ["digits-teacher.yaml", "digits.json", "digits.md", "digits.safetensors", "digits.yaml"]
    assert sorted(path.name for path in published.iterdir()) == names
    for path in published.iterdir():
        assert str(runs.parent).encode() not in path.read_bytes() and b"data_dir" not in path.read_bytes()


def test_the_commands_of_the_card_train_the_same_network(
    runs: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in published.glob("*.yaml"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (block,) = re.findall(r"```bash\n(.*?)```", (published / "digits.md").read_text(), re.S)
    lines = [shlex.split(line)[1:] for line in block.splitlines()]
    assert [line[0] for line in lines] == ["teacher", "train"]
    for line in lines:
        titn_command([*line, "--device", "cpu", "--name", "digits" if line[0] == "train" else line[-1]])
    again, own = load("digits"), load(runs / "digits")
    assert weights_digest(again.source) == weights_digest(own.source) and again.spec == own.spec


def test_several_teachers_each_have_their_own_file(runs: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    shutil.copytree(runs / "digits", root / "digits")
    for name, seed in (("one", 0), ("two", 1)):
        shutil.copytree(runs / "cnn", root / name)
        config = (root / name / "config.yaml").read_text().replace("seed: 0", f"seed: {seed}")
        (root / name / "config.yaml").write_text(config)
    text = (root / "digits" / "config.yaml").read_text()
    given = f"teacher: {root / 'one'},{root / 'two'},resnet50"
    (root / "digits" / "config.yaml").write_text(re.sub("^teacher: .*", given, text, flags=re.M))
    recipe, teachers = portable(Run(root / "digits"), "digits")
    assert recipe["teacher"] == "digits-teacher1,digits-teacher2,resnet50"
    assert {name: each["seed"] for name, each in teachers.items()} == {"digits-teacher1": 0, "digits-teacher2": 1}
    shutil.rmtree(root / "two")
    assert portable(Run(root / "digits"), "digits")[0]["teacher"] == "digits-teacher1,two,resnet50"


def test_the_average_can_be_published(runs: Path, tmp_path: Path) -> None:
    folder, scores = release("digits", tmp_path / "out", weights="average", device="cpu", runs_dir=str(runs))
    average = load(runs / "digits", weights="average").network.state_dict()
    stored = load_file(folder / "digits.safetensors")
    assert all(np.array_equal(stored[name], value.half()) for name, value in average.items() if value.ndim > 1)
    numbers = json.loads((folder / "digits.json").read_text())
    assert numbers["weights"] == "average" and numbers["test"] == scores
    assert "The average over the training's" in (folder / "digits.md").read_text()


def test_what_float16_cannot_hold_stays_as_it_is() -> None:
    module = torch.nn.Linear(2, 2)
    module.weight.data[0, 0] = 1e6
    assert halved(module)["weight"].dtype == torch.float32
    module.weight.data[0, 0] = 1.0
    assert halved(module)["weight"].dtype == torch.float16


def test_a_titn_for_ten_classes_is_small_enough_for_the_package() -> None:
    tensors = halved(titn.create_model("titn", num_classes=10))
    assert sum(tensor.nbytes for tensor in tensors.values()) < 12e6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--weights", "best"], "a release has the last epoch's weights or their average"),
        (["torn"], "is not finished"),
        (["nowhere"], "nowhere is no run folder"),
        (["digits", "--normalized"], "--normalized has no effect"),
        (["digits", "--format", "timm", "--data-dir", "x"], "--data-dir is for --format release"),
    ],
)
def test_releases_that_cannot_be(
    arguments: list[str], message: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--format", "release", *arguments, "--runs-dir", str(runs), "--out", str(tmp_path / "new")]
    with pytest.raises(SystemExit) as caught:
        export.main(line)
    assert caught.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_exists_is_kept(runs: Path, published: Path) -> None:
    with pytest.raises(UserError, match="exists already: choose another --out"):
        release("digits", published, runs_dir=str(runs))


def test_the_command_lists_what_it_wrote(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    export.main(["digits", "--format", "release", "--runs-dir", str(runs), "--out", str(out)])
    said = capsys.readouterr().out
    top1 = json.loads((out / "digits.json").read_text())["test"]["top1"]
    assert f"top-1 {top1:.2%} on the whole test set" in said and "digits.safetensors" in said
