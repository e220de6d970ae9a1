"""checkpoint.py DEVICE FOLDER: a captured step with AdamW, saved; loaded into another, and into the same again.

Answers reports: {"snapshot": of taking the state, "write": of writing it, "resumed": of a step of the other,
"replayed": of its next, "again": of the first's}.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import counters
import torch

from bench.training.contenders import CLASSES, LEARNING_RATE, Contender, Sizes, Step
from titn.network import NetworkSpec
from titn.training import checkpoint
from titn.training.captured import CapturedStep
from titn.training.optimizers import build_optimizer
from titn.training.step import distillation_objective

device, folder = torch.device(sys.argv[1]), Path(sys.argv[2])
contender, sizes = Contender("", "titn", "captured", torch.bfloat16, "triton"), Sizes(depth=1)
made = Step(contender, device, 8, sizes)


def build() -> CapturedStep:
    module = contender.build(sizes).train().to(device)
    optimizer = build_optimizer("adamw", module, LEARNING_RATE, 1e-4)
    return CapturedStep(module, optimizer, distillation_objective("hard", backend="auto"), amp=torch.bfloat16)


def taken(step: CapturedStep) -> dict[str, Any]:
    counters.reset()
    step(made.batch, made.targets, LEARNING_RATE)
    return counters.read()


first, other = build(), build()
taken(first)
built: Any = first.module.sizes
spec = NetworkSpec("titn", built, "noise", tuple(map(str, range(CLASSES))), (0.5,) * 3, (0.25,) * 3)
counters.reset()
snapshot = checkpoint.Snapshot(checkpoint.Progress(epoch=1), first.module, spec, first.optimizer)
reports = {"snapshot": counters.read()}
counters.reset()
saved = snapshot.write(folder)
reports["write"] = counters.read()
checkpoint.load(saved, other.module, other.optimizer)
reports |= {"resumed": taken(other), "replayed": taken(other)}
checkpoint.load(saved, first.module, first.optimizer)
reports["again"] = taken(first)
counters.answer(reports)
