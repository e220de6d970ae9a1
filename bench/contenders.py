"""Training steps to be timed: this project's forms of TITN and timm's TNT, all through the trainer's own step.

A step is `Trainer.train_step` on one fixed batch that lies on the device: forward, the loss with CutMix labels (TITN:
also its distillation head against fixed hard labels), backward, SGD with momentum. Drawing batches and running a
teacher are not part of it: they are the same for all. timm's TNT has no distillation token, so it does less work: 17
patch tokens instead of 18 and one head instead of two.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from timm.models.tnt import TNT
from torch import Tensor, nn

from bench.memory import storage_bytes
from bench.sections import FAST
from titn.config import TrainConfig, resolve
from titn.data.dataset import Dataset
from titn.models import create_model
from titn.network import NetworkSpec
from titn.pipelines import Batch
from titn.training.meters import Tally
from titn.training.run import Run
from titn.training.switches import Parts, compile_reasons, select
from titn.training.trainer import Trainer

SEED = 0
CLASSES = 100
LEARNING_RATE = 0.01

Form = Literal["eager", "blocks", "whole", "graph"]
"""How a module is compiled: not at all, block by block, as a whole, or as a whole and replayed as a CUDA graph."""
_AMP = {None: "off", torch.bfloat16: "bf16", torch.float16: "fp16"}


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


def fast_contender(device: torch.device, amp: torch.dtype | None) -> Contender:
    """What `--fast` trains with on this device, in the precision `amp`."""
    config = TrainConfig(dataset="cifar100", device=str(device), fast=True, amp=_AMP[amp])  # type: ignore[arg-type]
    return of_parts(FAST, select(config))


def of_parts(name: str, parts: Parts) -> Contender:
    """TITN trained with the parts of a run."""
    form: Form = "graph" if parts.cuda_graph else "blocks" if parts.compile else "eager"
    return Contender(name, "titn", form, parts.amp, parts.kernels)


def all_contenders(device: torch.device, amp: torch.dtype | None) -> list[Contender]:
    """Ours and timm's, what matters most first; `amp` is the precision of all but the reference, which is float32."""
    compiler = tuple(compile_reasons(device))
    graph = () if device.type == "cuda" else ("no GPU",)
    return [
        Contender("titn reference, float32", "titn", "eager", None),
        fast_contender(device, amp),
        Contender("timm TNT, eager", "timm", "eager", amp),
        Contender("timm TNT, torch.compile, CUDA graph", "timm", "graph", amp, reasons=compiler + graph),
        Contender("timm TNT, torch.compile", "timm", "whole", amp, reasons=compiler),
        Contender("timm TNT, torch.compile of blocks", "timm", "blocks", amp, reasons=compiler),
        Contender("titn, torch.compile", "titn", "whole", amp, reasons=compiler),
    ]


class Step:
    """A contender's training step on a batch of its own; calling it takes one step.

    Args:
        contender: what to train.
        device: where.
        batch_size: images a step, B.
        sizes: of network and images, [B, 3, image_size, image_size] normal noise.
        small: compile for graph capture only (backend "aot_eager"), in seconds instead of minutes.
    """

    def __init__(
        self, contender: Contender, device: torch.device, batch_size: int, sizes: Sizes, *, small: bool = False
    ) -> None:
        config = resolve(
            TrainConfig(dataset="cifar100", batch_size=batch_size, lr=LEARNING_RATE, seed=SEED, device=str(device))
        )
        form = contender.form
        ready_made = form in ("blocks", "graph") and not small
        parts = Parts(device, contender.amp, ready_made, form == "graph", contender.kernels, "torch", ())
        dataset = _dataset(sizes.image_size)
        generator = torch.Generator().manual_seed(SEED)
        labels = [torch.randint(0, CLASSES, (batch_size,), generator=generator).to(device) for _ in range(3)]
        images = torch.randn(batch_size, 3, sizes.image_size, sizes.image_size, generator=generator)
        lam = torch.rand(batch_size, generator=generator)
        ids = torch.arange(batch_size, device=device)
        self.batch = Batch(images.to(device), ids, labels[0], labels[1], lam.to(device))
        self.trainer = Trainer(
            config,
            parts,
            dataset,
            Run(Path("nothing is written")),
            NetworkSpec.of(config, dataset),
            contender.build(sizes).train(),
            None if contender.is_rival else lambda batch: labels[2],
            Console(quiet=True),
        )
        if form != "eager" and not ready_made:
            compile_as(self.trainer.module, form, "aot_eager" if small else "inductor")
        self.tally = Tally.start(device, None)

    def __call__(self) -> None:
        self.trainer.train_step(self.batch, self.tally)

    def release(self) -> None:
        """Free the gradients, which are of no use after the step."""
        self.trainer.optimizer.zero_grad(set_to_none=True)

    def held_bytes(self) -> int:
        """Bytes that lie there between two steps: network, optimiser and batch."""
        module, optimizer = self.trainer.module, self.trainer.optimizer
        state = (value for each in optimizer.state.values() for value in each.values())
        batch = (getattr(self.batch, each.name) for each in fields(self.batch))
        everything = (*module.parameters(), *module.buffers(), *state, *batch)
        return storage_bytes(each for each in everything if isinstance(each, Tensor))


def compile_as(module: nn.Module, form: Form, backend: str) -> None:
    """Compile in place, block by block or as a whole."""
    if form == "blocks":
        blocks = module.blocks
        assert isinstance(blocks, nn.ModuleList)
        for block in blocks:
            block.compile(backend=backend)
    else:
        module.compile(backend=backend)


def _dataset(image_size: int) -> Dataset:
    """What a Trainer needs to exist: two images that no step sees."""
    images, labels = np.zeros((2, image_size, image_size, 3), np.uint8), np.arange(2)
    names = tuple(map(str, range(CLASSES)))
    return Dataset("noise", images, labels, images, labels, names, (0.5,) * 3, (0.5,) * 3, "")
