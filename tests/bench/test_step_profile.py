"""The profile of a step: per step, largest first, shares of the whole."""

import json
from pathlib import Path

import pytest
import torch

from bench import step_profile
from titn.errors import UserError
from titn.training.switches import native_bfloat16

CPU = torch.device("cpu")
AMP = torch.bfloat16 if native_bfloat16(CPU) else None


def test_the_command_writes_the_operators_of_one_step(tmp_path: Path) -> None:
    step_profile.main(["--dry-run", "--device", "cpu", "--out", str(tmp_path)])
    (file,) = tmp_path.glob("*/*.json")
    found = json.loads(file.read_text())["sections"]["step_profile"]
    rows = found["rows"]
    assert len(rows) == step_profile.TOP
    assert [row["us"] for row in rows] == sorted((row["us"] for row in rows), reverse=True)
    for row in rows:
        assert row["percent"] == pytest.approx(100 * row["us"] / found["device_us"])
    assert 50 < sum(row["percent"] for row in rows) <= 100
    by_name = {row["name"]: row for row in rows}
    assert by_name["aten::_fused_sgd_"]["calls"] == 1
    assert by_name["aten::mm"]["calls"] > 1


def test_a_step_that_cannot_run_says_why() -> None:
    with pytest.raises(UserError, match="memory"):
        step_profile.measure(CPU, AMP, batch_size=10**12, small=True)
