"""Own models, teachers, data sets, augmentations, callbacks: the page about them, run, and the mistakes one makes."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import titn
from titn import own_parts
from titn.__main__ import main
from titn.config import TeacherConfig, TrainConfig
from titn.errors import UserError
from titn.pipelines import Augmentation, EpochPlan, policies
from titn.teachers.architectures import create_teacher
from titn.train import train
from titn.training.run import Run

PAGE = Path(__file__).parents[2] / "docs" / "own_parts.md"
BLOCK = re.compile(r'^```(\w+)(?: title="(.*?)")?\n(.*?)^```', re.M | re.S)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten."""
    for name in ("model", "teacher", "dataset"):
        monkeypatch.setitem(own_parts._parts, name, {})
    monkeypatch.setattr(own_parts, "_imported", {})
    with pytest.MonkeyPatch.context() as patch:
        before = dict(policies.POLICIES), dict(policies.CODE)
        yield
        for table, old in zip((policies.POLICIES, policies.CODE), before, strict=True):
            table.clear()
            table.update(old)  # type: ignore[arg-type]
        patch.undo()


@pytest.fixture(scope="module")
def page() -> list[tuple[str, str, str]]:
    return BLOCK.findall(PAGE.read_text("utf-8"))


@pytest.fixture
def parts(page: list[tuple[str, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's file, in the working directory."""
    (text,) = (text for _, title, text in page if title == "my_parts.py")
    (tmp_path / "my_parts.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "my_parts.py"


def test_the_page_does_what_it_says(page: list[tuple[str, str, str]], parts: Path) -> None:
    for language, title, text in page:
        if language == "python" and title != "my_parts.py":
            exec(compile(text, title, "exec"), {"__name__": title})
        for line in text.splitlines() if language == "bash" else ():
            program, *arguments = shlex.split(line)
            assert program == "titn"
            main([*arguments, "--device", "cpu"])
    results = {path.parent.name: json.loads(path.read_text()) for path in Path("runs").glob("*/result.json")}
    assert results["mine"]["model"] == "tiny"
    assert (results["taught"]["teacher"], results["from_timm"]["teacher"]) == ("linear", "timm:resnet10t")
    assert results["from_weights"]["teacher_top1"] == results["as_it_is"]["top1"]
    assert (Path("runs") / "mine" / "own_parts.py").read_text() == parts.read_text()
    stored = torch.load("teacher.pth")["model"]
    (kept,) = Path("runs/as_it_is").glob("checkpoints/*/model.safetensors")
    assert torch.equal(stored["fc.weight"], titn.load(kept).network.state_dict()["fc.weight"])


def test_an_own_run_is_resumed_moved_and_used(parts: Path, tmp_path: Path) -> None:
    config = TrainConfig(import_="my_parts.py", dataset="small_digits", model="tiny", epochs=1, device="cpu", name="a")
    first = train(config, console=Console(quiet=True))
    again = train(TrainConfig(resume="a", epochs=2), console=Console(quiet=True))
    assert again.epochs == 2
    own_parts._parts["model"].clear()
    with pytest.raises(UserError, match="unknown network 'tiny': --import the file that registers it"):
        titn.load(first.run)
    parts.unlink()
    own_parts._imported.clear()
    titn.load_parts(f"{first.run}/own_parts.py")
    assert len(titn.load(first.run).predict(np.zeros((32, 32), np.uint8))) == 1


def test_a_policy_belongs_to_the_fingerprint_with_its_code(parts: Path) -> None:
    def fingerprint() -> str:
        titn.load_parts("my_parts.py")
        plan = EpochPlan.draw(Augmentation(policy="invert"), size=64, image_size=8, seed=0, epoch=0)
        rows = plan.operations(np.arange(64))
        assert rows is not None and 16 <= (rows.codes == policies.Operation.INVERT).sum() <= 48
        return plan.fingerprint

    first = fingerprint()
    assert fingerprint() == first
    parts.write_text(parts.read_text() + "\n# changed\n")
    assert fingerprint() != first


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_module", r"fails: wrong.py, line 1: ModuleNotFoundError"),
        ("def (", r"fails: .*SyntaxError"),
        ("import titn\ntitn.register_model('titn')", "there is a model 'titn' already"),
        ("import titn\ntitn.register_policy('cifar10')", "there is an augmentation 'cifar10' already"),
        ("import titn\ntitn.register_teacher('vgg16')", "there is a teacher 'vgg16' already"),
        ("import titn\ntitn.register_dataset('mnist')", "there is a dataset 'mnist' already"),
    ],
)
def test_a_file_that_fails_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(text)
    with pytest.raises(UserError, match=words) as raised:
        titn.load_parts(str(tmp_path / "wrong.py"))
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"--import .*none.py: No such file"):
        titn.load_parts(str(tmp_path / "none.py"))
    with pytest.raises(UserError, match="--import no_such_parts fails"):
        titn.load_parts("no_such_parts")


def test_a_network_of_another_shape_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    titn.register_model("wrong")(lambda classes, channels, size: torch.nn.Flatten())
    titn.register_teacher("broken")(lambda classes, channels, size: torch.nn.Linear(7, classes))
    config = TrainConfig(limit_train=64, epochs=1, batch_size=32, device="cpu", runs_dir=tmp_path, teacher="none")
    with pytest.raises(UserError, match=r"wrong must give logits \[2, 10\] in evaluation mode, not \[2, 1024\]"):
        train(config.changed(model="wrong"), console=Console(quiet=True))
    with pytest.raises(UserError, match="wrong is an own model, which takes no --depth"):
        train(config.changed(model="wrong", depth=3), console=Console(quiet=True))
    with pytest.raises(UserError, match=r"broken cannot take images \[2, 1, 32, 32\]"):
        train(config.changed(teacher="broken"), console=Console(quiet=True))
    with pytest.raises(UserError, match="--augmentation none_such is not registered by titn"):
        train(config.changed(augmentation="none_such", import_="titn"), console=Console(quiet=True))
    assert not list(tmp_path.iterdir())


def test_teachers_of_timm() -> None:
    with pytest.raises(UserError, match=r"timm has no model 'resnet81'; did you mean timm:resnet"):
        create_teacher("timm:resnet81", 10)
    module = create_teacher("timm:vit_tiny_patch16_224", 7, 1, 32).eval()
    assert module(torch.zeros(1, 1, 32, 32)).shape == (1, 7)


def test_no_epochs_are_for_teachers_with_weights() -> None:
    for config in (TrainConfig, TeacherConfig):
        with pytest.raises(UserError, match="--epochs must be at least 1, not 0"):
            config(epochs=0)
    assert TeacherConfig(epochs=0, init="x.pth").epochs == 0


def test_callbacks_see_every_step_and_epoch(tmp_path: Path) -> None:
    class Watch(titn.Callback):
        def __init__(self) -> None:
            self.seen: list[str] = []
            self.images = 0

        def on_begin(self, run: Run, config: object, epoch: int) -> None:
            self.seen.append(f"begin {run.folder.name} {epoch}")

        def on_step(self, step: int, batch: titn.pipelines.Batch, sums: torch.Tensor) -> None:
            self.images += len(batch.ids)
            assert sums.shape == (3,)
            self.seen.append(f"step {step}")

        def on_epoch(self, line: dict[str, object]) -> None:
            self.seen.append(f"epoch {line['epoch']}")

        def on_end(self, result: object) -> None:
            self.seen.append("end")

    watch = Watch()
    config = TrainConfig(limit_train=64, epochs=2, batch_size=32, depth=1, teacher="none", device="cpu", name="w")
    train(config.changed(runs_dir=tmp_path), console=Console(quiet=True), callbacks=[watch])
    steps = ["step 1", "step 2", "epoch 1", "step 3", "step 4", "epoch 2"]
    assert watch.seen == ["begin w 0", *steps, "end"]
    assert watch.images == 128


def test_arrays_make_a_data_set() -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)
    labels = np.arange(60) % 3
    data = titn.Dataset.from_arrays(images, labels)
    assert (data.class_names, data.channels, data.image_size) == (("0", "1", "2"), 3, 8)
    assert len(data.train_labels) + len(data.test_labels) == 60 and set(data.test_labels) == {0, 1, 2}
    fewer = titn.Dataset.from_arrays(images[:40], labels[:40])
    before = {image.tobytes() for image in data.test_images}
    assert all(image.tobytes() not in before for image in fewer.train_images), "no image changes sides"
    own = titn.Dataset.from_arrays(images, labels, images[:5], labels[:5], class_names="abc")
    assert len(own.test_labels) == 5 and own.class_names == ("a", "b", "c")
    for wrong in (images.astype(np.float32), images[0], images[..., :2]):
        with pytest.raises(UserError):
            titn.Dataset.from_arrays(wrong, labels)
