"""What the device reaches at best: copy bandwidth and the rate of matrix products, measured by PyTorch's own kernels.

The floors of `bench.kernels` and the roofline of `bench.report` stand on these figures, not on a data sheet's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.record import described, statistic
from bench.timing import DTYPES, laps

SEED = 2024
REPETITIONS = 15
COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}  # beyond any cache
LARGEST_SIDE = {"cuda": 8192, "cpu": 2048}
SECONDS = {"cuda": 0.002, "cpu": 0.05}  # a product of this length is long enough: sides double up to it


def measure(device: torch.device, *, small: bool) -> dict[str, Any]:
    """Copy bandwidth in GB/s (bytes read plus bytes written) and products in TFLOP/s by dtype, or {"error": why}.

    Each is {"median", "low", "high", "repetitions"}; low and high are the extremes of the repetitions. The sides of the
    square products double from 512 until one takes SECONDS or the side is LARGEST_SIDE. `small`: toy sizes, two
    repetitions.
    """
    return {
        "copy_gb_per_s": _or_error(lambda: copy_gb_per_s(device, small=small)),
        "product_tflops": {
            name: _or_error(lambda dtype=dtype: product_tflops(device, dtype, small=small))  # type: ignore[misc]
            for name, dtype in DTYPES.items()
        },
    }


def _or_error(measure_one: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return measure_one()
    except Exception as error:
        return {"error": described(error)}


def copy_gb_per_s(device: torch.device, *, small: bool) -> dict[str, Any]:
    """Gigabytes (10^9) per second of copying one buffer to another."""
    source = torch.ones((2**16 if small else COPY_BYTES[device.type]) // 4, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    rates = statistic([moved / s / 1e9 for s in _seconds(lambda: target.copy_(source), device, small=small)])
    if not torch.equal(source, target):
        raise RuntimeError("the copy differs from its source")
    return rates


def product_tflops(device: torch.device, dtype: torch.dtype, *, small: bool) -> dict[str, Any]:
    """10^12 operations per second of the product of two square matrices, two operations a multiply-accumulate."""
    generator = torch.Generator(device).manual_seed(SEED)
    side = 64 if small else 512
    while True:
        a, b = (torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        multiply = lambda a=a, b=b, out=out: torch.mm(a, b, out=out)  # noqa: E731
        last = small or side >= LARGEST_SIDE[device.type]
        if last or min(_seconds(multiply, device, small=True)) >= SECONDS[device.type]:
            return statistic([2 * side**3 / s / 1e12 for s in _seconds(multiply, device, small=small)])
        side *= 2


def floors(flops: int, traffic: int, dtype: str, ceilings: dict[str, Any] | None) -> dict[str, float | None]:
    """Least microseconds of `traffic` bytes at the copy bandwidth, and of `flops` at the product rate of `dtype`.

    None where the ceiling was not measured.
    """
    bandwidth = ((ceilings or {}).get("copy_gb_per_s") or {}).get("median")
    rate = ((ceilings or {}).get("product_tflops", {}).get(dtype) or {}).get("median")
    return {
        "memory": float(f"{traffic / bandwidth / 1e3:.6g}") if bandwidth else None,
        "product": float(f"{flops / rate / 1e6:.6g}") if rate else None,
    }


def _seconds(function: Callable[[], Any], device: torch.device, *, small: bool) -> list[float]:
    """Seconds of single calls, after one call that does not count."""
    function()
    return laps(function, device, 2 if small else REPETITIONS)
