"""captured.py DEVICE: the captured step of several trainings; the first call captures, two more replay.

Answers {name: {"capture": report, "replays": [a report each]}}.
"""

from __future__ import annotations

import sys

import counters
import torch

from bench.training.contenders import LEARNING_RATE, Contender, Sizes, Step
from titn.kernels.common.backend import triton_reasons
from titn.training.average import WeightAverage
from titn.training.captured import CapturedStep
from titn.training.optimizers import build_optimizer
from titn.training.step import distillation_objective

BF16, FP16 = torch.bfloat16, torch.float16
TRAININGS = {
    "sgd": (BF16, 1, {}),
    "adam, accumulated": (BF16, 1, {"accumulate": 2}),
    "adamw, averaged": (BF16, 1, {"average": 0.9}),
    "rmsprop": (BF16, 1, {}),
    "muon": (BF16, 1, {}),
    "sgd, fp16, averaged": (FP16, 1, {"average": 0.9}),
    "adamw, fp16, accumulated": (FP16, 1, {"accumulate": 2}),
    "adamw, clipped": (BF16, 1, {"clip_grad": 1.0}),
    "sgd, fp16, clipped": (FP16, 1, {"clip_grad": 1.0}),
    "sgd, twelve blocks": (BF16, 12, {}),
    "adamw, twelve blocks, averaged": (BF16, 12, {"average": 0.9}),
}
"""Precision, depth and options; the name begins with the optimiser's."""

device = torch.device(sys.argv[1])
assert not triton_reasons(torch.empty(0, device=device), "auto")
reports = {}
for name, (amp, depth, options) in TRAININGS.items():
    made = Step(Contender(name, "titn", "captured", amp, "auto"), device, 8, Sizes(depth=depth))
    module, decay = made.step.module, options.get("average")
    step = CapturedStep(
        module,
        build_optimizer(name.split(",")[0], module, LEARNING_RATE, 1e-4),
        distillation_objective("hard", backend="auto"),
        amp=amp,
        scaler=torch.amp.GradScaler(device.type, enabled=amp is FP16),
        accumulate=options.get("accumulate", 1),
        average=None if decay is None else WeightAverage(module, decay),
        clip_grad=options.get("clip_grad"),
    )
    taken = []
    for _ in range(3):
        counters.reset()
        step(made.batch, made.targets, LEARNING_RATE)
        taken.append(counters.read())
    reports[name] = {"capture": taken[0], "replays": taken[1:]}
counters.answer(reports)
