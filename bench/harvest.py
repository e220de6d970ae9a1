"""Everything worth measuring on a GPU, in one command, while there is one.

    python -m bench.harvest --minutes 10 --out DIR [--data-dir DATA] [--dataset cifar100] [--parts PART ...]
    python -m bench.harvest --dry-run --out DIR

A list of commands (PARTS), one after the other, each in a process of its own with seconds of its own: it starts
nothing new when they are over, and is killed with all it started GRACE later. What a part leaves over goes to the next
ones; the last ones get what is left, perhaps nothing. Every command saves its own result file in DIR whenever it has
something, so that one that hangs, dies or is late costs nothing but what it was at. All ends MARGIN before the minutes
are over. Needs torch, triton, torchvision and timm, no network.

The harvest's own result file says how long each part took and how it ended. --dry-run does the same at toy sizes, on a
CPU in Triton's interpreter. Exit status 1: a part failed.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench import options
from bench.options import Setting
from bench.record import nvidia_smi
from bench.report.render import Columns, Table, show
from titn.data.known import find_known
from titn.errors import Interrupted, UserError, command
from titn.kernels.common.backend import installed
from titn.provenance import ROOT
from titn.training.interrupt import StopRequest
from titn.training.switches import compile_reasons

SEED = 2024
MARGIN = 20.0
GRACE = 10.0
POLL_SECONDS = 0.2
LOG_CHARACTERS = 4000


@dataclass(frozen=True)
class Part:
    """A command of the harvest.

    Attributes:
        name: as --parts calls it.
        line: what follows "python -m bench.", with words in braces to fill in.
        seconds: after which it starts nothing new, where there are ten minutes.
        before: a program that runs it, with its arguments.
        interpreted: a dry run has it in Triton's interpreter.
    """

    name: str
    line: str
    seconds: float
    before: tuple[str, ...] = ()
    interpreted: bool = True


SANITIZER = ("compute-sanitizer", "--error-exitcode", "9", "--tool")
PARTS = (
    Part("compile", "warm", 30, interpreted=False),
    Part("kernels", "kernels --cases paper --dtypes {dtype} --providers triton torch compile", 90),
    Part("training", "throughput --batch-sizes {batch} --rounds {rounds} --profile", 190, interpreted=False),
    Part("racecheck", "kernels --check --dry-run", 20, (*SANITIZER, "racecheck")),
    Part("initcheck", "kernels --check --dry-run", 20, (*SANITIZER, "initcheck")),
    Part("waterfall", "waterfall --rounds {rounds}", 60),
    Part("rivals", "kernels --cases paper --dtypes {dtype}", 40),
    Part("other-sizes", "kernels --cases others --dtypes {dtype} --providers triton torch compile", 40),
    Part("other-batches", "throughput --batch-sizes {other_batches} --rounds {rounds}", 50, interpreted=False),
    Part(
        "accuracy",
        "accuracy --dataset {dataset} --data-dir {data_dir} --split development --seeds {seeds} {length} {minutes}",
        40,
        interpreted=False,
    ),
)
"""In order of worth: what comes late gets what is left."""


@dataclass(frozen=True)
class Outcome:
    """How a part went: seconds it took and was given, and why it failed (None: it did not), with the end of its log."""

    part: str
    command: str
    seconds: float
    given_seconds: float
    error: str | None
    log: str | None


def harvest(parts: list[Part], minutes: float, at: Setting, words: dict[str, str], out: Path) -> list[Outcome]:
    """Run the parts in their order.

    Raises:
        Interrupted: SIGINT or SIGTERM came; what was measured is saved.
    """
    ends = time.monotonic() + 60 * minutes - MARGIN
    outcomes: list[Outcome] = []
    around = environment(at.device)
    with StopRequest() as stop:
        for index, part in enumerate(parts):
            left = ends - time.monotonic() - GRACE
            weight = part.seconds / sum(each.seconds for each in parts[index:])
            # early parts have their own seconds where the minutes allow, and the late ones share what is over
            given = min(max(part.seconds, left * weight), left)
            if given < 1:
                outcome = Outcome(part.name, "", 0.0, 0.0, "there was no time left for it", None)
            else:
                outcome = run(part, given, at, words, out, stop)
            outcomes.append(outcome)
            at.save(
                "harvest", {"minutes": minutes, "environment": around, "parts": [asdict(each) for each in outcomes]}
            )
            at.say(f"{part.name}: {outcome.seconds:.1f} s of {given:.0f} s, {outcome.error or 'done'}")
    return outcomes


def run(part: Part, seconds: float, at: Setting, words: dict[str, str], out: Path, stop: StopRequest) -> Outcome:
    """Run one part; it and whatever it started are killed GRACE after its seconds."""
    line = [
        *part.line.format(minutes=f"{0.9 * seconds / 60:.2f}", **words).split(),
        "--device",
        str(at.device),
        "--out",
        str(out),
    ]
    line += ["--seconds", f"{seconds:.1f}", *(["--dry-run"] if at.small and "--dry-run" not in line else [])]
    name = " ".join(["python -m", f"bench.{line[0]}", *line[1:]])
    if part.before and (at.device.type != "cuda" or shutil.which(part.before[0]) is None):
        why = f"{part.before[0]} needs a GPU" if at.device.type != "cuda" else f"{part.before[0]} is not installed"
        return Outcome(part.name, name, 0.0, seconds, None, f"left out: {why}")
    began = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            [*part.before, sys.executable, "-m", f"bench.{line[0]}", *line[1:]],
            cwd=ROOT, env=_environment(at.small and at.device.type == "cpu" and part.interpreted),
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
        log.seek(0)
        text = log.read()[-LOG_CHARACTERS:]
    error = _why(status, text)
    return Outcome(
        part.name, name, round(time.monotonic() - began, 1), round(seconds, 1), error, text if error else None
    )


def _environment(interpreted: bool) -> dict[str, str]:
    """Ours, with the variable that Triton reads at its import."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return kept | {"PYTHONUNBUFFERED": "1"} | ({"TRITON_INTERPRET": "1"} if interpreted else {})


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


def at_hand(dataset: str | None, data_dir: Path, at: Setting) -> str:
    """The data set of the accuracy part: the one asked for, else CIFAR-100 where it is at hand, else digits."""
    if dataset is not None or at.small:
        return dataset or "digits"
    try:
        find_known("cifar100", data_dir)
    except UserError as error:
        at.say(f"accuracy on digits, since CIFAR-100 is not at hand: {error}")
        return "digits"
    return "cifar100"


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
    parser.add_argument("--dataset", help="of accuracy (default: cifar100 where it is at hand, else digits)")
    parser.add_argument("--parts", nargs="+", choices=names, default=names, help=f"default: {' '.join(names)}")
    given, at = options.start(parser, argv, seed=SEED)
    if not installed("triton"):
        raise UserError("the package triton is not installed; install it with: pip install triton")
    words = {
        "dtype": "fp16" if at.small else "bf16",
        "batch": "2" if at.small else "1024",
        "other_batches": "3" if at.small else "256 4096 64",
        "rounds": "1" if at.small else "9",
        "dataset": at_hand(given.dataset, given.data_dir, at),
        "data_dir": str(given.data_dir.resolve()),
        "seeds": "2" if at.small else "1",
        "length": "--epochs 1 --minutes" if at.small else "--minutes",
    }
    chosen = [part for part in PARTS if part.name in given.parts]
    outcomes = harvest(chosen, given.minutes, at, words, given.out.resolve())
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
