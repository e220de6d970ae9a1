"""Initial weights of teachers from state dicts: adapted where that is exact, refused in one line elsewhere."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foreign_weights import fill, message, reference, write

from titn.teachers.architectures import TEACHERS, create_teacher, load_initial_weights
from titn.teachers.speed_cnn import WIDTHS

OWN = ["small_cnn", *WIDTHS]
PLAIN = [name for name in TEACHERS if not name.startswith("vgg") and name not in OWN]


@pytest.mark.parametrize(("name", "suffix"), [*((name, ".pth") for name in PLAIN + OWN), ("resnet50", ".safetensors")])
def test_initial_weights_are_loaded(name: str, suffix: str, tmp_path: Path) -> None:
    source = fill(create_teacher(name, 10)) if name in OWN else reference(name)
    weights = source.state_dict()
    path = write(weights, tmp_path / f"weights{suffix}")
    module = create_teacher(name, 10, 3, 32)
    assert load_initial_weights(module, name, path) == f"{name} starts from {path}"
    assert all(torch.equal(tensor, weights[key]) for key, tensor in module.state_dict().items())


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_large"])
def test_other_classes_and_grey_images(name: str, tmp_path: Path) -> None:
    weights = reference(name, 1000).state_dict()
    path = write(weights, tmp_path / "weights.pth")
    module = create_teacher(name, 10, 1, 32)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    note = load_initial_weights(module, name, path)
    assert "summed over its 3 channels" in note
    assert "10 classes instead of the file's 1000" in note
    head = {"squeezenet1_1": "classifier.1.", "mobilenet_v3_large": "classifier.3."}[name]
    stem = {"squeezenet1_1": "features.0.weight", "mobilenet_v3_large": "features.0.0.weight"}[name]
    for key, tensor in module.state_dict().items():
        if key == stem:
            assert torch.equal(tensor, weights[key].sum(1, keepdim=True))
        else:
            assert torch.equal(tensor, before[key] if key.startswith(head) else weights[key])


def test_vgg_weights_are_folded_on_loading(tmp_path: Path) -> None:
    weights = reference("vgg16_bn").state_dict()
    module = create_teacher("vgg16_bn", 10, 3, 32)
    load_initial_weights(module, "vgg16_bn", write(weights, tmp_path / "vgg.pth"))
    expected = weights.pop("classifier.0.weight").reshape(4096, 512, 7, 7).sum((2, 3))
    loaded = module.state_dict()
    # 49 float32 numbers below 0.05, added in another order
    assert torch.allclose(loaded["classifier.0.weight"], expected, rtol=0, atol=49 * 49 * 0.05 * 2**-24)
    assert all(torch.equal(loaded[key], tensor) for key, tensor in weights.items())
    again = create_teacher("vgg16_bn", 10, 3, 32)
    load_initial_weights(again, "vgg16_bn", write(loaded, tmp_path / "folded.safetensors"))
    assert torch.equal(again.state_dict()["classifier.0.weight"], loaded["classifier.0.weight"])


def test_old_files_have_other_names_and_no_counters(tmp_path: Path) -> None:
    weights = reference("densenet121", 4).state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(norm|conv))([12])", r"\1.\3", key): tensor
        for key, tensor in weights.items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    module = create_teacher("densenet121", 4, 3, 32)
    load_initial_weights(module, "densenet121", write(old, tmp_path / "old.pth"))
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, torch.zeros_like(tensor) if key.endswith("num_batches_tracked") else weights[key])


class Harmful:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.trace,)


def test_files_that_are_no_state_dict(tmp_path: Path) -> None:
    module = create_teacher("small_cnn", 10, 3, 32)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    trace = tmp_path / "trace"
    path = tmp_path / "weights.pth"
    whole = write(before, path).read_bytes()
    contents: dict[str, Callable[[], object]] = {
        "harmful pickle": lambda: path.write_bytes(pickle.dumps(Harmful(trace))),
        "harmful archive": lambda: torch.save({"0.0.weight": Harmful(trace)}, path),
        "whole module": lambda: torch.save(module, path),
        "list": lambda: torch.save([torch.zeros(3)], path),
        "list inside": lambda: torch.save({"state_dict": [torch.zeros(3)]}, path),
        "empty dict": lambda: torch.save({}, path),
        "empty file": lambda: path.write_bytes(b""),
        "text": lambda: path.write_text("no weights\n" * 50),
        "truncated": lambda: path.write_bytes(whole[: len(whole) // 2]),
    }
    for what, make in contents.items():
        make()
        text = message(lambda: load_initial_weights(module, "small_cnn", path))
        assert str(path) in text, what
        assert "no state dict" in text, what
    assert not trace.exists()
    damaged = tmp_path / "weights.safetensors"
    damaged.write_bytes(b"\x10" * 100)
    for wrong in (damaged, tmp_path / "absent.pth", tmp_path / "absent.safetensors", tmp_path):
        assert str(wrong) in message(lambda path=wrong: load_initial_weights(module, "small_cnn", path))  # type: ignore[misc]
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    module = create_teacher("small_cnn", 10, 1, 32)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    weights = {key: tensor + 1 for key, tensor in before.items()}
    path = tmp_path / "weights.safetensors"
    cases = {
        "missing 0.0.weight": {key: tensor for key, tensor in weights.items() if key != "0.0.weight"},
        "unexpected extra": {**weights, "extra": torch.zeros(1)},
        "8.weight is (10, 64), not (10, 128)": {**weights, "8.weight": torch.zeros(10, 64)},
        "missing 8.weight": {key: tensor for key, tensor in weights.items() if key != "8.weight"},
        "and 10 more": create_teacher("squeezenet1_1", 10, 1, 32).state_dict(),
    }
    for expected, content in cases.items():
        write(content, path)
        text = message(lambda: load_initial_weights(module, "small_cnn", path))
        assert f"{path} does not fit small_cnn" in text
        if expected != "and 10 more":
            assert expected in text
    assert " more; unexpected " in text
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())
    assert "unknown teacher" in message(lambda: load_initial_weights(module, "cnn5", path))
