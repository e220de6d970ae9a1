"""steps.py FORM DEVICE: the training step, two times to compile and capture, then five times.

Answers {"warm_up": report of the first two, "steps": [a report each]}.
"""

from __future__ import annotations

import sys

import counters
import forms
import torch

counters.reset()
step = forms.build(sys.argv[1], torch.device(sys.argv[2]))
for _ in range(2):
    step()
warm_up, steps = counters.read(), []
for _ in range(5):
    counters.reset()
    step()
    steps.append(counters.read())
counters.answer({"warm_up": warm_up, "steps": steps})
