"""A teacher's answers: its logits, and decisions that do not depend on how they were computed.

The last bits of a network's logits change with the batch size, the number of threads, the memory layout, folded batch
normalisation and the device. Where two classes are almost equal, so does their argmax. `TeacherAnswers.decisions`
therefore trusts an argmax only where the two largest logits are further apart than rounding can reach, and computes
every other image again in the next higher precision:

    bfloat16 ── close calls ──> float32 ── close calls ──> float64
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError

from titn.errors import UserError

REACH = {torch.bfloat16: 2.0**-5, torch.float32: 2.0**-12}
"""Two logits closer than this share of the image's largest absolute logit count as a close call.

8 times the rounding of bfloat16 (2^-8), 4096 times that of float32 (2^-24), whose logits differ by some tens of
roundings between ways of computing them. How far rounding reaches depends on the network: `TeacherAnswers.calibrate`
measures it.
"""
_SAFETY = 4
"""Two logits that are each wrong by d may change places where they are within 2 d; twice that for unseen images."""
_LADDER = (torch.bfloat16, torch.float32, torch.float64)
_SMALL_BATCH = 32


@dataclass(frozen=True)
class Agreement:
    """How a way of computing compares with the plain one (float32, unfolded, batches of 32) on `images` images.

    Attributes:
        images: number of images compared.
        largest_difference: of a logit, as a share of the image's largest absolute logit.
        same_argmax: share of images with the same largest logit.
        same_decision: share of images with the same decision.
        reach: share of the largest absolute logit within which two logits count as a close call.
    """

    images: int
    largest_difference: float
    same_argmax: float
    same_decision: float
    reach: float


class TeacherAnswers:
    """Asks `network`, which is put into evaluation mode on `device`.

    Args:
        network: images [B, C, H, W] to logits [B, K], in float32.
        device: where the images are.
        bfloat16: compute in bfloat16 (autocast) what is no close call.
        fast: channels last, with batch normalisation folded into the convolutions.
        say: told in a line what cannot be folded.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        *,
        bfloat16: bool = False,
        fast: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.precision = torch.bfloat16 if bfloat16 else torch.float32
        self._layout = torch.channels_last if fast else torch.contiguous_format
        self._quick = fold_batch_norms(self.network, say).to(memory_format=self._layout) if fast else self.network
        self._exact: nn.Module | None = None
        self._reach = dict(REACH)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Float32 [B, K], computed in `precision`.

        Raises:
            UserError: a logit is not finite.
        """
        return self._compute(images, self.precision).float()

    @torch.no_grad()
    def decisions(self, images: Tensor) -> Tensor:
        """The class of the largest logit in float64, int64 [B], as long as rounding stays within half the reach.

        Raises:
            UserError: a logit is not finite.
        """
        labels = torch.empty(len(images), dtype=torch.int64, device=images.device)
        rows = torch.arange(len(images), device=images.device)
        for precision in _LADDER[_LADDER.index(self.precision) :]:
            logits = self._compute(images, precision)
            labels[rows] = logits.argmax(1)
            if precision is torch.float64:
                break
            close = close_calls(logits.float(), self._reach[precision])
            if not len(close):
                break
            rows, images = rows[close], images[close]
        return labels

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> Agreement:
        """Compare with the plain way of computing on `images`, float32 [B, C, H, W], and widen the reach if need be."""
        plain = torch.cat([self.network(part) for part in images.split(_SMALL_BATCH)]).float()
        quick = self.logits(images)
        argmax = plain.argmax(1)
        difference = ((plain - quick).abs().amax(1) / plain.abs().amax(1)).max().item()
        reach = self._reach[self.precision] = max(REACH[self.precision], _SAFETY * difference)
        return Agreement(
            images=len(images),
            largest_difference=difference,
            same_argmax=(quick.argmax(1) == argmax).double().mean().item(),
            same_decision=(self.decisions(images) == argmax).double().mean().item(),
            reach=reach,
        )

    def _compute(self, images: Tensor, precision: torch.dtype) -> Tensor:
        logits: Tensor
        if precision is torch.float64:
            if self._exact is None:
                self._exact = copy.deepcopy(self.network).double()
            logits = self._exact(images.double())
        else:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=precision is torch.bfloat16):
                logits = self._quick(images.to(memory_format=self._layout))
        if (~torch.isfinite(logits)).any():
            raise UserError("the teacher gives logits that are not finite: train it again, or at a lower --lr")
        return logits


def close_calls(logits: Tensor, reach: float) -> Tensor:
    """Rows, int64 [n], of logits [B, K] whose two largest are within `reach` times the largest absolute one."""
    largest = logits.topk(min(2, logits.shape[1]), dim=1).values
    return (largest[:, 0] - largest[:, -1] <= reach * logits.abs().amax(1)).nonzero().flatten()


class MeanOfLogits(nn.Module):
    """Several teachers as one: float images [B, C, H, W] to the mean of the networks' logits [B, K].

    Its distribution is the geometric mean of theirs (arXiv 1503.02531, section 1), however each shifts its logits. Of
    networks that were trained alike each has the same weight, else a surer one, with logits further apart, has more.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        each = [network(images) for network in self.networks]
        wide = torch.promote_types(each[0].dtype, torch.float32)
        return torch.stack([logits.to(wide) for logits in each]).mean(0)


def fold_batch_norms(network: nn.Module, say: Callable[[str], None] = lambda line: None) -> nn.Module:
    """A copy in evaluation mode with batch normalisation folded into the convolution before it, where there is one.

    Each of several teachers is folded by itself. A network that torch.fx cannot trace is copied as it is, and `say` is
    told so in a line.
    """
    if isinstance(network, MeanOfLogits):
        return MeanOfLogits(fold_batch_norms(each, say) for each in network.networks).eval()
    if not any(isinstance(each, nn.BatchNorm2d) for each in network.modules()):
        return copy.deepcopy(network).eval()
    try:
        return fuse(network.eval()).requires_grad_(False)
    except (TraceError, TypeError, NotImplementedError) as error:  # other people's networks may branch on values
        say(
            f"the teacher {type(network).__name__} cannot be traced ({type(error).__name__}): its batch normalisation "
            "is not folded, and it answers more slowly"
        )
        return copy.deepcopy(network).eval()
