"""The inner block's CUDA C++ kernels: on a GPU as they are; without one on emulated warps, from the same source."""

from __future__ import annotations

import ctypes
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode
from util import (
    BLOCK_BIASES,
    BLOCK_NAMES,
    DEVICE,
    FLOAT32_LIMIT,
    assert_at_most_twice_plain,
    assert_close,
    assert_matches_float64,
    assert_repeats,
    assert_takes_no_rows,
    block_inputs,
    expanded_gradient,
    nan_filled_memory,
    present,
    randn,
    results,
    together,
    transposed_layout,
    weights,
)

from titn.kernels import inner_block
from titn.kernels.common import nvrtc
from titn.kernels.inner_block import cuda

HERE = Path(__file__).parent
GELU_ERROR = 1e-3
"""Of results in float32, whose only rough parts are GELU, right to 8e-5, and its slope, right to 4e-4."""

EMULATED_FLOAT32 = pytest.mark.skipif(
    DEVICE != "cpu", reason="a GPU's products take bfloat16, emulated ones float32 too"
)

Inputs = list[Tensor | None]


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL | None:
    """The kernels for this CPU, a warp as 32 lanes in arrays; None where there is a GPU."""
    if DEVICE != "cpu":
        return None
    if shutil.which("g++") is None:
        pytest.skip("there is no g++: the CUDA C++ kernels were not emulated")
    library = tmp_path_factory.mktemp("emulation") / "emulated.so"
    flags = [
        "-std=c++17",
        "-O1",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-psabi",
        "-Wno-unknown-pragmas",
    ]
    source = HERE / "emulated_inner_block.cpp"
    subprocess.run(["g++", *flags, "-I", nvrtc.SOURCES, source, "-o", library], check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(autouse=True)
def on_emulated_warps(emulation: ctypes.CDLL | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Without a GPU the operators launch emulated kernels, a program of three warps; the names of what they launch."""
    launched: list[str] = []

    def run(name: str, x: Tensor, tensors: tuple[Tensor | None, ...], eps: float) -> Tensor:
        launched.append(name)
        function = getattr(emulation, f"{name}_{str(x.dtype).removeprefix('torch.')}")
        sums = x.new_empty(1, 16, cuda.SUM_ROWS.get(name, 0), dtype=torch.float32)
        given = [*tensors, *((sums,) if sums.numel() else ())]
        assert all(t is None or (t.is_contiguous() and t.data_ptr() % 4 == 0) for t in given)
        pointers = [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in given]
        function(*pointers, ctypes.c_uint(x.shape[0]), ctypes.c_uint(3), ctypes.c_float(eps))
        return sums

    if emulation is not None:
        monkeypatch.setattr(cuda, "run", run)
        monkeypatch.setattr(cuda, "reasons", lambda *_: [])
    yield launched


def block(backend: str) -> Callable[..., Tensor]:
    return lambda x, *w: inner_block(x, *weights(w), num_heads=4, backend=backend)


def inputs(sequences: int, *, scores: float = 1.0, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Inputs:
    """Of the one shape; queries and keys times `scores`."""
    found = block_inputs(sequences, 16, 12, matrix_scale=None, dtype=dtype, **options)
    for name in ("qkv_weight", "qkv_bias"):
        tensor = found[BLOCK_NAMES.index(name)]
        if tensor is not None:
            tensor[:24] *= scores
    return found


@pytest.mark.parametrize("sequences", [1, 7])
def test_matches_float64(sequences: int) -> None:
    assert_matches_float64(block("cuda"), block("torch"), inputs(sequences), BLOCK_NAMES, None, contiguous=True)


@EMULATED_FLOAT32
def test_every_step_in_float32() -> None:
    """Without the rounding of operands nothing but GELU's approximation is left, and without the MLP nothing."""
    given, dy = inputs(5, dtype=torch.float32), randn(5, 16, 12, seed=99)
    with nan_filled_memory():
        assert_near_float64(given, dy, GELU_ERROR)
    given[9:] = [torch.zeros_like(t) for t in present(given[9:])]
    assert_near_float64(given, dy, 2 * FLOAT32_LIMIT)


def assert_near_float64(given: Inputs, dy: Tensor, limit: float) -> None:
    found, truth = results(block("cuda"), given, dy), results(block("torch"), given, dy, torch.float64)
    for name, (actual, expected) in zip(("output", *BLOCK_NAMES), together(found, truth), strict=True):
        assert_close(actual, expected, limit, name)


@pytest.mark.parametrize(("scores", "parameters"), [(1.0, torch.float32), (3.0, torch.bfloat16)])
def test_error_is_at_most_twice_plain(scores: float, parameters: torch.dtype) -> None:
    draws = [inputs(8, scores=scores, parameter_dtype=parameters)]
    gradients = [randn(8, 16, 12, seed=99, dtype=torch.bfloat16)]
    assert_at_most_twice_plain(block("cuda"), block("torch"), draws, BLOCK_NAMES, gradients, torch.bfloat16)


def largest_totals(given: Inputs) -> Tensor:
    """log2 of the sums of softmax's exponentials without maxima, the largest of every sequence."""
    x, norm, shift, weight, bias = (t.double() for t in present(given[:5]))
    qkv = F.linear(F.layer_norm(x, (12,), norm, shift), weight, bias).view(-1, 16, 3, 4, 3)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4)
    return (q @ k.transpose(-1, -2) * 3**-0.5).logsumexp(-1).amax((1, 2)) / math.log(2)


@EMULATED_FLOAT32
@pytest.mark.parametrize("scores", [4.5, 8.0])
def test_scores_beyond_the_range_of_exponentials(scores: float) -> None:
    """Maxima are taken off where they must be: in some sequences, or in all, which overflow without."""
    given = inputs(7, scores=scores, dtype=torch.float32)
    totals = largest_totals(given)
    assert totals.min() < 98 and 102 < totals.max() < 126 if scores < 5 else totals.min() > 130
    assert_near_float64(given, randn(7, 16, 12, seed=99), 2 * GELU_ERROR)


@pytest.mark.parametrize("absent", [BLOCK_BIASES, ("norm1_weight", "norm2_weight", "norm1_bias")])
def test_absent_parameters(absent: tuple[str, ...]) -> None:
    assert_matches_float64(block("cuda"), block("torch"), inputs(3, absent=absent), BLOCK_NAMES, None)


def test_layouts() -> None:
    """Also tokens that begin at an odd number of a larger tensor."""
    x, *rest = inputs(4)
    assert x is not None
    odd = torch.cat((x.new_zeros(1), x.flatten()))[1:].view_as(x)
    assert odd.data_ptr() % 4 == 2 and torch.equal(block("cuda")(odd, *rest), block("cuda")(x, *rest))
    laid = [None if t is None else transposed_layout(t) for t in inputs(4)]
    gradient = expanded_gradient((4, 16, 12), torch.bfloat16)
    assert_matches_float64(block("cuda"), block("torch"), laid, BLOCK_NAMES, gradient)


@pytest.mark.skipif(DEVICE == "cpu", reason="emulated warps have no order to be different in")
def test_repeats() -> None:
    assert_repeats(block("cuda"), inputs(5000), randn(5000, 16, 12, seed=5, dtype=torch.bfloat16))


def test_no_sequences() -> None:
    assert_takes_no_rows(block("cuda"), inputs(0))


def test_not_a_number_shows() -> None:
    given = inputs(3)
    assert given[0] is not None
    given[0][1, 2, 3] = float("nan")
    output = block("cuda")(*given)
    assert output[1].isnan().all() and output[[0, 2]].isfinite().all()


def test_a_sequence_does_not_depend_on_its_neighbours() -> None:
    """Nor on whether theirs need maxima."""
    x, *rest = inputs(5, scores=4.5)
    assert x is not None
    assert torch.equal(block("cuda")(x, *rest), torch.cat([block("cuda")(each[None], *rest) for each in x]))


def test_under_autocast(on_emulated_warps: list[str]) -> None:
    """Tokens are cast to bfloat16, weights keep their float32, and so do their gradients."""
    given = inputs(3, dtype=torch.float32)
    leaves = [None if t is None else t.requires_grad_() for t in given]
    with torch.autocast(DEVICE, torch.bfloat16):
        output = block("cuda")(*leaves)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert all(t is not None and t.grad is not None and t.grad.dtype == torch.float32 for t in leaves)
    assert DEVICE != "cpu" or on_emulated_warps == ["forward", "mlp_backward", "attention_backward"]


def test_fakes_are_like_the_results() -> None:
    x, *rest = inputs(3)
    operators = torch.ops.titn
    found = operators.inner_block_cuda(x, *rest, 4, 1e-5)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes = operators.inner_block_cuda(x, *rest, 4, 1e-5)
    for actual, fake in zip(found, fakes, strict=True):
        assert (actual.shape, actual.dtype, actual.stride()) == (fake.shape, fake.dtype, fake.stride())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"requested": "auto"}, "it has never been timed on a GPU: ask for it by name"),
        (
            {"num_heads": 2},
            "made for 16 tokens of 12 channels in 4 heads with 48 hidden, not 16 tokens of .* in 2 heads",
        ),
        ({"dtype": torch.float16}, "it stores bfloat16 tokens, not torch.float16"),
        ({"x": torch.empty(1, 1, 12).expand(22_369_622, 16, 12)}, "22369622 sequences are more than 22369621"),
    ],
)
def test_refusals(change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    x, *rest = inputs(2)
    told: dict[str, Any] = {
        "x": x,
        "dtype": torch.bfloat16,
        "weights": tuple(rest),
        "num_heads": 4,
        "requested": "cuda",
    } | change
    if DEVICE == "cpu" and told["requested"] != "auto":
        assert cuda.reasons(**told) == ["the tensor is on cpu, CUDA kernels need a CUDA device"]
    monkeypatch.setattr(cuda, "triton_reasons", lambda *_, **__: [])
    told["x"] = _OnCuda(told["x"])
    assert re.search(message, "; ".join(cuda.reasons(**told)))


class _OnCuda:
    """A tensor that says it is on a GPU."""

    is_cuda = True

    def __init__(self, x: Tensor) -> None:
        self.shape = x.shape
