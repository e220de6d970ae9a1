"""What a training step spends its time on: torch.profiler's operators, sorted by name into a few kinds of work."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.report.sections import KINDS
from bench.timing import laps, quiet_profiler, synchronize
from bench.training.contenders import Step

STEPS = 5
TOP = 25

_CPU = {
    "fused kernels": r"^titn::",
    "optimiser": r"Optimizer\.|_fused_(sgd|adam)|_foreach_",
    "products": r"^aten::(mm|bmm|addmm|baddbmm|_addmm_activation|mv|addmv|\w*convolution\w*)$|^(mkldnn|onednn|mkl)::",
    "attention": r"scaled_dot_product|flash_attention",
    "element-wise": r"^aten::|CompiledFxGraph|cpp_fused",
}
_CUDA = {
    "attention": r"flash|fmha|attention_kernel|efficient_attention",
    "products": r"gemm|gemv|nvjet|cutlass|cublas|xmma|split_?k|cudnn|convolve|^triton_(tem|mm|bmm)_",
    "optimiser": r"multi_tensor|fused_?(sgd|adam)",
    "element-wise": r"^triton_|^Mem(cpy|set)|::",
    "fused kernels": r"^[A-Za-z_]\w*$",
}


@dataclass(frozen=True)
class Operator:
    """An operator in one step: microseconds without the operators called inside, and its calls, rounded."""

    name: str
    us: float
    calls: int


def measure(step: Step, batch_size: int) -> dict[str, Any]:
    """The section "step_profile" of a warm step of so many images.

    Returns:
        "batch_size", "device_us" (microseconds of one step: on a GPU of all its kernels, on a CPU of all operators,
        which has the profiler's own cost in it) and "rows", the 25 that take the most: "name", "us" (of one step,
        without operators called inside), "calls" (in one step, rounded) and "percent" of device_us.

    Raises:
        RuntimeError: the profiler saw nothing, as on a GPU whose driver does not let CUPTI look.
    """
    found = operators(step)
    total = sum(one.us for one in found)
    if not total:
        raise RuntimeError(f"torch.profiler saw nothing of the step on {step.device}")
    rows = [asdict(one) | {"percent": 100 * one.us / total} for one in found[:TOP]]
    return {"batch_size": batch_size, "device_us": total, "rows": rows}


def operators(step: Step) -> list[Operator]:
    """Operators of a warm step, those that take most first; on a GPU its kernels, on a CPU whatever it runs."""
    quiet_profiler()
    cuda = step.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        for _ in range(STEPS):
            step()
        synchronize(step.device)
    found = []
    for event in profiler.key_averages():
        if cuda and event.device_type != DeviceType.CUDA:
            continue
        us = event.self_device_time_total if cuda else event.self_cpu_time_total
        found.append(Operator(event.key, us / STEPS, round(event.count / STEPS)))
    return sorted(found, key=lambda one: -one.us)


def kind(name: str, device_type: str) -> str:
    """Which of KINDS an operator of a CPU, or a kernel of a GPU ("cuda"), belongs to."""
    rules = _CUDA if device_type == "cuda" else _CPU
    return next((one for one, pattern in rules.items() if re.search(pattern, name, re.IGNORECASE)), "rest")


def percent_by_kind(step: Step) -> dict[str, float] | None:
    """Percent of a warm step's time that each of KINDS takes; None where the profiler sees nothing.

    The whole is, on a GPU, the time of a step without the profiler; on a CPU the sum of all operators, which holds the
    profiler's own cost.
    """
    whole = sum(laps(step, step.device, STEPS)) / STEPS if step.device.type == "cuda" else 0.0
    return shares(operators(step), step.device.type, whole)


def shares(found: list[Operator], device_type: str, seconds: float) -> dict[str, float] | None:
    """As `percent_by_kind`, from operators and the seconds of a step; time without an operator is "rest"."""
    us = dict.fromkeys(KINDS, 0.0)
    for one in found:
        us[kind(one.name, device_type)] += one.us
    busy = sum(us.values())
    if not busy:
        return None
    whole = max(busy, 1e6 * seconds)
    us["rest"] += whole - busy
    return {name: 100 * value / whole for name, value in us.items()}
