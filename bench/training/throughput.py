"""Training images per second of TITN against timm's TNT of the same sizes: same batch, precision and loss.

    python -m bench.throughput [--batch-sizes 64 256 1024 4096] [--rounds 9] [--starts] [--profile] [--out DIR]

What a contender's step is, and where timm's TNT has less to do: see bench/training/contenders.py. Rounds are
interleaved A B A B; a ratio compares the same round of two contenders. A contender that cannot run or fails is listed
with its reason. --starts also times first steps in processes of their own; --profile also says where a step of `--fast`
goes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from bench import options
from bench.options import Setting
from bench.record import described, statistic
from bench.report.sections import FAST
from bench.timing import laps
from bench.training import profile
from bench.training.contenders import TOY, Contender, Sizes, Step, all_contenders, precision
from bench.training.race import Race, Timed, images_per_second, race, ratio
from titn.errors import UserError, command
from titn.provenance import ROOT

BATCH_SIZES = {"cuda": (64, 256, 1024, 4096), "cpu": (64, 256)}
TOY_BATCH_SIZES = (2, 3)
ROUNDS = 9
TIMEOUT_SECONDS = 600

Row = dict[str, Any]


def measure(
    at: Setting, batch_sizes: Sequence[int], rounds: int, *, starts: bool = False, profiled: bool = False
) -> dict[str, Any]:
    """The section "throughput": every contender at every batch size.

    Args:
        at: where, and how long.
        batch_sizes: images per step.
        rounds: repeats of each contender.
        starts: also time first steps, cold and warm, in processes of their own, at the second batch size (the first
            where there is one only): minutes.
        profiled: also save the section "step_profile" of `--fast`, while it is warm at the first batch size, or
            {"error": why there is none}.

    Returns:
        "precision" and "rows", one per contender and batch size: "contender", "batch_size", and either "reason" (why it
        was not measured) or "seconds" (of a step, one per round), "images_per_second", "ratio_to_timm" (how many times
        as fast as the fastest of timm's, round by round; None for timm's own), "peak_bytes",
        "first_step_seconds" and "warm_start_seconds" (None where not timed). `low` and `high` are the extremes of the
        rounds. Saved whenever a contender has been timed.
    """
    section: dict[str, Any] = {"precision": precision(at.amp), "rows": []}
    contenders = all_contenders(at.device, at.amp)
    start_at = batch_sizes[min(1, len(batch_sizes) - 1)]
    done: list[Row] = []
    for batch_size in batch_sizes:
        for standing in race(at, contenders, batch_size, rounds):
            section["rows"] = done + rows_of(contenders, batch_size, standing)
            at.save("throughput", section)
            if standing.over and profiled and batch_size == batch_sizes[0]:
                at.save("step_profile", profile_of(standing, batch_size))
        done = section["rows"]
        for row in done if starts and batch_size == start_at else []:
            if row["batch_size"] == batch_size and "reason" not in row:
                _add_starts(row, at)
                at.save("throughput", section)
    return section


def rows_of(contenders: Sequence[Contender], batch_size: int, standing: Race) -> list[Row]:
    """A row for each contender; those that are still to come are left out."""
    timed = {name: outcome.seconds for name, outcome in standing.outcomes.items() if isinstance(outcome, Timed)}
    rivals = [one.name for one in contenders if one.is_rival and one.name in timed]
    fastest = min(rivals, key=lambda name: statistic(timed[name])["median"], default=None)
    rows: list[Row] = []
    for one in contenders:
        outcome = standing.outcomes.get(one.name)
        row: Row = {"contender": one.name, "batch_size": batch_size}
        if isinstance(outcome, str):
            rows.append(row | {"reason": outcome})
        elif outcome is not None:
            compared = fastest is not None and not one.is_rival
            rows.append(
                row
                | {
                    "precision": precision(one.amp),
                    "form": one.form,
                    "kernels": one.kernels,
                    "seconds": outcome.seconds,
                    "images_per_second": images_per_second(batch_size, outcome.seconds),
                    "ratio_to_timm": ratio(timed[str(fastest)], outcome.seconds) if compared else None,
                    "peak_bytes": outcome.peak_bytes,
                    "first_step_seconds": None,
                    "warm_start_seconds": None,
                }
            )
    return rows


def profile_of(standing: Race, batch_size: int) -> dict[str, Any]:
    """The section "step_profile" of `--fast`, or {"error": why there is none}, which costs the race nothing."""
    if FAST not in standing.ready:
        return {"error": f"{FAST} was not timed: {standing.outcomes.get(FAST, 'it is no contender')}"}
    try:
        return profile.measure(standing.ready[FAST].step, batch_size)
    except Exception as error:
        return {"error": described(error)}


# First steps, in processes of their own


def _add_starts(row: Row, at: Setting) -> None:
    try:
        cold, warm = cold_and_warm(row["contender"], at, row["batch_size"])
    except RuntimeError as error:
        row["starts_reason"] = described(error)
        at.say(f"first step of {row['contender']}: {row['starts_reason']}")
        return
    row |= {"first_step_seconds": cold, "warm_start_seconds": warm}
    at.say(f"first step of {row['contender']}: {cold:.1f} s, then {warm:.1f} s")


def cold_and_warm(name: str, at: Setting, batch_size: int) -> tuple[float, float]:
    """Seconds of the first step of contender `name` with compile caches empty, then in a new process with them full.

    Starting Python, importing and building the network come before that.

    Raises:
        RuntimeError: a child process failed or took longer than ten minutes.
    """
    line = [sys.executable, "-m", "bench.throughput", "--first-step", name, "--device", str(at.device)]
    line += ["--batch-sizes", str(batch_size), *(["--dry-run"] if at.small else [])]
    with tempfile.TemporaryDirectory(prefix="titn-starts-") as folder:
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "TRITON_CACHE_DIR": f"{folder}/triton"}
        cold, warm = (_child(line, os.environ | caches) for _ in range(2))
    return cold, warm


def _child(line: list[str], environment: dict[str, str]) -> float:
    try:
        ended = subprocess.run(
            line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no first step within {TIMEOUT_SECONDS} s") from None
    lines = ended.stdout.splitlines()
    if ended.returncode or not lines:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the process left with {ended.returncode}: {last[:200]}")
    return float(json.loads(lines[-1])["first_step_seconds"])


def first_step(name: str, at: Setting, batch_size: int) -> float:
    """Seconds of the first step of the contender `name` in this process.

    Raises:
        UserError: there is no such contender.
    """
    contenders = {one.name: one for one in all_contenders(at.device, at.amp)}
    if name not in contenders:
        raise UserError(f"unknown contender {name!r}; choose from {'; '.join(contenders)}")
    step = Step(contenders[name], at.device, batch_size, TOY if at.small else Sizes(), small=at.small)
    return laps(step, at.device)[0]


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("throughput", __doc__, rounds=ROUNDS)
    default = "; on a ".join(f"{kind.upper()} {' '.join(map(str, sizes))}" for kind, sizes in BATCH_SIZES.items())
    parser.add_argument("--batch-sizes", type=int, nargs="+", metavar="B", help=f"images per step (default: {default})")
    parser.add_argument("--starts", action="store_true", help="also time first steps, cold and warm: takes minutes")
    parser.add_argument("--profile", action="store_true", help="also say where a step of --fast goes")
    parser.add_argument("--first-step", metavar="NAME", help="only print the seconds of a contender's first step")
    given, at = options.start(parser, argv)
    batch_sizes = given.batch_sizes or (TOY_BATCH_SIZES if at.small else BATCH_SIZES[at.device.type])
    if given.first_step:
        print(json.dumps({"first_step_seconds": first_step(given.first_step, at, batch_sizes[0])}))
        return
    at.show("throughput", measure(at, batch_sizes, given.rounds, starts=given.starts, profiled=given.profile))
    profiled = at.record.content["sections"].get("step_profile") if at.record is not None else None
    if profiled is not None and "error" in profiled:
        at.say(f"no profile: {profiled['error']}")
    elif profiled is not None:
        at.show("step_profile", profiled)
    at.finish()


if __name__ == "__main__":
    main()
