"""optimizer.py NAME DEVICE: the whole step with an optimiser by name, an average and two micro-batches.

Two steps to begin with, five more, and another captured in a CUDA graph and replayed. Answers
{"warm_up": report, "steps": [a report each], "capture": report, "replay": report}.
"""

from __future__ import annotations

import sys

import counters
import forms
import torch

from bench.training.contenders import LEARNING_RATE, Sizes, Step
from titn.training.average import WeightAverage
from titn.training.captured import capture
from titn.training.optimizers import build_optimizer
from titn.training.step import TrainStep

counters.reset()
name, device = sys.argv[1], torch.device(sys.argv[2])
made = Step(forms.FORMS["bf16"], device, forms.BATCH_SIZE, Sizes(depth=2))
step = TrainStep(
    made.step.module,
    build_optimizer(name, made.step.module, LEARNING_RATE, 0.05),
    made.step.objective,
    amp=torch.bfloat16,
    accumulate=2,
    average=WeightAverage(made.step.module, 0.99),
)


def take() -> None:
    step(made.batch, made.targets, LEARNING_RATE)


for _ in range(2):
    take()
warm_up, steps = counters.read(), []
for _ in range(5):
    counters.reset()
    take()
    steps.append(counters.read())
counters.reset()
graph = capture(take, device)
recorded = counters.read()
counters.reset()
graph.replay()
counters.answer({"warm_up": warm_up, "steps": steps, "capture": recorded, "replay": counters.read()})
