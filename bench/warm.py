"""Fills the caches of Triton and torch.compile on all processors, so that what is measured next does not wait for them.

    python -m bench.warm [--seconds S]

Every case of the paper in bfloat16, by our kernels and by torch.compile, and the first step of every contender of
`bench.throughput` that compiles, each in a process of its own, as many at once as there are processors.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch

from bench import options
from bench.kernels.cases import cases
from bench.kernels.correctness import Problem
from bench.kernels.providers import providers
from bench.kernels.times import PAPER_CASES
from bench.options import Setting
from bench.record import described
from bench.timing import laps
from bench.training.contenders import all_contenders
from bench.training.throughput import BATCH_SIZES, first_step
from titn.errors import command

Job = tuple[str, str]


def jobs(at: Setting) -> list[Job]:
    """Those that take longest first: contenders by name, then ("compile" or "triton", number of the case)."""
    contenders = [one for one in all_contenders(at.device, at.amp) if one.form != "eager" and not one.reasons]
    numbers = range(len(cases(at.device.type, at.small)[:PAPER_CASES]))
    return [
        *(("step", one.name) for one in contenders),
        *((provider, str(number)) for provider in ("triton", "compile") for number in numbers),
    ]


def run(job: Job, device: str, small: bool) -> str:
    """Do a job in this process; what it took, or why it failed, in a line."""
    kind, what = job
    at = Setting(torch.device(device), small)
    try:
        if kind == "step":
            sizes = BATCH_SIZES[at.device.type]
            return f"{what}: {first_step(what, at, 2 if small else sizes[-2]):.1f} s"
        case = cases(at.device.type, small)[int(what)]
        (provider,) = (one for one in providers(case, at.device, small=small) if one.name == kind)
        given = Problem(case, "bf16" if at.amp else "fp32", at.device)
        (taken,) = laps(lambda: given.run(provider.build()), at.device)
        return f"{case.operation}, {case.name}, {kind}: {taken:.1f} s"
    except Exception as error:
        return f"{kind} {what}: {described(error)}"


@command
def main(argv: list[str] | None = None) -> None:
    given, at = options.start(options.parser("warm", __doc__), argv)
    del given
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count() or 1, mp_context=context, max_tasks_per_child=1) as pool:
        futures = [pool.submit(run, job, str(at.device), at.small) for job in jobs(at)]
        for future in as_completed(futures):
            at.say(future.result())
            if at.budget.refusal():
                pool.shutdown(cancel_futures=True)
                break


if __name__ == "__main__":
    main()
