"""timing.py DEVICE: bench.timing on a device that is not the current one.

Answers {"report": what happened, "graph": times of a graph of additions, "empty": what comes of an empty graph}.
"""

from __future__ import annotations

import sys

import counters
import torch

from bench.timing import captured, microseconds
from titn.training.captured import EmptyGraph

device = torch.device(sys.argv[1])
tensors = [torch.zeros(64, device=device) for _ in range(2)]
counters.reset()
_, graph = microseconds(lambda tensor: tensor.add_(1), tensors, device)
report = counters.read()
try:
    captured(lambda: None, device)
    empty = "a graph"
except EmptyGraph:
    empty = "refused"
counters.answer({"report": report, "graph": graph, "empty": empty})
