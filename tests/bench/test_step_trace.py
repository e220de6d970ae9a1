"""`python -m bench.step`: what it makes of spans, and that it needs a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.training import step
from bench.training.step import Busy, busy


def test_idle_is_what_no_span_covers() -> None:
    spans = [(10.0, 12.0), (0.0, 4.0), (3.0, 5.0), (3.5, 3.6), (12.0, 13.0), (14.0, 20.0)]
    assert busy(spans) == Busy(whole=20.0, idle=6.0, longest_gap=5.0)
    assert busy([(2.0, 7.0)]) == Busy(whole=5.0, idle=0.0, longest_gap=0.0)
    with pytest.raises(ValueError, match="nothing ran"):
        busy([])


def test_it_says_that_it_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        step.main(["--device", "cpu", "--dry-run"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: bench.step shows how long a GPU waits for its host")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_watched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step.main(["--steps", "5", "--batch-size", "64", "--trace", str(tmp_path / "trace.json")])
    assert capsys.readouterr().out.startswith("idle ")
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
