"""host_time.py FORM...: process time of a training step as a multiple of that of 100 eager additions.

Each is the shortest of many turns, of which some are not disturbed however busy the machine is. Answers {form: ratio}.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import counters
import forms
import torch

CUDA = torch.device("cuda")
ROUNDS, ADDITIONS = 120, 100
x = torch.zeros(8, device=CUDA)


def add() -> None:
    for _ in range(ADDITIONS):
        x.add_(1)


def process_seconds(body: Callable[[], None]) -> float:
    began = time.process_time()
    body()
    return time.process_time() - began


def ratio(form: str) -> float:
    step = forms.build(form, CUDA)
    for _ in range(10):
        step()
    return min(process_seconds(step) for _ in range(ROUNDS)) / min(process_seconds(add) for _ in range(ROUNDS))


counters.answer({form: round(ratio(form), 2) for form in sys.argv[1:]})
