"""epochs.py DEVICE: two epochs of captured steps with plans, labels and answers on the device, of several trainings.

Answers {name: {"first": report of the first epoch's first step, which captures, "begin": of the second epoch's first,
"steps": [of each other step]}}.
"""

from __future__ import annotations

import sys

import counters
import numpy as np
import torch

from bench.training.contenders import CLASSES, LEARNING_RATE, Contender, Sizes
from titn.pipelines import Augmentation, EpochPlan, TritonPipeline
from titn.training.average import WeightAverage
from titn.training.captured import take_kernels
from titn.training.captured_epochs import CapturedEpochs
from titn.training.optimizers import build_optimizer
from titn.training.step import Epoch, distillation_objective
from titn.training.targets import StoredAnswers

BATCH, STEPS = 8, 4
LABELS = {"labels": np.zeros(BATCH * STEPS, np.uint8)}
LOGITS = {"logits": np.zeros((BATCH * STEPS, CLASSES), np.float16)}
TRAININGS = {
    "sgd, twelve blocks": (12, torch.bfloat16, LABELS, False),
    "adamw, twelve blocks, averaged": (12, torch.bfloat16, LABELS, True),
    "sgd, fp16, logits": (1, torch.float16, LOGITS, False),
}
"""Depth, precision, what is stored of the teacher, and whether the weights are averaged."""


class Stored:
    """A teacher's answers that are there."""

    def __init__(self, records: dict[str, np.ndarray]) -> None:
        self.stored = StoredAnswers(records, CLASSES, device)


device = torch.device(sys.argv[1])
images = np.random.default_rng(0).integers(0, 256, (BATCH * STEPS, 32, 32, 3), np.uint8)
pipeline = TritonPipeline(images, np.arange(len(images)), mean=(0.5,) * 3, std=(0.25,) * 3, device=device)
augmentation = Augmentation(policy="cifar10", mix="cutmix_batch", mix_batch=BATCH)
reports = {}
for name, (depth, amp, records, averaged) in TRAININGS.items():
    module = Contender(name, "titn", "captured", amp, "auto").build(Sizes(depth=depth)).train().to(device)
    take_kernels(module)
    step = CapturedEpochs(
        module,
        build_optimizer(name.split(",")[0], module, LEARNING_RATE, 1e-4),
        distillation_objective("hard" if records is LABELS else "soft", backend="auto"),
        amp=amp,
        scaler=torch.amp.GradScaler(device.type, enabled=amp is torch.float16),
        average=WeightAverage(module, 0.9) if averaged else None,
    )
    taken = []
    for number in range(2):
        plan = EpochPlan.draw(augmentation, size=len(images), image_size=32, seed=0, epoch=number)
        rows = step.rows(pipeline, plan, BATCH)
        steps = step.epoch(Epoch(pipeline, plan, BATCH, [LEARNING_RATE] * STEPS, Stored(records), rows=rows))
        for _ in range(STEPS):
            counters.reset()
            next(steps)
            taken.append(counters.read())
    reports[name] = {"first": taken[0], "begin": taken[STEPS], "steps": taken[1:STEPS] + taken[STEPS + 1 :]}
counters.answer(reports)
