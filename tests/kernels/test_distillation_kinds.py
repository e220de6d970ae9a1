"""Every kind of distillation against its paper's formula, written out image by image in probabilities and float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from util import DEVICE, assert_close, randn, relative_error

from titn.kernels import distillation_loss
from titn.kernels.distillation_loss import reference

TEMPERATURE, BETA, WEIGHT = 2.5, 8.0, 0.3
KINDS = ("hard", "soft", "standardized", "decoupled")
LIMIT = {"torch": 1e-10, "triton": 1e-5}


def problem(batch: int, classes: int) -> list[Tensor]:
    """Float64 logits of class head, distillation head and teacher `[B, K]`, labels a and b, lam."""
    generator = torch.Generator().manual_seed(batch + classes)
    labels = [torch.randint(classes, (batch,), generator=generator).to(DEVICE) for _ in range(2)]
    labels[1][0] = labels[0][0]
    logits = [randn(batch, classes, seed=i, scale=3.0, dtype=torch.float64) for i in range(3)]
    return [*logits, *labels, torch.rand(batch, generator=generator).to(DEVICE)]


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


def z_score(x: Tensor) -> Tensor:
    """Algorithm 1 of arXiv 2403.01427, and the package's 1e-6."""
    return (x - x.mean()) / (x.var(correction=0) + 1e-6).sqrt()


def dkd(s: Tensor, t: Tensor, label: int) -> Tensor:
    """Equation 7 of arXiv 2203.08679, without its temperature."""
    p, q = t.softmax(0), s.softmax(0)
    others = [j for j in range(len(s)) if j != label]
    target_class = divergence(torch.stack((p[label], p[others].sum())), torch.stack((q[label], q[others].sum())))
    return target_class + BETA * divergence(p[others] / p[others].sum(), q[others] / q[others].sum())


def term(kind: str, s: Tensor, t: Tensor, a: int, b: int, lam: Tensor) -> Tensor:
    """The teacher's term of one image with logits s and t `[K]`."""
    if kind == "hard":
        return -s.softmax(0)[t.argmax()].log()
    if kind == "standardized":
        s, t = z_score(s), z_score(t)
    s, t = s / TEMPERATURE, t / TEMPERATURE
    if kind == "decoupled":
        return TEMPERATURE**2 * (lam * dkd(s, t, a) + (1 - lam) * dkd(s, t, b))
    return TEMPERATURE**2 * divergence(t.softmax(0), s.softmax(0))


def direct(kind: str, z: Tensor, s: Tensor, t: Tensor, a: Tensor, b: Tensor, lam: Tensor) -> Tensor:
    lam = lam.double()
    base = lam * F.cross_entropy(z, a, reduction="none") + (1 - lam) * F.cross_entropy(z, b, reduction="none")
    terms = torch.stack([term(kind, s[i], t[i], int(a[i]), int(b[i]), lam[i]) for i in range(len(s))])
    return ((1 - WEIGHT) * base + WEIGHT * terms).mean()


def fused(kind: str, backend: str, z: Tensor, s: Tensor, t: Tensor, *labels: Tensor, **options: Any) -> Tensor:
    teacher = t.argmax(1) if kind == "hard" else t
    settings: dict[str, Any] = {"weight": WEIGHT, "temperature": TEMPERATURE, "beta": BETA} | options
    return distillation_loss(z, s, *labels, teacher, kind=kind, backend=backend, **settings)


def as_for(backend: str, tensors: list[Tensor]) -> list[Tensor]:
    return [x.float() if backend == "triton" and x.dtype == torch.float64 else x for x in tensors]


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("classes", [3, 10, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_the_papers(kind: str, classes: int, backend: str) -> None:
    z, s, t, *labels = problem(5, classes)
    heads = [z.requires_grad_(), s.requires_grad_()]
    expected = direct(kind, *heads, t, *labels)
    truth = [expected, *torch.autograd.grad(expected, heads)]
    mine = [x.detach().requires_grad_() for x in as_for(backend, heads)]
    loss = fused(kind, backend, *mine, *as_for(backend, [t]), *labels)
    found = [loss, *torch.autograd.grad(loss, mine)]
    for name, actual, exact in zip(("loss", "class head", "distillation head"), found, truth, strict=True):
        assert_close(actual, exact, LIMIT[backend], name)


def test_every_kind_is_another_loss() -> None:
    losses = [fused(kind, "torch", *problem(5, 10)).item() for kind in KINDS]
    assert min(abs(one - other) for i, one in enumerate(losses) for other in losses[:i]) > 0.01


def test_the_soft_term_is_both_decoupled_parts_with_one_minus_p() -> None:
    _, s, t, a, *_ = problem(6, 10)
    for i in range(6):
        own = (t[i] / TEMPERATURE).softmax(0)[a[i]].item()
        parts = reference.decoupled_term(s[i : i + 1], t[i : i + 1], a[i : i + 1], TEMPERATURE, 1 - own)
        assert_close(parts, reference.soft_term(s[i : i + 1], t[i : i + 1], None, TEMPERATURE), 1e-12)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_of_two_classes_one_is_other_so_that_decoupled_is_soft(backend: str) -> None:
    arguments = as_for(backend, problem(6, 2))
    assert_close(fused("decoupled", backend, *arguments), fused("soft", backend, *arguments), 1e-6)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_decoupled_terms_of_two_labels_are_mixed_by_lam(backend: str) -> None:
    *logits, _, _, lam = as_for(backend, problem(1, 10))
    a, b = logits[2].argmax(1), logits[2].argmin(1)
    first, second = (fused("decoupled", backend, *logits, y, y, lam, weight=1.0) for y in (a, b))
    assert relative_error(first, second) > 0.01
    mixed = fused("decoupled", backend, *logits, a, b, lam, weight=1.0)
    assert_close(mixed, (lam * first + (1 - lam) * second)[0], 1e-6)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_standardized_knows_neither_size_nor_offset_of_logits(backend: str) -> None:
    z, s, t, *labels = as_for(backend, problem(5, 10))
    expected = fused("standardized", backend, z, s, t, *labels)
    assert_close(fused("standardized", backend, z, 7 * s + 3, 0.5 * t - 20, *labels), expected, 1e-5)
    s = (4 * s).requires_grad_()
    (gradient,) = torch.autograd.grad(fused("standardized", backend, z, s, t, *labels), s)
    assert gradient.norm() > 1e-3
    for direction in (torch.ones_like(s), s.detach()):
        along = (gradient * direction).sum(1) / (gradient.norm(dim=1) * direction.norm(dim=1))
        assert along.abs().max() < 1e-5


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("teacher", ["equal", "certain"])
def test_equal_logits_and_a_certain_teacher_have_finite_gradients(kind: str, backend: str, teacher: str) -> None:
    z, s, t, *labels = as_for(backend, problem(5, 10))
    t = torch.zeros_like(t) if teacher == "equal" else 1e4 * t
    s = torch.zeros_like(s).requires_grad_()
    loss = fused(kind, backend, z, s, t, *labels)
    (gradient,) = torch.autograd.grad(loss, s)
    assert loss.isfinite() and gradient.isfinite().all()
    assert (gradient.norm() > 1e-3) == (teacher == "certain" or kind == "hard")


def test_decoupled_needs_a_second_class() -> None:
    arguments = problem(2, 1)
    with pytest.raises(ValueError, match="two classes or more"):
        fused("decoupled", "torch", *arguments)
