"""Every operation by every provider: whether it is right, and its time against the floors that the ceilings set.

    python -m bench.kernels [--cases paper|others|all] [--dtypes bf16 ...] [--providers first|others|all]
    python -m bench.kernels --check     # only whether our kernels are right
    python -m bench.kernels --dry-run   # toy sizes in Triton's interpreter

A row is one operation, size, dtype, mode and provider: microseconds as launched and as a replayed CUDA graph, bytes and
operations that no implementation can avoid, the floors that follow, the share of the larger floor in the time, peak
memory and the error against float64; or the reason why it was not timed. What is wrong is timed all the same and says
so in "wrong". `pytest bench` takes the same rows as tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bench import ceilings as ceilings_of
from bench import options
from bench.kernels import correctness
from bench.kernels.cases import MODES, Case, cases
from bench.kernels.correctness import SEED, Problem, in_words, largest, problem, warnings_kept, within
from bench.kernels.providers import Function, Provider, Refused, providers
from bench.options import Setting
from bench.record import described
from bench.timing import DTYPES, microseconds, on, peak_growth, require_answer
from titn.errors import command
from titn.kernels.common.backend import BackendUnavailable

OUR_FACTOR, RIVAL_FACTOR = 2.0, 10.0
"""Beyond this many times plain PyTorch's error ours is wrong, and a rival computes something else."""
PAPER_CASES = 7
OURS = ("triton", "cuda")
FIRST = (*OURS, "torch", "compile")
"""The providers that matter most."""

Row = dict[str, Any]


class Trial:
    """One provider on one problem."""

    def __init__(self, given: Problem, provider: Provider, *, small: bool) -> None:
        self.given, self.provider, self.small = given, provider, small
        self._function: Function | None = None

    def head(self, mode: str) -> Row:
        """What identifies a row."""
        return head(self.given.case, self.given.dtype, self.provider) | {"mode": mode}

    def call(self, mode: str) -> Callable[[Any], Any]:
        """What is timed: of one of the problem's sets."""
        return self.given.call(self.function(), mode)

    def function(self) -> Function:
        """The provider's function, built at the first call."""
        if self._function is None:
            self._function = self.provider.build()
        return self._function

    def row(self, mode: str, ceilings: dict[str, Any] | None) -> Row:
        """The row of `mode`, or the reason why there is none."""
        row = self.head(mode)
        with warnings_kept() as notes, self.provider.context(), on(self.given.device):
            try:
                return row | self._measured(mode, ceilings)
            except (Refused, BackendUnavailable) as error:
                return row | {"reason": str(error)}
            except Exception as error:
                return row | {"reason": described(error, notes)}

    def _measured(self, mode: str, ceilings: dict[str, Any] | None) -> Row:
        given, device = self.given, self.given.device
        errors = given.errors(given.run(self.function(), mode))
        plain = given.plain[: len(errors)]
        factor = OUR_FACTOR if self.provider.name in OURS else RIVAL_FACTOR
        row: Row = {"error_fp64": largest(errors)}
        if not all(within(errors, plain, factor)):
            row["wrong"] = f"its errors are {in_words(errors)}, plain PyTorch's {in_words(plain)}"
        call = self.call(mode)
        peak = peak_growth(lambda: call(given.sets[0]), device)
        us, graph = microseconds(call, given.sets, device, small=self.small)
        flops, traffic = given.case.flops(mode), given.traffic[mode]
        floors = ceilings_of.floors(flops, traffic, given.dtype, ceilings)
        floor = max((value for value in floors.values() if value is not None), default=None)
        taken: float = graph["median"] if "median" in graph else us["median"]
        return row | {
            "us": us,
            "graph_us": graph,
            "bytes": traffic,
            "flops": flops,
            "floor_us": floors,
            "percent_of_floor": None if floor is None else float(f"{100 * floor / taken:.4g}"),
            "peak_bytes": peak,
        }


def head(case: Case, dtype: str, provider: Provider) -> Row:
    """What the rows of both modes have in common."""
    return {"operation": case.operation, "case": case.name, "dtype": dtype, "provider": provider.name}


def measure(
    at: Setting,
    chosen: Sequence[Case],
    names: Sequence[str],
    ceilings: dict[str, Any] | None,
    which: str = "all",
) -> list[Row]:
    """The section "kernels": rows of the cases in the dtypes by all providers, by the `FIRST` of them, or by "others".

    In the order of their worth, so that what the time does not allow is the least of them: first everything in the
    first dtype that needs no torch.compile, then torch.compile, then the other dtypes, then what tries out candidates.
    """
    work = [
        (case, dtype, provider)
        for case in chosen
        for dtype in names
        for provider in providers(case, at.device, small=at.small)
        if which == "all" or (provider.name in FIRST) == (which == "first")
    ]
    work.sort(key=lambda what: worth(names.index(what[1]), what[2]))
    rows: list[Row] = []
    for case, dtype, provider in work:
        late = at.budget.refusal()
        if late:
            rows += [head(case, dtype, provider) | {"mode": mode, "reason": late} for mode in MODES]
            continue
        rows += rows_of(case, dtype, provider, at, ceilings)
        at.say(f"{case.operation}, {case.name}, {dtype}, {provider.name}: {_in_short(rows[-1])}")
        at.save("kernels", rows)
        require_answer(at.device)
    at.save("kernels", rows)
    return rows


def worth(dtype: int, provider: Provider) -> tuple[int, int]:
    """The smaller, the earlier a provider is timed in the dtype of this rank; see `measure`."""
    return ((0, 1, 3) if dtype == 0 else (2, 4, 5))[provider.cost], dtype


def rows_of(case: Case, dtype: str, provider: Provider, at: Setting, ceilings: dict[str, Any] | None) -> Iterator[Row]:
    """A row for each mode."""
    try:
        trial = Trial(problem(case, dtype, at.device), provider, small=at.small)
    except Exception as error:
        yield from (head(case, dtype, provider) | {"mode": mode, "reason": described(error)} for mode in MODES)
        return
    yield from (trial.row(mode, ceilings) for mode in MODES)


def _in_short(row: Row) -> str:
    return row["reason"] if "us" not in row else f"{row['us']['median']:.1f} us" + ", WRONG" * ("wrong" in row)


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("kernels", __doc__)
    parser.add_argument(
        "--cases", choices=("paper", "others", "all"), default="all", help="TITN's own sizes, or others"
    )
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), help="default: those that the device computes in")
    parser.add_argument("--providers", choices=("first", "others", "all"), default="all", help=f"first: {FIRST}")
    parser.add_argument("--check", action="store_true", help="only whether our kernels are right")
    given, at = options.start(parser, argv, seed=SEED, interpret=True)
    everything = cases(at.device.type, at.small)
    chosen = {"paper": everything[:PAPER_CASES], "others": everything[PAPER_CASES:], "all": everything}[given.cases]
    names = given.dtypes or correctness.dtypes(at.device, small=at.small)
    checked = correctness.measure(at, chosen, names)
    at.show("correctness", checked)
    if not given.check:
        ceilings = ceilings_of.measure(at.device, small=at.small)
        at.save("ceilings", ceilings)
        # toy sizes are timed in one dtype: their times mean nothing
        timed = ("fp16",) if at.small and at.device.type == "cpu" else names
        at.show("kernels", measure(at, chosen, timed, ceilings, given.providers))
    at.finish()
    wrong = [row for row in checked if not row.get("ok") and "skipped" not in row]
    if wrong:
        at.say(f"{len(wrong)} of {len(checked)} checks are not right")
        raise SystemExit(1)
