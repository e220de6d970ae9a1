"""The step that is captured as one CUDA graph, on a CPU: the same work without a graph; tests/null_cuda captures it."""

from __future__ import annotations

import copy
import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from titn.config import TrainConfig
from titn.kernels.common.backend import installed
from titn.kernels.common.weights import cast_at_once, in_dtype
from titn.models import create_model
from titn.pipelines import Batch
from titn.training import switches
from titn.training.average import WeightAverage
from titn.training.captured import CapturedStep, take_kernels
from titn.training.evaluation import CapturedForward
from titn.training.optimizers import build_optimizer
from titn.training.step import TrainStep, distillation_objective

IMAGES, CLASSES, STEPS = 6, 10, 4


def network(**changes: Any) -> nn.Module:
    """TITN with one block and a random drop path."""
    torch.manual_seed(0)
    options = {"num_classes": CLASSES, "image_size": 16, "depth": 2, "drop_path_rate": 0.2} | changes
    return create_model("titn", **options).train()


def batch(seed: int, images: int = IMAGES) -> tuple[Batch, Tensor]:
    """A CutMix batch of noise and the teacher's labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = [torch.randint(CLASSES, (images,), generator=generator) for _ in range(3)]
    pixels, lam = torch.randn(images, 3, 16, 16, generator=generator), torch.rand(images, generator=generator)
    return Batch(pixels, torch.arange(images), labels[0], labels[1], lam), labels[2]


def rate(step: int) -> float:
    return 0.01 * math.cos(step / 3)


def steps(form: type[TrainStep], optimizer: str, **options: Any) -> TrainStep:
    """A step of this form for `network`, with an average."""
    module = network()
    return form(
        module,
        build_optimizer(optimizer, module, 0.1, 1e-2),
        distillation_objective("hard", label_smoothing=0.1),
        average=WeightAverage(module, 0.9),
        **options,
    )


def take(step: TrainStep, first: int, last: int) -> list[Tensor]:
    """The steps from `first` up to `last`; their sums."""
    return [step(*batch(number), rate(number)).clone() for number in range(first, last)]


def states(step: TrainStep) -> list[dict[str, Any]]:
    """State dicts of module, average and optimiser."""
    assert step.average is not None
    return [each.state_dict() for each in (step.module, step.average.module, step.optimizer)]


def tensors(step: TrainStep) -> list[Tensor]:
    """Weights, average and optimiser state."""
    assert step.average is not None
    state = [value for each in step.optimizer.state.values() for value in each.values() if isinstance(value, Tensor)]
    return [*step.module.state_dict().values(), *step.average.module.state_dict().values(), *state]


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs) > 0
    assert all(torch.equal(own, other) for own, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop", "muon"])
def test_it_trains_as_the_plain_step_bit_for_bit(optimizer: str, accumulate: int) -> None:
    """Its warm-up leaves no trace in weights, optimiser, average or random numbers."""
    answers = []
    for form in (TrainStep, CapturedStep):
        step = steps(form, optimizer, accumulate=accumulate)
        torch.manual_seed(1)
        sums = take(step, 0, STEPS)
        answers.append([*tensors(step), *sums, torch.rand(3)])
    assert_equal(answers[1], answers[0])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("calls_before", [0, 1])
def test_it_resumes(optimizer: str, calls_before: int) -> None:
    """State is loaded into a new step, or into one that was captured already."""
    whole = steps(CapturedStep, optimizer)
    torch.manual_seed(1)
    take(whole, 0, 2)
    kept, random_state = copy.deepcopy(states(whole)), torch.get_rng_state()
    take(whole, 2, STEPS)

    resumed = steps(CapturedStep, optimizer)
    take(resumed, 10, 10 + calls_before)
    assert resumed.average is not None
    weights, averages, optimizer_state = kept
    resumed.module.load_state_dict(weights)
    resumed.average.module.load_state_dict(averages)
    resumed.average.updates = 2
    resumed.optimizer.load_state_dict(optimizer_state)
    torch.set_rng_state(random_state)
    take(resumed, 2, STEPS)
    assert_equal(tensors(resumed), tensors(whole))


def test_another_batch_size_is_refused() -> None:
    step = steps(CapturedStep, "sgd")
    take(step, 0, 1)
    with pytest.raises(ValueError, match="a captured step takes"):
        step(*batch(1, IMAGES - 1), rate(1))
    images, _ = batch(1)
    with pytest.raises(ValueError, match="a captured step takes"):
        step(images, None, rate(1))


def test_the_sums_are_those_of_the_batch_that_was_copied_in() -> None:
    step = steps(CapturedStep, "sgd")
    for number in range(3):
        images, targets = batch(number)
        with torch.no_grad():
            torch.manual_seed(number)
            logits, distilled = step.module(images.images)
        torch.manual_seed(number)
        loss, correct, agreed = step(images, targets, rate(number)).tolist()
        objective = distillation_objective("hard", label_smoothing=0.1)
        assert loss == pytest.approx(IMAGES * objective(images, logits, distilled, targets)[0].item(), rel=1e-5)
        assert correct == (logits.argmax(1) == images.labels_a).sum()
        assert agreed == (distilled.argmax(1) == targets).sum()


def test_weights_are_cast_at_once() -> None:
    weights = [nn.Parameter(torch.randn(3, 4)) for _ in range(2)]
    plain = weights[0].to(torch.bfloat16)
    with cast_at_once(weights, torch.bfloat16):
        first, again = (in_dtype(weights[0], torch.bfloat16) for _ in range(2))
        assert first.data_ptr() == again.data_ptr() and torch.equal(first, plain) and not first.requires_grad
        assert in_dtype(weights[0], torch.float16).dtype == torch.float16
        assert in_dtype(torch.ones(3), torch.bfloat16).dtype == torch.bfloat16
    assert in_dtype(weights[0], torch.bfloat16).data_ptr() != first.data_ptr()
    with pytest.raises(ZeroDivisionError), cast_at_once(weights, torch.bfloat16):
        1 / 0  # noqa: B018
    assert in_dtype(weights[0], torch.bfloat16).data_ptr() != first.data_ptr()
    with cast_at_once([], torch.bfloat16):  # of a network without the operations
        assert torch.equal(in_dtype(weights[0], torch.bfloat16), plain)


def test_layers_take_the_kernels_that_have_their_sizes() -> None:
    def backends(**changes: Any) -> set[str]:
        module = network(**changes)
        take_kernels(module)
        return {block.patch.kernels for block in module.blocks}

    assert backends(kernels="auto") == {"triton"}
    assert backends(kernels="auto", patch_dim=768) == {"auto"}
    assert backends(kernels="auto", patch_dim=192, patch_heads=2) == {"auto"}
    assert backends(kernels="torch") == {"torch"}


CUDA = torch.device("cuda", 0)
TRITON = switches.Switch("kernels", "triton", True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"compile": "on"}, ["--compile on"]),
        ({"amp": "off"}, ["in float32 most operations take Triton kernels only by name (--kernels triton)"]),
        ({"amp": "off", "kernels": "triton"}, []),
        ({"amp": "fp16"}, []),
        ({"amp": "fp16", "optimizer": "muon"}, ["fp16's gradient scaler waits for the host with --optimizer muon"]),
        ({"optimizer": "apex_sgd"}, ["apex reads its learning rate on the host"]),
    ],
)
@pytest.mark.skipif(not installed("triton"), reason="the package triton is not installed")
def test_why_the_step_is_not_captured(changes: dict[str, Any], words: list[str]) -> None:
    config = TrainConfig(fast=True).changed(**changes)
    amp = {"off": None, "fp16": torch.float16}.get(config.amp, torch.bfloat16)
    assert switches.capture_reasons(config, CUDA, amp, TRITON) == words
    assert switches.capture_reasons(config, torch.device("cpu"), amp, TRITON) == ["no GPU"]
    compiled, graph = switches._select_graph(config, CUDA, words, [])
    assert (compiled.on, graph.on) == (bool(words), True)
    assert graph.reasons == (
        ("of the compiled network", f"not the whole step: {words[0]}")
        if words
        else ("the whole step as one, its batch included",)
    )
    without = switches.capture_reasons(config, CUDA, amp, switches.Switch("kernels", "torch", False))
    assert "without Triton kernels torch.compile fuses more" in without


@pytest.mark.parametrize(
    ("changes", "pipeline", "in_front"),
    [
        ({}, "triton", []),
        ({"teacher": "none"}, "triton", []),
        ({}, "torch", ["batches of the torch pipeline"]),
        ({"teacher_cache": "off"}, "triton", ["a live teacher's answers"]),
        ({"teacher_cache": "off"}, "dali", ["batches of the dali pipeline", "a live teacher's answers"]),
    ],
)
def test_what_stays_in_front_of_the_graph_is_said(changes: dict[str, Any], pipeline: str, in_front: list[str]) -> None:
    config = TrainConfig(fast=True).changed(**changes)
    assert switches._in_front(config, pipeline) == in_front
    (words,) = switches._select_graph(config, CUDA, [], in_front)[1].reasons
    assert words.removeprefix("the whole step as one") == (
        f", behind {' and '.join(in_front)}" if in_front else ", its batch included"
    )
    row = switches.Switch("cuda-graph", "on", True)
    chosen = switches.Switches(CUDA, None, False, True, "auto", "triton", tuple(in_front), (row,))
    assert chosen.captured and chosen.captured_epochs == (not in_front)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_graph_trains_as_the_plain_step_bit_for_bit(optimizer: str, amp: torch.dtype) -> None:
    """At rates that float32 holds exactly, since a graph has them in float32."""
    answers = []
    for form in (TrainStep, CapturedStep):
        module = network(kernels="triton").to(CUDA)
        step = form(
            module,
            build_optimizer(optimizer, module, 0.1, 1e-2),
            distillation_objective("hard", backend="triton"),
            amp=amp,
            scaler=torch.amp.GradScaler("cuda", enabled=amp is torch.float16),
            average=WeightAverage(module, 0.875),
        )
        torch.manual_seed(1)
        sums = []
        for number in range(STEPS):
            images, targets = batch(number)
            moved = Batch(*(getattr(images, each.name).to(CUDA) for each in fields(Batch)))
            sums.append(step(moved, targets.to(CUDA), 2.0**-6 * (number + 1)).clone())
        answers.append([*tensors(step), *sums, torch.rand(3, device=CUDA)])
    assert_equal(answers[1], answers[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_captured_forward_gives_the_logits_of_the_module_as_it_is_trained_on() -> None:
    """Whole batches and a last one; the weights change in between, in place."""
    module = network(kernels="triton").to(CUDA).eval()
    forward = CapturedForward(module, IMAGES)
    for number in range(3):
        images = batch(number)[0].images.to(CUDA)
        with torch.no_grad():
            assert torch.equal(forward(images), module(images))
            assert torch.equal(forward(images[:-1]), module(images[:-1]))
            for weight in module.parameters():
                weight += 0.01
