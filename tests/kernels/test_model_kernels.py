"""A whole network with the Triton kernels gives the logits and gradients of the plain one."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from util import DEVICE, assert_close, randn

from titn import create_model
from titn.training.captured import take_kernels

IMAGES, CLASSES = 3, 10
OPERATIONS = ("inner_block", "passing_pixels", "outer_block")


def logits_and_gradients(model: torch.nn.Module, images: Tensor, gradients: list[Tensor]) -> tuple[list[Tensor], dict]:
    """Training-mode logits of every head, and the gradient of every parameter for the heads' incoming `gradients`."""
    output = model.train()(images)
    heads = list(output) if isinstance(output, tuple) else [output]
    names, parameters = zip(*model.named_parameters(), strict=True)
    dtype = images.dtype
    found = torch.autograd.grad(heads, parameters, [g.to(dtype) for g in gradients[: len(heads)]])
    return [h.detach() for h in heads], dict(zip(names, found, strict=True))


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("titn", {"image_size": 16, "depth": 2}),  # 4 patches of 16 pixels, two tokens
        ("titn_patch4", {"image_size": 8, "depth": 1}),  # 4 patches of 4 pixels
        ("tnt", {"image_size": 16, "depth": 1, "in_channels": 1}),  # no distillation token
    ],
)
def test_network_equals_its_reference(name: str, options: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=CLASSES, kernels="triton", **options).to(DEVICE)
    take_kernels(model)
    assert model.end_kernels == "triton"
    with torch.no_grad():  # zero biases and unit norms would hide mistakes
        for i, parameter in enumerate(model.parameters()):
            parameter += randn(*parameter.shape, seed=i, scale=0.05)
    reference = copy.deepcopy(model).double()
    reference.kernels = reference.end_kernels = "torch"
    size, channels = options["image_size"], options.get("in_channels", 3)
    images = randn(IMAGES, channels, size, size, seed=100)
    gradients = [randn(IMAGES, CLASSES, seed=101 + head) for head in range(2)]
    logits, found = logits_and_gradients(model, images, gradients)
    expected_logits, expected = logits_and_gradients(reference, images.double(), gradients)
    for head, truth in zip(logits, expected_logits, strict=True):
        assert_close(head, truth, 1e-5, "logits")
    assert found.keys() == expected.keys()
    for parameter_name, truth in expected.items():
        assert_close(found[parameter_name], truth, 1e-5, f"gradient of {parameter_name}")


def test_same_state_dict_whatever_the_kernels() -> None:
    torch.manual_seed(0)
    plain = create_model("titn", num_classes=CLASSES, depth=1, kernels="torch")
    fused = create_model("titn", num_classes=CLASSES, depth=1, kernels="triton")
    fused.load_state_dict(plain.state_dict(), strict=True)
    assert plain.state_dict().keys() == fused.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), fused.state_dict().values(), strict=True))


@pytest.mark.usefixtures("large_tiles")
def test_kernels_are_really_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fused operation is called, with the model's choice of backend."""
    from titn.models import layers

    seen: dict[str, set[object]] = {}

    def record(operation: str) -> None:
        original = getattr(layers, operation)

        def recorded(*arguments: object, **options: object) -> object:
            seen.setdefault(operation, set()).add(options.get("backend"))
            return original(*arguments, **options)

        monkeypatch.setattr(layers, operation, recorded)

    for operation in OPERATIONS:
        record(operation)
    model = create_model("titn", num_classes=CLASSES, image_size=16, depth=1, kernels="triton").to(DEVICE)
    model(randn(1, 3, 16, 16, seed=0))
    assert seen == {name: {"triton"} for name in OPERATIONS}


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.filterwarnings("error:Grad strides do not match bucket view strides")
def test_gradients_in_buckets_of_ddp(tmp_path: Path) -> None:
    """DistributedDataParallel, whose gradients are views of its buckets, gives the same gradients."""
    torch.manual_seed(0)
    model = create_model("titn", num_classes=CLASSES, image_size=16, depth=1, kernels="triton").to(DEVICE)
    images = randn(IMAGES, 3, 16, 16, seed=100)
    gradients = [randn(IMAGES, CLASSES, seed=101 + head) for head in range(2)]
    _, expected = logits_and_gradients(model, images, gradients)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True, bucket_cap_mb=1)
        torch.autograd.backward(parallel(images), gradients)
    finally:
        torch.distributed.destroy_process_group()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, expected[name]), name


def test_without_triton_a_model_runs_and_says_why_its_kernels_do_not() -> None:
    program = """
import sys
sys.modules["triton"] = None  # as if it were not installed
import torch, titn
model = titn.create_model("titn", num_classes=10, image_size=16, depth=1).eval()
assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 10)
model.kernels = "triton"
try:
    model(torch.zeros(1, 3, 16, 16))
except titn.kernels.BackendUnavailable as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "the package triton is not installed" in run.stdout
