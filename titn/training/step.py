"""One training step: forward, loss, backward, optimiser. It knows tensors and nothing of folders, data sets or flags.

images ── module ── class logits, distillation logits ── objective ── loss ── backward ── optimiser
                                                             │
                                labels, lam of the batch ────┘──── the teacher's targets
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titn.kernels import loss_and_sums
from titn.pipelines import Batch, EpochPlan, Pipeline
from titn.training.average import WeightAverage

if TYPE_CHECKING:
    from titn.training.targets import TeacherTargets

CompiledForm = Literal["blocks", "whole", "graph"]
"""Compiled block by block, as a whole, or as a whole and replayed as a CUDA graph."""


class Objective(Protocol):
    """The loss of a batch, a scalar, from the logits [B, K] of the heads and the teacher's targets.

    With it come sums over the batch, float64 [3]: the loss, images whose class head says `labels_a`, images whose
    distillation head agrees with the teacher.
    """

    def __call__(
        self, batch: Batch, class_logits: Tensor, distillation_logits: Tensor | None, targets: Tensor | None
    ) -> tuple[Tensor, Tensor]: ...


def distillation_objective(
    kind: Literal["none", "hard", "soft", "standardized", "decoupled"] = "none",
    *,
    weight: float = 0.5,
    temperature: float = 1.0,
    beta: float = 8.0,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    backend: str = "torch",
) -> Objective:
    """The paper's loss (arXiv 2502.16762, section 3) as an `Objective`; "none" is cross-entropy under CutMix or MixUp.

    Args:
        kind: the teacher's term: against its decisions int64 [B] ("hard"), against its logits [B, K], or none.
        weight: of the teacher's term; the labels get the rest.
        temperature: of every kind but "hard".
        beta: of "decoupled".
        label_smoothing: of the cross-entropy with the labels.
        class_weights: of each class in that cross-entropy, float32 [K] on the device; with them it is PyTorch's own,
            and only the teacher's term is fused.
        backend: of `titn.kernels.loss_and_sums`.
    """

    def objective(
        batch: Batch, class_logits: Tensor, distillation_logits: Tensor | None, targets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        loss, sums = loss_and_sums(
            class_logits,
            distillation_logits,
            batch.labels_a,
            batch.labels_b,
            batch.lam,
            targets,
            kind=kind,
            weight=weight if class_weights is None else 1.0,
            temperature=temperature,
            beta=beta,
            label_smoothing=label_smoothing,
            backend=backend,
        )
        if class_weights is None:
            return loss, sums
        labels = _weighted_cross_entropy(batch, class_logits, class_weights, label_smoothing)
        loss = labels if kind == "none" else (1 - weight) * labels + weight * loss
        return loss, torch.cat((loss.detach().double().view(1) * len(batch.lam), sums[1:]))

    return objective


def _weighted_cross_entropy(batch: Batch, logits: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Mean over the batch of lam w_a CE(a) + (1 - lam) w_b CE(b), from logits [B, K] and weights [K]."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    parts = (
        share * weights[labels] * F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        for labels, share in ((batch.labels_a, batch.lam), (batch.labels_b, 1 - batch.lam))
    )
    return sum(parts, torch.zeros_like(batch.lam)).mean()


@dataclass(frozen=True)
class Epoch:
    """What the steps of an epoch are taken on.

    Attributes:
        pipeline: makes the batches of `batch_size` images from `plan`.
        plan: of the epoch.
        batch_size: images of a step.
        rates: learning rate of each step.
        targets: the teacher's answers, begun with this plan; None: no distillation.
        first_step: so many steps were taken before.
        sums: the objective's over these.
        rows: of `TrainStep.rows`, for a step that makes its batches itself.
    """

    pipeline: Pipeline
    plan: EpochPlan
    batch_size: int
    rates: Sequence[float]
    targets: TeacherTargets | None = None
    first_step: int = 0
    sums: Sequence[float] = (0.0, 0.0, 0.0)
    rows: Sequence[np.ndarray] = ()


class TrainStep:
    """Takes training steps on `module`.

    Args:
        module: images [B, C, H, W] to logits [B, K], or to those of a class and a distillation head.
        optimizer: over the module's parameters.
        objective: the loss.
        amp: dtype of `torch.autocast` around the forward pass; None: none.
        scaler: scales the loss of float16 gradients; by default one that does nothing.
        cuda_graph: the module was compiled for replay as a CUDA graph.
        accumulate: pieces that a batch is cut into, whose gradients add up to the batch's. What the module takes from
            a whole batch (statistics, a random state) it takes from each piece.
        average: follows the module's weights.
        clip_grad: largest norm of all gradients together, larger ones are scaled down to it; None: no limit.

    Attributes:
        epoch_sums: the objective's over the epoch's steps so far, float64 [3] on the device.
    """

    epoch_sums: Tensor

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        *,
        amp: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        cuda_graph: bool = False,
        accumulate: int = 1,
        average: WeightAverage | None = None,
        clip_grad: float | None = None,
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.objective = objective
        self.amp = amp
        self.scaler = scaler or torch.amp.GradScaler(enabled=False)
        self.cuda_graph = cuda_graph
        self.accumulate = accumulate
        self.average = average
        self.clip_grad = clip_grad
        self._gradient_of_loss: Tensor | None = None

    def rows(self, pipeline: Pipeline, plan: EpochPlan, batch_size: int) -> list[np.ndarray]:
        """The `rows` of an epoch; a thread may make them ahead."""
        return []

    def epoch(self, epoch: Epoch) -> Iterator[tuple[Batch, Tensor]]:
        """Take the epoch's steps that are left, one whenever the next is asked for.

        Yields:
            What the step saw, and the objective's sums over it.
        """
        self.epoch_sums = torch.tensor(epoch.sums, dtype=torch.float64, device=epoch.pipeline.device)
        batches = epoch.pipeline.epoch(epoch.plan, epoch.batch_size, first_step=epoch.first_step)
        for batch, rate in zip(batches, epoch.rates[epoch.first_step :], strict=True):
            sums = self(batch, None if epoch.targets is None else epoch.targets(batch), rate)
            self.epoch_sums += sums
            yield batch, sums

    def __call__(self, batch: Batch, targets: Tensor | None, rate: float) -> Tensor:
        """One step at learning rate `rate`.

        Returns:
            The objective's sums over the batch, on its device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return self._take(batch, targets, 0.0 if self.average is None else self.average.next_share())

    def module_changed(self) -> None:
        """The module computes otherwise than in the steps before."""

    def _take(self, batch: Batch, targets: Tensor | None, share: float | Tensor) -> Tensor:
        """One step at the optimiser's rate; `share` is that of the new weights in their average."""
        self.optimizer.zero_grad()
        first, *others = _pieces(batch, targets, self.accumulate)
        sums = self._backward(*first, len(first[0].ids) / len(batch.ids))
        for piece in others:
            sums += self._backward(*piece, len(piece[0].ids) / len(batch.ids))
        if self.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clip_grad, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.move(share)
        return sums

    def _backward(self, batch: Batch, targets: Tensor | None, share: float) -> Tensor:
        """Add the gradient of `share` of the mean loss; returns the sums over these images."""
        if self.cuda_graph:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(batch.images.device.type, self.amp, enabled=self.amp is not None):
            output = self.module(batch.images)
        class_logits, distillation_logits = output if isinstance(output, tuple) else (output, None)
        loss, sums = self.objective(batch, class_logits, distillation_logits, targets)
        self.scaler.scale(loss if share == 1 else loss * share).backward(self._gradient_of_loss)
        return sums


