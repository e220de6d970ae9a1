"""Where the time of a training step goes: the operators of `--fast` that take the most time of the device itself.

python -m bench.step_profile [--batch-size 1024] [--out DIR]
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench import options
from bench.contenders import TOY, Sizes, fast_contender
from bench.rounds import fresh_compiler, prepare
from bench.step_kinds import operators
from bench.waterfall import CPU_BATCH_SIZE, GPU_BATCH_SIZE, default_batch_size
from titn.errors import UserError, command
from titn.training.switches import describe

TOP = 25


def measure(device: torch.device, amp: torch.dtype | None, *, batch_size: int, small: bool) -> dict[str, Any]:
    """The section "step_profile": torch.profiler over five warm steps of `--fast`.

    Returns:
        "batch_size", "device_us" (microseconds of one step: on a GPU of all its kernels, on a CPU of all operators,
        which has the profiler's own cost in it) and "rows", the 25 that take the most: "name", "us" (of one step,
        without operators called inside), "calls" (in one step, rounded) and "percent" of device_us.

    Raises:
        UserError: the step cannot run here.
    """
    sizes = TOY if small else Sizes()
    with fresh_compiler(device):
        ready = prepare(fast_contender(device, amp), device, batch_size, sizes, small=small)
        if isinstance(ready, str):
            raise UserError(f"the step cannot be profiled: {ready}")
        found = operators(ready.step, device)
    total = sum(one.us for one in found)
    rows = [asdict(one) | {"percent": 100 * one.us / total} for one in found[:TOP]]
    return {"batch_size": batch_size, "device_us": total, "rows": rows}


def show(found: dict[str, Any], device: torch.device, console: Console) -> None:
    """The section as a table."""
    title = f"One step of --fast on {describe(device)}, batch {found['batch_size']:,}: {found['device_us']:,.0f} us"
    table = Table(title=title)
    table.add_column("operator", max_width=80, no_wrap=True)
    for heading in ("us", "calls", "share"):
        table.add_column(heading, justify="right")
    for row in found["rows"]:
        table.add_row(row["name"], f"{row['us']:,.1f}", f"{row['calls']:,}", f"{row['percent']:.1f}%")
    console.print(table, highlight=False, markup=False)


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("step_profile", __doc__)
    parser.add_argument(
        "--batch-size", type=int, help=f"images per step (default: {GPU_BATCH_SIZE}, on a CPU {CPU_BATCH_SIZE})"
    )
    given = options.parse(parser, argv)
    at = options.setting(parser, given, argv)
    batch_size = given.batch_size or default_batch_size(at.device, given.dry_run)
    found = measure(at.device, at.amp, batch_size=batch_size, small=given.dry_run)
    show(found, at.device, at.console)
    options.write(at, "step_profile", found)


if __name__ == "__main__":
    main()
