"""Everything worth measuring on a GPU, in one command, while there is one.

    python -m bench.harvest --minutes 10 --out DIR [--data-dir DATA] [--dataset cifar100] [--parts PART ...]
    python -m bench.harvest --dry-run --out DIR

A list of commands (PARTS), one after the other, each in a process of its own with seconds of its own: it starts
nothing new when they are over, and is killed with all it started GRACE later. What a part leaves over goes to the next
ones; the last ones get what is left, perhaps nothing. Every command saves what it has as it goes, so that one that
hangs, dies or is late costs nothing but what it was at. All ends MARGIN before the minutes are over. Needs torch,
triton, torchvision and timm, no network.

One file, DIR/DEVICE/DATE-COMMIT.json, holds the sections of all parts, and in "harvest" how long each took and how it
ended. --dry-run does the same at toy sizes, on a CPU in Triton's interpreter or, with --device cuda, on a GPU. Exit
status 1: a part failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench import options
from bench.options import Setting
from bench.record import nvidia_smi
from bench.report.render import Columns, Table, show
from titn.errors import Interrupted, UserError, command
from titn.kernels.common.backend import installed
from titn.provenance import ROOT
from titn.training.interrupt import StopRequest
from titn.training.switches import compile_reasons

SEED = 2024
MARGIN = 20.0
GRACE = 15.0  # for the start of Python and what is being done when the time is over
POLL_SECONDS = 0.2
LOG_CHARACTERS = 4000


IDENTITY = ("operation", "case", "dtype", "mode", "provider", "contender", "batch_size", "name", "axis", "value")
"""What a row is about."""


@dataclass(frozen=True)
class Part:
    """A command of the harvest.

    Attributes:
        name: as --parts calls it.
        line: what follows "python -m bench.", with words in braces to fill in.
        seconds: after which it starts nothing new, where there are ten minutes.
        before: a program that runs it, with its arguments.
    """

    name: str
    line: str
    seconds: float
    before: tuple[str, ...] = ()


SANITIZER = ("compute-sanitizer", "--error-exitcode", "9", "--tool")
PARTS = (
    Part("compile", "warm", 30),
    Part("kernels", "kernels --cases paper --dtypes {dtype} --providers first", 90),
    Part("training", "throughput --batch-sizes {batch} --rounds {rounds} --profile", 190),
    Part("racecheck", "kernels --check --dry-run", 20, (*SANITIZER, "racecheck")),
    Part("initcheck", "kernels --check --dry-run", 20, (*SANITIZER, "initcheck")),
    Part("waterfall", "waterfall --dataset {dataset} --data-dir {data_dir} --rounds {rounds}", 60),
    Part("rivals", "kernels --cases paper --dtypes {dtype} --providers others", 40),
    Part("other-sizes", "kernels --cases others --dtypes {dtype} --providers first", 40),
    Part("other-batches", "throughput --batch-sizes {other_batches} --rounds {rounds}", 50),
    Part(
        "accuracy",
        "accuracy --dataset {dataset} --data-dir {data_dir} --runs-dir {runs_dir} --split development --seeds {seeds} "
        "{length} {minutes}",
        40,
    ),
)
"""In order of worth: what comes late gets what is left."""


@dataclass(frozen=True)
class Outcome:
    """How a part went.

    Attributes:
        part, command: its name and command line.
        seconds, given_seconds: how long it took, and was to start something new.
        sections: of the result file that it contributed to.
        error, log: why it failed and what it printed last; None if all went well.
    """

    part: str
    command: str
    seconds: float
    given_seconds: float
    sections: tuple[str, ...] = ()
    error: str | None = None
    log: str | None = None


def harvest(parts: Sequence[Part], minutes: float, at: Setting, words: Mapping[str, str]) -> list[Outcome]:
    """Run the parts in their order, and merge what each has saved into the result file.

    Raises:
        Interrupted: SIGINT or SIGTERM came; what was measured is saved.
    """
    ends = time.monotonic() + 60 * minutes - MARGIN
    outcomes: list[Outcome] = []
    around = environment(at.device)
    with StopRequest() as stop:
        for index, part in enumerate(parts):
            left = ends - time.monotonic() - GRACE
            share = left * part.seconds / sum(each.seconds for each in parts[index:])
            given = min(max(part.seconds, share), left)
            if given < 1:
                outcomes.append(Outcome(part.name, "", 0.0, 0.0, error="there was no time left for it"))
            else:
                outcomes.append(run(part, given, at, words, stop))
            parts_so_far = [asdict(each) for each in outcomes]
            at.save("harvest", {"minutes": minutes, "environment": around, "parts": parts_so_far})
            at.say(f"{part.name}: {outcomes[-1].seconds:.1f} s of {given:.0f} s, {outcomes[-1].error or 'done'}")
    return outcomes


def run(part: Part, seconds: float, at: Setting, words: Mapping[str, str], stop: StopRequest) -> Outcome:
    """Run one part; it and whatever it started are killed GRACE after its seconds."""
    assert at.record is not None
    program, *arguments = shlex.split(part.line.format(minutes=f"{0.9 * seconds / 60:.2f}", **words))
    arguments += ["--device", str(at.device), "--seconds", f"{seconds:.1f}"]
    arguments += ["--dry-run"] if at.small and "--dry-run" not in arguments else []
    outcome = Outcome(part.name, f"python -m bench.{program} {shlex.join(arguments)}", 0.0, round(seconds, 1))
    if part.before and (at.device.type != "cuda" or shutil.which(part.before[0]) is None):
        why = f"{part.before[0]} needs a GPU" if at.device.type != "cuda" else f"{part.before[0]} is not installed"
        return replace(outcome, log=f"left out: {why}")
    out = at.record.path.parents[1]
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=".part-", dir=out) as folder, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*part.before, sys.executable, "-m", f"bench.{program}", *arguments, "--out", folder],
            cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8:replace"},
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            while process.poll() is None and time.monotonic() - began < seconds + GRACE:
                if stop.received is not None:
                    raise Interrupted(stop.received, f"stopped in {part.name}; what was measured is in {out}")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
            status = process.poll()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            sections = collect(Path(folder), at)
        log.seek(0)
        text = log.read()[-LOG_CHARACTERS:]
    error = _why(status, text)
    took = round(time.monotonic() - began, 1)
    return replace(outcome, seconds=took, sections=sections, error=error, log=text if error else None)


def collect(folder: Path, at: Setting) -> tuple[str, ...]:
    """Merge the sections of the result files in `folder` into that of the harvest; their names."""
    assert at.record is not None
    names: list[str] = []
    for path in sorted(folder.glob("*/*.json")):
        content = json.loads(path.read_text())
        if content["dry_run"] == at.small:  # toy sizes under the sanitizer are no measurement
            for name, data in content["sections"].items():
                at.save(name, merged(at.record.content["sections"].get(name), data))
                names.append(name)
    return tuple(names)


def merged(before: Any, data: Any) -> Any:
    """A section that two parts measured: rows that say the same of the same things once, what was measured first.

    One without rows stays as the first part measured it, unless that failed.
    """
    if isinstance(before, dict) and isinstance(data, dict) and "rows" in before and "rows" in data:
        return before | data | {"rows": merged(before["rows"], data["rows"])}
    if not isinstance(before, list) or not isinstance(data, list):
        return before if before and "error" not in before else data
    rows: dict[tuple[Any, ...], Any] = {}
    for row in (*before, *data):
        key = tuple(row.get(name) for name in IDENTITY)
        if key not in rows or "reason" in rows[key] or "skipped" in rows[key]:
            rows[key] = row
    return list(rows.values())


def _why(status: int | None, log: str) -> str | None:
    """Why a process failed, by its exit status (None: it had to be killed); None if it did not."""
    if status is None:
        return "killed when its time was over"
    if status < 0:
        return f"the process ended with {signal.Signals(-status).name}"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return (lines or [f"the process ended with {status}"])[-1][:300] if status else None


def environment(device: torch.device) -> dict[str, Any]:
    """What a reader may want to know beyond the device and the versions."""
    relevant = ("CUDA_", "NVIDIA_TF32", "OMP_", "PYTORCH_", "TORCH", "TRITON_")
    clocks = ("clocks.max.sm", "clocks.max.mem", "clocks.sm", "power.limit", "persistence_mode", "mig.mode.current")
    return {
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "compile_reasons": compile_reasons(device),
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(relevant)},
        "nvidia_smi": nvidia_smi(*clocks) if device.type == "cuda" else None,
    }


COLUMNS: Columns = [
    ("part", lambda one: one.part),
    ("seconds:", lambda one: f"{one.seconds:.1f}"),
    ("of:", lambda one: f"{one.given_seconds:.0f}"),
    ("", lambda one: f"failed: {one.error}" if one.error else one.log or "done"),
]


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("harvest", __doc__)
    names = tuple(part.name for part in PARTS)
    parser.add_argument("--minutes", type=float, default=10.0, help="all of it takes at most so long (default: 10)")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where the data set of accuracy lies")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where the trainings of accuracy are kept")
    parser.add_argument(
        "--dataset", default="digits", help="of waterfall and accuracy (default: digits, always at hand)"
    )
    parser.add_argument("--parts", nargs="+", choices=names, default=names, help=f"default: {' '.join(names)}")
    given, at = options.start(parser, argv, seed=SEED)
    if not installed("triton"):
        raise UserError("the package triton is not installed; install it with: pip install triton")
    words = {
        "dtype": "fp16" if at.small else "bf16",
        "batch": "2" if at.small else "1024",
        "other_batches": "3" if at.small else "256 4096 64",
        "rounds": "1" if at.small else "9",
        "dataset": shlex.quote(given.dataset),
        "data_dir": shlex.quote(str(given.data_dir.resolve())),
        "runs_dir": shlex.quote(str(given.runs_dir.resolve())),
        "seeds": "2" if at.small else "1",
        "length": "--epochs 1 --minutes" if at.small else "--minutes",
    }
    chosen = [part for part in PARTS if part.name in given.parts]
    outcomes = harvest(chosen, given.minutes, at, words)
    for one in outcomes:
        if one.error and one.log:
            at.say(f"\nThe last lines of {one.part}:")
            at.say("\n".join(one.log.splitlines()[-15:]))
    show([Table.of(outcomes, COLUMNS, "Harvest")], at.console)
    at.finish()
    if any(one.error for one in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
