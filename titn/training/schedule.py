"""How long a training is and how fast it learns: batch size, steps, learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from titn.config import RunConfig

Shape = Literal["cosine", "linear", "constant", "step"]
ENOUGH_STEPS = 2000
SMALLEST_BATCH = 32


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a fall: a closed form of the step, so that a resumed run needs no state.

    Attributes:
        batch_size: images per step.
        steps: per epoch.
        epochs: passes over the training set.
        peak: the largest learning rate.
        warmup_epochs: length of the warm-up, in epochs.
        shape: of the fall: a cosine to zero, a line to zero, none, or a tenth of the rate at 60 % and again at 80 % of
            the training.
    """

    batch_size: int
    steps: int
    epochs: int
    peak: float
    warmup_epochs: float = 0.0
    shape: Shape = "cosine"

    @classmethod
    def of(cls, config: RunConfig, images: int, device: str = "cpu") -> Schedule:
        """The schedule of `config` on so many training images.

        A recipe's batch is made for its own number of steps. A shorter training on a CPU gets smaller batches, down to
        32 images, so that it has at least 2,000 steps; on a GPU a step of 1,024 images takes no longer than one of 64,
        so the recipe's batch stays. The learning rate shrinks with the square root of the batch (Krizhevsky,
        arXiv 1404.5997). No batch has more images than the data set.
        """
        recipe_batch, recipe_rate = config.recipe_batch_and_rate
        enough = recipe_batch if device == "cuda" else max(SMALLEST_BATCH, images * config.epochs // ENOUGH_STEPS)
        batch = min(recipe_batch, enough) if config.batch_size == "auto" else config.batch_size
        rate = recipe_rate * min(1.0, batch / recipe_batch) ** 0.5 if config.lr == "auto" else config.lr
        batch = min(batch, images)
        return cls(batch, images // batch, config.epochs, rate, config.warmup_epochs, config.schedule)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.epochs * self.steps

    def rate(self, step: int) -> float:
        """Learning rate of the step with this number, counted from 0 over all epochs."""
        warmup = self.warmup_epochs * self.steps
        if step < warmup:
            return self.peak * (step + 1) / (warmup + 1)
        if self.shape == "step":
            return self.peak * 0.1 ** sum(step >= share * self.total_steps for share in (0.6, 0.8))
        done = (step - warmup) / max(self.total_steps - warmup, 1)
        fall = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
        return self.peak * fall[self.shape]
