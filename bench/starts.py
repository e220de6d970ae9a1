"""How long a first training step takes: in a new process with empty compile caches, and in another with them full.

`python -m bench.starts NAME ...` is the child process: it builds one contender, takes one step and prints its seconds.
Starting Python, importing and building the network come before that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import torch

from bench.contenders import TOY, Sizes, Step, all_contenders
from bench.rounds import seconds_of
from titn.errors import OneLineParser, UserError, command
from titn.provenance import ROOT
from titn.training.switches import select_device

TIMEOUT_SECONDS = 600
_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def precision(amp: torch.dtype | None) -> str:
    """The name of a precision: "bfloat16", "float16" or "float32"."""
    return next(name for name, dtype in _PRECISIONS.items() if dtype == amp)


def cold_and_warm(
    name: str, device: torch.device, amp: torch.dtype | None, batch_size: int, *, small: bool = False
) -> tuple[float, float]:
    """Seconds of the first step of contender `name` with compile caches empty, then in a new process with them full.

    Raises:
        RuntimeError: a child process failed or took longer than ten minutes.
    """
    line = [sys.executable, "-m", "bench.starts", name, "--device", str(device), "--precision", precision(amp)]
    line += ["--batch-size", str(batch_size), *(["--dry-run"] if small else [])]
    with tempfile.TemporaryDirectory(prefix="titn-starts-") as folder:
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "TRITON_CACHE_DIR": f"{folder}/triton"}
        cold, warm = (_child(line, os.environ | caches) for _ in range(2))
    return cold, warm


def _child(line: list[str], environment: dict[str, str]) -> float:
    try:
        ended = subprocess.run(
            line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no first step within {TIMEOUT_SECONDS} s") from None
    lines = ended.stdout.splitlines()
    if ended.returncode or not lines:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the process left with {ended.returncode}: {last[:200]}")
    return float(json.loads(lines[-1])["first_step_seconds"])


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m bench.starts", description="Seconds of a contender's first step, as JSON.")
    parser.add_argument("name", help="a contender of bench.throughput")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=tuple(_PRECISIONS), default="float32")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(argv)
    device = select_device(options.device)
    contenders = {one.name: one for one in all_contenders(device, _PRECISIONS[options.precision])}
    if options.name not in contenders:
        raise UserError(f"unknown contender {options.name!r}; choose from {'; '.join(contenders)}")
    sizes = TOY if options.dry_run else Sizes()
    step = Step(contenders[options.name], device, options.batch_size, sizes, small=options.dry_run)
    print(json.dumps({"first_step_seconds": seconds_of(step, device)}))


if __name__ == "__main__":
    main()
