"""Training images per second and memory of `--fast` against batch, depth, image size and patch size.

    python -m bench.scaling [--rounds 5] [--out DIR]

One axis varies at a time, the others stay at the paper's 12 blocks, 32x32 images and patches of 8x8. Larger images come
in smaller batches, so that a step has about as many patches. Points are measured one after another, each in `--rounds`
repeats. FLOPs are those of products and convolutions, forward and backward (torch's counter), so that the share of the
measured product ceiling shows where a step leaves it; a profile of each point says what the time goes into instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench import ceilings as ceilings_of
from bench import options
from bench.options import Setting
from bench.report.sections import arithmetic
from bench.training.contenders import TOY, Sizes, fast_contender, titn
from bench.training.profile import percent_by_kind
from bench.training.race import Timed, images_per_second, race
from titn.errors import command
from titn.profile import profile_module

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


GRIDS = {
    "cuda": Grid(1024, (64, 256, 1024, 4096), (3, 6, 12, 24), (32, 64, 224), (4, 8, 16), Sizes()),
    "cpu": Grid(32, (8, 32, 128), (3, 6, 12), (32, 64, 224), (4, 8, 16), Sizes()),
}
SMALL = Grid(2, (1, 2), (1, 2), (16, 32), (8, 16), TOY)


def measure(at: Setting, ceilings: Mapping[str, Any] | None, rounds: int) -> dict[str, Any]:
    """The section "scaling", saved after every point.

    Args:
        at: where, and how long.
        ceilings: the section "ceilings", for the share of the product ceiling of that precision; None: no shares.
        rounds: repeats of each point.

    Returns:
        "rows": "axis", "value", "batch_size", and either "reason" (why the point was not measured) or
        "images_per_second", "peak_bytes", "gflops_per_image", "percent_of_product_ceiling" (None
        without a ceiling), "percent_by_kind" (of the time, see KINDS in bench/report/sections.py; None without a
        profile) and "percent_of_ceiling_in_arithmetic": the share of the ceiling while products, attention or fused
        kernels run. `low` and `high` are the extremes of the rounds. A point of several axes is measured once.
    """
    stat = (ceilings or {}).get("product_tflops", {}).get(_CEILING[at.amp], {})
    measured: dict[tuple[int, Sizes], Row] = {}
    rows: list[Row] = []
    for axis, value, batch_size, sizes in (SMALL if at.small else GRIDS[at.device.type]).points():
        point = batch_size, sizes
        if point not in measured:
            measured[point] = _measure_point(at, batch_size, sizes, rounds, stat.get("median"))
            speed = measured[point].get("images_per_second")
            result = measured[point]["reason"] if speed is None else f"{speed['median']:,.1f} images/s"
            at.say(f"{axis} {value}: {result}")
        rows.append({"axis": axis, "value": value, "batch_size": batch_size} | measured[point])
        at.save("scaling", {"rows": rows})
    return {"rows": rows}


def _measure_point(at: Setting, batch_size: int, sizes: Sizes, rounds: int, peak_tflops: float | None) -> Row:
    contender = fast_contender(at.device, at.amp)
    row: Row = {}
    for standing in race(at, [contender], batch_size, rounds, sizes):
        outcome = standing.outcomes[contender.name]
        if isinstance(outcome, Timed):
            kinds = percent_by_kind(standing.ready[contender.name].step) if standing.over else None
            row = _row(outcome, batch_size, flops_per_image(sizes), kinds, peak_tflops)
        else:
            row = {"reason": outcome}
    return row


def _row(outcome: Timed, batch_size: int, flops: int, kinds: dict[str, float] | None, peak_tflops: float | None) -> Row:
    speed = images_per_second(batch_size, outcome.seconds)
    share = None if peak_tflops is None else 100 * speed["median"] * flops / (1e12 * peak_tflops)
    calculating = arithmetic(kinds) if kinds else 0.0
    return {
        "images_per_second": speed,
        "peak_bytes": outcome.peak_bytes,
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


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("scaling", __doc__, rounds=ROUNDS)
    given, at = options.start(parser, argv)
    at.say("ceilings")
    ceilings = ceilings_of.measure(at.device, small=at.small)
    at.save("ceilings", ceilings)
    at.show("scaling", measure(at, ceilings, given.rounds))
    at.finish()


if __name__ == "__main__":
    main()
