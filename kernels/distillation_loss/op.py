"""The public `distillation_loss`: checks, the choice of backend, the operator and its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from titn.kernels.common.backend import choose, no_native_kernel, triton_reasons
from titn.kernels.common.registration import register
from titn.kernels.common.weights import dtype_of
from titn.kernels.distillation_loss import reference

KINDS = ("hard", "soft", "standardized", "decoupled", "none")
MAX_CLASSES = 4096
Teacher = Tensor | tuple[Tensor, Tensor]


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, class_logits: Tensor, distillation_logits: Tensor | None, labels_a: Tensor, *arguments: Any
    ) -> tuple[Tensor, Tensor]:
        loss, sums, class_gradient, distillation_gradient = torch.ops.titn.distillation_loss(
            class_logits, distillation_logits, labels_a, *arguments
        )
        ctx.save_for_backward(class_gradient, distillation_gradient)
        ctx.mark_non_differentiable(sums)
        ctx.set_materialize_grads(False)  # those of sums would be a fill
        ctx.dtypes = class_logits.dtype, dtype_of(distillation_logits)
        return loss, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 12
        dtype, other = ctx.dtypes
        first, second = torch.ops.titn.distillation_loss_backward(grad, *ctx.saved_tensors, dtype, other or dtype)
        return (first, None if other is None else second, *[None] * 10)


def _check(
    class_logits: Tensor,
    distillation_logits: Tensor | None,
    labels: tuple[Tensor, Tensor],
    lam: Tensor,
    teacher: Tensor | None,
    indices: Tensor | None,
    kind: str,
) -> None:
    def need(condition: bool, message: str) -> None:
        if not condition:
            raise ValueError(f"distillation_loss: {message}")

    need(kind in KINDS, f"unknown kind {kind!r}; choose from {', '.join(KINDS)}")
    need(class_logits.dim() == 2 and class_logits.numel() > 0, "class logits must be [B, K] and not empty")
    batch = class_logits.shape[0]
    for name, tensor in (("labels_a", labels[0]), ("labels_b", labels[1])):
        need(tensor.shape == (batch,) and tensor.dtype == torch.int64, f"{name} must be int64 [{batch}]")
    need(lam.shape == (batch,) and lam.is_floating_point(), f"lam must be floating point [{batch}]")
    if kind == "none":
        return
    need(
        distillation_logits is not None and distillation_logits.shape == class_logits.shape,
        "distillation logits must have the shape of the class logits",
    )
    if teacher is None:
        raise ValueError(f"distillation_loss: kind {kind!r} needs a teacher")
    if kind == "hard":
        need(
            teacher.shape == (batch,) and teacher.dtype == torch.int64 and indices is None,
            f"a hard teacher is labels, int64 [{batch}]",
        )
    elif indices is None or kind != "soft":
        need(
            indices is None and teacher.shape == class_logits.shape and teacher.is_floating_point(),
            f"a {kind} teacher is logits of the class logits' shape"
            + (", or a pair (values, indices) of the k largest" if kind == "soft" else ""),
        )
        need(kind != "decoupled" or class_logits.shape[1] > 1, "the decoupled term needs two classes or more")
    else:
        need(
            teacher.dim() == 2 and teacher.shape[0] == batch and 1 <= teacher.shape[1] <= class_logits.shape[1],
            f"top-k values must be [{batch}, k] with k at most the number of classes",
        )
        need(
            teacher.is_floating_point() and indices.shape == teacher.shape and indices.dtype == torch.int64,
            "top-k values must be floating point and indices int64 of the same shape",
        )


def _choose(logits: list[Tensor], backend: str) -> str:
    def why_not_triton() -> list[str]:
        classes = logits[0].shape[1]
        too_many = [f"{classes} classes, the kernel takes up to {MAX_CLASSES}"] if classes > MAX_CLASSES else []
        return triton_reasons(logits[0], backend, *logits[1:]) + too_many

    reasons: dict[str, Callable[[], list[str]]] = {"triton": why_not_triton, "torch": list, "native": no_native_kernel}
    order = ("triton", "torch", "native") if logits[0].is_cuda else ("torch", "triton", "native")
    return choose("distillation_loss", backend, {name: reasons[name] for name in order})


def distillation_loss(
    class_logits: Tensor,
    distillation_logits: Tensor | None,
    labels_a: Tensor,
    labels_b: Tensor,
    lam: Tensor,
    teacher: Teacher | None,
    *,
    kind: str = "hard",
    weight: float = 0.5,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    beta: float = 8.0,
    backend: str = "auto",
) -> Tensor:
    """Mean loss of a batch under CutMix or MixUp with a teacher's term of any kind; the package states the mathematics.

    `loss_and_sums` also returns what a training displays, in the same launches.

    Args:
        class_logits, distillation_logits: `[B, K]`, float32, bfloat16 or float16 (float64 with backend "torch").
        labels_a, labels_b: int64 `[B]`, in 0..K-1.
        lam: float32 `[B]`, the share of label a in [0, 1].
        teacher: "hard": labels int64 `[B]`. Otherwise logits `[B, K]`, for "soft" also a pair (values, indices int64),
            `[B, k]` each, of the k largest, indices distinct in a row. "none": ignored, as are `distillation_logits`
            and `weight`.
        kind: "hard", "soft", "standardized", "decoupled" or "none".
        weight: share of the teacher's term, in [0, 1], whatever its kind.
        temperature: T > 0 of every kind but "hard". The papers have 2 for "standardized" and 4 for "decoupled".
        label_smoothing: of the labels' term only, in [0, 1).
        beta: of "decoupled", 0 or more: weight of the classes besides the label against the label's own part.
        backend: "auto", "torch" or "triton"; "auto" takes triton on CUDA and torch elsewhere.

    Returns:
        Scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: arguments do not fit together or are out of range. Labels out of range raise in backend
            "torch" on the CPU and make the loss NaN in backend "triton", which must not wait for the device.
        BackendUnavailable: the backend cannot run on these tensors; the message says why.
    """
    loss, _ = loss_and_sums(
        class_logits,
        distillation_logits,
        labels_a,
        labels_b,
        lam,
        teacher,
        kind=kind,
        weight=weight,
        temperature=temperature,
        label_smoothing=label_smoothing,
        beta=beta,
        backend=backend,
    )
    return loss


def loss_and_sums(
    class_logits: Tensor,
    distillation_logits: Tensor | None,
    labels_a: Tensor,
    labels_b: Tensor,
    lam: Tensor,
    teacher: Teacher | None,
    *,
    kind: str = "hard",
    weight: float = 0.5,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    beta: float = 8.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`distillation_loss`, and sums over the batch, float64 `[3]` without a gradient.

    The sums: the loss, images whose largest class logit is that of `labels_a`, and images whose largest distillation
    logit is the teacher's (0 for "none"). Equal logits rank by class.
    """
    values, indices = teacher if isinstance(teacher, tuple) else (teacher, None)
    _check(class_logits, distillation_logits, (labels_a, labels_b), lam, values, indices, kind)
    if not (0 <= weight <= 1 and temperature > 0 and 0 <= label_smoothing < 1 and beta >= 0):
        ranges = "weight must be in [0, 1], temperature above 0, label_smoothing in [0, 1), beta 0 or more"
        raise ValueError(f"distillation_loss: {ranges}")
    if kind == "none":
        distillation_logits = values = indices = None
    logits = [t for t in (class_logits, distillation_logits, values) if t is not None and t.is_floating_point()]
    settings = kind, float(weight), float(temperature), float(label_smoothing), float(beta)
    if _choose(logits, backend) == "torch":
        values = None if values is None else values.detach()
        loss = reference.loss(
            class_logits, distillation_logits, labels_a, labels_b, lam.detach(), values, indices, *settings
        )
        return loss, reference.sums(loss, class_logits, distillation_logits, labels_a, values, indices)
    # torch.compile refuses an autograd.Function two of whose arguments are one tensor: aliases are two
    if distillation_logits is class_logits:
        distillation_logits = class_logits.view_as(class_logits)
    constants = [None if t is None else t.detach() for t in (labels_a, labels_b, lam, values, indices)]
    loss, sums = _Loss.apply(class_logits, distillation_logits, *constants, *settings)
    return loss, sums


def _fake(class_logits: Tensor, distillation_logits: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    batch, classes = class_logits.shape
    empty = class_logits.new_empty
    rows = 0 if "none" in arguments else batch
    return (
        empty((), dtype=torch.float32),
        empty(3, dtype=torch.float64),
        empty((batch, classes), dtype=torch.float32),
        empty((rows, classes), dtype=torch.float32),
    )


def _backward_fake(
    incoming: Tensor, first: Tensor, second: Tensor, dtype: torch.dtype, other: torch.dtype
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(first, dtype=dtype), torch.empty_like(second, dtype=other)


register(
    "distillation_loss(Tensor class_logits, Tensor? distillation_logits, Tensor labels_a, Tensor labels_b, Tensor lam,"
    " Tensor? teacher, Tensor? indices, str kind, float weight, float temperature, float smoothing, float beta)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    "titn.kernels.distillation_loss.launch:loss",
    _fake,
)
register(
    "distillation_loss_backward(Tensor incoming, Tensor class_gradient, Tensor distillation_gradient, ScalarType dtype,"
    " ScalarType other) -> (Tensor, Tensor)",
    "titn.kernels.distillation_loss.launch:backward",
    _backward_fake,
)
