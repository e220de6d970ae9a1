"""Everything worth measuring on a GPU, in one command, while there is one.

    python -m bench.harvest --minutes 9 --out DIR [--data-dir DATA] [--dataset cifar100] [--parts PART ...]
    python -m bench.harvest --dry-run --out DIR

In this order: ceilings of the device, correctness of all kernels, their times, the waterfall of switches, throughput
against timm, the profile of one step, and accuracy (development split) with the time that is left. Each part runs in a
process of its own and has a share of the time; what it leaves over goes to the next ones. What it has so far is saved
as it goes, so that a part that hangs, crashes or is late costs nothing but itself. Needs torch, triton, torchvision and
timm, no network. --parts names others; "scaling" runs only if it is asked for.

One file, DIR/DEVICE/DATE-COMMIT.json, and pictures beside it. Its section "harvest" says how long each part took, and
why one failed. --dry-run does the same at toy sizes, on a CPU in Triton's interpreter. Exit status 1: a part failed.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.harvest_process import Outcome, Runner
from bench.record import Record
from bench.sections import describe
from titn.data.dataset import DATASETS
from titn.data.known import KNOWN, find_known
from titn.errors import OneLineParser, UserError, command
from titn.files import write_atomic
from titn.kernels.common.backend import installed, interpreting
from titn.training.interrupt import Interrupted, StopRequest
from titn.training.switches import compile_reasons, select_device

SEED = 2024
SHARES = {
    "ceilings": 4, "correctness": 15, "kernels": 20, "waterfall": 12, "throughput": 28, "step_profile": 5,
    "scaling": 15, "accuracy": 16,
}  # fmt: skip
"""Parts in their order, and the time of each relative to the others that run."""
INTERPRETED = ("correctness", "kernels", "waterfall")
"""Parts of a dry run that run the Triton kernels, in Triton's interpreter; the others take what a CPU has."""
USUAL = tuple(name for name in SHARES if name != "scaling")
PICTURES = {
    "throughput": "throughput", "waterfall": "waterfall", "scaling": "scaling", "roofline": "kernels",
    "step_profile": "step_profile", "accuracy": "accuracy",
}  # fmt: skip
"""Drawing: the section it needs."""


def harvest(parts: list[str], minutes: float, runner: Runner, console: Console) -> list[Outcome]:
    """Run the parts in their order and save everything as it comes.

    Raises:
        Interrupted: SIGINT or SIGTERM came; what was measured is saved.
    """
    total = 60 * minutes
    ends = time.monotonic() + total
    outcomes: list[Outcome] = []
    around = environment(runner.device)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with StopRequest() as stop, Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=total)

        def tick() -> None:
            progress.update(bar, completed=total - (ends - time.monotonic()))
            if stop.received is not None:
                raise Interrupted(stop.received, f"stopped; what was measured is in {runner.record.path}")

        for index, part in enumerate(parts):
            left = ends - time.monotonic()
            budget = max(0.0, left * SHARES[part] / sum(SHARES[each] for each in parts[index:]))
            progress.update(bar, description=f"{part}, up to {budget:.0f} s")
            outcome = runner.run(part, budget, ends, tick)
            outcomes.append(outcome)
            told = {"minutes": minutes, "environment": around, "parts": [asdict(each) for each in outcomes]}
            runner.record.add("harvest", told)
            words = "FAILED" if outcome.error else "done"
            progress.console.print(f"{part}: {outcome.seconds:.1f} s of {budget:.0f} s, {words}", highlight=False)
    return outcomes


def environment(device: torch.device) -> dict[str, Any]:
    """What a reader may want to know beyond the device and the versions."""
    relevant = ("CUDA_", "NVIDIA_TF32", "OMP_", "PYTORCH_", "TORCH", "TRITON_")
    return {
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "compile_reasons": compile_reasons(device),
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(relevant)},
        "nvidia_smi": _nvidia_smi() if device.type == "cuda" else None,
    }


