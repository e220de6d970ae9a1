"""The null device itself: what it counts of ordinary work, and that it sees what a GPU would refuse."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from null_device import NullDevice, Report

FAULTS = {
    "allocation in a capture": "cudaMalloc in a capture",
    "copy of pageable memory in a capture": "copy of pageable memory in a capture",
    "empty graph": "an empty graph is launched",
    "event from before the capture": "a captured stream waits for an event from outside of the capture",
    "first launch of a Triton kernel in a capture": "loading a module in a capture",
    "fork without join": "a capture ends while a stream that was forked from it has not been joined",
    "grid too large": "fill_kernel cannot have 1 x 65536 x 1 blocks of 128 x 1 x 1 threads and 0 bytes",
    "host pointer to a Triton kernel": "a kernel gets a pointer into host memory",
    "reading a value in a capture": "cudaStreamSynchronize of a stream that is captured",
    "stream of another device": "cublasSgemm_v2 is launched on a stream of device 1 while device 0 is current",
    "synchronisation in a capture": "cudaDeviceSynchronize in a capture",
    "Triton kernel on another device than its data": "a kernel on device 0 gets memory of device 1",
    "work on a stream apart from the capture": "is launched beside a capture",
}


ORDINARY = {
    "add": {"launch kernel": 1},
    "product": {"launch kernel": 1},
    "upload from pinned memory": {"copy pinned to device": 1},
    "upload from pageable memory": {"copy pageable to device": 1, "synchronize stream": 1},
    "download": {"copy device to pageable": 1, "synchronize stream": 1},
    "value": {"copy device to pinned": 1, "synchronize stream": 1},
    "capture": {"capture": 1, "capture kernel": 3, "instantiate graph": 1, "synchronize device": 1},
    "capture beside a thread that waits": {
        "capture": 1,
        "capture kernel": 1,
        "instantiate graph": 1,
        "synchronize device": 1,
        "synchronize event": 1,
    },
    "replay": {"launch graph": 1, "graph node": 3},
    "second device": {"launch kernel": 2},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the faults are written to."""
    return tmp_path_factory.mktemp("faults") / "faults"


@pytest.fixture(scope="module")
def faulty(null_cuda: NullDevice, written: Path) -> dict[str, Report]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULL_CUDA_FAULTS", str(written))
        return null_cuda.run("faults.py", devices=2)


@pytest.fixture(scope="module")
def ordinary(null_cuda: NullDevice) -> dict[str, Report]:
    return null_cuda.run("ordinary.py", devices=2)


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_seen(faulty: dict[str, Report], name: str) -> None:
    assert faulty[name]["exit"] == 0
    assert FAULTS[name] in faulty[name]["faults"][0]


def test_faults_are_written_for_processes_that_nobody_asks(faulty: dict[str, Report], written: Path) -> None:
    reported = [fault for report in faulty.values() for fault in report["faults"] or ()]
    assert set(reported) <= set(written.read_text().splitlines())


def test_host_cannot_touch_device_memory(faulty: dict[str, Report]) -> None:
    assert faulty["host access to device memory"] == {"faults": None, "exit": -signal.SIGSEGV}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_work_is_counted(ordinary: dict[str, Report], name: str) -> None:
    report = ordinary[name]
    assert report["faults"] == []
    counts = {what: number for what, number in report["counts"].items() if not what.startswith("allocate")}
    assert counts == ORDINARY[name]


def test_kernels_are_counted_on_their_device(ordinary: dict[str, Report]) -> None:
    assert ordinary["replay"]["devices"] == {"0": 3}
    assert ordinary["second device"]["devices"] == {"1": 2}


def test_what_is_read_back_is_zero(ordinary: dict[str, Report]) -> None:
    assert ordinary["download"]["zeros"]
