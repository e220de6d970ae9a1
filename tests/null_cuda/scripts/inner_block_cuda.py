"""Forward and backward of the inner block by its CUDA C++ kernels: the first, the second, and one that is captured.

The tensors lie on the last device, which is not the current one.
"""

from __future__ import annotations

import counters
import torch
from torch import Tensor

from titn.kernels import AttentionWeights, MlpWeights, inner_block

if __name__ == "__main__":
    device = torch.device("cuda", torch.cuda.device_count() - 1)

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(*shape, device=device, dtype=dtype, requires_grad=True)

    attention = AttentionWeights(zeros(12), zeros(12), zeros(36, 12), zeros(36), zeros(12, 12), zeros(12))
    mlp = MlpWeights(zeros(12), zeros(12), zeros(48, 12), zeros(48), zeros(12, 48), zeros(12))
    x = zeros(10_000, 16, 12, dtype=torch.bfloat16)
    dy = torch.zeros_like(x)

    def both_ways() -> None:
        y = inner_block(x, attention, mlp, num_heads=4, backend="cuda")
        torch.autograd.grad(y, (x, *attention, *mlp), dy)

    reports = []
    for _ in range(2):
        counters.reset()
        both_ways()
        reports.append(counters.read())
    counters.reset()
    with torch.cuda.device(device), torch.cuda.graph(torch.cuda.CUDAGraph()):
        both_ways()
    reports.append(counters.read())
    counters.answer(reports)
