"""`pytest bench`: the rows of `python -m bench.kernels` as benchmarks, on the device that is there.

    pytest bench -k "inner_block and bf16" --benchmark-json FILE

Each test's `extra_info` is its row: GPU times from events and graph replay, bytes, operations, floors, share of the
larger floor, peak memory, error against float64. pytest-benchmark's own times are wall times of single calls, launch
and synchronisation included. A provider that is not installed or refuses is skipped with its reason.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench import ceilings as ceilings_of
from bench.kernels.cases import MODES, Case, cases
from bench.kernels.correctness import dtypes, problem
from bench.kernels.providers import Provider, providers
from bench.kernels.times import Trial
from bench.timing import synchronize

pytest.importorskip("pytest_benchmark", reason="pytest bench needs pytest-benchmark: pip install pytest-benchmark")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS = 5


def trials() -> Iterator[Any]:
    """Every case, dtype, provider and mode of this device, neighbours sharing what is expensive to make."""
    for case in cases(DEVICE.type, False):
        for dtype in dtypes(DEVICE, small=False):
            for provider in providers(case, DEVICE, small=False):
                for mode in MODES:
                    words = case.operation, case.name, dtype, provider.name, mode
                    yield pytest.param(case, dtype, provider, mode, id=" ".join(words).replace(",", ""))


@pytest.fixture(scope="session")
def ceilings() -> dict[str, Any]:
    """Measured once per session."""
    return ceilings_of.measure(DEVICE, small=False)


@functools.lru_cache(maxsize=1)
def trial(case: Case, dtype: str, provider: Provider) -> Trial:
    """Of both modes, so that what is compiled is compiled once."""
    return Trial(problem(case, dtype, DEVICE), provider, small=False)


@pytest.mark.parametrize(("case", "dtype", "provider", "mode"), list(trials()))
def test_kernel(
    benchmark: Any,
    ceilings: dict[str, Any],
    case: Case,
    dtype: str,
    provider: Provider,
    mode: str,
) -> None:
    given = trial(case, dtype, provider)
    row = given.row(mode, ceilings)
    if "reason" in row:
        pytest.skip(row["reason"])
    benchmark.group = f"{case.operation} {case.name} {dtype} {mode}"
    benchmark.extra_info.update(row)
    call = given.call(mode)
    rotated = itertools.cycle(given.given.sets)

    def once() -> None:
        call(next(rotated))
        synchronize(DEVICE)

    with provider.context():
        benchmark.pedantic(once, rounds=ROUNDS, warmup_rounds=1)
