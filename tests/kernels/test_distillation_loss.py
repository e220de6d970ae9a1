"""distillation_loss: the reference against PyTorch's losses, the Triton kernel against the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from util import DEVICE, assert_close, nan_filled_memory, randn, relative_error

from titn.kernels.common.backend import BackendUnavailable
from titn.kernels.distillation_loss import distillation_loss, loss_and_sums
from titn.kernels.distillation_loss.forward import total

Teacher = Tensor | tuple[Tensor, Tensor] | None
KINDS = ("none", "hard", "soft", "top-k", "standardized", "decoupled")
LIMIT = {torch.float32: 1e-5, torch.float16: 1e-3}


def problem(
    batch: int, classes: int, kind: str, dtype: torch.dtype = torch.float32
) -> tuple[list[Any], dict[str, Any]]:
    """Arguments and options of a loss; of rows 0 and 1 the labels agree and lam is 1."""
    generator = torch.Generator().manual_seed(batch * 1000 + classes)
    a, b, t = (torch.randint(classes, (batch,), generator=generator).to(DEVICE) for _ in range(3))
    lam = torch.rand(batch, generator=generator).to(DEVICE)
    b[:2], lam[:2] = a[:2], 1.0
    logits = [randn(batch, classes, seed=i, scale=3.0, dtype=dtype) for i in range(2)]
    answers = randn(batch, classes, seed=2, scale=3.0, dtype=dtype)
    teacher: Teacher = {"none": None, "hard": t, "top-k": tuple(answers.topk(min(5, classes)))}.get(kind, answers)
    options = {"kind": "soft" if kind == "top-k" else kind, "weight": 0.3, "temperature": 2.5, "label_smoothing": 0.1}
    return [*logits, a, b, lam, teacher], options


def wide(teacher: Teacher) -> Teacher:
    if isinstance(teacher, tuple):
        return teacher[0].double(), teacher[1]
    return teacher.double() if teacher is not None and teacher.is_floating_point() else teacher


def loss_and_gradients(backend: str, arguments: list[Any], options: dict[str, Any], gradient: float) -> list[Tensor]:
    logits = [t.detach().clone().requires_grad_() for t in arguments[:2]]
    loss, sums = loss_and_sums(*logits, *arguments[2:], backend=backend, **options)
    assert sums.dtype == torch.float64 and not sums.requires_grad
    incoming = torch.tensor(gradient, dtype=loss.dtype, device=loss.device).expand(loss.shape)
    return [loss.detach(), sums, *torch.autograd.grad(loss, logits, incoming, materialize_grads=True)]


def triton_against_reference(batch: int, classes: int, kind: str, dtype: torch.dtype) -> None:
    arguments, options = problem(batch, classes, kind, dtype)
    doubles = [arguments[0].double(), arguments[1].double(), *arguments[2:5], wide(arguments[5])]
    expected = loss_and_gradients("torch", doubles, options, 7.0)
    with nan_filled_memory():
        found = loss_and_gradients("triton", arguments, options, 7.0)
    assert found[0].dtype == torch.float32 and found[0].shape == ()
    sums, expected_sums = found.pop(1), expected.pop(1)
    torch.testing.assert_close(sums[0], batch * found[0].double(), rtol=1e-6, atol=0)
    assert torch.equal(sums[1:], expected_sums[1:])
    for name, actual, truth in zip(("loss", "class", "distillation"), found, expected, strict=True):
        if (kind, classes, name) == ("standardized", 2, "distillation"):
            assert truth.norm() < 1e-5 and actual.norm() < 1e-5  # z-scores of two logits are 1 and -1 whatever they are
        else:
            assert_close(actual, truth, LIMIT[dtype], name)


def test_reference_is_the_papers_loss() -> None:
    (z, s, a, b, lam, _), _ = problem(6, 10, "hard", torch.float64)
    t = randn(6, 10, seed=5, dtype=torch.float64)
    each = {"reduction": "none", "label_smoothing": 0.1}
    base = (lam * F.cross_entropy(z, a, **each) + (1 - lam) * F.cross_entropy(z, b, **each)).mean()
    hard = F.cross_entropy(s, t.argmax(1))
    soft = 9.0 * F.kl_div((s / 3).log_softmax(1), (t / 3).softmax(1), reduction="batchmean")
    shared: dict[str, Any] = {"label_smoothing": 0.1, "backend": "torch"}
    for kind, teacher, term in (("hard", t.argmax(1), hard), ("soft", t, soft)):
        loss = distillation_loss(z, s, a, b, lam, teacher, kind=kind, weight=0.4, temperature=3.0, **shared)
        assert_close(loss, 0.6 * base + 0.4 * term, 1e-7)  # lam is float32
    assert_close(distillation_loss(z, None, a, b, lam, None, kind="none", **shared), base, 1e-7)


def test_top_k_with_all_classes_is_the_soft_loss() -> None:
    (z, s, a, b, lam, t), options = problem(6, 10, "soft")
    full = distillation_loss(z, s, a, b, lam, t, backend="torch", **options)
    assert_close(distillation_loss(z, s, a, b, lam, tuple(t.topk(10)), backend="torch", **options), full, 1e-6)


def test_top_1_is_the_hard_loss_at_temperature_1() -> None:
    (z, s, a, b, lam, t), options = problem(6, 10, "soft")
    options["temperature"] = 1.0
    hard = distillation_loss(z, s, a, b, lam, t.argmax(1), backend="torch", **options | {"kind": "hard"})
    for backend in ("torch", "triton"):
        top = distillation_loss(z, s, a, b, lam, tuple(t.topk(1)), backend=backend, **options)
        assert_close(top, hard, 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_reference_gradcheck(kind: str) -> None:
    (z, s, *rest), options = problem(3, 5, kind, torch.float64)
    z.requires_grad_()
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda z, s: distillation_loss(z, s, *rest, backend="torch", **options), (z, s))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "classes"), [(1, 10), (7, 10), (3, 100), (2, 1000), (2, 2), (1, 1025)])
def test_triton(batch: int, classes: int, kind: str, dtype: torch.dtype) -> None:
    triton_against_reference(batch, classes, kind, dtype)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(2, 70), st.sampled_from(KINDS), st.sampled_from(sorted(LIMIT, key=str)))
def test_triton_any_shape(batch: int, classes: int, kind: str, dtype: torch.dtype) -> None:
    triton_against_reference(batch, classes, kind, dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_triton_reads_any_layout(kind: str) -> None:
    arguments, options = problem(6, 10, kind)
    expected = loss_and_gradients("triton", arguments, options, 1.0)
    for i in (0, 1):
        arguments[i] = arguments[i].t().contiguous().t()
    arguments[4] = torch.stack((arguments[4], arguments[4]), 1)[:, 0]
    found = loss_and_gradients("triton", arguments, options, 1.0)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_float16_gradients_do_not_underflow_before_they_are_scaled() -> None:
    """With a scaled loss, as in training with float16: unscaled, many gradients are below the smallest float16."""
    arguments, options = problem(16, 100, "hard", torch.float16)
    options["label_smoothing"] = 0.0
    arguments[:2] = [logits * 4 for logits in arguments[:2]]
    expected = loss_and_gradients("torch", [t.double() for t in arguments[:2]] + arguments[2:], options, 2.0**16)
    found = loss_and_gradients("triton", arguments, options, 2.0**16)
    for actual, truth in zip(found[2:], expected[2:], strict=True):
        lost = (truth.div(2.0**16).half() == 0) & (truth > 2.0**-13)
        assert lost.sum() > 20
        assert relative_error(actual[lost], truth[lost]) < 1e-3


@pytest.mark.parametrize("kind", ["hard", "soft", "standardized", "decoupled"])
def test_large_logits(kind: str) -> None:
    (z, s, *rest), options = problem(4, 10, kind)
    found = loss_and_gradients("triton", [z * 1e4, s * 1e4, *rest], options, 1.0)
    expected = loss_and_gradients("torch", [z.double() * 1e4, s.double() * 1e4, *rest], options, 1.0)
    for actual, truth in zip(found, expected, strict=True):
        assert_close(actual, truth, 1e-5)


@pytest.mark.parametrize("position", ["labels_a", "labels_b", "teacher"])
@pytest.mark.parametrize("label", [-1, 10])
def test_triton_label_out_of_range_gives_nan(position: str, label: int) -> None:
    arguments, options = problem(4, 10, "hard")
    arguments[{"labels_a": 2, "labels_b": 3, "teacher": 5}[position]][1] = label
    assert distillation_loss(*arguments, backend="triton", **options).isnan()


@pytest.mark.parametrize("count", [1, 1023, 1024, 1025, 65537])
def test_total_of_any_number_of_losses(count: int) -> None:
    losses = randn(3, count, seed=0)
    losses[1:] = (losses[1:] > 0).float()
    out = torch.full((1,), float("nan"), device=DEVICE)
    sums = torch.full((3,), float("nan"), dtype=torch.float64, device=DEVICE)
    total[(1,)](losses, out, sums, count, BLOCK=1024)
    assert_close(out[0], losses[0].double().sum(), 1e-5)
    assert sums.tolist() == [out.item() * count, *losses[1:].double().sum(1).tolist()]


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("kind", KINDS)
def test_compiles_as_one_graph(kind: str, backend: str) -> None:
    (z, s, a, _, lam, teacher), options = problem(4, 10, kind)
    logits = [z.requires_grad_(), s.requires_grad_()]

    def function(z: Tensor, s: Tensor) -> Tensor:  # one tensor as both labels, as in a batch without mixing
        return distillation_loss(z * 1.0, s * 1.0, a, a, lam, teacher, backend=backend, **options)

    torch.compiler.reset()  # every kind and backend is a compilation of its own
    expected = torch.autograd.grad(function(*logits), logits, materialize_grads=True, allow_unused=True)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*logits), logits, materialize_grads=True, allow_unused=True)
    for actual, truth in zip(found, expected, strict=True):
        assert_close(actual, truth, 1e-6)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_leaves_the_loss_in_float32(kind: str, backend: str) -> None:
    arguments, options = problem(4, 10, kind)
    expected = distillation_loss(*arguments, backend="torch", **options)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        loss = distillation_loss(*arguments, backend=backend, **options)
    assert loss.dtype == torch.float32
    assert_close(loss, expected, 1e-6)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("kind", ["soft", "standardized", "decoupled"])
def test_no_gradient_for_teacher_and_lam(kind: str, backend: str) -> None:
    (z, s, a, b, lam, t), options = problem(4, 10, kind)
    for tensor in (z, lam, t):
        tensor.requires_grad_()
    loss = distillation_loss(z, s, a, b, lam, t, backend=backend, **options)
    assert torch.autograd.grad(loss, (lam, t), allow_unused=True) == (None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "medium"}, "unknown kind 'medium'"),
        ({"weight": 1.5}, "weight must be"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"beta": -1.0}, "beta 0 or more"),
        ({"class_logits": torch.zeros(4, 10, 1)}, r"\[B, K\]"),
        ({"class_logits": torch.zeros(0, 10)}, "not empty"),
        ({"distillation_logits": None}, "distillation logits"),
        ({"labels_a": torch.zeros(4)}, "labels_a must be int64"),
        ({"labels_b": torch.zeros(3, dtype=torch.int64)}, r"labels_b must be int64 \[4\]"),
        ({"lam": torch.zeros(4, dtype=torch.int64)}, "lam must be floating point"),
        ({"teacher": None}, "needs a teacher"),
        ({"teacher": torch.zeros(4, 10)}, "a hard teacher is labels"),
        ({"kind": "soft"}, "a soft teacher is logits"),
        ({"kind": "standardized"}, "a standardized teacher is logits"),
        (
            {"kind": "decoupled", "teacher": (torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.int64))},
            "a decoupled tea",
        ),
        ({"kind": "soft", "teacher": (torch.zeros(4, 11), torch.zeros(4, 11, dtype=torch.int64))}, "top-k values must"),
        ({"kind": "soft", "teacher": (torch.zeros(4, 3), torch.zeros(4, 3))}, "indices int64"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    arguments, options = problem(4, 10, "hard")
    names = ("class_logits", "distillation_logits", "labels_a", "labels_b", "lam", "teacher")
    with pytest.raises(ValueError, match=message):
        distillation_loss(**dict(zip(names, arguments, strict=True)) | options | change)


@pytest.mark.parametrize(
    ("backend", "classes", "dtype", "reason"),
    [
        ("triton", 4097, torch.float32, "4097 classes"),
    ],
)
def test_backends_say_why_not(backend: str, classes: int, dtype: torch.dtype, reason: str) -> None:
    arguments, options = problem(2, classes, "hard", dtype)
    with pytest.raises(BackendUnavailable, match=reason):
        distillation_loss(*arguments, backend=backend, **options)
