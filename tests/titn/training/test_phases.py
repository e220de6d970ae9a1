"""Smaller images and fewer blocks in the first epochs: what is computed, learned and kept, and that a run resumes."""

from __future__ import annotations

import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import load_file
from stop_after import StopAfter
from torch import Tensor, nn

from titn.config import TrainConfig
from titn.errors import Interrupted, UserError
from titn.kernels.common.native import native_reasons
from titn.models import create_model
from titn.models.base import ImageTransformer
from titn.pipelines import Batch
from titn.train import train
from titn.training import checkpoint
from titn.training.average import WeightAverage
from titn.training.captured import CapturedStep, take_kernels
from titn.training.optimizers import build_optimizer
from titn.training.phases import Phases
from titn.training.preparation import open_run
from titn.training.run import Run
from titn.training.step import TrainStep, compile_network, distillation_objective

QUIET = Console(quiet=True)
NAMES = ("titn", "titn_authors", "tnt", "deit", "vit")
PHASES = Phases(small=2, shallow=1)
"""Epoch 0: small images and half of the blocks; epoch 1: small images; epoch 2: everything."""
STEPS = 2
"""Of an epoch."""


def network(name: str = "titn", **changes: Any) -> ImageTransformer:
    """Three blocks over 4 x 4 patches."""
    torch.manual_seed(0)
    return create_model(name, **({"num_classes": 10, "depth": 3, "kernels": "torch"} | changes)).train()


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def logits(output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return torch.stack(output) if isinstance(output, tuple) else output


@pytest.mark.parametrize("name", NAMES)
def test_a_part_is_a_smaller_network_with_interpolated_tables(name: str) -> None:
    """Two blocks on 24x24 pixels: logits and the gradients of all weights, against a network of that size."""
    whole = network(name).double()
    small = network(name, depth=2, image_size=24).double()
    pixels = images().double()
    shrunk = F.interpolate(pixels, (24, 24), mode="bilinear", antialias=True)
    values = {key: value.detach().requires_grad_() for key, value in whole.named_parameters()}
    given = {key: at_24(values[key]) if "pixel" not in key else values[key] for key, _ in small.named_parameters()}
    expected = logits(torch.func.functional_call(small, given, (shrunk,)))
    whole.train_in_part(grid=3, blocks=2)
    found = logits(whole(pixels))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    expected.square().sum().backward()
    found.square().sum().backward()
    for key, value in whole.named_parameters():
        if key.startswith("blocks.2."):
            assert value.grad is None
        else:
            torch.testing.assert_close(value.grad, values[key].grad, atol=1e-10, rtol=1e-10)


def at_24(table: Tensor) -> Tensor:
    """A table over 4 x 4 patches for 3 x 3; anything else as it is."""
    if table.ndim != 2 or len(table) not in (17, 18) or table.shape[1] != 192:
        return table
    grid = table[1:17].T.reshape(1, 192, 4, 4)
    patches = F.interpolate(grid, (3, 3), mode="bilinear", align_corners=False).reshape(192, 9).T
    return torch.cat((table[:1], patches, table[17:]))


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_computes_everything_and_waiting_blocks_add_nothing(name: str) -> None:
    module = network(name)
    before = module.eval()(images())
    module.train_in_part(grid=3, blocks=2)
    assert torch.equal(module(images()), before)
    module.silence_blocks(2)
    module.train_in_part(blocks=2)
    silent, part = module.eval()(images()), logits(module.train()(images()))
    assert not torch.equal(silent, before)
    assert torch.equal(silent, part.mean(0) if module.distilled else part)
    module.train_in_part()
    assert torch.equal(logits(module(images())), part)


def batch(seed: int) -> tuple[Batch, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second, taught = (torch.randint(10, (6,), generator=generator) for _ in range(3))
    pixels, lam = torch.randn(6, 3, 32, 32, generator=generator), torch.rand(6, generator=generator)
    return Batch(pixels, torch.arange(6), first, second, lam), taught


def build(
    form: type[TrainStep] = TrainStep, optimizer: str = "adamw", drop_path: float = 0.2, **options: Any
) -> TrainStep:
    module = network(depth=2, drop_path_rate=drop_path)
    moves = build_optimizer(optimizer, module, 1e-3, 0.1)
    PHASES.begin(module, moves)
    torch.manual_seed(1)
    return form(
        module,
        moves,
        distillation_objective("hard"),
        average=WeightAverage(module, 0.9),
        **options,
    )


def take(step: TrainStep, epochs: range) -> list[Tensor]:
    sums = []
    for epoch in epochs:
        PHASES.enter(epoch, step)
        sums += [step(*batch(STEPS * epoch + number), 1e-3).clone() for number in range(STEPS)]
    return sums


def tensors(step: TrainStep) -> list[Tensor]:
    """Weights, average and the optimiser's state."""
    assert step.average is not None
    state = [value for each in step.optimizer.state.values() for value in each.values() if isinstance(value, Tensor)]
    return [*step.module.state_dict().values(), *step.average.module.state_dict().values(), *state]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_waiting_blocks_stay_as_they_are_until_they_are_switched_on(optimizer: str) -> None:
    step = build(optimizer=optimizer, clip_grad=1.0)
    assert isinstance(step.module, ImageTransformer) and step.average is not None
    waiting = list(step.module.blocks[1].parameters())
    before = copy.deepcopy(waiting)
    take(step, range(1))
    assert all(torch.equal(one, two) for one, two in zip(waiting, before, strict=True))
    assert all(param.grad is None for param in waiting)
    assert not any(value.any() for param in waiting for value in step.optimizer.state.get(param, {}).values())
    for one, two in zip(step.average.module.blocks[1].parameters(), before, strict=True):
        assert torch.equal(one, two)
    take(step, range(1, 2))
    assert all(param.grad is not None for param in waiting)
    assert not torch.equal(step.module.blocks[1].patch.proj.weight, torch.zeros(192, 192))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_captured_step_goes_through_the_phases_as_the_plain_one(optimizer: str) -> None:
    found = []
    for form in (TrainStep, CapturedStep):
        step = build(form, optimizer)
        found.append([*take(step, range(3)), *tensors(step)])
    assert len(found[0]) == len(found[1])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_a_graph_is_captured_for_each_phase(amp: torch.dtype | None) -> None:
    """On a GPU, with Triton kernels: replayed graphs train as the plain step does."""
    found = []
    for form in (TrainStep, CapturedStep):
        module = network(depth=2, kernels="triton").cuda()
        take_kernels(module)
        optimizer = build_optimizer("adamw", module, 1e-3, 0.1)
        PHASES.begin(module, optimizer)
        objective = distillation_objective("hard", backend="triton")
        step = form(module, optimizer, objective, amp=amp, average=WeightAverage(module, 0.9))
        sums = []
        for epoch in range(3):
            PHASES.enter(epoch, step)
            for number in range(STEPS):
                one, taught = batch(STEPS * epoch + number)
                one = Batch(*(getattr(one, each.name).cuda() for each in fields(Batch)))
                sums.append(step(one, taught.cuda(), 1e-3).clone())
        found.append([*sums, *tensors(step)])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("form", ["blocks", "whole"])
def test_a_compiled_network_goes_through_the_phases(form: Any) -> None:
    eager, compiled = build(drop_path=0.0), build(drop_path=0.0)
    compile_network(compiled.module, form, "aot_eager")
    for one, two in zip(take(eager, range(3)), take(compiled, range(3)), strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    for name, value in compiled.module.state_dict().items():
        torch.testing.assert_close(eager.module.state_dict()[name], value, atol=1e-4, rtol=1e-3)


SMALL: dict[str, Any] = {
    "limit_train": 96, "depth": 2, "batch_size": 48, "teacher": "none", "device": "cpu", "epochs": 3, "average": 0.9,
    "small_share": 0.67, "shallow_share": 0.33, "drop_path": 0.1,
}  # fmt: skip


def stored(folder: Path) -> dict[str, Tensor]:
    newest = Run(folder).newest_checkpoint()
    files = (checkpoint.MODEL, checkpoint.AVERAGE)
    return {f"{file} {name}": value for file in files for name, value in load_file(newest / file).items()}


@pytest.mark.parametrize("kernels", ["torch", "native"])
def test_a_run_resumes_bit_equal_in_every_phase(tmp_path: Path, kernels: Any) -> None:
    if kernels == "native" and (reasons := native_reasons(torch.empty(0))):
        pytest.skip("; ".join(reasons))
    config = TrainConfig(**SMALL, runs_dir=str(tmp_path), kernels=kernels)
    train(config.changed(name="whole"), console=QUIET)
    expected = stored(tmp_path / "whole")
    for step in (1, 3, 4):  # inside of a phase, inside of the next, and at its end
        name = f"stopped{step}"
        with pytest.raises(Interrupted):
            train(config.changed(name=name), console=QUIET, callbacks=[StopAfter(step)])
        train(TrainConfig(resume=str(tmp_path / name)), console=QUIET)
        found = stored(tmp_path / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found), step


def test_more_epochs_do_not_begin_a_phase_anew(tmp_path: Path) -> None:
    train(TrainConfig(**SMALL, runs_dir=str(tmp_path), name="run"), console=QUIET)
    config, *_ = open_run(TrainConfig(resume=str(tmp_path / "run"), epochs=10))
    assert (round(config.small_share * 10), round(config.shallow_share * 10)) == (2, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 16, "pixel_size": 4}, "--small-share needs images of three patches a side or more"),
        ({"depth": 1}, "--shallow-share needs two blocks or more"),
    ],
)
def test_what_cannot_grow_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train(TrainConfig(**(SMALL | changes), runs_dir=str(tmp_path)), console=QUIET)
    assert not list(tmp_path.iterdir())


def test_other_models_do_not_grow() -> None:
    Phases(small=0, shallow=0).check(nn.Linear(2, 2))
    with pytest.raises(UserError, match="--shallow-share is for this project's models, not for Linear"):
        Phases(small=0, shallow=1).check(nn.Linear(2, 2))
