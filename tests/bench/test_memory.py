"""Peak memory: what a call holds at once beyond what was there, counted from real allocations."""

import pytest
import torch

from bench.contenders import TOY, Contender, Step
from bench.memory import peak_growth, storage_bytes
from titn.training.switches import select_device

MEGABYTE = 250_000
"""Float32 numbers in a megabyte."""


def step_by_step() -> None:
    first = torch.empty(MEGABYTE)
    second = torch.empty(MEGABYTE)
    del first
    third = torch.empty(3 * MEGABYTE)  # the peak: 1 + 3 megabytes
    del second, third
    torch.empty(2 * MEGABYTE)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_peak_is_what_lies_there_at_once(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    with torch.device(device):
        found = peak_growth(step_by_step, select_device(device))
    assert found == pytest.approx(4e6, rel=0.01 if device == "cpu" else 0.5)


def test_what_was_there_before_does_not_count() -> None:
    kept = torch.empty(9 * MEGABYTE)
    assert peak_growth(kept.numel, torch.device("cpu")) == 0


def test_memory_that_is_shared_counts_once() -> None:
    whole = torch.empty(MEGABYTE)
    assert storage_bytes([whole, whole[10:], torch.empty(MEGABYTE)]) == 2_000_000


def test_between_two_steps_there_are_network_optimiser_and_batch() -> None:
    step = Step(Contender("", "titn", "eager", None), torch.device("cpu"), 4, TOY)
    parameters = 4 * sum(each.numel() for each in step.trainer.module.parameters())
    batch = 4 * (4 * 3 * 16 * 16) + 4 * (3 * 8 + 4)
    before = step.held_bytes()
    step()
    step.release()
    assert before - parameters - batch == sum(4 * each.numel() for each in step.trainer.module.buffers())
    assert step.held_bytes() == before + parameters  # momentum


def test_activations_grow_with_the_batch() -> None:
    peaks = []
    for batch_size in (256, 512):
        step = Step(Contender("", "titn", "eager", None), torch.device("cpu"), batch_size, TOY)
        step()
        step.release()
        peaks.append(peak_growth(step, torch.device("cpu")))
    assert peaks[1] == pytest.approx(2 * peaks[0], rel=0.05)
