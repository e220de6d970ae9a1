"""Which plan each epoch of a training has: augmented as asked for, towards the end perhaps by crop and flip alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from titn.config import RunConfig
from titn.data.dataset import Dataset
from titn.errors import UserError
from titn.pipelines import Augmentation, EpochPlan
from titn.pipelines.policies import POLICIES
from titn.training.schedule import Schedule


@dataclass(frozen=True)
class EpochPlans:
    """The plans of a training, by epoch.

    An epoch has the number of its plan, which repeats after `in_turn` epochs, and an augmentation; the draws that two
    augmentations share (order, crop, flip) are the same in plans of one number.

    Attributes:
        augmentation: of the epochs before `plain_from`.
        plain: of the others: no policy, no erasing, no mixing.
        plain_from: the first plain epoch, counted from 0.
        epochs: of the training.
        in_turn: number of plans; None: as many as epochs.
        size: number of training images.
        image_size: their height and width, in pixels.
        seed: of all draws.
    """

    augmentation: Augmentation
    plain: Augmentation
    plain_from: int
    epochs: int
    in_turn: int | None
    size: int
    image_size: int
    seed: int

    @classmethod
    def of(cls, config: RunConfig, schedule: Schedule, dataset: Dataset) -> Self:
        """The plans of a training with `config`.

        Raises:
            UserError: no such policy is registered.
        """
        augmentation = augmentation_of(config, schedule.batch_size)
        return cls(
            augmentation,
            replace(augmentation, policy="none", erase=0.0, mix="none"),
            schedule.epochs - round(config.plain_share * schedule.epochs),
            schedule.epochs,
            config.epochs_in_turn,
            len(dataset.train_labels),
            dataset.image_size,
            config.seed,
        )

    def draw(self, epoch: int) -> EpochPlan:
        """The plan of `epoch`, counted from 0."""
        return EpochPlan.draw(
            self._augmentation(epoch),
            size=self.size,
            image_size=self.image_size,
            seed=self.seed,
            epoch=self._number(epoch),
        )

    @property
    def numbers(self) -> dict[Augmentation, list[int]]:
        """The numbers of all plans of the training, ascending, by their augmentation; the first epoch's comes first."""
        found: dict[Augmentation, set[int]] = {self._augmentation(0): set()}
        for epoch in range(self.epochs):
            found.setdefault(self._augmentation(epoch), set()).add(self._number(epoch))
        return {augmentation: sorted(numbers) for augmentation, numbers in found.items()}

    def _augmentation(self, epoch: int) -> Augmentation:
        return self.augmentation if epoch < self.plain_from else self.plain

    def _number(self, epoch: int) -> int:
        return epoch % self.in_turn if self.in_turn else epoch


def augmentation_of(config: RunConfig, batch_size: int) -> Augmentation:
    """The augmentation that the configuration describes; the paper's CutMix needs to know the batch.

    Raises:
        UserError: no such policy is registered.
    """
    if config.augmentation not in ("none", *POLICIES):
        raise UserError(f"--augmentation {config.augmentation} is not registered by {config.import_}")
    return Augmentation(
        crop_padding=config.crop_padding,
        flip=config.flip,
        policy=config.augmentation,
        randaugment_operations=config.randaugment_operations,
        randaugment_magnitude=config.randaugment_magnitude,
        erase=config.erase,
        mix=config.mix,
        mix_alpha=config.mix_alpha,
        mix_batch=batch_size,
    )