def _pieces(batch: Batch, targets: Tensor | None, count: int) -> list[tuple[Batch, Tensor | None]]:
    """The batch and its targets in `count` pieces whose sizes differ by one image at most."""
    if count == 1:
        return [(batch, targets)]
    columns = [getattr(batch, each.name).tensor_split(count) for each in fields(Batch)]
    answers = [None] * count if targets is None else targets.tensor_split(count)
    return [(Batch(*values), answer) for *values, answer in zip(*columns, answers, strict=True)]


def compile_network(module: nn.Module, form: CompiledForm, backend: str = "inductor") -> None:
    """Compile in place, so that the state dict keeps its names; equal blocks share one compilation.

    A module without `blocks` is compiled as a whole. On a CPU blocks are the better form for a training of any length:
    bench/RESULTS.md has 371 (201 to 386) images per second and a first step of 37 s for them, 345 (283 to 412) and 90 s
    for the whole network, at 256 images per step. Loss and optimiser stay outside: they take 6 ms of a step's 690.
    Images of another size are compiled anew, not for any size.
    """
    blocks = getattr(module, "blocks", None)
    if form == "blocks" and blocks is not None:
        for block in blocks:
            block.compile(backend=backend, dynamic=False)
    elif form == "graph" and backend == "inductor":
        module.compile(mode="reduce-overhead", dynamic=False)
    else:
        module.compile(backend=backend, dynamic=False)
