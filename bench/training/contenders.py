"""Training steps to be timed: this project's forms of TITN and timm's TNT, all through the trainer's own `TrainStep`.

A step is taken on one fixed batch that lies on the device: forward, the loss with CutMix labels (TITN: also its
distillation head against fixed hard labels), backward, SGD with momentum. Drawing batches and running a teacher are not
part of it: they are the same for all. timm's TNT has no distillation token, so it does less work: 17 patch tokens
instead of 18 and one head instead of two.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from timm.models.tnt import TNT
from torch import Tensor, nn

from bench.report.sections import FAST
from bench.timing import on, storage_bytes
from titn.config import TrainConfig
from titn.models import create_model
from titn.pipelines import Batch
from titn.training.captured import CapturedStep, take_kernels
from titn.training.optimizers import build_optimizer
from titn.training.step import TrainStep, compile_network, distillation_objective
from titn.training.switches import Switches, compile_reasons, select

SEED = 0
CLASSES = 100
LEARNING_RATE, WEIGHT_DECAY = 0.01, 1e-4
NO_GPU = ("no GPU",)

Form = Literal["eager", "blocks", "whole", "graph", "captured"]
"""How a step runs: as written; its module compiled block by block, as a whole, or as a whole and replayed as CUDA
graphs; or all of it, optimiser included, captured in one CUDA graph without a compiler."""
_PRECISIONS = {None: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass(frozen=True)
class Sizes:
    """What the networks are built for; the defaults are the paper's."""

    depth: int = 12
    image_size: int = 32
    patch_size: int = 8


TOY = Sizes(depth=1, image_size=16)


@dataclass(frozen=True)
class Contender:
    """One way of training; `reasons` says why it cannot run here (empty: it can)."""

    name: str
    network: Literal["titn", "timm"]
    form: Form
    amp: torch.dtype | None
    kernels: str = "torch"
    reasons: tuple[str, ...] = ()

    @property
    def is_rival(self) -> bool:
        """Whether the network is not this project's."""
        return self.network != "titn"

    def build(self, sizes: Sizes) -> nn.Module:
        """The network, freshly initialised from a fixed seed."""
        torch.manual_seed(SEED)
        return timm_tnt(sizes) if self.is_rival else titn(sizes, self.kernels)


def titn(sizes: Sizes, kernels: str = "torch") -> nn.Module:
    """This project's TITN for 100 classes."""
    return create_model(
        "titn",
        num_classes=CLASSES,
        image_size=sizes.image_size,
        depth=sizes.depth,
        patch_size=sizes.patch_size,
        kernels=kernels,
    )


def timm_tnt(sizes: Sizes) -> nn.Module:
    """timm's TNT at TITN's sizes; it has a class token only, so one token less than TITN."""
    module: nn.Module = TNT(
        img_size=sizes.image_size, patch_size=sizes.patch_size, embed_dim=192, inner_dim=12, depth=sizes.depth,
        num_heads_inner=4, num_heads_outer=8, first_stride=2, legacy=True, num_classes=CLASSES,
    )  # fmt: skip
    return module


def precision(amp: torch.dtype | None) -> str:
    """The name of a precision: "bfloat16", "float16" or "float32"."""
    return _PRECISIONS[amp]


def fast_contender(device: torch.device, amp: torch.dtype | None) -> Contender:
    """What `--fast` trains with on this device, in the precision `amp`."""
    asked: dict[torch.dtype | None, Literal["off", "bf16", "fp16"]] = {
        None: "off", torch.bfloat16: "bf16", torch.float16: "fp16",
    }  # fmt: skip
    return of_switches(FAST, select(TrainConfig(dataset="cifar100", device=str(device), fast=True, amp=asked[amp])))


def of_switches(name: str, switches: Switches) -> Contender:
    """TITN trained with the switches of a run."""
    form: Form = "blocks" if switches.compile else "eager"
    if switches.cuda_graph:
        form = "captured" if switches.captured else "graph"
    return Contender(name, "titn", form, switches.amp, switches.kernels)


def all_contenders(device: torch.device, amp: torch.dtype | None) -> list[Contender]:
    """Ours and timm's, what matters most first; `amp` is the precision of all but the reference, which is float32."""
    compiler = tuple(compile_reasons(device))
    graph = () if device.type == "cuda" else NO_GPU
    return [
        fast_contender(device, amp),
        Contender("titn, torch.compile, CUDA graph", "titn", "graph", amp, "auto", compiler + graph),
        Contender("timm TNT, eager", "timm", "eager", amp),
        Contender("timm TNT, whole step in one CUDA graph", "timm", "captured", amp, reasons=graph),
        Contender("timm TNT, torch.compile", "timm", "whole", amp, reasons=compiler),
        Contender("timm TNT, torch.compile, CUDA graph", "timm", "graph", amp, reasons=compiler + graph),
        Contender("timm TNT, torch.compile of blocks", "timm", "blocks", amp, reasons=compiler),
        Contender("titn, torch.compile", "titn", "whole", amp, reasons=compiler),
        Contender("titn reference, float32", "titn", "eager", None),
    ]


class Step:
    """A contender's training step on a batch of its own; calling it takes one step.

    Args:
        contender: what to train.
        device: where.
        batch_size: images per step, B.
        sizes: of network and images, [B, 3, image_size, image_size] normal noise.
        small: compile for graph capture only (backend "aot_eager"), in seconds instead of minutes.
    """

    def __init__(
        self, contender: Contender, device: torch.device, batch_size: int, sizes: Sizes, *, small: bool = False
    ) -> None:
        self.device = device
        generator = torch.Generator().manual_seed(SEED)
        labels = [torch.randint(0, CLASSES, (batch_size,), generator=generator).to(device) for _ in range(3)]
        images = torch.randn(batch_size, 3, sizes.image_size, sizes.image_size, generator=generator)
        lam = torch.rand(batch_size, generator=generator)
        ids = torch.arange(batch_size, device=device)
        self.batch = Batch(images.to(device), ids, labels[0], labels[1], lam.to(device))
        self.targets = None if contender.is_rival else labels[2]
        module = contender.build(sizes).train().to(device)
        if contender.form in ("blocks", "whole", "graph"):
            compile_network(module, contender.form, "aot_eager" if small else "inductor")
        if contender.form == "captured":
            take_kernels(module)
        self.step = (CapturedStep if contender.form == "captured" else TrainStep)(
            module,
            build_optimizer("sgd", module, LEARNING_RATE, WEIGHT_DECAY),
            distillation_objective("none" if contender.is_rival else "hard", backend=contender.kernels),
            amp=contender.amp,
            scaler=torch.amp.GradScaler(device.type, enabled=contender.amp is torch.float16),
            cuda_graph=contender.form == "graph",
        )

    def __call__(self) -> None:
        with on(self.device):
            self.step(self.batch, self.targets, LEARNING_RATE)

    def release(self) -> None:
        """Free the gradients, which are of no use after the step."""
        self.step.optimizer.zero_grad(set_to_none=True)

    def held_bytes(self) -> int:
        """Bytes that lie there between two steps: network, optimiser and batch."""
        module, optimizer = self.step.module, self.step.optimizer
        state = (value for each in optimizer.state.values() for value in each.values())
        batch = (getattr(self.batch, each.name) for each in fields(self.batch))
        everything = (*module.parameters(), *module.buffers(), *state, *batch)
        return storage_bytes(each for each in everything if isinstance(each, Tensor))
