"""Training images per second and memory of `--fast` against batch, depth, image size and patch size.

    python -m bench.scaling [--rounds 5] [--out DIR]

One axis varies at a time, the others stay at the paper's 12 blocks, 32x32 images and patches of 8x8. Larger images come
in smaller batches, so that a step has about as many patches. Points are measured one after another, each in `--rounds`
repeats. FLOPs are those of products and convolutions, forward and backward (torch's counter), so that the share of the
measured product ceiling shows where a step leaves it; a profile of each point says what the time goes into instead.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench import options
from bench.contenders import TOY, Sizes, fast_contender, titn
from bench.rounds import Budget, free, fresh_compiler, images_per_second, prepare, take_turns
from bench.sections import arithmetic
from bench.step_kinds import percent_by_kind
from titn.errors import command
from titn.profile import profile_module
from titn.training.switches import describe

ROUNDS = 5
_CEILING = {torch.bfloat16: "bf16", torch.float16: "fp16", None: "fp32"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """The values of each axis; `base` is the batch size of all axes but "batch", for images of the size in `sizes`."""

    base: int
    batch: tuple[int, ...]
    depth: tuple[int, ...]
    image_size: tuple[int, ...]
    patch_size: tuple[int, ...]
    sizes: Sizes

    def points(self) -> Iterator[tuple[str, int, int, Sizes]]:
        """Axis, value, batch size and sizes of every point."""
        yield from (("batch", value, value, self.sizes) for value in self.batch)
        yield from (("depth", value, self.base, replace(self.sizes, depth=value)) for value in self.depth)
        for value in self.image_size:
            batch = max(1, self.base * self.sizes.image_size**2 // value**2)
            yield "image_size", value, batch, replace(self.sizes, image_size=value)
        yield from (
            ("patch_size", value, self.base, replace(self.sizes, patch_size=value)) for value in self.patch_size
        )


GPU = Grid(1024, (64, 256, 1024, 4096), (3, 6, 12, 24), (32, 64, 224), (4, 8, 16), Sizes())
CPU = Grid(32, (8, 32, 128), (3, 6, 12), (32, 64, 224), (4, 8, 16), Sizes())
SMALL = Grid(2, (1, 2), (1, 2), (16, 32), (8, 16), TOY)


def measure(
    device: torch.device,
    amp: torch.dtype | None,
    ceilings: Mapping[str, Any] | None,
    *,
    rounds: int,
    console: Console,
    small: bool,
    seconds: float | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """The section "scaling".

    Args:
        device: where to train.
        amp: precision.
        ceilings: the section "ceilings", for the share of the product ceiling of that precision; None: no shares.
        rounds: repeats of each point.
        console: what is done is printed here.
        small: toy networks without the compiler's back end.
        seconds: start no further point after this time.
        save: called with the section so far after every point.

    Returns:
        "rows": "axis", "value", "batch_size", and either "reason" (why the point was not measured) or
        "images_per_second", "peak_bytes", "gflops_per_image", "percent_of_product_ceiling" (None
        without a ceiling), "percent_by_kind" (of the time, see KINDS in bench.sections; None without a profile) and
        "percent_of_ceiling_in_arithmetic": the share of the ceiling while products, attention or fused kernels run.
        `low` and `high` are the extremes of the rounds. A point of several axes is measured once.
    """
    budget = Budget(seconds)
    peak_tflops = _product_ceiling(ceilings, amp)
    measured: dict[tuple[int, Sizes], Row] = {}
    rows: list[Row] = []
    for axis, value, batch_size, sizes in (SMALL if small else GPU if device.type == "cuda" else CPU).points():
        point = batch_size, sizes
        if point not in measured:
            late = budget.refusal()
            with budget.item():
                row: Row = {"reason": late}
                if late is None:
                    row = _measure_point(device, amp, batch_size, sizes, rounds, small, peak_tflops)
            measured[point] = row
            speed = row["images_per_second"]["median"] if "reason" not in row else None
            told = row["reason"] if speed is None else f"{speed:,.1f} images/s"
            console.print(f"{axis} {value}, batch {batch_size}: {told}", highlight=False)
        rows.append({"axis": axis, "value": value, "batch_size": batch_size} | measured[point])
        if save is not None:
            save({"rows": rows})
    return {"rows": rows}


def _product_ceiling(ceilings: Mapping[str, Any] | None, amp: torch.dtype | None) -> float | None:
    """TFLOP/s of a large product in this precision; None where it was not measured."""
    stat = (ceilings or {}).get("product_tflops", {}).get(_CEILING[amp], {})
    return stat.get("median")


def _measure_point(
    device: torch.device, amp: torch.dtype | None, batch_size: int, sizes: Sizes, rounds: int, small: bool,
    peak_tflops: float | None,
) -> Row:  # fmt: skip
    with fresh_compiler(device):
        ready = prepare(fast_contender(device, amp), device, batch_size, sizes, small=small)
        if isinstance(ready, str):
            return {"reason": ready}
        peak_bytes = ready.peak_bytes
        seconds, failed = take_turns({"step": ready}, rounds, device)
        kinds = None if failed else percent_by_kind(ready.step, device)
        del ready
        free(device)
    if failed:
        return {"reason": failed["step"]}
    speed, flops = images_per_second(batch_size, seconds["step"]), flops_per_image(sizes)
    share = None if peak_tflops is None else 100 * speed["median"] * flops / (1e12 * peak_tflops)
    calculating = arithmetic(kinds) if kinds else 0.0
    return {
        "images_per_second": speed,
        "peak_bytes": peak_bytes,
        "gflops_per_image": flops / 1e9,
        "percent_of_product_ceiling": share,
        "percent_by_kind": kinds,
        "percent_of_ceiling_in_arithmetic": 100 * share / calculating if share and calculating else None,
    }


def flops_per_image(sizes: Sizes) -> int:
    """Floating-point operations of a training step, forward and backward, attention included."""
    with torch.device("meta"):
        module = titn(sizes)
    return 2 * profile_module("titn", module, 3, sizes.image_size).macs_training


def show(found: dict[str, Any], device: torch.device, console: Console) -> None:
    """The section as a table, and below it what was not measured."""
    table = Table(title=f"Training TITN with --fast on {describe(device)}")
    headings = (
        "axis", "value", "batch", "images/s", "low", "high", "GiB", "GFLOP an image", "of the ceiling",
        "time in products", "their rate",
    )  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "axis" else "right")
    for row in found["rows"]:
        start = row["axis"].replace("_", " "), f"{row['value']}", f"{row['batch_size']:,}"
        if "reason" in row:
            continue
        speed, peak, kinds = row["images_per_second"], row["peak_bytes"], row["percent_by_kind"]
        table.add_row(
            *start, *(f"{speed[key]:,.1f}" for key in ("median", "low", "high")),
            f"{peak / 2**30:.2f}", f"{row['gflops_per_image']:.3f}",
            _percent(row["percent_of_product_ceiling"]), _percent(arithmetic(kinds) if kinds else None),
            _percent(row["percent_of_ceiling_in_arithmetic"]),
        )  # fmt: skip
    console.print(table, highlight=False)
    options.show_reasons(((f"{row['axis']} {row['value']}", row.get("reason")) for row in found["rows"]), console)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}%"


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("scaling", __doc__, ROUNDS)
    given = options.parse(parser, argv)
    at = options.setting(parser, given, argv)
    at.console.print("ceilings", highlight=False)
    ceilings = importlib.import_module("bench.ceilings").measure(at.device, small=given.dry_run)
    at.record.add("ceilings", ceilings)
    found = measure(
        at.device, at.amp, ceilings, rounds=given.rounds, console=at.console, small=given.dry_run
    )  # fmt: skip
    show(found, at.device, at.console)
    options.write(at, "scaling", found)


if __name__ == "__main__":
    main()
