"""What the kernel tests share: error measure, float64 gradients, NaN-filled memory, unusual layouts, common claims."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from torch import Tensor

from titn.kernels import AttentionWeights, MlpWeights
from titn.kernels.common import native

Function = Callable[..., Tensor]
Inputs = Sequence[Tensor | None]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CPU_ONLY = pytest.mark.skipif(DEVICE != "cpu", reason="says what a machine without a CUDA device answers")

NEEDS_NATIVE = pytest.mark.skipif(
    DEVICE != "cpu" or native.ABSENT is not None, reason=native.ABSENT or "native operations were not run beside a GPU"
)
HALF = {"triton": torch.float16, "native": torch.bfloat16}
"""A 16-bit dtype of each backend's tests: Triton's interpreter multiplies float16, native code stores bfloat16."""

# Largest relative error (see `relative_error`) against the float64 reference on the same, already rounded inputs.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3.2e-2}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected|| over all elements, in float64; NaN where `actual` holds a NaN.

    Where `expected` is zero throughout, the absolute norm of `actual`.
    """
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    wide, truth = actual.detach().double().cpu(), expected.detach().double().cpu()
    norm = truth.norm().item()
    return (wide - truth).norm().item() / (norm if norm > 0 else 1.0)


def assert_close(actual: Tensor, expected: Tensor, limit: float, what: str = "tensor") -> None:
    """Fails unless the relative error is below `limit`; a NaN fails."""
    error = relative_error(actual, expected)
    assert error < limit, f"{what}: relative error {error:.2e}, allowed {limit:.1e}"


@contextmanager
def nan_filled_memory() -> Iterator[None]:
    """Within, `torch.empty` and its kin return NaN (the largest value for integers): an element never written shows."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def randn(*shape: int, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers on DEVICE, drawn on the CPU from a generator of their own: the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(DEVICE, dtype)


def output_and_gradients(
    function: Function, inputs: Inputs, gradient: Tensor, dtype: torch.dtype | None = None
) -> tuple[Tensor, list[Tensor | None]]:
    """`function(*inputs)` and the gradient of every input for the incoming `gradient`, in `dtype` (None: as they are).

    With dtype=torch.float64 and a reference implementation this is the truth the kernels are held to. An input that is
    None, or not of floating point, is passed on and has the gradient None.
    """
    prepared: list[Tensor | None] = []
    for tensor in inputs:
        if tensor is None or not tensor.is_floating_point():
            prepared.append(tensor)
        else:
            prepared.append(tensor.detach().to(dtype or tensor.dtype).requires_grad_())
    output = function(*prepared)
    wanted = [tensor for tensor in prepared if tensor is not None and tensor.requires_grad]
    found = iter(torch.autograd.grad(output, wanted, gradient.to(output.dtype)))
    return output.detach(), [next(found) if t is not None and t.requires_grad else None for t in prepared]


def transposed_layout(tensor: Tensor) -> Tensor:
    """The same values with the strides of the first and last dimension exchanged: not contiguous (where size > 1)."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def expanded_gradient(shape: Sequence[int], dtype: torch.dtype, value: float = 0.5) -> Tensor:
    """One number seen as a tensor of `shape` with strides 0, as the gradient of `output.sum()` arrives."""
    return torch.tensor(value, dtype=dtype, device=DEVICE).expand(*shape)


def present(tensors: Inputs) -> list[Tensor]:
    """The list, none of which is None."""
    found = [t for t in tensors if t is not None]
    assert len(found) == len(tensors), f"{len(tensors) - len(found)} of {len(tensors)} tensors are None"
    return found


def together(*columns: Inputs) -> Iterator[tuple[Tensor, ...]]:
    """The first tensor of every column, the second of every column, ...: of one length, and none of them None."""
    return zip(*(present(column) for column in columns), strict=True)


def drawn(examples: int) -> settings:
    """Hypothesis draws the same examples in every run, with no limit on their time."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        phases=(Phase.explicit, Phase.generate),  # shrinking would take minutes in the interpreter
        suppress_health_check=[HealthCheck.too_slow],
    )


# Transformer blocks: x and twelve parameters, in the order of `inner_block` and `outer_block`.


def block_shapes(width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a block's parameters for tokens of `width` channels and an MLP of `hidden` columns."""
    d, f = width, hidden
    return {
        "norm1_weight": (d,), "norm1_bias": (d,), "qkv_weight": (3 * d, d), "qkv_bias": (3 * d,),
        "proj_weight": (d, d), "proj_bias": (d,), "norm2_weight": (d,), "norm2_bias": (d,),
        "fc1_weight": (f, d), "fc1_bias": (f,), "fc2_weight": (d, f), "fc2_bias": (d,),
    }  # fmt: skip


BLOCK_NAMES = ("x", *block_shapes(1, 1))
ATTENTION = 6  # weights of the attention half, which come first


def weights(flat: Inputs) -> list[Any]:
    """The twelve weights of a block, or the six of its attention half, as the operations take them."""
    halves: list[Any] = [AttentionWeights(*flat[:ATTENTION])]  # type: ignore[arg-type]
    return [*halves, MlpWeights(*flat[ATTENTION:])] if len(flat) > ATTENTION else halves  # type: ignore[arg-type]


