"""A dry run of the harvest gets through its parts; one that hangs, fails or is killed costs only what it was at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import harvest, warm
from bench.harvest import GRACE, MARGIN, PARTS, Part
from bench.kernels.times import PAPER_CASES
from bench.options import Budget, Setting
from bench.record import Record
from bench.report.page import main as report
from bench.report.results import read_results
from titn.errors import Interrupted
from titn.provenance import ROOT
from titn.training.interrupt import StopRequest

QUICK = ("training", "racecheck", "accuracy")
"""Parts of a dry run that do not wait for Triton's interpreter, which has tests of its own in test_kernel_times.py."""


def sections(folder: Path) -> dict[str, Any]:
    """Those of the one result file in a folder."""
    (path,) = folder.rglob("*.json")
    found: dict[str, Any] = json.loads(path.read_text())["sections"]
    return found


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of one dry run, without data at hand."""
    folder = tmp_path_factory.mktemp("harvest")
    line = [sys.executable, "-m", "bench.harvest", "--dry-run", "--minutes", "60", "--out", str(folder / "out")]
    line += ["--data-dir", str(folder / "nothing"), "--runs-dir", str(folder / "runs"), "--parts", *QUICK]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out", done.stdout


def test_one_file_holds_the_sections_of_every_part(dry_run: tuple[Path, str]) -> None:
    found = sections(dry_run[0])
    assert {"harvest", "throughput", "step_profile", "accuracy"} <= set(found)
    parts = {part["part"]: part for part in found["harvest"]["parts"]}
    assert parts["training"]["sections"] == ["throughput", "step_profile"]
    assert list(parts) == list(QUICK) and all(part["error"] is None for part in parts.values())
    assert "needs a GPU" in parts["racecheck"]["log"]
    measured = {row["contender"] for row in found["throughput"]["rows"] if "images_per_second" in row}
    assert any(name.startswith("timm") for name in measured) and "titn --fast" in measured
    assert (found["accuracy"]["dataset"], found["accuracy"]["split"]) == ("digits", "development")
    assert len(found["accuracy"]["runs"]) == 2
    assert "Harvest" in dry_run[1] and "failed" not in dry_run[1]
    assert not read_results(dry_run[0]), "a dry run must not count"


def test_the_report_reads_it(dry_run: tuple[Path, str], tmp_path: Path) -> None:
    """As if its numbers meant something, so that real sections go through their tables and pictures."""
    for path in dry_run[0].glob("*/*.json"):
        target = tmp_path / "bench" / "results" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(json.loads(path.read_text()) | {"dry_run": False}))
    (tmp_path / "README.md").write_text("<!-- results: begin -->\n<!-- results: end -->\n")
    report(["--root", str(tmp_path)])
    page = (tmp_path / "bench" / "RESULTS.md").read_text()
    assert "Not complete" not in page and "| 2 | titn --fast |" in page
    assert page.count("](pictures/") == len(list((tmp_path / "bench" / "pictures").iterdir())) == 3


HELD = """
import itertools, os, signal, sys
from bench.options import Setting
saves, real = itertools.count(1), Setting.save

def held(self, section, data):
    real(self, section, data)
    if next(saves) == {at}:
        {what}

Setting.save = held
sys.argv = ["bench.{name}", *sys.argv[1:]]
from bench.{module} import main
main()
"""
COMMANDS = {
    "throughput": ("training.throughput", "--batch-sizes 2 --rounds 1 --seconds 1000", 3),
    "waterfall": ("training.waterfall", "--batch-size 1 --rounds 1 --seconds 1000", 2),
    "scaling": ("training.scaling", "--rounds 1", 3),
    "kernels": ("kernels.times", "--check --dtypes fp32", 2),
    "accuracy": ("training.accuracy", "--seeds 2 --epochs 1", 1),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_part_killed_half_way_keeps_what_it_finished(name: str, tmp_path: Path) -> None:
    """Killed, without a chance to save, right after it saved a few rows; what is in the file is whole and says so."""
    module, line, saves = COMMANDS[name]
    script = HELD.format(name=name, module=module, at=saves, what="os.kill(os.getpid(), signal.SIGKILL)")
    arguments = [*line.split(), "--dry-run", "--out", str(tmp_path)]
    arguments += ["--runs-dir", str(tmp_path / "runs")] if name == "accuracy" else []
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    (path,) = tmp_path.glob("CPU*/*.json")
    content = json.loads(path.read_text())
    assert content["finished"] is False
    data = next(reversed(content["sections"].values()))
    rows = data if isinstance(data, list) else data.get("runs") or data["rows"]
    done_rows = [row for row in rows if {"images_per_second", "ok", "top1"} & set(row)]
    assert len(done_rows) >= (1 if name in ("accuracy", "kernels") else saves - 1), rows


@pytest.fixture
def at(tmp_path: Path) -> Setting:
    device = torch.device("cpu")
    return Setting(device, small=True, record=Record("python -m bench.harvest", device, 0, tmp_path / "out"))


def part(line: str, seconds: float = 600) -> Part:
    return Part("part", line, seconds)


def run(at: Setting, one: Part, seconds: float) -> harvest.Outcome:
    with StopRequest() as stop:
        return harvest.run(one, seconds, at, {}, stop)


def test_a_part_that_hangs_is_killed_with_all_it_started(
    at: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvest, "GRACE", 0.0)
    monkeypatch.setattr(harvest.sys, "executable", str(tmp_path / "hangs"))
    pid = tmp_path / "pid"
    measured = json.dumps({"dry_run": True, "sections": {"throughput": {"rows": [{"contender": "a"}]}}})
    (tmp_path / "hangs").write_text(
        f"""#!/bin/sh
