"""What may watch a training from Python: called at its beginning, after steps and epochs, and at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from titn.pipelines import Batch

if TYPE_CHECKING:
    from titn.config import RunConfig
    from titn.training.result import Result
    from titn.training.run import Run


class Callback:
    """Override what is needed. What a method raises ends the training; its last checkpoint stays."""

    def on_begin(self, run: Run, config: RunConfig, epoch: int) -> None:
        """Before the first step of this start: so many epochs are complete."""

    def on_step(self, step: int, batch: Batch, sums: Tensor) -> None:
        """After a step.

        Args:
            step: completed steps since the start of training.
            batch: what it saw. A step that is one CUDA graph overwrites it with the next, as it does the sums.
            sums: float64 [3] on the batch's device: loss, right answers, agreements with the teacher, each summed over
                the batch's images. Reading it makes a GPU wait.
        """

    def on_epoch(self, line: dict[str, Any]) -> None:
        """After an epoch: its line of metrics.jsonl."""

    def on_close(self) -> None:
        """However the training ends, after everything else."""

    def on_end(self, result: Result) -> None:
        """After the last epoch."""
