"""Muon for matrices, and AdamW beside it for everything else."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from titn.training.switches import native_bfloat16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
"""Jordan's: every singular value between 0.01 and 1 ends between 0.68 and 1.13."""


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal (Jordan et al., kellerjordan.github.io/posts/muon), at AdamW's scale (arXiv 2502.16982).

    A step moves a matrix W [rows, columns] with the gradient G and the momentum B, zero at first:

        B = momentum B + (1 - momentum) G
        W = (1 - lr weight_decay) W - 0.2 sqrt(max(rows, columns)) lr NS(momentum B + (1 - momentum) G)

    NS is `newton_schulz`. The entries of a step have a root mean square near 0.2 lr, as AdamW's have, so that one
    learning rate and one decay serve both.

    torch.optim.Muon (adjust_lr_fn="match_rms_adamw") takes the same step, matrix by matrix. This one knows parameters
    that are several maps, and iterates over all matrices of a shape at once: over twelve blocks of width 192 a step
    computes in 70 tensor operations instead of 1,730, few enough for a captured one.

    Args:
        params: matrices [rows, columns], or groups of them; `maps` of a group is the number of maps of equal size that
            each parameter stacks by its rows (3: packed queries, keys and values). The filters of a convolution
            [rows, inputs, height, width] count as a matrix [rows, inputs * height * width].
        lr: learning rate.
        weight_decay: decoupled, as AdamW's.
        momentum: of the average of gradients, looked ahead from (Nesterov).
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.0, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "maps": 1})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what `closure` does."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if not params:
                continue
            gradients = [param.grad for param in params]
            for param in params:
                if not self.state[param]:
                    self.state[param]["momentum_buffer"] = torch.zeros_like(param)
            buffers = [self.state[param]["momentum_buffer"] for param in params]
            torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, buffers, group["momentum"])
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, _updates(ahead, group["maps"], group["lr"]))
        return loss


def newton_schulz(matrices: Tensor) -> Tensor:
    """Singular values of `matrices` [B, M, N], M at most N, brought near 1, in five products of an odd polynomial.

    With the singular value decomposition U S V^T and p(s) = 3.4445 s - 4.7750 s^3 + 2.0315 s^5 that is
    U p(p(p(p(p(S / |S|))))) V^T. Computed in bfloat16 where the device has it, as in Jordan's own code, else, and for
    float64, in the matrices' dtype, which the result has.
    """
    a, b, c = COEFFICIENTS
    norms = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    x = (matrices / norms).to(_arithmetic(matrices.device, matrices.dtype))
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


def _updates(directions: Sequence[Tensor], maps: int, lr: float) -> list[Tensor]:
    """What to add to each parameter, [rows, columns] or [rows, ...], for its direction of the same shape."""
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    wide: list[Tensor] = []
    for index, direction in enumerate(directions):
        each = direction.flatten(1).unflatten(0, (maps, -1))
        wide.append(each.mT if each.shape[1] > each.shape[2] else each)
        by_shape[wide[-1].shape[1], wide[-1].shape[2]].append(index)
    updates: list[Tensor] = [*directions]
    for shape, indices in by_shape.items():
        orthogonal = newton_schulz(torch.cat([wide[index] for index in indices])).mul_(-0.2 * max(shape) ** 0.5 * lr)
        for index, update in zip(indices, orthogonal.split(maps), strict=True):
            rows_first = update if update.shape[1] * maps == len(directions[index]) else update.mT
            updates[index] = rows_first.flatten(0, 1).view_as(directions[index])
    return updates


@functools.cache
def _arithmetic(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if dtype is not torch.float64 and native_bfloat16(device) else dtype


class MuonWithAdamW(torch.optim.Optimizer):
    """`Muon` for some parameters and AdamW for others, as one optimiser: one list of groups, one state.

    Args:
        matrices: for Muon, as parameter groups.
        others: for AdamW.
        lr: learning rate of both.
        weight_decay: of both.
        betas: of AdamW.
    """

    def __init__(
        self,
        matrices: Sequence[dict[str, Any]],
        others: Sequence[Tensor],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        muon = Muon(matrices, lr=lr, weight_decay=weight_decay)
        adamw = torch.optim.AdamW(others, lr=lr, betas=betas, weight_decay=weight_decay, fused=True, capturable=True)
        self._parts = (muon, adamw)
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what `closure` does."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Let both work on the groups and the state of this object."""
        groups = iter(self.param_groups)
        for part in self._parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state
