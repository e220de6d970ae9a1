"""The kernel benchmark as it will run on a GPU, at toy sizes in the interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import kernels

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    """Standard output and the result file of one dry run."""
    folder = tmp_path_factory.mktemp("results")
    arguments = [sys.executable, "-m", "bench.kernels", "--dry-run", "--out", str(folder)]
    process = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    (path,) = (folder / "CPU-interpreter").glob("*.json")
    assert list(folder.rglob(".*")) == [], "a temporary file was left behind"
    return process.stdout, json.loads(path.read_text())


def test_every_operation_is_right_in_the_interpreter(run: tuple[str, dict]) -> None:
    cases = run[1]["cases"]
    operations = {case["operation"] for case in cases}
    assert operations == {"inner_block", "short_attention", "pixels_to_patches", "distillation_loss"}
    for case in cases:
        for dtype in ("fp16", "fp32"):
            assert case["correctness"][dtype]["ok"], (case["operation"], dtype, case["correctness"][dtype])
        assert "skipped" in case["correctness"]["bf16"]


def test_triton_and_its_rivals_are_timed(run: tuple[str, dict]) -> None:
    for case in run[1]["cases"]:
        for name in ("triton", "eager", "compile"):
            times = case["times"][name]
            assert "error" not in times, (case["operation"], name, times)
            for part in ("forward", "forward_backward"):
                launched = times[part]["launched"]
                assert 0 < launched["p10"] <= launched["median"] <= launched["p90"]
    missing = run[1]["cases"][1]["times"]["xformers"]
    assert "BackendUnavailable" in missing["error"], "a rival that cannot run is named with its reason"


def test_result_says_where_it_comes_from(run: tuple[str, dict]) -> None:
    output, result = run
    assert result["dry_run"] and result["device"] == "CPU interpreter" and result["seed"] == kernels.SEED
    assert result["versions"]["torch"] == torch.__version__ and result["versions"]["triton"]
    assert result["commit"] and result["utc"] and result["wall_seconds"] > 0
    assert "written to" in output and "inner_block" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--slow"], "unrecognized arguments: --slow"), ([], "unset it, or use --dry-run")],
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
