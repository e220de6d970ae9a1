"""Batches of each pipeline on the null device: one upload from pinned memory each, nothing waits, budget kept."""

from __future__ import annotations

import pytest
from budgets import budget, issued
from null_device import NullDevice, Report, count

DEVICE = "1"


@pytest.fixture(scope="module", params=["torch", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def batches(null_cuda: NullDevice, backend: str) -> list[Report]:
    return null_cuda.run("pipeline.py", f"cuda:{DEVICE}", backend, devices=2)


def test_no_fault_and_no_kernel_on_another_device(batches: list[Report]) -> None:
    assert len(batches) == 5
    assert [(batch["faults"], set(batch["devices"])) for batch in batches] == [([], {DEVICE})] * 5


def test_a_batch_is_uploaded_at_once_and_waits_for_nothing(batches: list[Report]) -> None:
    for batch in batches:
        assert count(batch, "copy pinned to device") == 1
        assert count(batch, "synchronize", "copy pageable", "copy device to pageable", "copy device to pinned") == 0


def test_a_batch_keeps_its_budget(batches: list[Report], backend: str) -> None:
    assert max(map(issued, batches)) <= budget("issued by a batch")[backend]