sleep 3600 &
echo $! > {pid}
for out; do :; done
mkdir $out/device && echo '{measured}' > $out/device/file.json
echo begun
wait
"""
    )
    (tmp_path / "hangs").chmod(0o755)
    outcome = run(at, part("anything"), 3.0)
    assert outcome.error == "killed when its time was over" and outcome.log == "begun\n"
    assert at.record is not None and outcome.sections == ("throughput",)
    assert json.loads(at.record.path.read_text())["sections"] == {"throughput": {"rows": [{"contender": "a"}]}}
    assert list(at.record.path.parents[1].glob(".part*")) == []
    with pytest.raises(ProcessLookupError):
        for _ in range(50):
            os.kill(int(pid.read_text()), 0)
            time.sleep(0.1)


def test_a_part_that_fails_is_named_with_its_reason(at: Setting) -> None:
    outcome = run(at, part("throughput --rounds 0"), 600)
    assert outcome.error == "error: --rounds must be at least 1, not 0"
    assert outcome.command.startswith("python -m bench.throughput --rounds 0 --device cpu --seconds 600")


def test_a_signal_ends_the_part_and_keeps_the_rest(at: Setting) -> None:
    at.save("harvest", {"kept": 1})
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="stopped in part"):
            harvest.run(part("scaling"), 600, at, {}, stop)
    assert at.record is not None
    assert json.loads(at.record.path.read_text())["sections"] == {"harvest": {"kept": 1}}


def test_what_two_parts_measured_stands_together() -> None:
    first = {
        "rows": [{"contender": "a", "batch_size": 1, "seconds": [1]}, {"contender": "b", "reason": "late"}],
        "x": 1,
    }
    second = {"rows": [{"contender": "b", "seconds": [2]}, {"contender": "a", "batch_size": 2, "seconds": [3]}], "x": 2}
    both = harvest.merged(first, second)
    assert both["x"] == 2
    assert [(row["contender"], row.get("batch_size"), row["seconds"]) for row in both["rows"]] == [
        ("a", 1, [1]), ("b", None, [2]), ("a", 2, [3]),
    ]  # fmt: skip
    again = harvest.merged([{"case": "a", "ok": True}], [{"case": "a", "skipped": "late"}])
    assert again == [{"case": "a", "ok": True}]
    good, failed = {"copy_gb_per_s": {"median": 4000.0}}, {"error": "out of memory"}
    assert harvest.merged(good, failed) == harvest.merged(failed, good) == harvest.merged(None, good) == good


@pytest.mark.parametrize("minutes", [1.0, 3.0, 10.0, 30.0])
@pytest.mark.parametrize("late", [False, True])
def test_all_of_it_ends_within_its_minutes(
    minutes: float, late: bool, at: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the parts take up to where they are killed; and nobody is kept from time that is there."""
    clock = [1000.0]
    monkeypatch.setattr(harvest.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(harvest, "environment", lambda _: {})
    given: dict[str, float] = {}

    def pretend(one: Part, seconds: float, *_: Any) -> harvest.Outcome:
        given[one.name] = seconds
        clock[0] += seconds + GRACE if late else 1.0
        return harvest.Outcome(one.name, "", seconds, seconds)

    monkeypatch.setattr(harvest, "run", pretend)
    outcomes = harvest.harvest(PARTS, minutes, at, {})
    assert [one.part for one in outcomes] == [one.name for one in PARTS]
    assert clock[0] - 1000 <= 60 * minutes - MARGIN
    assert all(one.error or one.part in given for one in outcomes)
    if not late and minutes >= 10:
        assert all(given[one.name] >= one.seconds - 1 for one in PARTS)


def test_warming_does_every_case_and_contender_that_compiles() -> None:
    at = Setting(torch.device("cpu"), small=True)
    jobs = warm.jobs(Setting(at.device))
    assert len([job for job in jobs if job[0] == "triton"]) == PAPER_CASES
    assert len(jobs) == len({*jobs}) and ("step", "titn --fast") in jobs and ("step", "timm TNT, eager") not in jobs
    assert warm.jobs(at) == [jobs[0], ("triton", "0"), ("compile", "0")]
    assert warm.run("compile", jobs[-1][1], at) > 0
    late = Setting(at.device, small=True, budget=Budget(1e-9))
    assert warm.in_a_process(jobs[0], late) == "step titn --fast: not reached within 1e-09 seconds"
    assert warm.in_a_process(("step", "nobody"), at).startswith("step nobody: error: unknown contender 'nobody'")


def test_the_ten_minutes_are_planned() -> None:
    assert sum(one.seconds for one in PARTS) == 600 - MARGIN
    assert [one.name for one in PARTS][:3] == ["compile", "kernels", "training"] and PARTS[-1].name == "accuracy"


def test_a_missing_data_set_fails_only_the_accuracy(at: Setting, tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    words = {"dataset": absent, "data_dir": absent, "runs_dir": absent, "seeds": "1", "length": "--minutes"}
    with StopRequest() as stop:
        outcome = harvest.run(PARTS[-1], 600, at, words, stop)
    assert outcome.error is not None and outcome.error.startswith("error: ") and "absent" in outcome.error
    assert outcome.sections == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes must be above 0, not 0"),
        (["--dry-run", "--parts", "speed"], "invalid choice: 'speed'"),
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
    names = {one.line.split()[0] for one in PARTS} | {"harvest"}
    lines = ["import sys", *(f"sys.modules[{name!r}] = None" for name in absent)]
    lines += [f"import bench.{'kernels.times' if name == 'kernels' else name}" for name in sorted(names)]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
