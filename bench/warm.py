"""Fills the caches of Triton and torch.compile on all processors, so that what is measured next does not wait for them.

    python -m bench.warm [--seconds S]

Every case of the paper in bfloat16, by our kernels and by torch.compile, and the first step of every contender of
`bench.throughput` that compiles, each in a process of its own, as many at once as there are processors.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from bench import options
from bench.kernels.cases import cases
from bench.kernels.correctness import Problem
from bench.kernels.providers import providers
from bench.kernels.times import PAPER_CASES
from bench.options import Setting
from bench.timing import laps
from bench.training.contenders import all_contenders
from bench.training.throughput import BATCH_SIZES, first_step
from titn.errors import command
from titn.provenance import ROOT

Job = tuple[str, str]


def jobs(at: Setting) -> list[Job]:
    """Those that take longest first: contenders by name, then ("compile" or "triton", number of the case).

    At toy sizes, where nothing takes long, the first of each kind only.
    """
    contenders = [one for one in all_contenders(at.device, at.amp) if one.form != "eager" and not one.reasons]
    numbers = range(len(cases(at.device.type, at.small)[:PAPER_CASES]))
    if at.small:
        contenders, numbers = contenders[:1], numbers[:1]
    return [
        *(("step", one.name) for one in contenders),
        *((provider, str(number)) for provider in ("triton", "compile") for number in numbers),
    ]


def run(kind: str, what: str, at: Setting) -> float:
    """Seconds of a job, done in this process."""
    if kind == "step":
        return first_step(what, at, 2 if at.small else BATCH_SIZES[at.device.type][-2])
    case = cases(at.device.type, at.small)[int(what)]
    (provider,) = (one for one in providers(case, at.device, small=at.small) if one.name == kind)
    given = Problem(case, "bf16" if at.amp else "fp32", at.device)
    return laps(lambda: given.run(provider.build()), at.device)[0]


def in_a_process(job: Job, at: Setting) -> str:
    """Do a job in a process of its own, which is killed when the time is over; how it went, in a line."""
    name = " ".join(job)
    line = [sys.executable, "-m", "bench.warm", "--job", *job, "--device", str(at.device)]
    line += ["--dry-run"] if at.small else []
    if at.budget.left == 0:
        return f"{name}: {at.budget.refusal()}"
    try:
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=at.budget.left, check=False)
    except subprocess.TimeoutExpired:
        return f"{name}: not done within {at.budget.seconds:g} seconds"
    printed = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return f"{name}: {printed[-1] if printed else 'no message'}"


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("warm", __doc__)
    parser.add_argument("--job", nargs=2, metavar=("KIND", "WHAT"), help="only do this one, in this process")
    given, at = options.start(parser, argv)
    if given.job:
        kind, what = given.job
        print(f"{run(kind, what, at):.1f} s")
        return
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for line in pool.map(lambda job: in_a_process(job, at), jobs(at)):
            at.say(line)


if __name__ == "__main__":
    main()
