"""Checkpoints are written while training goes on: they hold the moment, one at a time, and what fails is said."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from titn.models.sizes import ViTSizes
from titn.network import NetworkSpec
from titn.training import checkpoint
from titn.training.average import WeightAverage
from titn.training.checkpoint import Progress, Snapshot, Writer
from titn.training.optimizers import build_optimizer

SPEC = NetworkSpec("deit", ViTSizes(depth=1, num_classes=2), "noise", ("a", "b"), (0.5,) * 3, (0.25,) * 3)


def trained() -> tuple[nn.Module, torch.optim.Optimizer, WeightAverage]:
    """A network, its optimiser with state, and an average that is behind."""
    torch.manual_seed(0)
    module = SPEC.build()
    optimizer, average = build_optimizer("adamw", module, 1e-2, 0.0), WeightAverage(module, 0.9)
    take_step(module, optimizer, average)
    return module, optimizer, average


def take_step(module: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage) -> None:
    optimizer.zero_grad()
    sum(logits.sum() for logits in module(torch.rand(2, 3, 32, 32))).backward()
    optimizer.step()
    average.update()


def state(module: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module) -> list[torch.Tensor]:
    stored = optimizer.state_dict()["state"]
    moments = [stored[index][name] for index in sorted(stored) for name in sorted(stored[index])]
    return [value.clone() for value in (*module.state_dict().values(), *average.state_dict().values(), *moments)]


def held(writer: Writer) -> threading.Event:
    """The writer's thread is busy until the event is set."""
    free = threading.Event()
    writer._thread.submit(free.wait, 60)
    return free


def test_a_checkpoint_holds_the_moment_it_was_asked_for(tmp_path: Path) -> None:
    module, optimizer, average = trained()
    expected, random = state(module, optimizer, average.module), torch.get_rng_state()
    progress = Progress(epoch=1, best_top1=0.5, best_epoch=1, epoch_sums=[1.0, 2.0, 3.0])
    with Writer(tmp_path) as writer:
        free = held(writer)
        writer.write(Snapshot(progress, module, SPEC, optimizer, average.module))
        take_step(module, optimizer, average)
        progress.epoch, progress.epoch_sums[0] = 2, 9.0
        assert checkpoint.newest(tmp_path) is None, "nothing was waited for"
        free.set()
    other, its_optimizer, its_average = trained()
    found = checkpoint.load(tmp_path / "epoch-0001", other, its_optimizer, its_average.module)
    assert (found.epoch, found.epoch_sums) == (1, [1.0, 2.0, 3.0])
    assert torch.equal(torch.get_rng_state(), random)
    for one, two in zip(state(other, its_optimizer, its_average.module), expected, strict=True):
        assert torch.equal(one, two)


def test_the_next_checkpoint_waits_for_the_one_before(tmp_path: Path) -> None:
    module, optimizer, _ = trained()
    with Writer(tmp_path) as writer:
        for epoch in range(1, 5):
            writer.write(Snapshot(Progress(epoch=epoch, best_epoch=1), module, SPEC, optimizer))
            assert epoch == 1 or (tmp_path / f"epoch-{epoch - 1:04}").is_dir()
    assert [path.name for path in checkpoint.folders(tmp_path)] == ["epoch-0001", "epoch-0003", "epoch-0004"]
    for folder in checkpoint.folders(tmp_path):
        checkpoint.verify(folder)


@pytest.mark.parametrize("ask", ["write", "check", "wait", "leave"])
def test_what_cannot_be_written_is_raised_once(ask: str, tmp_path: Path) -> None:
    module, optimizer, _ = trained()
    snapshot = Snapshot(Progress(epoch=1), module, SPEC, optimizer)
    writer = Writer(tmp_path / "missing")
    with pytest.raises(FileNotFoundError), writer:
        writer.write(snapshot)
        assert writer._written is not None and writer._written.exception() is not None
        if ask == "write":
            writer.write(snapshot)
        elif ask != "leave":
            getattr(writer, ask)()
    writer.check()
    writer.wait()
