"""`augment`: registration, memory, dtypes, refusals, and machine code without fused products.

That its pixels are right is shown in tests/pipelines/test_triton_pipeline.py, against the torch pipeline.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from util import DEVICE, nan_filled_memory

from titn.kernels import BackendUnavailable, augment, augment_reasons
from titn.provenance import ROOT

AFFINE, COLOR, SHARPNESS, EQUALIZE, ERASE = 1, 3, 5, 9, 11
SIZE = 11


def factor(value: float) -> list[int]:
    """Parameters of a blend."""
    return [int(torch.tensor(value).view(torch.int32).item())]


def inputs(size: int = SIZE, channels: int = 3) -> dict[str, Any]:
    """Five images, three rows of two slots, a batch of four."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (5, channels, size, size), generator=generator, dtype=torch.uint8)
    rows = torch.zeros(3, 4 + 7 * 2, dtype=torch.int32)
    rows[:, :4] = torch.tensor([[4, 0, 3, 1], [0, 2, 2, 0], [3, 4, 1, 0]])
    slots = {
        (0, 0): [AFFINE, 60000, 9000, 40000, -9000, 60000, 50000], (0, 1): [SHARPNESS, *factor(1.6)],
        (1, 0): [EQUALIZE], (1, 1): [COLOR, *factor(0.3)], (2, 1): [ERASE, 1, 5, 0, 7, 99],
    }  # fmt: skip
    for (row, slot), values in slots.items():
        rows[row, 4 + 7 * slot :][: len(values)] = torch.tensor(values)
    found = {
        "images": images,
        "rows": rows,
        "pairs": torch.tensor([[0, 1], [2, 0], [1, 1], [0, 2]], dtype=torch.int32),
        "scale": torch.linspace(0.01, 0.02, channels),
        "offset": torch.linspace(1.0, 2.0, channels),
    }
    return {name: tensor.to(DEVICE) for name, tensor in found.items()} | {"padding": 2}


def mixed() -> dict[str, dict[str, Tensor]]:
    box = torch.tensor([[0, 5, 2, 9], [3, 3, 0, 9], [0, SIZE, 0, SIZE], [4, 8, 9, 11]], dtype=torch.int32)
    return {"none": {}, "box": {"box": box.to(DEVICE)}, "lam": {"lam": torch.linspace(0, 1, 4, device=DEVICE)}}


every_mix = pytest.mark.parametrize("mix", ["none", "box", "lam"])


@every_mix
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_element_is_written_and_rounded_once(mix: str, dtype: torch.dtype) -> None:
    """On NaN-filled memory; 16-bit outputs are those of float32, rounded."""
    expected = augment(**inputs(), **mixed()[mix])
    with nan_filled_memory():
        found = augment(**inputs(), **mixed()[mix], dtype=dtype)
    assert found.dtype == dtype and found.shape == (4, 3, SIZE, SIZE) and found.is_contiguous()
    assert torch.equal(found, expected.to(dtype))
    assert len(expected.unique()) > 300


@every_mix
def test_operator_passes_opcheck(mix: str) -> None:
    given = inputs() | {"box": None, "lam": None} | mixed()[mix]
    names = ("images", "rows", "pairs", "box", "lam", "scale", "offset", "padding")
    arguments = (*(given[name] for name in names), torch.bfloat16)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.titn.augment.default, arguments, test_utils=tests)


def test_compiled_in_one_graph() -> None:
    function = torch.compile(lambda given: augment(**given), fullgraph=True, backend="aot_eager")
    given = inputs() | mixed()["box"]
    assert torch.equal(function(given), augment(**given))


def test_an_empty_batch() -> None:
    given = inputs() | {"pairs": torch.zeros(0, 2, dtype=torch.int32, device=DEVICE)}
    assert augment(**given).shape == (0, 3, SIZE, SIZE)


def test_no_slots_and_views() -> None:
    """Rows of a view that is not contiguous, and without operations."""
    given = inputs()
    rows = given["rows"][:, :4]
    assert torch.equal(augment(**(given | {"rows": rows})), augment(**(given | {"rows": rows.contiguous()})))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("images", torch.zeros(2, 3, 8, 8), r"images must be uint8 \[N, C, S, S\] .* not torch.float32 \[2, 3, 8, 8\]"),
        ("images", torch.zeros(2, 2, 8, 8, dtype=torch.uint8), "images must be .* with 1 or 3 channels"),
        ("images", torch.zeros(2, 3, 8, 9, dtype=torch.uint8), "images must be uint8"),
        ("images", torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "images must be uint8"),
        ("images", torch.zeros(2, 8, 8, 3, dtype=torch.uint8).movedim(3, 1), "images must be contiguous"),
        ("pairs", torch.zeros(4, 2, dtype=torch.int64), r"pairs must be int32 \[B, 2\]"),
        ("pairs", torch.zeros((), dtype=torch.int32), r"pairs must be int32 \[B, 2\]"),
        ("rows", torch.zeros(3, 12, dtype=torch.int32), r"rows must be int32 \[U, 4 \+ 7 slots\], not .* \[3, 12\]"),
        ("scale", torch.zeros(1), r"scale must be float32 \[3\]"),
        ("offset", torch.zeros(3, dtype=torch.float64), r"offset must be float32 \[3\]"),
        ("box", torch.zeros(4, 4, dtype=torch.int64), r"box must be int32 \[4, 4\]"),
        ("lam", torch.zeros(3), r"lam must be float32 \[4\]"),
        ("padding", -1, "padding must be 0 or more, not -1"),
    ],
)
def test_arguments_that_do_not_fit(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"augment: {message}"):
        augment(**(inputs() | {name: value.to(DEVICE) if isinstance(value, Tensor) else value}))


def test_a_box_and_lam_are_refused() -> None:
    with pytest.raises(ValueError, match="give a box or lam, not both"):
        augment(**inputs(), **mixed()["box"], **mixed()["lam"])


def test_reasons_why_it_cannot_run() -> None:
    assert augment_reasons(torch.device(DEVICE), 64) == []
    with pytest.raises(BackendUnavailable, match=r"images have 65 x 65 pixels.* hold up to 64 x 64"):
        augment(**inputs(65))
    with pytest.raises(BackendUnavailable, match="float64 is none of float32, float16, bfloat16"):
        augment(**inputs(), dtype=torch.float64)
    with pytest.raises(BackendUnavailable, match="the tensors are on different devices"):
        augment(**(inputs() | {"rows": inputs()["rows"].to("meta")}))


COMPILE = """
from bench.kernels.codegen import compile_offline
from bench.kernels.shipped import shipped
for arch in (80, 90, 100):
    for c in shipped("augment", arch):
        if "blend" in c.widths:
            ptx = compile_offline(c, arch).asm["ptx"]
            print(ptx.count("fma."), ptx.count("mul.rn.f32") > 0, ptx.count("mul.rn.f64") > 0)
"""


def test_no_product_is_fused_with_a_sum() -> None:
    """Each rounds for itself, as `.rn` in PTX demands: what the interpreter computes is what a GPU does."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.splitlines() == ["0 True True"] * 3


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_captured_in_a_cuda_graph() -> None:
    given = inputs() | mixed()["box"]
    expected = augment(**given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = augment(**given)
    found.zero_()
    graph.replay()
    assert torch.equal(found, expected)
