"""Every model exports with a free batch: what the exported program computes equals the model at any batch size.

A program holds none of the package's own operations, so the model is compared in plain PyTorch.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from titn.models import MODELS, create_model

BATCH = {"images": {0: torch.export.Dim("batch")}}


def model(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, **{"num_classes": 10, "depth": 1, **options}).eval()


def batches(size: int = 32) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for count in (1, 2, 7):
        yield torch.randn(count, 3, size, size, generator=generator)


@pytest.mark.parametrize("name", MODELS)
def test_torch_export(name: str) -> None:
    module = model(name)
    program = torch.export.export(module, (torch.randn(3, 3, 32, 32),), dynamic_shapes=BATCH).module()
    module.kernels = "torch"
    for images in batches():
        assert torch.equal(program(images), module(images))


def test_torch_export_of_many_tokens_and_of_training() -> None:
    module = model("vit", image_size=80)
    program = torch.export.export(module, (torch.randn(3, 3, 80, 80),), dynamic_shapes=BATCH).module()
    module.kernels = "torch"
    for images in batches(80):
        assert torch.equal(program(images), module(images))
    module = model("titn").train()
    program = torch.export.export(module, (torch.randn(3, 3, 32, 32),), dynamic_shapes=BATCH).module()
    module.kernels = "torch"
    for images in batches():
        for ours, theirs in zip(program(images), module(images), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_torch_jit_trace(name: str) -> None:
    module = model(name)
    traced = torch.jit.trace(module, torch.randn(2, 3, 32, 32), check_trace=False)
    module.kernels = "torch"
    for images in batches():
        torch.testing.assert_close(traced(images), module(images))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_onnx(name: str) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: the export to ONNX was not tested")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: no ONNX file was run")
    module, file = model(name), io.BytesIO()
    example = torch.randn(3, 3, 32, 32)
    torch.onnx.export(module, (example,), dynamo=True, dynamic_shapes=BATCH, verbose=False).save(file)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    module.kernels = "torch"
    for images in batches():
        (logits,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), module(images))