BLOCK_BIASES = tuple(name for name in BLOCK_NAMES if name.endswith("bias"))


def draw_parameters(
    shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, *, absent: Sequence[str], matrix_scale: float | None
) -> list[Tensor | None]:
    """One tensor a shape, from seeds 1, 2, ...; None for the names in `absent`.

    Deviations are 0.3 for vectors and `matrix_scale` for matrices (None: columns ** -0.5, so that every product keeps
    the size of its input). Vectors named weight are LayerNorm's, of mean 1.
    """
    parameters: list[Tensor | None] = []
    for seed, (name, shape) in enumerate(shapes.items(), start=1):
        vector = len(shape) == 1
        product_scale = shape[-1] ** -0.5 if matrix_scale is None else matrix_scale
        value = randn(*shape, seed=seed, scale=0.3 if vector else product_scale) + (
            1.0 if vector and name.endswith("weight") else 0.0
        )
        parameters.append(None if name in absent else value.to(dtype))
    return parameters


def block_inputs(
    batch: int,
    length: int,
    width: int,
    *,
    matrix_scale: float | None,
    hidden: int | None = None,
    absent: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    parameter_dtype: torch.dtype | None = None,
) -> list[Tensor | None]:
    """x [batch, length, width] and a block's parameters; see `draw_parameters`. hidden=None: 4 * width."""
    shapes = block_shapes(width, 4 * width if hidden is None else hidden)
    x = randn(batch, length, width, seed=0, dtype=dtype)
    return [x, *draw_parameters(shapes, parameter_dtype or dtype, absent=absent, matrix_scale=matrix_scale)]


def encoder_layer(inputs: Inputs, heads: int) -> torch.nn.TransformerEncoderLayer:
    """PyTorch's own pre-norm layer in float64 with the parameters of a block, all present."""
    hidden, width = present(inputs)[BLOCK_NAMES.index("fc1_weight")].shape
    layer = torch.nn.TransformerEncoderLayer(
        width, heads, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).to(DEVICE, torch.float64)
    names = (
        "norm1.weight", "norm1.bias", "self_attn.in_proj_weight", "self_attn.in_proj_bias",
        "self_attn.out_proj.weight", "self_attn.out_proj.bias", "norm2.weight", "norm2.bias",
        "linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias",
    )  # fmt: skip
    layer.load_state_dict(dict(zip(names, inputs[1:], strict=True)))
    return layer


# What holds for every operation. `fused` runs the kernels, `plain` the reference; inputs[0] are the tokens.


def assert_matches_float64(
    fused: Function, plain: Function, inputs: Inputs, names: Sequence[str], dy: Tensor | None, contiguous: bool = False
) -> None:
    """Output and all gradients, on NaN-filled memory, within the tolerance of the tokens' dtype of float64.

    The output has the dtype of the incoming gradient `dy` (None: drawn, in the tokens' dtype), gradients have that of
    their tensors, and an absent tensor has none. contiguous: all gradients are contiguous. Gradients of fewer than FEW
    numbers are judged as one vector: in a sum of two rows that cancel, rounding alone is any share of what is left.
    """
    x = inputs[0]
    assert x is not None
    dy = randn(*x.shape, seed=99, dtype=x.dtype) if dy is None else dy
    truth, true_gradients = output_and_gradients(plain, inputs, dy, torch.float64)
    with nan_filled_memory():
        found, gradients = output_and_gradients(fused, inputs, dy)
    limit = TOLERANCE[x.dtype]
    assert found.dtype == dy.dtype, f"output: {found.dtype}"
    assert_close(found, truth, limit, "output")
    short: list[tuple[Tensor, Tensor]] = []
    for name, tensor, actual, expected in zip(names, inputs, gradients, true_gradients, strict=True):
        if tensor is None:
            assert actual is None, f"{name} is absent and has a gradient"
            continue
        assert actual is not None and expected is not None, f"{name} has no gradient"
        assert actual.dtype == tensor.dtype, f"gradient of {name}: {actual.dtype}"
        assert actual.is_contiguous() or not contiguous, f"gradient of {name} has strides {actual.stride()}"
        if actual.numel() < FEW:
            short.append((actual, expected))
        else:
            assert_close(actual, expected, limit, f"gradient of {name}")
    if short:
        mine, truth = (torch.cat([each.double().flatten() for each in column]) for column in zip(*short, strict=True))
        assert_close(mine, truth, limit, f"gradients of fewer than {FEW} numbers")


def results(function: Function, inputs: Inputs, dy: Tensor, dtype: torch.dtype | None = None) -> list[Tensor | None]:
    """`output_and_gradients` in one list: the output, then the gradient of every input."""
    output, gradients = output_and_gradients(function, inputs, dy, dtype)
    return [output, *gradients]


