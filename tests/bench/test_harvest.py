"""A dry run of the harvest gets through every part; and a part that hangs, dies or fails costs nothing but itself."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bench import harvest
from bench.harvest_parts import DIED
from bench.harvest_process import Runner, wrong
from bench.record import Record
from bench.report import main as report
from bench.sections import SECTIONS, read_results
from titn.provenance import ROOT
from titn.training.interrupt import Interrupted

HOSTILE = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from bench import harvest_parts as parts

def hangs(task, console, save):
    save({{"batch_size": 2, "rows": [{{"name": "reference", "switch": "", "images_per_second": 1}}]}})
    time.sleep(3600)

def dies(task, console, save):
    rows = task.rows("correctness")
    while len(rows) < 4:
        head = {{"operation": "a", "case": str(len(rows)), "dtype": "fp32"}}
        save([*rows, head | {{"error": parts.DIED}}])
        if len(rows) % 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        rows.append(head | {{"ok": True}})
        save(rows)

def fails(task, console, save):
    raise ValueError("of this very reason")

parts.PARTS.update(waterfall=hangs, correctness=dies, throughput=fails)
sys.exit(parts.main(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of one dry run of the usual parts."""
    folder = tmp_path_factory.mktemp("harvest")
    line = [sys.executable, "-m", "bench.harvest", "--dry-run", "--minutes", "30", "--out", str(folder)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def content(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*/*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_every_part_is_there_without_an_error(dry_run: tuple[Path, str]) -> None:
    found = content(dry_run[0])
    assert found["dry_run"] and found["seed"] == harvest.SEED and found["command"].startswith("python -m bench.harvest")
    assert set(found["sections"]) == set(SECTIONS) - {"scaling", "launches", "tune"}
    for name, data in found["sections"].items():
        assert not (isinstance(data, dict) and "error" in data), name
    told = found["sections"]["harvest"]
    assert [part["part"] for part in told["parts"]] == list(harvest.USUAL)
    assert {(part["error"], part["log"], part["restarts"]) for part in told["parts"]} == {(None, None, 0)}


def test_every_kernel_is_right_and_timed(dry_run: tuple[Path, str]) -> None:
    sections = content(dry_run[0])["sections"]
    checks = sections["correctness"]
    assert {row["operation"] for row in checks} >= {"inner_block", "short_attention", "distillation_loss"}
    assert [row for row in checks if not row.get("ok") and row["dtype"] != "bf16"] == []
    assert all("skipped" in row for row in checks if row["dtype"] == "bf16")
    ours = [row for row in sections["kernels"] if row["provider"] == "triton"]
    assert len(ours) == 2 * len(checks) / 3  # forward and backward in one dtype of three
    assert [row for row in ours if "reason" in row] == []


def test_ours_and_timm_trained(dry_run: tuple[Path, str]) -> None:
    sections = content(dry_run[0])["sections"]
    measured = {row["contender"] for row in sections["throughput"]["rows"] if "images_per_second" in row}
    assert any(name.startswith("timm") for name in measured) and "titn --fast" in measured
    switches = {row["name"]: row for row in sections["waterfall"]["rows"]}
    assert "images_per_second" in switches["reference"] and "images_per_second" in switches["+ kernels"]
    assert sections["accuracy"]["dataset"] == "digits" and sections["accuracy"]["split"] == "development"
    assert len(sections["accuracy"]["runs"]) == 2


def test_it_is_small_and_says_where_it_is(dry_run: tuple[Path, str]) -> None:
    folder, output = dry_run
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10 * 2**20
    assert {path.suffix for path in files} == {".json", ".svg"}
    assert len(files) >= 5 and all(path.name.startswith(files[0].name[:15]) for path in files)
    assert "written to" in output and "failed" not in output


def test_the_report_reads_it(dry_run: tuple[Path, str], tmp_path: Path) -> None:
    """As if its numbers meant something, so that every real section goes through every table and picture."""
    found = content(dry_run[0])
    (path,) = dry_run[0].glob("*/*.json")
    target = tmp_path / "bench" / "results" / path.parent.name / path.name
    target.parent.mkdir(parents=True)
    target.write_text(json.dumps(found | {"dry_run": False}))
    (tmp_path / "README.md").write_text("<!-- results: begin -->\n<!-- results: end -->\n")
    assert not read_results(dry_run[0]), "a dry run must not count"
    report(["--root", str(tmp_path)])
    page = (tmp_path / "bench" / "RESULTS.md").read_text()
    assert page.count("Not measured yet") == 2, "of scaling and launches, which a harvest leaves out"
    assert "Failed in part" not in page
    assert page.count("](pictures/") == len(list((tmp_path / "bench" / "pictures").iterdir())) >= 4


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """A runner whose parts misbehave, each in its way."""
    hostile = tmp_path / "hostile.py"
    hostile.write_text(HOSTILE.format(root=str(ROOT)))
    device = torch.device("cpu")
    record = Record("python -m bench.harvest", device, 0, tmp_path / "out", dry_run=True)

    def clock() -> float:
        """Hours pass once the part that hangs has saved something."""
        return time.monotonic() + 7200 * ("waterfall" in record.content["sections"])

    return Runner(record, device, "digits", "", True, program=(str(hostile),), clock=clock)


def test_a_part_that_hangs_is_stopped_and_what_it_saved_is_kept(runner: Runner) -> None:
    outcome = runner.run("waterfall", 1800, 3600 + runner.clock(), lambda: None)
    assert outcome.error is not None and outcome.error.startswith("stopped after")
    saved = json.loads(runner.record.path.read_text())["sections"]["waterfall"]
    assert saved["rows"][0]["name"] == "reference"


def test_a_part_that_dies_goes_on_behind_the_place(runner: Runner) -> None:
    outcome = runner.run("correctness", 1800, 3600 + runner.clock(), lambda: None)
    rows = runner.record.content["sections"]["correctness"]
    assert [(row["case"], row.get("error")) for row in rows] == [
        ("0", None), ("1", DIED), ("2", None), ("3", DIED),
    ]  # fmt: skip
    assert outcome.restarts == 2 and outcome.error == "2 of 4 checks are not right"


def test_a_part_that_fails_is_named_with_its_reason(runner: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = runner.run("throughput", 1800, 3600 + runner.clock(), lambda: None)
    assert outcome.error == "ValueError: of this very reason" and outcome.restarts == 0
    assert outcome.log is not None and "Traceback" in outcome.log
    assert runner.record.content["sections"]["throughput"] == {"error": outcome.error}
    harvest.show([outcome], Console(width=120))
    assert "ValueError: of this very reason" in capsys.readouterr().out


def test_a_signal_ends_the_part_and_keeps_the_rest(runner: Runner) -> None:
    runner.record.add("ceilings", {"kept": 1})

    def tick() -> None:
        raise Interrupted(signal.SIGTERM, "stopped")

    with pytest.raises(Interrupted):
        runner.run("waterfall", 1800, 3600 + runner.clock(), tick)
    assert json.loads(runner.record.path.read_text())["sections"] == {"ceilings": {"kept": 1}}


@pytest.mark.parametrize(
    ("part", "data", "message"),
    [
        ("ceilings", {"copy_gb_per_s": {"median": 1}}, None),
        ("kernels", [], "nothing was measured"),
        ("kernels", [{"reason": "a"}, {"us": 1}], None),
        ("scaling", {"rows": [{"reason": "too large"}]}, "nothing was measured: too large"),
        ("accuracy", {"runs": [], "note": "seed 0 failed"}, "nothing was measured"),
        ("correctness", [{"ok": True}, {"ok": False}, {"skipped": "b"}], "1 of 3 checks are not right"),
        ("correctness", [{"ok": True}, {"skipped": "b"}], None),
    ],
)
def test_what_counts_as_a_failure(part: str, data: Any, message: str | None) -> None:
    assert wrong(part, data) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes must be above 0, not 0"),
        (["--dry-run", "--device", "cuda"], "--dry-run runs on the CPU, not on cuda"),
        (["--dry-run", "--parts", "speed"], "invalid choice: 'speed'"),
        (["--dry-run", "--dataset", "cifar"], "invalid choice: 'cifar'"),
        ([], "TRITON_INTERPRET=1 is set"),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if not arguments:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit) as stop:
        harvest.main(["--out", str(tmp_path / "out"), *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_bare_machine_is_enough() -> None:
    """No part imports what only a development machine has."""
    absent = ("tyro", "xformers", "pytest", "pytest_benchmark", "nvidia.dali")
    parts = [*harvest.SHARES, "harvest", "harvest_parts", "harvest_process", "charts"]
    lines = ["import sys", *(f"sys.modules[{name!r}] = None" for name in absent)]
    lines += [f"import bench.{name}" for name in parts]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
