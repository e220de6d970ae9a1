"""How long a GPU waits while it trains as `--fast` does: batches from the pipeline, step after step, sums at the end.

    python -m bench.step [--batch-size 1024] [--steps 30] [--trace FILE] [--device cuda]

It needs a GPU. Images are noise under the augmentation of CIFAR-100's recipe; the teacher's decisions are given, as
stored ones are. --trace writes what the profiler saw for chrome://tracing or ui.perfetto.dev. The profiler makes
launches dearer, so that the share is an upper bound.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench import options
from bench.options import Setting
from bench.timing import on, quiet_profiler
from bench.training.contenders import CLASSES, LEARNING_RATE, SEED, Sizes, Step, fast_contender
from titn.errors import UserError, command
from titn.pipelines import Augmentation, EpochPlan, TorchPipeline

BATCH_SIZE, STEPS, WARM_UPS = 1024, 30, 3


@dataclass(frozen=True)
class Busy:
    """What a device did between its first and its last work, in microseconds."""

    whole: float
    idle: float
    longest_gap: float


def busy(spans: Iterable[tuple[float, float]]) -> Busy:
    """From the (start, end) of everything that ran, in any order; spans may overlap.

    Raises:
        ValueError: there are none.
    """
    ordered = sorted(spans)
    if not ordered:
        raise ValueError("nothing ran")
    reached, gaps = ordered[0][1], [0.0]
    for start, end in ordered:
        gaps.append(max(0.0, start - reached))
        reached = max(reached, end)
    return Busy(reached - ordered[0][0], sum(gaps), max(gaps))


def measure(at: Setting, batch_size: int, steps: int, trace: Path | None) -> Busy:
    """`steps` warm steps of the paper's TITN on the GPU of `at`.

    Raises:
        UserError: the profiler saw nothing, as on a GPU whose driver does not let CUPTI look.
    """
    sizes, generator = Sizes(), np.random.default_rng(SEED)
    count = (WARM_UPS + steps) * batch_size
    pipeline = TorchPipeline(
        generator.integers(0, 256, (count, sizes.image_size, sizes.image_size, 3), np.uint8),
        generator.integers(0, CLASSES, count),
        mean=(0.5,) * 3, std=(0.25,) * 3, device=at.device,
    )  # fmt: skip
    augmentation = Augmentation(policy="cifar10", mix="cutmix_batch", mix_batch=batch_size)
    plan = EpochPlan.draw(augmentation, size=count, image_size=sizes.image_size, seed=SEED, epoch=0)
    made = Step(fast_contender(at.device, at.amp), at.device, batch_size, sizes)
    sums = torch.zeros(3, dtype=torch.float64, device=at.device)

    def train(first: int, last: int) -> None:
        nonlocal sums
        for number, batch in enumerate(pipeline.epoch(plan, batch_size, first_step=first), first):
            if number == last:
                break
            sums += made.step(batch, made.targets, LEARNING_RATE)
        sums.tolist()

    quiet_profiler()
    with on(at.device):
        train(0, WARM_UPS)
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            train(WARM_UPS, WARM_UPS + steps)
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    ranges = [event.time_range for event in profiler.events() or () if event.device_type == DeviceType.CUDA]
    if not ranges:
        raise UserError(f"the profiler saw nothing that ran on {at.device}: allow it to use the GPU's counters")
    return busy((each.start, each.end) for each in ranges)


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("step", __doc__)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help=f"images per step (default: {BATCH_SIZE})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps that are watched (default: {STEPS})")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="also write the profiler's trace, as JSON")
    given, at = options.start(parser, argv)
    if at.device.type != "cuda":
        raise UserError("bench.step shows how long a GPU waits for its host: it needs a GPU (--device cuda)")
    found = measure(at, given.batch_size, given.steps, given.trace)
    at.say(
        f"idle {found.idle / found.whole:.1%} of {found.whole / given.steps / 1e3:.2f} ms per step of "
        f"{given.batch_size:,} images, longest gap {found.longest_gap:,.0f} us"
    )


if __name__ == "__main__":
    main()
