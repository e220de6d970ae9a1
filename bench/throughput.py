"""Training images per second of TITN against timm's TNT of the same sizes: same batch, precision and loss.

    python -m bench.throughput [--batch-sizes 64 256 1024 4096] [--rounds 9] [--starts] [--out DIR]

What a contender's step is, and where timm's TNT has less to do: see `bench.contenders`. Rounds are interleaved A B A B;
a ratio compares the same round of two contenders. A contender that cannot run or fails is listed with its reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench import options
from bench.contenders import TOY, Contender, Sizes, all_contenders
from bench.record import described, statistic
from bench.rounds import (
    Budget,
    Ready,
    free,
    fresh_compiler,
    images_per_second,
    prepare,
    take_turns,
)
from bench.starts import cold_and_warm, precision
from titn.errors import command
from titn.training.switches import describe

GPU_BATCH_SIZES = (64, 256, 1024, 4096)
CPU_BATCH_SIZES = (64, 256)
TOY_BATCH_SIZES = (2, 3)
ROUNDS = 9

Row = dict[str, Any]


def default_batch_sizes(device: torch.device, small: bool = False) -> tuple[int, ...]:
    """Images per step that are measured unless others are asked for."""
    if small:
        return TOY_BATCH_SIZES
    return GPU_BATCH_SIZES if device.type == "cuda" else CPU_BATCH_SIZES


def measure(
    device: torch.device,
    amp: torch.dtype | None,
    *,
    batch_sizes: Sequence[int],
    rounds: int,
    console: Console,
    small: bool,
    starts: bool = False,
    seconds: float | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """The section "throughput": every contender at every batch size.

    Args:
        device: where to train.
        amp: precision of all contenders but the float32 reference.
        batch_sizes: images per step.
        rounds: repeats of each contender.
        console: what is done is printed here.
        small: toy networks without the compiler's back end.
        starts: also time first steps, cold and warm, in processes of their own, at the second batch size (the first
            where there is one only): minutes.
        seconds: prepare no further contender after this time; those that are ready are measured.
        save: called with the section so far after every batch size.

    Returns:
        "precision" and "rows", one per contender and batch size: "contender", "batch_size", and either "reason" (why it
        was not measured) or "seconds" (of a step, one per round), "images_per_second", "ratio_to_timm" (how many times
        as fast as the fastest of timm's, round by round; None for timm's own), "peak_bytes",
        "first_step_seconds" and "warm_start_seconds" (None where not timed). `low` and `high` are the extremes of the
        rounds.
    """
    budget = Budget(seconds)
    rows: list[Row] = []
    contenders = all_contenders(device, amp)
    start_at = batch_sizes[min(1, len(batch_sizes) - 1)]
    for batch_size in batch_sizes:
        with fresh_compiler(device):
            found = _at_batch_size(contenders, batch_size, rounds, device, console, small, budget)
        rows += found
        for row in found if starts and batch_size == start_at else []:
            if "reason" not in row:
                _add_starts(row, device, amp, console, small)
        if save is not None:
            save({"precision": precision(amp), "rows": rows})
    return {"precision": precision(amp), "rows": rows}


def _at_batch_size(
    contenders: Sequence[Contender],
    batch_size: int,
    rounds: int,
    device: torch.device,
    console: Console,
    small: bool,
    budget: Budget,
) -> list[Row]:
    ready: dict[str, Ready] = {}
    reasons: dict[str, str] = {}
    for one in contenders:
        began = time.perf_counter()
        with budget.item():
            found = budget.refusal() or prepare(one, device, batch_size, TOY if small else Sizes(), small=small)
        if isinstance(found, Ready):
            ready[one.name] = found
        else:
            reasons[one.name] = found
        told = reasons.get(one.name, f"ready after {time.perf_counter() - began:.1f} s")
        console.print(f"batch {batch_size}: {one.name}: {told}", highlight=False)
    seconds, failed = take_turns(ready, rounds, device)
    reasons |= failed
    peaks = {name: one.peak_bytes for name, one in ready.items()}
    ready.clear()
    free(device)
    rivals = [one.name for one in contenders if one.is_rival and one.name in seconds]
    fastest = min(rivals, key=lambda name: statistic(seconds[name])["median"], default=None)
    rows: list[Row] = []
    for one in contenders:
        row: Row = {"contender": one.name, "batch_size": batch_size}
        if one.name in reasons:
            rows.append(row | {"reason": reasons[one.name]})
            continue
        own, ratio = seconds[one.name], None
        if fastest is not None and not one.is_rival:
            ratio = statistic([theirs / ours for theirs, ours in zip(seconds[fastest], own, strict=True)])
        rows.append(
            row
            | {
                "precision": precision(one.amp),
                "form": one.form,
                "kernels": one.kernels,
                "seconds": own,
                "images_per_second": images_per_second(batch_size, own),
                "ratio_to_timm": ratio,
                "peak_bytes": peaks[one.name],
                "first_step_seconds": None,
                "warm_start_seconds": None,
            }
        )
    return rows


def _add_starts(row: Row, device: torch.device, amp: torch.dtype | None, console: Console, small: bool) -> None:
    try:
        cold, warm = cold_and_warm(row["contender"], device, amp, row["batch_size"], small=small)
    except RuntimeError as error:
        row["starts_reason"] = described(error)
        console.print(f"first step of {row['contender']}: {row['starts_reason']}", highlight=False)
        return
    row |= {"first_step_seconds": cold, "warm_start_seconds": warm}
    console.print(f"first step of {row['contender']}: {cold:.1f} s, then {warm:.1f} s", highlight=False)


def show(found: dict[str, Any], device: torch.device, console: Console) -> None:
    """The section as a table, and below it what was not measured."""
    table = Table(title=f"Training on {describe(device)}, {found['precision']} unless it says float32")
    for heading in ("batch", "", "images/s", "low", "high", "times timm's fastest", "peak GiB", "first step", "again"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in found["rows"]:
        if "reason" in row:
            continue
        speed, ratio, peak = row["images_per_second"], row["ratio_to_timm"], row["peak_bytes"]
        start = [row[key] for key in ("first_step_seconds", "warm_start_seconds")]
        table.add_row(
            f"{row['batch_size']:,}", row["contender"],
            *(f"{speed[key]:,.1f}" for key in ("median", "low", "high")),
            "" if ratio is None else f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
            f"{peak / 2**30:.2f}",
            *("" if value is None else f"{value:.1f} s" for value in start),
        )  # fmt: skip
    console.print(table, highlight=False)
    options.show_reasons(
        ((f"batch {row['batch_size']}: {row['contender']}", row.get("reason")) for row in found["rows"]), console
    )


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("throughput", __doc__, ROUNDS)
    default = f"(default: {' '.join(map(str, GPU_BATCH_SIZES))}, on a CPU {' '.join(map(str, CPU_BATCH_SIZES))})"
    parser.add_argument("--batch-sizes", type=int, nargs="+", metavar="B", help=f"images per step {default}")
    parser.add_argument("--starts", action="store_true", help="also time first steps, cold and warm: takes minutes")
    given = options.parse(parser, argv)
    at = options.setting(parser, given, argv)
    found = measure(
        at.device,
        at.amp,
        batch_sizes=given.batch_sizes or default_batch_sizes(at.device, given.dry_run),
        rounds=given.rounds,
        console=at.console,
        small=given.dry_run,
        starts=given.starts,
    )
    show(found, at.device, at.console)
    options.write(at, "throughput", found)


if __name__ == "__main__":
    main()