def _nvidia_smi() -> dict[str, str] | None:
    """Clocks, power limit and MIG mode of the first GPU; None where there is no nvidia-smi."""
    names = ("clocks.max.sm", "clocks.max.mem", "clocks.sm", "power.limit", "persistence_mode", "mig.mode.current")
    query = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        line = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(names, map(str.strip, line.split(",")), strict=False))


def draw(record: Record) -> list[Path]:
    """Pictures of the sections that were measured, beside the result file."""
    from bench.charts import drawable, svg

    sections = record.content["sections"]
    measured = {name: data for name, data in sections.items() if not (isinstance(data, dict) and "error" in data)}
    data = {"device": describe(record.content["device"]), **measured}
    if "accuracy" in measured:
        data["accuracy"] = [measured["accuracy"]]
    drawn = []
    for name, section in PICTURES.items():
        if section in measured and drawable(name, data):
            path = record.path.with_name(f"{record.path.stem}-{name}.svg")
            write_atomic(path, svg(name, data) or "")
            drawn.append(path)
    return drawn


def show(outcomes: list[Outcome], console: Console) -> None:
    """How every part went; what a failed one printed last."""
    table = Table(title="Harvest")
    for heading in ("part", "seconds", "of", "restarts", ""):
        table.add_column(heading, justify="right" if heading in ("seconds", "of", "restarts") else "left")
    for one in outcomes:
        words = f"[red]failed: {one.error}[/]" if one.error else "done"
        table.add_row(one.part, f"{one.seconds:.1f}", f"{one.budget_seconds:.0f}", str(one.restarts or ""), words)
    for one in outcomes:
        if one.log:
            console.print(f"The last lines of {one.part}:", style="bold")
            console.print("\n".join(one.log.splitlines()[-15:]), markup=False, highlight=False, style="dim")
    console.print(table, highlight=False)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="python -m bench.harvest", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="all of it takes at most so long (default: 9)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result file and the pictures")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where the data set of accuracy lies")
    parser.add_argument("--dataset", choices=DATASETS, help="of accuracy (default: cifar100, in a dry run digits)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--parts", nargs="+", choices=tuple(SHARES), default=USUAL, help=f"default: {' '.join(USUAL)}")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on the CPU in Triton's interpreter")
    options = parser.parse_args(argv)
    if not options.minutes > 0:
        raise UserError(f"--minutes must be above 0, not {options.minutes:g}")
    if not installed("triton"):
        raise UserError("the package triton is not installed; install it with: pip install triton")
    if options.dry_run and options.device not in ("auto", "cpu"):
        raise UserError(f"--dry-run runs on the CPU, not on {options.device}; leave out --device")
    if interpreting() and not options.dry_run:
        raise UserError("TRITON_INTERPRET=1 is set; unset it, or use --dry-run")
    options.dataset = options.dataset or ("digits" if options.dry_run else "cifar100")
    if "accuracy" in options.parts and options.dataset in KNOWN:
        find_known(options.dataset, options.data_dir)
    return options


@command
def main(argv: list[str] | None = None) -> None:
    options = _options(argv)
    device = torch.device("cpu") if options.dry_run else select_device(options.device)
    line = shlex.join(["python", "-m", "bench.harvest", *(sys.argv[1:] if argv is None else argv)])
    record = Record(line, device, SEED, options.out.resolve(), dry_run=options.dry_run)
    console = Console(width=None if os.isatty(1) else max(120, shutil.get_terminal_size().columns))
    runner = Runner(
        record, device, options.dataset, str(options.data_dir.resolve()), options.dry_run,
        interpreted=INTERPRETED if options.dry_run else (),
    )  # fmt: skip
    parts = [name for name in SHARES if name in options.parts]
    outcomes = harvest(parts, options.minutes, runner, console)
    written = [record.path, *draw(record)]
    show(outcomes, console)
    size = sum(path.stat().st_size for path in written) / 2**20
    console.print(f"written to {record.path} and {len(written) - 1} pictures beside it, {size:.2f} MiB", soft_wrap=True)
    failed = [one.part for one in outcomes if one.error]
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="red")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
