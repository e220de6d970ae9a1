"""The training step as one CUDA graph that takes everything from the device: between two steps the host only replays.

                                     ┌── plan rows ── augmentation ── batch
table [steps, bytes] ── row of the ──┼── labels, the teacher's answers
                          step       └── rate, share of the average
                           │
                           └──> graph: all of these, and weights in the products' dtype, forward, loss, backward,
                                optimiser, average, sums of the epoch, step + 1

The table is uploaded at the beginning of an epoch. What has to be asked of the host at every step is for
`titn.training.captured`: batches of another pipeline, answers of a live teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from titn.pipelines import Batch, EpochPlan, Pipeline, TritonPipeline
from titn.pipelines.upload import Rows, upload
from titn.training.captured import CapturedStep
from titn.training.step import Epoch


class CapturedEpochs(CapturedStep):
    """A `CapturedStep` whose epochs are taken from a table on the device.

    It is captured at the beginning of an epoch: of the first, of one of other shapes or of another part of the network,
    or after a state dict was loaded into the optimiser. Arguments: those of `CapturedStep`.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, *others: Any, **options: Any) -> None:
        super().__init__(module, optimizer, *others, **options)
        self.epoch_sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        self._step = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._kind: object = None
        self._table = self._row = torch.empty(0)
        self._row_rate = self._row_share = torch.empty(0)
        self._replay: Callable[[], object] = lambda: None
        self._made: tuple[Batch, Tensor] | None = None

    def module_changed(self) -> None:
        """The next epoch captures again."""
        super().module_changed()
        self._kind = None

    def rows(self, pipeline: Pipeline, plan: EpochPlan, batch_size: int) -> list[np.ndarray]:
        """Those of `TritonPipeline.rows`."""
        assert isinstance(pipeline, TritonPipeline)
        return pipeline.rows(plan, batch_size)

    def epoch(self, epoch: Epoch) -> Iterator[tuple[Batch, Tensor]]:
        """As `TrainStep`, with a `TritonPipeline` and stored answers; the next step overwrites batch and sums."""
        self._begin(epoch, self._rows(epoch))
        for _ in epoch.rates[epoch.first_step :]:
            self._replay()
            if self.average is not None:
                self.average.updates += 1
            assert self._made is not None
            yield self._made

    def _rows(self, epoch: Epoch) -> Rows:
        """Every step's part of `epoch.rows`, its answers, its rate and the share of the average."""
        stored = None if epoch.targets is None else epoch.targets.stored
        answers = [] if stored is None else stored.rows(epoch.rows[0])
        shares = np.zeros(len(epoch.rates))
        if self.average is not None:
            done, left = self.average.updates, range(len(epoch.rates) - epoch.first_step)
            shares[epoch.first_step :] = [self.average.share(done + step) for step in left]
        exact = np.float32 if self._rate.dtype is torch.float32 else np.float64
        scalars = [np.array(values, exact) for values in (epoch.rates, shares)]
        return Rows([*epoch.rows, *answers, *scalars])

    def _begin(self, epoch: Epoch, rows: Rows) -> None:
        """The table and where the epoch stands go up; the graph is there."""
        kind = epoch.pipeline, epoch.plan.augmentation, [(array.dtype, array.shape) for array in rows.arrays]
        table = rows.on_host(pinned=self.device.type == "cuda").view(torch.int64)
        new, self._kind = kind != self._kind, kind
        if new:
            self._table = torch.empty_like(table, device=self.device)
            self._row = torch.empty_like(self._table[:1])
        self._table.copy_(table, non_blocking=True)
        if new or not self._reads(self._row_rate):
            self._record(epoch, rows)
        sums, step = upload([np.array(epoch.sums), np.array([epoch.first_step])], self.device)
        self.epoch_sums.copy_(sums)
        self._step.copy_(step)

    def _record(self, epoch: Epoch, rows: Rows) -> None:
        """Capture a step on the table; its tensors are filled, its values of no account."""
        pipeline, augmentation, count = epoch.pipeline, epoch.plan.augmentation, len(epoch.rows)
        stored = None if epoch.targets is None else epoch.targets.stored
        assert isinstance(pipeline, TritonPipeline)
        *given, self._row_rate, self._row_share = rows.tensors(self._row.view(torch.uint8)[0])

        def body() -> None:
            torch.index_select(self._table, 0, self._step, out=self._row)
            batch = pipeline.from_rows(given[:count], augmentation)
            sums = self._take(batch, None if stored is None else stored.from_rows(given[count:]), self._row_share)
            self.epoch_sums.add_(sums)
            self._step.add_(1)
            self._made = batch, sums

        def first_step() -> None:
            self._step.zero_()
            body()

        self._replay = self._recorded(body, self._row_rate, warm_up_by=first_step)
