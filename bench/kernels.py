"""The fused operations on a GPU: right first, then timed against eager PyTorch, torch.compile and SDPA.

    python -m bench.kernels [--out DIR]
    python -m bench.kernels --dry-run [--out DIR]

Right means, for the output and every gradient: the error against float64 is at most twice that of plain PyTorch in the
same dtype (for float32: or below 1e-5), and two runs are equal bit by bit. Only then is the Triton backend timed.
Results go to DIR/DEVICE/DATE-COMMIT.json; a part that fails is recorded with its error, the rest goes on. --dry-run
does the same at toy sizes on the CPU, in Triton's interpreter, where the times mean nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from titn.errors import OneLineParser, UserError, command
from titn.files import write_atomic
from titn.kernels.common.backend import installed, interpreting
from titn.provenance import ROOT, source_commit, versions

SEED = 2024
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FLOAT32_LIMIT = 1e-5

Result = dict[str, Any]


def attempt(part: Callable[[], Result]) -> Result:
    """The result of `part`, or its error."""
    try:
        return part()
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        message, where = " ".join(str(error).split())[:300], f"{Path(last.filename).name}:{last.lineno}"
        return {"error": f"{type(error).__name__}: {message} ({where})"}


def relative_error(actual: Tensor, truth: Tensor) -> float | None:
    """||actual - truth|| / ||truth||, absolute where the truth is 0; None where it is not finite."""
    norm = truth.norm().item()
    error = (actual.double() - truth).norm().item() / (norm or 1.0)
    return error if error < float("inf") else None


def correctness(case: Any, dtype: torch.dtype, device: torch.device) -> Result:
    """Errors of output and gradients of both backends in `dtype` against float64, and equality of two runs."""
    from bench.kernel_cases import gradients, precision, prepare

    generator = torch.Generator().manual_seed(SEED)
    drawn = case.draw(dtype, generator)
    shape = case.call(prepare(drawn, torch.device("cpu"), torch.float64), "torch").shape
    gradient = torch.randn(shape, generator=generator).to(dtype).to(device)

    def run(backend: str, run_dtype: torch.dtype | None) -> list[Tensor]:
        inputs = prepare(drawn, device, run_dtype)
        with precision(device, run_dtype or dtype):
            output = case.call(inputs, backend)
        return [output.detach(), *gradients(output, inputs, gradient.to(output.dtype))]

    truth = [t.double() for t in run("torch", torch.float64)]
    plain = [relative_error(a, t) for a, t in zip(run("torch", None), truth, strict=True)]
    first, second = run("triton", None), run("triton", None)
    fused = [relative_error(a, t) for a, t in zip(first, truth, strict=True)]
    floor = FLOAT32_LIMIT if dtype == torch.float32 else 0.0
    within = [a is not None and b is not None and a <= max(2 * b, floor) for a, b in zip(fused, plain, strict=True)]
    equal = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return {"ok": all(within) and equal, "errors": fused, "plain_errors": plain, "within": within, "runs_equal": equal}


def timing(case: Any, candidate: Any, dtype: torch.dtype, device: torch.device) -> Result:
    """Microseconds of forward and of forward + backward, as launched and (on a GPU) as a CUDA graph."""
    from bench.kernel_cases import gradients, precision, prepare
    from bench.timing import microseconds

    generator = torch.Generator().manual_seed(SEED)
    drawn = case.draw(dtype, generator)
    size = sum(t.numel() * t.element_size() for t in drawn if t is not None)
    copies = max(2, min(16, 256 * 2**20 // size)) if device.type == "cuda" else 2
    sets = [prepare(drawn, device) for _ in range(copies)]

    def forward(inputs: Any) -> Tensor:
        with precision(device, dtype):
            result: Tensor = candidate.function(inputs)
        return result

    with candidate.context():
        output = forward(sets[0])
        gradient = torch.randn(output.shape, generator=generator).to(device, output.dtype)
        del output

        def both(inputs: Any) -> Any:
            return gradients(forward(inputs), inputs, gradient)

        return {
            "forward": microseconds(forward, sets, device),
            "forward_backward": microseconds(both, sets, device),
        }


def measure(device: torch.device, console: Console) -> list[Result]:
    """All cases: correctness in every dtype, then times in bf16 (fp16 in the interpreter, which has no bf16)."""
    from bench.kernel_cases import candidates, cases

    small = device.type == "cpu"
    timed = "fp16" if small else "bf16"
    results = []
    for case in cases(small):
        checked: dict[str, Result] = {}
        for name, dtype in DTYPES.items():
            if small and name == "bf16":
                checked[name] = {"skipped": "the interpreter computes wrong bfloat16 results"}
            else:
                checked[name] = attempt(lambda: correctness(case, dtype, device))  # noqa: B023 - called at once
        times: dict[str, Result] = {}
        for candidate in candidates(case, small):
            if candidate.name == "triton" and not checked[timed].get("ok"):
                times[candidate.name] = {"error": "not timed: its results are wrong"}
            else:
                times[candidate.name] = attempt(lambda: timing(case, candidate, DTYPES[timed], device))  # noqa: B023
        results.append(
            {"operation": case.operation, "case": case.name, "correctness": checked, "timed": timed, "times": times}
        )
        show(console, results[-1])
    return results


def show(console: Console, result: Result) -> None:
    """One case as a table."""
    verdicts = []
    for name, found in result["correctness"].items():
        verdicts.append(f"{name} {'right' if found.get('ok') else 'skipped' if 'skipped' in found else 'WRONG'}")
    table = Table(title=f"{result['operation']}: {result['case']}, {result['timed']}; {', '.join(verdicts)}")
    table.add_column("candidate")
    for name in ("forward us", "spread", "in a graph", "forward + backward us", "spread", "in a graph"):
        table.add_column(name, justify="right")
    for name, found in result["times"].items():
        if "error" in found:
            table.add_row(name, found["error"][:100], style="dim")
            continue
        cells = []
        for part in ("forward", "forward_backward"):
            launched, graph = found[part]["launched"], found[part]["graph"]
            cells += [f"{launched['median']:.1f}", f"{launched['p10']:.1f} to {launched['p90']:.1f}"]
            cells.append(f"{graph['median']:.1f}" if "median" in graph else "-")
        table.add_row(name, *cells)
    console.print(table)


def driver() -> str | None:
    """Version of the NVIDIA driver."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m bench.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder of the result files")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on the CPU in Triton's interpreter")
    options = parser.parse_args(argv)
    if not installed("triton"):
        raise UserError("the package triton is not installed; install it with: pip install triton")
    if options.dry_run and not interpreting():  # Triton reads the variable when it is first imported
        arguments = sys.argv[1:] if argv is None else argv
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        os.execve(sys.executable, [sys.executable, "-m", "bench.kernels", *arguments], environment)
    if not options.dry_run and interpreting():
        raise UserError("TRITON_INTERPRET=1 is set; unset it, or use --dry-run")
    if not options.dry_run and not torch.cuda.is_available():
        raise UserError("PyTorch sees no GPU here; use --dry-run to try the benchmark on the CPU")
    device = torch.device("cpu" if options.dry_run else "cuda")
    name = "CPU interpreter" if options.dry_run else torch.cuda.get_device_name(device)
    started, now = time.perf_counter(), datetime.now(UTC)
    console = Console(width=None if os.isatty(1) else 160)
    results = measure(device, console)
    folder = options.out / re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    commit = source_commit()
    path = folder / f"{now:%Y%m%d-%H%M%S}-{commit}.json"
    content = {"device": name, "dry_run": options.dry_run, "utc": now.isoformat(timespec="seconds"), "commit": commit}
    content |= {
        "seed": SEED,
        "versions": {**versions("torch", "triton"), "cuda": torch.version.cuda, "driver": driver()},
        "wall_seconds": round(time.perf_counter() - started, 1),
    }
    write_atomic(path, json.dumps({**content, "cases": results}, indent=1, allow_nan=False) + "\n")
    console.print(f"written to {path}", highlight=False, soft_wrap=True)
    verdicts = [found for result in results for found in result["correctness"].values()]
    if not all(found.get("ok") or "skipped" in found for found in verdicts):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
