"""Training and prediction on a CPU: TITN with and without native code against timm's TNT, on one thread and on all.

    python -m bench.cpu [--batch-sizes 64 256] [--threads 1 2] [--rounds 7] [--seconds S] [--out DIR]

A training step is that of bench/training/contenders.py; prediction is a forward pass in evaluation mode, without
gradients. All contenders of one number of threads and images take turns, the machine's own product of two large
matrices among them, so that a drifting machine moves all alike. The share of that product's rate counts the operations
that the network needs, not those that are computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from bench import options
from bench.options import Setting
from bench.record import described, statistic
from bench.report.sections import FAST
from bench.timing import laps, quiet_profiler
from bench.training.contenders import SEED, TOY, Contender, Sizes, Step, fast_contender, titn
from bench.training.race import fresh_compiler, images_per_second, ratio
from titn.errors import UserError, command
from titn.kernels.common import native
from titn.kernels.inner_block import op as inner_block
from titn.kernels.layernorm_mlp import op as layernorm_mlp
from titn.kernels.outer_block import op as outer_block
from titn.kernels.pixels_to_patches import op as pixels_to_patches
from titn.profile import profile_module
from titn.training.step import compile_network
from titn.training.switches import compile_reasons

BATCH_SIZES, TOY_BATCH_SIZES = (64, 256), (2,)
ROUNDS = 7
WARM_UPS, PROFILED = 2, 3
SIDE, TOY_SIDE = 1024, 32
PRODUCT = "one large product"

Row = dict[str, Any]
Call = Callable[[], Any]


def contenders(device: torch.device) -> list[Contender]:
    """What `--fast` trains with, in float32 and in bfloat16, the same without native code, and timm's TNT."""
    compiler = tuple(compile_reasons(device))
    fast = fast_contender(device, None)
    return [
        fast,
        replace(fast_contender(device, torch.bfloat16), name=f"{FAST} --amp bf16"),
        replace(fast, name=f"{FAST} --kernels torch", kernels="torch"),
        Contender("timm TNT, eager", "timm", "eager", None),
        Contender("timm TNT, torch.compile of blocks", "timm", "blocks", None, reasons=compiler),
        Contender("timm TNT, torch.compile", "timm", "whole", None, reasons=compiler),
    ]


def measure(at: Setting, batch_sizes: Sequence[int], threads: Sequence[int], rounds: int) -> dict[str, Any]:
    """The section "cpu", saved whenever a number of threads and images has been timed.

    Returns:
        "path" (the native code's instruction set, or why there is none), "rows" and "operations". A row: "threads",
        "batch_size", "work" (training or prediction), "contender" and either "reason" or "images_per_second",
        "ratio_to_timm" (of the fastest of timm's, round by round; None for timm's own) and, for ours,
        "percent_of_product_rate". An operation of a training step of `--fast`, by the first number of threads and
        images: "name", "calls", "us", "percent" of all, "floor_us" (its operations at the product's rate; None where
        these are not what bounds it).
    """
    section: dict[str, Any] = {"path": native.path() or native.ABSENT, "rows": [], "operations": []}
    before = torch.get_num_threads()
    try:
        for count in threads:
            torch.set_num_threads(count)
            for batch_size in batch_sizes:
                for work in ("training", "prediction"):
                    found = _race(at, work, count, batch_size, rounds, section)
                    section["rows"] += [
                        {"threads": count, "batch_size": batch_size, "work": work} | row for row in found
                    ]
                    at.save("cpu", section)
    finally:
        torch.set_num_threads(before)
    return section


def _race(at: Setting, work: str, threads: int, batch_size: int, rounds: int, section: dict[str, Any]) -> list[Row]:
    sizes, ready, reasons = TOY if at.small else Sizes(), dict[str, Call](), dict[str, str]()
    entrants = contenders(at.device)
    with fresh_compiler(at.device):
        for one in entrants:
            outcome = at.budget.refusal() or _prepared(one, work, at, batch_size, sizes)
            if isinstance(outcome, str):
                reasons[one.name] = outcome
            else:
                ready[one.name] = outcome
            said = f"{threads} thread(s), {batch_size} images, {work}: {one.name}"
            at.say(f"{said}: {reasons.get(one.name, 'ready')}")
        side = TOY_SIDE if at.small else SIDE
        a, b = torch.randn(2, side, side)
        calls = ready | {PRODUCT: lambda: torch.mm(a, b)}
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                seconds[name] += laps(call, at.device)
        rate = 2 * side**3 / statistic(seconds.pop(PRODUCT))["median"]
        if FAST in ready and work == "training" and not section["operations"]:
            section["operations"] = operations(ready[FAST], rate, batch_size, sizes)
    rivals = [one.name for one in entrants if one.is_rival and one.name in seconds]
    fastest = min(rivals, key=lambda name: statistic(seconds[name])["median"], default=None)
    needed = _operations_per_image(entrants[0], sizes, work)
    rows: list[Row] = []
    for one in entrants:
        row: Row = {"contender": one.name}
        if one.name in reasons:
            rows.append(row | {"reason": reasons[one.name]})
            continue
        mine, ours = seconds[one.name], not one.is_rival
        share = 100 * needed * batch_size / statistic(mine)["median"] / rate
        rows.append(
            row
            | {
                "images_per_second": images_per_second(batch_size, mine),
                "ratio_to_timm": ratio(seconds[fastest], mine) if ours and fastest else None,
                "percent_of_product_rate": share if ours else None,
            }
        )
    return rows


