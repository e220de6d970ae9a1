"""Tuning: the command in the interpreter, the compiler's verdicts, and the rows it writes."""

from __future__ import annotations

import ast
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.kernels import tune
from bench.options import Setting
from titn.errors import UserError
from titn.kernels.common.configurations import CONFIGURATIONS, configuration
from titn.provenance import ROOT

CPU = torch.device("cpu")
COMPILE = """
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from bench.kernels import tune
found = {(t.kernel, t.widths): t for t in tune.targets(tune.OPERATIONS, small=False)}
narrow, wide = found["inner_block.forward", "16"], found["inner_block.mlp_backward", "32"]
few = {"num_warps": (3, 4), "resident_slices": (2, 9), "resident_blocks": (9,)}
narrow = replace(narrow, choices=few)
with ProcessPoolExecutor(1) as pool:
    row = tune.shortlist(narrow, 90, pool)
print(json.dumps([row, tune.judge(wide, {**wide.candidates(90)[0], "parts": 1, "num_warps": 1}, 90)]))
"""


def test_dry_run_tries_two_candidates_and_writes_no_row(tmp_path: Path) -> None:
    before = tune.TABLE.read_bytes()
    command = [sys.executable, "-m", "bench.tune", "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*/*.json")
    content = json.loads(path.read_text())
    assert content["dry_run"] and content["command"].startswith("python -m bench.tune --dry-run")
    (row,) = content["sections"]["tune"]
    assert row["kernel"] == "inner_block.forward" and row["dtype"] == "fp16"
    settings = [candidate["settings"] for candidate in row["candidates"]]
    assert settings[0] == configuration("inner_block.forward", "16", 0) and settings[1] != settings[0]
    assert all(candidate["us"]["median"] > 0 for candidate in row["candidates"]), row
    assert row["best"] in settings
    assert tune.TABLE.read_bytes() == before


def test_the_compiler_rules_out_what_spills_or_fails_and_ranks_the_rest() -> None:
    """Without a GPU or the interpreter; the sums of all parts at once need more registers than one warp has."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    row, spilled = json.loads(done.stdout.splitlines()[-1])
    current, *others = row["candidates"]
    assert current["settings"] == configuration("inner_block.forward", "16", 90) and current["instructions"] > 0
    assert len(others) == 3
    for other in others:
        if other["settings"]["num_warps"] == 3:
            assert "Error" in other["reason"], "three warps are no power of two"
        else:
            assert other["instructions"] == current["instructions"], "its one slice of heads is resident either way"
    assert spilled.startswith("spills: ")


def test_the_likeliest_few_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tune.targets(["inner_block"], small=True)[0]
    verdicts = itertools.cycle([9.0, "spills: 8 bytes per thread", 3.0, 5.0])
    monkeypatch.setattr(tune, "_judge", lambda _: next(verdicts))

    class Pool:
        map = staticmethod(map)

    row = tune.shortlist(target, 90, Pool())  # type: ignore[arg-type]
    left = [candidate for candidate in row["candidates"] if "reason" not in candidate]
    assert left[0] == row["candidates"][0], "the row in use is timed whatever it needs"
    assert len(left) == tune.MOST + 1 and {one["instructions"] for one in left[1:]} == {3.0}


def test_every_target_is_a_row_that_its_choices_fill() -> None:
    for target in tune.targets(tune.OPERATIONS, small=True):
        current, *others = target.candidates(90)
        assert (target.kernel, target.widths, 0) in CONFIGURATIONS
        assert current == configuration(target.kernel, target.widths, 90)
        assert others and all(set(other) == set(current) for other in others)
        assert len({tuple(other.items()) for other in others}) == len(others)


def test_a_wrong_candidate_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = iter([{"ok": True}, {"ok": False, "errors": [1.0]}])
    monkeypatch.setattr(tune, "check", lambda *_: next(verdicts))
    target = tune.targets(["inner_block"], small=True)[0]
    head = {"kernel": target.kernel, "widths": target.widths, "architecture": 0}
    two = [{"settings": dict(settings)} for settings in target.candidates(0)[:2]]
    row = tune.timed(target, head | {"candidates": two}, Setting(CPU, small=True))
    assert "us" in row["candidates"][0] and row["candidates"][1]["reason"] == "its results are wrong"
    assert row["best"] == row["candidates"][0]["settings"]


def test_a_row_holds_for_a_moment() -> None:
    before = dict(CONFIGURATIONS)
    key = ("inner_block.forward", "16", 90)
    with tune.installed_row(key, {"num_warps": 8}):
        assert configuration(*key) == {"num_warps": 8}
    assert before == CONFIGURATIONS


def test_rows_are_written_between_the_markers(tmp_path: Path) -> None:
    there = '    ("c", "1", 80): {"num_warps": 8},\n'
    text = f"TABLE = {{\n    # first\n{tune.BEGIN}{there}{tune.END}}}\nREST = 1\n"
    long = {"num_warps": 4, "resident": 1, "shared_sums": 0, "parts": 1, "programs": 2}
    rows = {("b.attention_backward", "16", 90): long, ("a.forward", "16", 80): {"num_warps": 4}}
    written = tune.with_rows(text, rows)
    table = ast.literal_eval(written.partition("= ")[2].partition("REST")[0])
    assert table == {**rows, ("c", "1", 80): {"num_warps": 8}} and list(table) == sorted(table)
    assert written.startswith("TABLE = {\n    # first\n") and written.endswith("}\nREST = 1\n")
    assert tune.with_rows(written, rows) == written
    path = tmp_path / "table.py"
    path.write_text(written)
    check = [sys.executable, "-m", "ruff", "format", "--check", "--line-length", "120", str(path)]
    assert subprocess.run(check, capture_output=True, check=False).returncode == 0


def test_a_table_without_markers_is_left_alone() -> None:
    with pytest.raises(UserError, match="no markers"):
        tune.with_rows("TABLE = {}\n", {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dry-run", "--write"], "measures nothing"),
        (["--dry-run", "--compile"], "measures nothing"),
        (["--operation", "short_attention"], "invalid choice"),
        ([], "unset it, or use --dry-run"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit) as stop:
        tune.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
