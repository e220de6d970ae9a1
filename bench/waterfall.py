"""From the reference to `--fast`, one switch at a time: training images per second of TITN after each.

    python -m bench.waterfall [--batch-size 1024] [--rounds 9] [--out DIR]

Every switch is decided by `titn.training.switches` as in a training with `--fast`, and stays on for those that
follow. One that does not run here is listed with its reason. Rounds are interleaved A B A B.
"""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench import options
from bench.contenders import TOY, Contender, Sizes, of_parts
from bench.rounds import Budget, Ready, free, fresh_compiler, images_per_second, prepare, take_turns
from titn.config import TrainConfig, flag
from titn.errors import command
from titn.kernels.common.backend import interpreting
from titn.training.switches import Parts, describe, select

GPU_BATCH_SIZE, CPU_BATCH_SIZE, TOY_BATCH_SIZE = 1024, 64, 2
ROUNDS = 9
REFERENCE = {"amp": "off", "compile": "off", "kernels": "torch", "cuda_graph": "off"}
"""What `--fast` switches on, in this order."""

Row = dict[str, Any]


def default_batch_size(device: torch.device, small: bool = False) -> int:
    """Images per step unless another number is asked for."""
    return TOY_BATCH_SIZE if small else GPU_BATCH_SIZE if device.type == "cuda" else CPU_BATCH_SIZE


def measure(
    device: torch.device,
    *,
    batch_size: int,
    rounds: int,
    console: Console,
    small: bool,
    seconds: float | None = None,
) -> dict[str, Any]:
    """The section "waterfall"; after `seconds` no further step is prepared, and those that are ready are measured.

    Returns:
        "batch_size" and "rows", in order: "name", "switch" (as on the command line, empty for the reference), and
        either "images_per_second" and "peak_bytes", or "reason" (why the switch is off here). `low` and
        `high` are the extremes of the rounds.
    """
    budget = Budget(seconds)
    ready: dict[str, Ready] = {}
    rows: list[Row] = []
    with fresh_compiler(device):
        for row, contender in steps(device, small):
            found: Ready | str = row.get("reason", "")
            if contender is not None:
                with budget.item():
                    sizes = TOY if small else Sizes()
                    found = budget.refusal() or prepare(contender, device, batch_size, sizes, small=small)
            if isinstance(found, Ready):
                ready[row["name"]] = found
                row["peak_bytes"] = found.peak_bytes
            else:
                row["reason"] = found
            console.print(f"{row['name']} {row['switch']}: {row.get('reason', 'ready')}", highlight=False)
            rows.append(row)
        times, failed = take_turns(ready, rounds, device)
        ready.clear()
        free(device)
    for row in rows:
        if row["name"] in times:
            row["images_per_second"] = images_per_second(batch_size, times[row["name"]])
        elif row["name"] in failed:
            row["reason"] = failed[row["name"]]
    return {"batch_size": batch_size, "rows": rows}


def steps(device: torch.device, small: bool = False) -> list[tuple[Row, Contender | None]]:
    """The reference and what each switch adds; None with a "reason" for a switch that is off here."""
    settings = dict(REFERENCE)
    parts = _select(device, settings)
    found: list[tuple[Row, Contender | None]] = [
        ({"name": "reference", "switch": ""}, of_parts("reference", parts)),
    ]
    for switch, off in REFERENCE.items():
        tried = settings | {switch: "auto"}
        interpreted = small and interpreting()
        if interpreted and switch == "kernels":
            tried["kernels"] = "triton"
        parts = _select(device, tried)
        name, (what, why) = f"+ {switch.replace('_', ' ')}", _notes(parts)[flag(switch)[2:]]
        row = {"name": name, "switch": f"{flag(switch)} {what}"}
        if interpreted and switch == "amp":
            found.append((row | {"reason": "Triton's interpreter computes wrong bfloat16 results"}, None))
        elif what == off:
            found.append((row | {"switch": flag(switch), "reason": why}, None))
        else:
            settings = tried
            found.append((row, of_parts(name, parts)))
    for part, (_, why) in _notes(parts).items():
        if part not in ("device", *(flag(switch)[2:] for switch in REFERENCE)):
            reason = why or "not part of the step that is timed here"
            found.append(({"name": f"+ {part.replace('-', ' ')}", "switch": f"--{part}", "reason": reason}, None))
    return found


def _select(device: torch.device, settings: dict[str, str]) -> Parts:
    return select(TrainConfig(dataset="cifar100", device=str(device), fast=True, **settings))  # type: ignore[arg-type]


def _notes(parts: Parts) -> dict[str, tuple[str, str]]:
    """What runs and why, by part."""
    return {part: (what, why) for part, what, why in parts.notes}


def show(found: dict[str, Any], device: torch.device, console: Console) -> None:
    """The section as a table, and below it what is off."""
    table = Table(title=f"Training TITN on {describe(device)}, batch {found['batch_size']:,}: one switch at a time")
    for heading in ("", "switch", "images/s", "low", "high", "times the last", "times the first", "GiB"):
        table.add_column(heading, justify="left" if heading in ("", "switch") else "right")
    first = before = 0.0
    for row in found["rows"]:
        if "reason" in row:
            continue
        speed, peak = row["images_per_second"], row["peak_bytes"]
        first, before, last = first or speed["median"], speed["median"], before or speed["median"]
        table.add_row(
            row["name"], row["switch"], *(f"{speed[key]:,.1f}" for key in ("median", "low", "high")),
            f"{before / last:.2f}", f"{before / first:.2f}", f"{peak / 2**30:.2f}",
        )  # fmt: skip
    console.print(table, highlight=False)
    options.show_reasons(((row["name"], row.get("reason")) for row in found["rows"]), console)


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("waterfall", __doc__, ROUNDS)
    parser.add_argument(
        "--batch-size", type=int, help=f"images per step (default: {GPU_BATCH_SIZE}, on a CPU {CPU_BATCH_SIZE})"
    )
    given = options.parse(parser, argv)
    at = options.setting(parser, given, argv)
    batch_size = given.batch_size or default_batch_size(at.device, given.dry_run)
    found = measure(at.device, batch_size=batch_size, rounds=given.rounds, console=at.console, small=given.dry_run)
    show(found, at.device, at.console)
    options.write(at, "waterfall", found)


if __name__ == "__main__":
    main()
