"""whole_graph.py DEVICE: forward, loss, backward and SGD with Triton kernels, captured in one graph.

The learning rate is a tensor, so that it changes without another capture. Answers {"capture": report, "replays": report
of five}.
"""

from __future__ import annotations

import sys

import counters
import torch

from titn import create_model
from titn.kernels import distillation_loss

BATCH_SIZE = 8
device = torch.device(sys.argv[1])
torch.cuda.set_device(device)
module = create_model("titn", num_classes=100, depth=1, kernels="triton").to(device).train()
rate = torch.tensor(0.01, device=device)
optimizer = torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4, fused=True)
images = torch.randn(BATCH_SIZE, 3, 32, 32, device=device)
labels, lam = torch.zeros(BATCH_SIZE, dtype=torch.int64, device=device), torch.ones(BATCH_SIZE, device=device)


def step() -> None:
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        class_logits, distillation_logits = module(images)
    loss = distillation_loss(
        class_logits, distillation_logits, labels, labels, lam, labels, kind="hard", weight=0.5, backend="triton"
    )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


side = torch.cuda.Stream()
side.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(side):
    for _ in range(2):
        step()
torch.cuda.current_stream().wait_stream(side)
optimizer.zero_grad(set_to_none=True)
graph = torch.cuda.CUDAGraph()
counters.reset()
with torch.cuda.graph(graph):
    step()
capture = counters.read()
counters.reset()
for _ in range(5):
    rate.fill_(0.01)
    graph.replay()
counters.answer({"capture": capture, "replays": counters.read()})
