"""Epochs of a captured step, on a CPU: the same work without a graph; tests/null_cuda captures it.

Batches are made by Triton's interpreter and compared with the torch pipeline's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from titn.kernels.common.backend import installed
from titn.models import create_model
from titn.pipelines import Augmentation, Batch, EpochPlan, TorchPipeline, TritonPipeline
from titn.training.average import WeightAverage
from titn.training.captured_epochs import CapturedEpochs
from titn.training.optimizers import build_optimizer
from titn.training.step import Epoch, TrainStep, distillation_objective
from titn.training.targets import StoredAnswers

pytestmark = pytest.mark.skipif(not installed("triton"), reason="triton is absent: epochs from a table were not tested")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IMAGES, BATCH, CLASSES, STEPS = 10, 3, 10, 3
RECIPES = {
    "none": Augmentation(crop_padding=2),
    "cutmix": Augmentation(crop_padding=2, policy="cifar10", mix="cutmix"),
    "mixup": Augmentation(crop_padding=2, policy="trivialaugment", erase=0.5, mix="mixup"),
}
RATES = [2.0**-6, 2.0**-7, 2.0**-8]


class Teacher:
    """Random answers, other ones for each epoch."""

    def __init__(self, kind: str, epoch: int) -> None:
        draw = np.random.default_rng(epoch)
        logits = draw.normal(size=(IMAGES, 2 if kind == "top" else CLASSES)).astype(np.float16)
        records: dict[str, np.ndarray] = {"logits": logits}
        if kind == "top":
            classes = np.stack([draw.permutation(CLASSES)[:2] for _ in range(IMAGES)])
            rest = draw.normal(size=IMAGES).astype(np.float16)
            records |= {"classes": classes.astype(np.uint8), "rest": rest}
        if kind == "hard":
            records = {"labels": logits.argmax(1).astype(np.uint8)}
        self.stored = StoredAnswers(records, CLASSES, DEVICE)

    def begin_epoch(self, *_: object) -> None: ...

    def __call__(self, batch: Batch) -> Tensor:
        return self.stored(batch.ids)

    def summary(self) -> str:
        return ""


class Training:
    """A form of the step, with the pipeline that goes with it."""

    def __init__(self, form: type[TrainStep], recipe: str = "cutmix", kind: str = "hard", **options: Any) -> None:
        images = np.random.default_rng(0).integers(0, 256, (IMAGES, 16, 16, 3), np.uint8)
        self.captured = form is CapturedEpochs
        self.recipe, self.kind = RECIPES[recipe], kind
        self.pipeline = (TritonPipeline if self.captured else TorchPipeline)(
            images, np.arange(IMAGES) % CLASSES, mean=(0.5,) * 3, std=(0.25,) * 3, device=DEVICE
        )
        torch.manual_seed(0)
        module = create_model("titn", num_classes=CLASSES, image_size=16, depth=1, drop_path_rate=0.2).train()
        module.to(DEVICE)
        optimizer = build_optimizer(options.pop("optimizer", "sgd"), module, 0.1, 1e-2)
        term = "none" if kind == "none" else "hard" if kind == "hard" else "soft"
        average = WeightAverage(module, 0.9)
        self.step = form(module, optimizer, distillation_objective(term, backend="torch"), average=average, **options)
        self.average: WeightAverage = average

    def epoch(self, number: int, first_step: int = 0, sums: tuple[float, ...] = (0.0,) * 3) -> Iterator[list[Tensor]]:
        """What each step saw and its sums."""
        plan = EpochPlan.draw(self.recipe, size=IMAGES, image_size=16, seed=1, epoch=number)
        rows = self.step.rows(self.pipeline, plan, BATCH)
        targets = None if self.kind == "none" else Teacher(self.kind, number)
        rates = [rate / (number + 1) for rate in RATES]
        epoch = Epoch(self.pipeline, plan, BATCH, rates, targets, first_step, sums, rows)
        for batch, of_step in self.step.epoch(epoch):
            yield [value.clone() for value in (*(getattr(batch, each.name) for each in fields(Batch)), of_step)]

    def stateful(self) -> tuple[Any, ...]:
        """What has a state dict that a checkpoint holds."""
        return self.step.module, self.average.module, self.step.optimizer

    def state(self) -> list[Tensor]:
        """Weights, average, optimiser state and the epoch's sums."""
        state = self.step.optimizer.state.values()
        moments = [value for each in state for value in each.values() if isinstance(value, Tensor)]
        modules = self.stateful()[:2]
        return [*(value for each in modules for value in each.state_dict().values()), *moments, self.step.epoch_sums]


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs) > 0
    for own, other in zip(ours, theirs, strict=True):
        assert (own.dtype, own.shape) == (other.dtype, other.shape) and torch.equal(own, other)


@pytest.mark.parametrize(
    ("recipe", "kind", "options"),
    [
        ("cutmix", "hard", {}),
        ("mixup", "top", {"optimizer": "adamw", "accumulate": 2}),
        ("cutmix", "logits", {"clip_grad": 0.5}),
        ("none", "none", {}),
    ],
)
def test_it_trains_as_the_plain_step_bit_for_bit(recipe: str, kind: str, options: dict[str, Any]) -> None:
    """Two epochs of another order, other pixels, answers and rates; rates are what float32 holds exactly."""
    answers = []
    for form in (TrainStep, CapturedEpochs):
        training = Training(form, recipe, kind, **options)
        torch.manual_seed(1)
        seen = [value for number in (0, 1) for step in training.epoch(number) for value in step]
        assert len(seen) == 2 * STEPS * 6 and training.average.updates == 2 * STEPS
        answers.append([*seen, *training.state(), torch.rand(3)])
    assert_equal(answers[1], answers[0])


def test_it_goes_on_within_an_epoch() -> None:
    """In a new step, and in one that was captured, from the sums so far and the average's update."""
    whole = Training(CapturedEpochs)
    torch.manual_seed(1)
    list(whole.epoch(0))
    steps = whole.epoch(1)
    next(steps)
    sums = tuple(whole.step.epoch_sums.tolist())
    kept = copy.deepcopy([each.state_dict() for each in whole.stateful()])
    random_state = torch.get_rng_state()
    rest = [value for step in steps for value in step]

    for calls_before in (0, 1):
        resumed = Training(CapturedEpochs)
        for _ in zip(range(calls_before), resumed.epoch(5), strict=False):
            pass
        for each, state in zip(resumed.stateful(), kept, strict=True):
            each.load_state_dict(copy.deepcopy(state))
        resumed.average.updates = STEPS + 1
        torch.set_rng_state(random_state)
        found = [value for step in resumed.epoch(1, 1, sums) for value in step]
        assert_equal([*found, *resumed.state()], [*rest, *whole.state()])


def test_another_augmentation_is_captured_anew() -> None:
    answers = []
    for form in (TrainStep, CapturedEpochs):
        training = Training(form)
        torch.manual_seed(1)
        list(training.epoch(0))
        training.recipe = RECIPES["none"]
        seen = [value for step in training.epoch(1) for value in step]
        answers.append([*seen, *training.state()])
    assert_equal(answers[1], answers[0])
