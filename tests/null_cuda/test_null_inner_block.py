"""The launcher of the inner block's CUDA C++ kernels, down to the driver's functions."""

from __future__ import annotations

from collections import Counter

import pytest
from null_device import NullDevice, Report, count

from titn.kernels.common.nvrtc import nvrtc_reasons

KERNELS = ("titn_inner_forward", "titn_inner_mlp_backward", "titn_inner_attention_backward")
pytestmark = pytest.mark.skipif(bool(nvrtc_reasons()), reason="; ".join(nvrtc_reasons()))


@pytest.fixture(scope="module")
def reports(null_cuda: NullDevice) -> list[Report]:
    """Of the first call, the second, and one in a capture."""
    found: list[Report] = null_cuda.run("inner_block_cuda.py", devices=2)
    return found


def test_no_fault(reports: list[Report]) -> None:
    assert [report["faults"] for report in reports] == [[]] * 3


def test_kernels_are_launched_on_the_device_of_their_tensors(reports: list[Report]) -> None:
    for report in reports[:2]:
        assert set(report["devices"]) == {"1"}
        assert {name: report["kernels"][name] for name in KERNELS} == dict.fromkeys(KERNELS, 1)


def test_a_second_call_neither_compiles_nor_waits(reports: list[Report]) -> None:
    assert count(reports[0], "load module") > 0
    assert count(reports[1], "load module", "synchronize", "copy", "allocate") == 0
    assert Counter(reports[1]["kernels"]).total() == 5  # and those that pack the weights and unpack the gradients


def test_a_capture_holds_them(reports: list[Report]) -> None:
    assert reports[2]["counts"]["capture kernel"] == 5