def _prepared(one: Contender, work: str, at: Setting, batch_size: int, sizes: Sizes) -> Call | str:
    """A warm step or prediction; or why there is none."""
    if one.reasons:
        return "; ".join(one.reasons)
    try:
        call: Call
        if work == "training":
            call = Step(one, at.device, batch_size, sizes, small=at.small)
        else:
            call = _prediction(one, batch_size, sizes, at.small)
        laps(call, at.device, 1 if at.small else WARM_UPS)
    except UserError as error:
        return str(error)
    except Exception as error:
        return described(error)
    return call


def _prediction(one: Contender, batch_size: int, sizes: Sizes, small: bool) -> Call:
    module = one.build(sizes).eval()
    if one.form in ("blocks", "whole"):
        compile_network(module, one.form, "aot_eager" if small else "inductor")
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(batch_size, 3, sizes.image_size, sizes.image_size, generator=generator)

    def predict() -> None:
        with torch.no_grad(), torch.autocast("cpu", one.amp, enabled=one.amp is not None):
            module(images)

    return predict


def _operations_per_image(one: Contender, sizes: Sizes, work: str) -> int:
    with torch.device("meta"):
        module: nn.Module = one.build(sizes)
    counted = profile_module(one.name, module, 3, sizes.image_size)
    return 2 * (counted.macs_training if work == "training" else counted.macs_forward)


def operations(step: Call, rate: float, batch_size: int, sizes: Sizes) -> list[Row]:
    """What a warm step spends its time on, what takes most first, beside the least time at `rate` operations/s."""
    quiet_profiler()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_flops=True) as profiler:
        for _ in range(PROFILED):
            step()
    events = [event for event in profiler.key_averages() if event.self_cpu_time_total > 0]
    whole = sum(event.self_cpu_time_total for event in events)
    rows = []
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total):
        calls, us = event.count / PROFILED, event.self_cpu_time_total / PROFILED
        ours = event.key.startswith("titn::")
        needed = calls * _native_operations(event.key, batch_size, sizes) if ours else event.flops / PROFILED
        row: Row = {"name": event.key, "calls": round(calls), "us": us, "percent": 100 * us * PROFILED / whole}
        rows.append(row | {"floor_us": 1e6 * needed / rate if needed else None})
    return rows[:15]


def _native_operations(name: str, batch_size: int, sizes: Sizes) -> int:
    """Operations that one call of a native operation needs: of a backward twice those of a forward."""
    module: Any = titn(sizes)
    block, own = module.blocks[0], module.sizes
    tokens = (batch_size, own.num_tokens, own.patch_dim)
    pixels = (batch_size, own.num_patches, own.num_pixels, own.pixel_dim)
    inner = [tuple(weight.shape) for weight in (*block.pixel.attention(), *block.pixel.mlp())]
    forward = {
        "inner_block": inner_block.product_operations((batch_size * own.num_patches, *pixels[2:]), *inner),
        "outer_attention": outer_block.product_operations(tokens),
        "layernorm_mlp": layernorm_mlp.product_operations(tokens, *(tuple(w.shape) for w in block.patch.mlp())),
        "pixels_to_patches": pixels_to_patches.product_operations(pixels, tokens),
    }
    operation = name.removeprefix("titn::").removesuffix("_backward").removesuffix("_native")
    return (2 if name.endswith("_backward") else 1) * forward.get(operation, 0)


def _threads() -> Iterator[int]:
    yield 1
    if torch.get_num_threads() > 1:
        yield torch.get_num_threads()


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("cpu", __doc__, rounds=ROUNDS)
    parser.add_argument("--batch-sizes", type=int, nargs="+", metavar="B", help="images per step (default: 64 256)")
    parser.add_argument("--threads", type=int, nargs="+", metavar="N", help="threads (default: one, and all)")
    given, at = options.start(parser, argv)
    if at.device.type != "cpu":
        raise UserError("bench.cpu measures CPUs: say --device cpu")
    batch_sizes = given.batch_sizes or (TOY_BATCH_SIZES if at.small else BATCH_SIZES)
    at.show("cpu", measure(at, batch_sizes, given.threads or [*_threads()], given.rounds))
    at.finish()


if __name__ == "__main__":
    main()
