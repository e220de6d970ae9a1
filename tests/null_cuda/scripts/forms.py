"""The forms of the training step, on a batch of noise that lies on the device."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.training.contenders import LEARNING_RATE, Contender, Sizes, Step

FORMS = {
    "float32": Contender("float32", "titn", "eager", None),
    "bf16": Contender("bf16", "titn", "eager", torch.bfloat16),
    "fp16": Contender("fp16", "titn", "eager", torch.float16),
    "triton": Contender("triton", "titn", "eager", torch.bfloat16, "triton"),
    "blocks": Contender("blocks", "titn", "blocks", torch.bfloat16),
    "graph": Contender("graph", "titn", "graph", torch.bfloat16, "auto"),
    "captured": Contender("captured", "titn", "captured", torch.bfloat16, "auto"),
    "captured fp16": Contender("captured fp16", "titn", "captured", torch.float16, "auto"),
}
"""Eager in three precisions, with Triton kernels, with compiled blocks, compiled into CUDA graphs, and the whole step
with Triton kernels captured in one CUDA graph (`--fast`)."""

BATCH_SIZE = 8


def build(form: str, device: torch.device) -> Callable[[], object]:
    """A step of TITN with depth 1 on 8 images of 32x32 pixels; the current device may be another."""
    step = Step(FORMS[form], device, BATCH_SIZE, Sizes(depth=1))
    return lambda: step.step(step.batch, step.targets, LEARNING_RATE)
