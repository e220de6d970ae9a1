"""Launches the loss."""

from __future__ import annotations

from functools import partial

import torch
import triton
from torch import Tensor

from titn.kernels.common.weights import contiguous
from titn.kernels.distillation_loss.forward import loss_and_gradients, scaled, total

SCALE_BLOCK = 1024


def kernel_constants(kind: str, classes: int, kept: int) -> dict[str, int]:
    return {
        "KIND": {"none": 0, "hard": 1, "soft": 2, "standardized": 3, "decoupled": 4}[kind],
        "TOP": kept,
        "KP": max(16, triton.next_power_of_2(classes)),
    }


def warps(columns: int) -> int:
    return max(1, min(8, columns // 128))


def loss(
    class_logits: Tensor,
    distillation_logits: Tensor | None,
    labels_a: Tensor,
    labels_b: Tensor,
    lam: Tensor,
    teacher: Tensor | None,
    indices: Tensor | None,
    kind: str,
    weight: float,
    temperature: float,
    smoothing: float,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mean loss (float32 scalar), the sums (float64 [3]), and the loss's float32 gradients by both logits.

    The second gradient is empty for "none".
    """
    (batch, classes), empty = class_logits.shape, partial(class_logits.new_empty, dtype=torch.float32)
    losses, mean, class_gradient = empty((3, batch)), empty(()), empty((batch, classes))
    sums = class_logits.new_empty(3, dtype=torch.float64)
    distillation_gradient = empty((0 if kind == "none" else batch, classes))
    # what the kind does not read is not there: any pointer of the right type stands for it
    tensors = contiguous(
        class_logits,
        class_logits if distillation_logits is None else distillation_logits,
        labels_a,
        labels_b,
        lam.float(),
        labels_a if teacher is None else teacher,
        labels_a if indices is None else indices,
    )
    constants = kernel_constants(kind, classes, 0 if indices is None else indices.shape[1])
    with torch.cuda.device_of(class_logits):
        loss_and_gradients[(batch,)](
            *tensors, losses, class_gradient, distillation_gradient, batch, classes, weight, temperature, smoothing,
            beta, **constants, num_warps=warps(constants["KP"]), num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
        total[(1,)](losses, mean, sums, batch, BLOCK=1024, num_warps=4, num_stages=1, enable_fp_fusion=True)
    return mean, sums, class_gradient, distillation_gradient


def backward(
    incoming: Tensor, class_gradient: Tensor, distillation_gradient: Tensor, dtype: torch.dtype, other: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Both gradients times the incoming one, in a dtype each."""
    first, second = (torch.empty_like(g, dtype=d) for g, d in ((class_gradient, dtype), (distillation_gradient, other)))
    n, has_second = class_gradient.numel(), distillation_gradient.numel() > 0
    with torch.cuda.device_of(class_gradient):
        scaled[(triton.cdiv(n, SCALE_BLOCK),)](
            class_gradient, distillation_gradient if has_second else None, incoming, first,
            second if has_second else None, n, BLOCK=SCALE_BLOCK, num_warps=4, num_stages=1,
        )  # fmt: skip
    return first, second
