"""The kernel benchmark as it will run on a GPU, at toy sizes in the interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import kernels
from bench.correctness import SEED
from bench.kernel_cases import MODES, cases

ROOT = Path(__file__).resolve().parents[2]
CASES = [(case.operation, case.name) for case in cases("cpu", True)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    """Standard output and the result file of one dry run."""
    folder = tmp_path_factory.mktemp("results")
    arguments = [sys.executable, "-m", "bench.kernels", "--dry-run", "--out", str(folder)]
    process = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    (path,) = folder.glob("*/*.json")
    assert list(folder.rglob(".*")) == [], "a temporary file was left behind"
    return process.stdout, json.loads(path.read_text())


def test_every_operation_is_right_in_the_interpreter(run: tuple[str, dict]) -> None:
    rows = run[1]["sections"]["correctness"]
    assert [(r["operation"], r["case"], r["dtype"]) for r in rows] == [
        (*case, dtype) for case in CASES for dtype in ("bf16", "fp16", "fp32")
    ]
    for row in rows:
        if row["dtype"] == "bf16":
            assert row["skipped"] == "the interpreter computes wrong bfloat16 results"
        else:
            assert row["ok"], row


def test_triton_and_its_rivals_are_timed(run: tuple[str, dict]) -> None:
    rows = {(r["operation"], r["case"], r["provider"], r["mode"]): r for r in run[1]["sections"]["kernels"]}
    assert {row["dtype"] for row in rows.values()} == {"fp16"}
    for case in CASES:
        for provider in ("triton", "torch", "compile"):
            for mode in MODES:
                row = rows[*case, provider, mode]
                assert "reason" not in row, row
                assert 0 < row["us"]["p10"] <= row["us"]["median"] <= row["us"]["p90"]
                assert row["bytes"] > 0 and row["floor_us"]["memory"] > 0
                share = 100 * max(row["floor_us"].values()) / row["us"]["median"]
                assert row["percent_of_floor"] == pytest.approx(share, rel=1e-3)
                assert row["error_fp64"] < 0.1
    refused = [row for row in rows.values() if row["provider"] == "xformers"]
    assert refused and all("CUDA device" in row["reason"] or "not installed" in row["reason"] for row in refused)


def test_result_says_where_it_comes_from(run: tuple[str, dict]) -> None:
    output, result = run
    assert result["dry_run"] and result["device"]["type"] == "cpu" and result["seed"] == SEED
    assert result["command"].startswith("python -m bench.kernels --dry-run --out ")
    assert result["versions"]["torch"] == torch.__version__ and result["versions"]["triton"]
    assert result["commit"] and result["utc"] and result["wall_seconds"] > 0
    assert list(result["sections"]) == ["ceilings", "correctness", "kernels"]
    assert "written to" in output and "inner_block" in output and "xformers: " in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slow"], "unrecognized arguments: --slow"),
        ([], "unset it, or use --dry-run"),
        (["--seconds", "0"], "--seconds must be above 0"),
        (["--dry-run", "--device", "cuda"], "runs on the CPU, not on cuda"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit) as stop:
        kernels.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
