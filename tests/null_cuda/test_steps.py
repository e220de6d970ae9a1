"""Five steps of each form of the training step, on the second of two devices: no fault, nothing waits, budgets kept."""

from __future__ import annotations

from functools import cache

import pytest
from budgets import budget, executed, issued
from null_device import NullDevice, Report, count

FORMS = ("float32", "bf16", "fp16", "triton", "blocks", "graph", "captured", "captured fp16")
DEVICE = "1"

forms = pytest.mark.parametrize("form", FORMS)


@cache
def measured(null_cuda: NullDevice, form: str) -> dict[str, Report]:
    return null_cuda.run("steps.py", form, f"cuda:{DEVICE}", devices=2)


@forms
def test_no_fault(null_cuda: NullDevice, form: str) -> None:
    answer = measured(null_cuda, form)
    assert answer["warm_up"]["faults"] == []
    assert [step["faults"] for step in answer["steps"]] == [[]] * 5


@forms
def test_every_kernel_runs_on_the_device_of_the_step(null_cuda: NullDevice, form: str) -> None:
    answer = measured(null_cuda, form)
    assert [set(report["devices"]) for report in (answer["warm_up"], *answer["steps"])] == [{DEVICE}] * 6


@forms
def test_steps_neither_wait_nor_allocate_nor_compile(null_cuda: NullDevice, form: str) -> None:
    for step in measured(null_cuda, form)["steps"]:
        assert count(step, "synchronize", "copy pageable", "allocate", "load module", "capture") == 0
        assert count(step, "copy device to pageable", "copy device to pinned") == 0


@forms
def test_steps_keep_their_budget(null_cuda: NullDevice, form: str) -> None:
    most_issued, most_executed = budget("issued by a step")[form], budget("kernels of a step")[form]
    for step in measured(null_cuda, form)["steps"]:
        assert issued(step) <= most_issued, step["kernels"]
        assert executed(step) <= most_executed, step["kernels"]


@pytest.mark.parametrize(("form", "graphs"), [("graph", 2), ("captured", 1), ("captured fp16", 1)])
def test_graphs_of_a_step(null_cuda: NullDevice, form: str, graphs: int) -> None:
    """Forward and backward, or the whole step."""
    assert [step["counts"]["launch graph"] for step in measured(null_cuda, form)["steps"]] == [graphs] * 5


def test_a_replay_costs_the_host_next_to_nothing(null_cuda: NullDevice) -> None:
    """Beside an eager step in the same process; a factor of 180 when it was written."""
    ratios = null_cuda.run("host_time.py", "float32", "captured")
    assert 50 * ratios["captured"] <= ratios["float32"]
