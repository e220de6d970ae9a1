"""bench.timing on the second of two null devices, while the first is the current one."""

from __future__ import annotations

from typing import Any

import pytest
from null_device import NullDevice


@pytest.fixture(scope="module")
def timed(null_cuda: NullDevice) -> dict[str, Any]:
    return null_cuda.run("timing.py", "cuda:1", devices=2)


def test_everything_that_is_timed_runs_on_the_device_that_was_given(timed: dict[str, Any]) -> None:
    assert timed["report"]["faults"] == [] and set(timed["report"]["devices"]) == {"1"}
    assert "error" not in timed["graph"]


def test_an_empty_graph_is_refused(timed: dict[str, Any]) -> None:
    assert timed["empty"] == "refused"
