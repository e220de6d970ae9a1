"""The timer, memory, ceilings and result files: on what is known beforehand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import ceilings, record, timing
from bench.record import Record
from bench.report.results import read_results
from bench.timing import captured, laps, microseconds, peak_growth, storage_bytes
from titn.provenance import ROOT
from titn.training.captured import WARM_UPS, EmptyGraph

CPU = torch.device("cpu")
MEGABYTE = 250_000
"""Float32 numbers in a megabyte."""


# The timer


def test_inputs_go_round_and_every_call_counts() -> None:
    seen: list[int] = []
    launched, graph = microseconds(seen.append, [1, 2, 3], CPU)
    assert seen[:5] == [1, 1, 2, 3, 1], "one call that does not count, then all sets in turn"
    assert launched["repetitions"] == len(seen) - 1 == timing.REPETITIONS
    assert 0 <= launched["p10"] <= launched["median"] <= launched["p90"]
    assert graph == {"error": "no GPU"}


def test_each_lap_is_a_call() -> None:
    calls: list[int] = []
    assert len(laps(lambda: calls.append(1), CPU, 4)) == len(calls) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_an_empty_graph_is_an_error_and_work_is_captured_on_its_own_device() -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    with pytest.raises(EmptyGraph, match="nothing was launched"):
        captured(lambda: None, device)
    x = torch.zeros(4, device=device)
    captured(lambda: x.add_(1), device).replay()
    assert x.tolist() == [WARM_UPS + 1.0] * 4
    assert microseconds(lambda t: t.add_(1), [x], device)[1]["median"] > 0


# Memory


def step_by_step() -> None:
    first = torch.empty(MEGABYTE)
    second = torch.empty(MEGABYTE)
    del first
    third = torch.empty(3 * MEGABYTE)  # the peak: 1 + 3 megabytes
    del second, third
    torch.empty(2 * MEGABYTE)


def test_the_peak_is_what_lies_there_at_once() -> None:
    kept = torch.empty(9 * MEGABYTE)
    assert peak_growth(step_by_step, CPU) == pytest.approx(4e6, rel=0.01)
    assert peak_growth(kept.numel, CPU) == 0, "what was there before does not count"


def test_memory_that_is_shared_counts_once() -> None:
    whole = torch.empty(MEGABYTE)
    assert storage_bytes([whole, whole[10:], torch.empty(MEGABYTE)]) == 2_000_000


# Ceilings


def test_every_ceiling_is_measured_on_this_machine() -> None:
    found = ceilings.measure(CPU, small=True)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found["product_tflops"]) == {"bf16", "fp16", "fp32"}
    for statistic in (found["copy_gb_per_s"], *found["product_tflops"].values()):
        assert 0 < statistic["low"] <= statistic["median"] <= statistic["high"]
        assert statistic["repetitions"] == 2


def test_rates_are_work_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "laps", lambda *_: [0.001, 0.002, 0.004])
    copied = ceilings.copy_gb_per_s(CPU, small=False)
    moved = 2 * 2**28  # bytes: read and written
    assert [copied[key] for key in ("low", "median", "high")] == [moved / s / 1e9 for s in (0.004, 0.002, 0.001)]
    product = ceilings.product_tflops(CPU, torch.float32, small=True)
    assert product["median"] == pytest.approx(2 * 64**3 / 0.002 / 1e12, rel=1e-3)


def test_sides_double_until_a_product_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = []

    def seconds(function: Any, device: torch.device, count: int) -> list[float]:
        sides.append(function().shape[0])
        return [1e-9 if sides[-1] < 1024 else 1.0]

    monkeypatch.setattr(ceilings, "laps", seconds)
    ceilings.product_tflops(CPU, torch.float32, small=False)
    assert sides == [512, 1024, 1024]


def test_a_ceiling_that_fails_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "equal", lambda *_: False)
    found = ceilings.measure(CPU, small=True)
    assert found["copy_gb_per_s"] == {"error": "RuntimeError: the copy differs from its source"}
    assert found["product_tflops"]["fp32"]["median"] > 0
    assert ceilings.floors(1, 1, "fp32", found)["memory"] is None


def test_floors_by_hand() -> None:
    """At 4.3 TB/s and 790 TFLOP/s: 16,384 x 16 x 12 read and written in bfloat16, and two products of 18,432 rows."""
    measured = {
        "copy_gb_per_s": {"median": 4300.0},
        "product_tflops": {"bf16": {"median": 790.0}, "fp16": {"error": ""}},
    }
    floors = ceilings.floors(4 * 18_432 * 192 * 768, 2 * 2 * 16_384 * 16 * 12, "bf16", measured)
    assert floors["memory"] == pytest.approx(2.926, abs=1e-3)
    assert floors["product"] == pytest.approx(13.762, abs=1e-3)
    assert ceilings.floors(1, 1, "fp16", measured)["product"] is None
    assert ceilings.floors(1, 1, "bf16", None) == {"memory": None, "product": None}


# Result files


@pytest.mark.parametrize(
    ("commit", "words"),
    [("6f76b15a8a8b", "6f76b15a8a8b"), ("6f76b15a8a8b+", "6f76b15a8a8b+changes"), (None, "unknown")],
)
def test_the_file_says_what_it_was_measured_with(
    commit: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "source_commit", lambda: commit)
    for _ in range(2):  # in one second, perhaps
        one = Record("python -m bench.something", CPU, 0, tmp_path)
        one.add("ceilings", {"copy_gb_per_s": {}})
        one.finish()
    paths = sorted(tmp_path.glob("*/*.json"))
    assert len(paths) == 2
    for path in paths:
        assert re.fullmatch(rf"\d{{8}}-\d{{6}}-{re.escape(words)}(-2)?\.json", path.name)
        assert json.loads(path.read_text())["commit"] == words
    (device,) = read_results(tmp_path)
    assert device.sections["ceilings"][0].content["commit"] == words


def test_a_file_is_unfinished_until_its_command_ends(tmp_path: Path) -> None:
    one = Record("python -m bench.something", CPU, 0, tmp_path)
    one.add("ceilings", {"copy_gb_per_s": {}})
    assert read_results(tmp_path)[0].sections["ceilings"][0].error == "the command was stopped before its end"
    one.finish()
    assert read_results(tmp_path)[0].sections["ceilings"][0].error is None


def test_every_command_measures_float32_as_such_and_says_so(tmp_path: Path) -> None:
    """In a process where TF32 was on."""
    script = (
        "import torch; torch.set_float32_matmul_precision('high'); torch.backends.cudnn.allow_tf32 = True\n"
        "from bench import options\n"
        f"given, at = options.start(options.parser('x', 'X'), ['--device', 'cpu', '--out', {str(tmp_path)!r}])\n"
        "print(torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, at.record.content['tf32'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["highest", "False", "False"], done.stderr
