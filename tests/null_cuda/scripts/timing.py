"""timing.py DEVICE: bench.timing's times of an addition, launched and in a graph, while another device is current.

Answers {"report": what happened, "graph": the graph's times}.
"""

from __future__ import annotations

import sys

import counters
import torch

from bench.timing import microseconds

device = torch.device(sys.argv[1])
tensors = [torch.zeros(64, device=device) for _ in range(2)]
counters.reset()
_, graph = microseconds(lambda tensor: tensor.add_(1), tensors, device)
counters.answer({"report": counters.read(), "graph": graph})
