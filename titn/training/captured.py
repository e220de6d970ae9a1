"""The whole training step as one CUDA graph: the host copies a batch in and replays.

batch, targets ── copied in ──> static buffers ──┐
rate, share of the average ──── filled in ───────┤
                                                 └──> graph: weights in the products' dtype, forward, loss, backward,
                                                      optimiser, average, sums

This is for batches and targets that are made in front of the graph: those of the torch and dali pipelines and of a live
teacher. `titn.training.captured_epochs` holds all of the epoch's on the device.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from titn.kernels.common.weights import cast_at_once
from titn.kernels.common.wide import WIDEST
from titn.kernels.short_attention.op import MAX_HEAD_DIMENSION
from titn.models.base import ImageTransformer
from titn.models.layers import PatchLayer
from titn.models.tnt import TransformerInTransformer
from titn.pipelines import Batch
from titn.training.step import TrainStep

WARM_UPS = 3


class EmptyGraph(RuntimeError):
    """A capture that recorded nothing: the work went to another device or stream."""


def warm_up(body: Callable[[], object], device: torch.device) -> None:
    """Call `body` before its capture, which can neither load kernels nor create handles: on a side stream."""
    with _on(device):
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                body()
        torch.cuda.current_stream(device).wait_stream(side)


def capture(body: Callable[[], object], device: torch.device) -> torch.cuda.CUDAGraph:
    """What `body` launches on `device` as a graph; nothing is computed. Call `warm_up` first.

    Other threads may go on, such as one that waits for the copies of a checkpoint.

    Raises:
        EmptyGraph: it launches nothing there.
    """
    graph = torch.cuda.CUDAGraph()
    with _on(device), warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            body()
    if any("graph is empty" in str(note.message).lower() for note in notes):
        raise EmptyGraph(f"nothing was launched on {device} while its graph was captured")
    return graph


class CapturedStep(TrainStep):
    """A `TrainStep` in one CUDA graph, captured at the first call from the state that training has then.

    Rate and share of the average are tensors on the device, in float32 as the fused optimisers read them (on a CPU, in
    float64). A state dict may be loaded into the optimiser at any time: its tensors are new, so the next call captures
    again. On a CPU the same work is done call by call, without a graph.

    Args, beside those of `TrainStep`:
        optimizer: reads its rate from a tensor; with a scaler that does anything, scales gradients itself (fused).
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, *others: Any, **options: Any) -> None:
        super().__init__(module, optimizer, *others, **options)
        self.device = next(module.parameters()).device
        exact = torch.float32 if self.device.type == "cuda" else torch.float64
        self._rate, self._share = (torch.zeros((), dtype=exact, device=self.device) for _ in range(2))
        self._gradient_of_loss = torch.ones((), device=self.device)  # else backward fills one at every step
        for group in optimizer.param_groups:
            if "capturable" in group and self.device.type == "cuda":
                group["capturable"] = True
        layers = [each for each in module.modules() if isinstance(each, (PatchLayer, ImageTransformer))]
        self._weights = [weight for layer in layers for weight in layer.product_weights()]
        self._batch: Batch | None = None
        self._targets: Tensor | None = None
        self._sums = torch.empty(0)
        self._run: Callable[[], object] = self._body

    def __call__(self, batch: Batch, targets: Tensor | None, rate: float) -> Tensor:
        """As `TrainStep`; the sums are overwritten by the next call.

        Raises:
            ValueError: batch or targets have other shapes or dtypes than those of the first call.
        """
        if self._batch is None or not self._reads(self._rate):
            self._prepare(batch, targets, rate)
        self._copy_in(batch, targets)
        self._rate.fill_(rate)
        if self.average is not None:
            self._share.fill_(self.average.next_share())
        self._run()
        return self._sums

    def module_changed(self) -> None:
        """The next call captures again; the graph so far is let go of."""
        self._batch, self._run = None, self._body

    def _body(self) -> None:
        assert self._batch is not None
        self._sums = self._take(self._batch, self._targets, self._share)

    def _take(self, batch: Batch, targets: Tensor | None, share: float | Tensor) -> Tensor:
        with nullcontext() if self.amp is None else cast_at_once(self._weights, self.amp):
            return super()._take(batch, targets, share)

    def _prepare(self, batch: Batch, targets: Tensor | None, rate: float) -> None:
        """Static buffers and the graph, at `rate`."""
        self._batch = Batch(*(getattr(batch, each.name).clone() for each in fields(Batch)))
        self._targets = None if targets is None else targets.clone()
        self._rate.fill_(rate)
        self._run = self._recorded(self._body, self._rate)

    def _reads(self, rate: Tensor) -> bool:
        """Whether the optimiser reads its rate from this tensor."""
        return all(group["lr"] is rate for group in self.optimizer.param_groups)

    def _recorded(
        self, body: Callable[[], object], rate: Tensor, warm_up_by: Callable[[], object] | None = None
    ) -> Callable[[], object]:
        """The replay of `body`, in which the optimiser reads the scalar `rate`; on a CPU, `body`.

        Weights, optimiser, average and random states stay as they are. `warm_up_by` launches what `body` does.
        """
        before = warm_up_by or body
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        on_gpu = self.device.type == "cuda"
        with torch.random.fork_rng([self.device] if on_gpu else []):
            with self._state_restored():
                if on_gpu:
                    warm_up(before, self.device)
                else:
                    before()
            return capture(body, self.device).replay if on_gpu else body

    def _copy_in(self, batch: Batch, targets: Tensor | None) -> None:
        assert self._batch is not None
        own, new = _inputs(self._batch, self._targets), _inputs(batch, targets)
        if _kinds(own) != _kinds(new):
            raise ValueError(f"a captured step takes {_kinds(own)}, not {_kinds(new)}")
        by_dtype: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for pair in zip(own, new, strict=True):
            by_dtype[pair[0].dtype].append(pair)
        for pairs in by_dtype.values():
            places, values = zip(*pairs, strict=True)
            torch._foreach_copy_(places, values)

    @contextmanager
    def _state_restored(self) -> Iterator[None]:
        """Afterwards weights, buffers, optimiser, average and scaler are, in place, what they were before.

        State that the optimiser makes in between becomes zero, where each optimiser here begins.
        """
        modules = [self.module, *([] if self.average is None else [self.average.module])]
        weights = chain.from_iterable((*each.parameters(), *each.buffers()) for each in modules)
        before = [(tensor, tensor.detach().clone()) for tensor in (*weights, *self._optimizer_state())]
        known = {id(tensor) for tensor, _ in before}
        scaler = self.scaler.state_dict()
        yield
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
            for tensor in self._optimizer_state():
                if id(tensor) not in known:
                    tensor.zero_()
        self.scaler.load_state_dict(scaler)

    def _optimizer_state(self) -> list[Tensor]:
        values = chain.from_iterable(each.values() for each in self.optimizer.state.values())
        return [value for value in values if isinstance(value, Tensor)]


def take_kernels(module: nn.Module) -> None:
    """Let layers that choose for themselves take their Triton kernels, where these have the layer's sizes.

    By themselves patch layers, pixel embedding and heads leave it to torch.compile to fuse what they do, which a
    captured step does without.
    """
    for layer in module.modules():
        if isinstance(layer, TransformerInTransformer) and layer.kernels in ("auto", "triton") and layer.ends_fit():
            layer.end_kernels = "triton"
        if isinstance(layer, PatchLayer) and layer.kernels == "auto":
            width = layer.proj.in_features
            if width <= WIDEST and width // layer.heads <= MAX_HEAD_DIMENSION:
                layer.kernels = "triton"


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _inputs(batch: Batch, targets: Tensor | None) -> list[Tensor]:
    """What the step reads."""
    tensors = [batch.images, batch.labels_a, batch.labels_b, batch.lam]
    return tensors if targets is None else [*tensors, targets]


def _kinds(tensors: list[Tensor]) -> list[tuple[torch.dtype, list[int]]]:
    return [(tensor.dtype, list(tensor.shape)) for tensor in tensors]