def assert_below_twice_plain(
    fused: Function, plain: Function, inputs: Inputs, names: Sequence[str], dy: Tensor, slack: float = 0.0
) -> None:
    """Relative error of output and every gradient below twice that of `plain` in the same dtypes, plus `slack`."""
    truth = results(plain, inputs, dy, torch.float64)
    columns = together(results(fused, inputs, dy), results(plain, inputs, dy), truth)
    for name, (actual, eager, expected) in zip(("output", *names), columns, strict=True):
        assert_close(actual, expected, 2 * relative_error(eager, expected) + slack, name)


FEW = 64
"""Errors of fewer numbers are pooled. Over n numbers, the squares of two independent errors of one size have a ratio
that is distributed as F(n, n): above 4, that is twice the error, it is by chance once in 86 for the 12 numbers of a
bias, once in 20 million for 64."""
FLOAT32_LIMIT = 1e-5
"""What float32 arithmetic leaves of a long sum: no 16-bit result comes near it."""


def assert_at_most_twice_plain(
    fused: Function,
    plain: Function,
    draws: Sequence[Inputs],
    names: Sequence[str],
    gradients: Sequence[Tensor],
    products: torch.dtype,
) -> None:
    """Errors of output and gradients at most twice those of plain PyTorch with products in the same dtype.

    Errors are relative to float64 on the same inputs, as root mean squares over the draws; those of FEW numbers in all
    draws are pooled, as one root mean square.
    """
    squares: dict[str, list[tuple[float, float]]] = {}
    numbers: dict[str, int] = {}
    for inputs, dy in zip(draws, gradients, strict=True):
        truth = results(plain, inputs, dy, torch.float64)
        with torch.autocast(DEVICE, products):
            actual, expected = results(fused, inputs, dy), results(plain, inputs, dy)
        for name, *tensors in zip(("output", *names), actual, expected, truth, strict=True):
            mine, other, exact = present(tensors)
            assert mine.dtype == other.dtype or name == "output", f"{name}: {mine.dtype}, not {other.dtype}"
            pair = (relative_error(mine, exact) ** 2, relative_error(other, exact) ** 2)
            squares.setdefault(name, []).append(pair)
            numbers[name] = numbers.get(name, 0) + mine.numel()
    short = [name for name, count in numbers.items() if count < FEW]
    pools = {name: pairs for name, pairs in squares.items() if name not in short}
    if short:
        pools[" and ".join(short)] = [pair for name in short for pair in squares[name]]
    for name, pairs in pools.items():
        mine, other = (math.sqrt(sum(column) / len(pairs)) for column in zip(*pairs, strict=True))
        limit = max(2 * other, FLOAT32_LIMIT)
        assert mine <= limit, f"{name}: error {mine:.2e}, plain PyTorch's is {other:.2e}"


def assert_repeats(function: Function, inputs: Inputs, dy: Tensor) -> None:
    """Two runs give the same output and gradients, bit for bit."""
    for first, second in together(*(results(function, inputs, dy) for _ in range(2))):
        assert torch.equal(first, second)


def assert_compiles(function: Function, inputs: Inputs, dy: Tensor, *, dynamic: bool | None = None) -> Tensor:
    """Compiled to one graph, output and gradients are those of eager mode, bit for bit; gives the compiled output."""
    expected = results(function, inputs, dy)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    found = results(compiled, inputs, dy)
    for actual, eager in together(found, expected):
        assert torch.equal(actual, eager)
    return present(found)[0]


def assert_autocasts(
    fused: Function,
    plain: Function,
    inputs: Inputs,
    dy: Tensor,
    dtype: torch.dtype = torch.float16,
    *,
    backward_inside: bool = False,
) -> None:
    """Under autocast to `dtype` the output and the gradients, in float32, are within its tolerance of float64.

    The output has the dtype of the incoming gradient `dy`, and an error above float32's tolerance: products were cast.
    backward_inside: the backward runs under autocast as well.
    """
    cast = torch.autocast(DEVICE, dtype)(fused)
    limit = TOLERANCE[dtype]
    truth, true_gradients = output_and_gradients(plain, inputs, dy, torch.float64)
    with torch.autocast(DEVICE, dtype, enabled=backward_inside):
        output, gradients = output_and_gradients(cast, inputs, dy)
    assert output.dtype == dy.dtype
    assert_close(output, truth, limit, "output")
    assert relative_error(output, truth) > TOLERANCE[torch.float32], "nothing was cast"
    for index, (actual, expected) in enumerate(together(gradients, true_gradients)):
        assert actual.dtype == torch.float32
        assert_close(actual, expected, limit, f"gradient of input {index}")


def assert_takes_no_rows(function: Function, inputs: Inputs) -> None:
    """Tokens without rows give an output without rows and gradients of 0, written to NaN-filled memory."""
    shape = present(inputs)[0].shape
    with nan_filled_memory():
        output, gradients = output_and_gradients(function, inputs, randn(*shape, seed=0))
    assert output.numel() == 0 and output.shape == shape
    for tensor, gradient in together(inputs, gradients):
        assert gradient.shape == tensor.shape
        assert (gradient == 0).all()


def assert_once_differentiable(function: Function, inputs: Sequence[Tensor]) -> None:
    """Gradients of gradients are refused."""
    leaves = [t.requires_grad_() for t in inputs]
    (dx,) = torch.autograd.grad(function(*leaves).square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()
