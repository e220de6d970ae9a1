"""The parts of a harvest, each in a process of its own: `python -m bench.harvest_parts TASK.json`.

A part saves what it has at every step, so that one that hangs, dies or runs out of time loses nothing but what it was
at. Before an item that could take the process with it, what it saves says that it did; the process that goes on in its
place passes over that item. A GPU that has seen an illegal address answers nothing any more in the same process, which
then leaves with POISONED.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from titn.files import write_atomic
from titn.training.switches import native_bfloat16

POISONED = 75
DIED = "the process ended here"
RESUMED = ("correctness", "kernels")
"""Parts that can go on where they stopped."""
ROUNDS, SMALL_ROUNDS = 9, 1
SECONDS_A_SEED = 150.0
MOST_SEEDS = 5

Row = dict[str, Any]
Save = Callable[[Any], None]


class Poisoned(Exception):
    """The device answers nothing any more in this process."""


@dataclass
class Task:
    """What a part is told.

    Attributes:
        part: key of PARTS, and name of its section.
        out: file of the section, rewritten at every step; its folder may be written to.
        device: "cpu", "cuda" or "cuda:N".
        seconds: start nothing more after so long.
        small: toy sizes.
        dataset, data_dir: of the accuracy part.
        found: sections of earlier parts, and of this one if its last process died.
    """

    part: str
    out: str
    device: str
    seconds: float
    small: bool
    dataset: str
    data_dir: str
    found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._began = time.monotonic()

    @property
    def where(self) -> torch.device:
        return torch.device(self.device)

    @property
    def amp(self) -> torch.dtype | None:
        """bfloat16 where the device has it."""
        return torch.bfloat16 if native_bfloat16(self.where) else None

    @property
    def rounds(self) -> int:
        return SMALL_ROUNDS if self.small else ROUNDS

    @property
    def left(self) -> float:
        """Seconds of this part's time that are left."""
        return self.seconds - (time.monotonic() - self._began)

    @property
    def late(self) -> str:
        return f"the time for this part, {self.seconds:.0f} s, was over"

    def rows(self, section: str) -> list[Row]:
        """Rows of a section found so far; none if it failed."""
        rows = self.found.get(section)
        return list(rows) if isinstance(rows, list) else []

    def ceilings(self) -> dict[str, Any] | None:
        """The section, unless it failed."""
        found: dict[str, Any] | None = self.found.get("ceilings")
        return found if found and "error" not in found else None

    def write(self, path: Path) -> None:
        write_atomic(path, json.dumps(asdict(self)))


def ceilings(task: Task, console: Console, save: Save) -> None:
    from bench import ceilings as module

    save(module.measure(task.where, small=task.small))


def correctness(task: Task, console: Console, save: Save) -> None:
    """As `bench.correctness.measure`, but all cases in bfloat16 first, since those are the ones timed first."""
    from bench import correctness as module
    from bench.kernel_cases import cases

    rows = task.rows("correctness")
    done = {(row["operation"], row["case"], row["dtype"]) for row in rows}
    for dtype in module.dtypes(task.where, small=task.small):
        for case in cases(task.where.type, task.small):
            if (case.operation, case.name, dtype) in done:
                continue
            head = {"operation": case.operation, "case": case.name, "dtype": dtype}
            if task.left < 0:
                rows.append(head | {"skipped": task.late})
                continue
            save([*rows, head | {"error": DIED}])
            rows.append(module.check(case, dtype, task.where))
            console.print(module.sentence(rows[-1]), markup=False)
            save(rows)
    save(rows)


def kernels(task: Task, console: Console, save: Save) -> None:
    """As `bench.kernels.measure`: what is worth most first."""
    from bench import kernels as module
    from bench.kernel_cases import MODES

    where, small = task.where, task.small
    verdicts = {(row["operation"], row["case"], row["dtype"]): row for row in task.rows("correctness")}
    rows = task.rows("kernels")
    done = {(row["operation"], row["case"], row["dtype"], row["provider"]) for row in rows}
    for case, dtype, provider in sorted(module.work(where, small=small), key=module.worth):
        key = (case.operation, case.name, dtype)
        if (*key, provider.name) in done:
            continue
        head = {"operation": case.operation, "case": case.name, "dtype": dtype, "provider": provider.name}
        modes = [head | {"mode": mode} for mode in MODES]
        if task.left < 0:
            rows += [row | {"reason": task.late} for row in modes]
            continue
        save([*rows, *(row | {"reason": DIED} for row in modes)])
        verdict, known = verdicts.get(key), task.ceilings()
        rows += module.rows_of(case, dtype, provider, where, verdict, known, small=small)
        console.print(f"{case.operation}, {case.name}, {dtype}, {provider.name}", markup=False)
        save(rows)
    save(rows)


def waterfall(task: Task, console: Console, save: Save) -> None:
    from bench import waterfall as module

    size = module.default_batch_size(task.where, task.small)
    found = module.measure(
        task.where, batch_size=size, rounds=task.rounds, console=console, small=task.small, seconds=task.left
    )
    save(found)


def throughput(task: Task, console: Console, save: Save) -> None:
    """One batch size after another, while there is time for one more: a usual size first, the smallest last."""
    from bench import throughput as module

    sizes = module.default_batch_sizes(task.where, task.small)[: 1 if task.small else None]
    section: dict[str, Any] = {"rows": []}
    took = 0.0
    for size in sorted(sizes, key=lambda each: (abs(sizes.index(each) - len(sizes) // 2), -each)):
        if task.left < took:
            names = dict.fromkeys(row["contender"] for row in section["rows"])
            found = {"rows": [{"contender": name, "batch_size": size, "reason": task.late} for name in names]}
        else:
            began = time.monotonic()
            found = module.measure(
                task.where, task.amp, batch_sizes=[size], rounds=task.rounds, console=console, small=task.small,
                seconds=task.left,
            )  # fmt: skip
            took = time.monotonic() - began
        rows = sorted([*section["rows"], *found["rows"]], key=lambda row: int(row["batch_size"]))
        section = section | found | {"rows": rows}
        save(section)


def step_profile(task: Task, console: Console, save: Save) -> None:
    from bench import step_profile as module
    from bench.waterfall import default_batch_size

    size = default_batch_size(task.where, task.small)
    save(module.measure(task.where, task.amp, batch_size=size, small=task.small))


def scaling(task: Task, console: Console, save: Save) -> None:
    from bench import scaling as module

    found = module.measure(
        task.where, task.amp, task.ceilings(),
        rounds=task.rounds, console=console, small=task.small, seconds=task.left, save=save,
    )  # fmt: skip
    save(found)


def accuracy(task: Task, console: Console, save: Save) -> None:
    """On the development split: a harvest is taken often, and choices follow from it."""
    from bench import accuracy as module

    seeds = 2 if task.small else max(1, min(MOST_SEEDS, int(task.left / SECONDS_A_SEED)))
    found = module.measure(
        task.dataset, None if task.small else 0.9 * task.left / 60, task.where, data_dir=task.data_dir, seeds=seeds,
        console=console, split="development", runs_dir=Path(task.out).parent / "runs", small=task.small, save=save,
    )  # fmt: skip
    save(found)


PARTS: dict[str, Callable[[Task, Console, Save], None]] = {
    "ceilings": ceilings,
    "correctness": correctness,
    "kernels": kernels,
    "waterfall": waterfall,
    "throughput": throughput,
    "step_profile": step_profile,
    "scaling": scaling,
    "accuracy": accuracy,
}


def poisoned(device: torch.device) -> bool:
    """Whether the device answers nothing any more in this process."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
        torch.ones(1, device=device).add_(1).item()
    except RuntimeError:
        return True
    return False


def main(path: str) -> int:
    """Run one part; the exit status."""
    task = Task(**json.loads(Path(path).read_text()))
    console = Console(width=160, highlight=False)

    def save(data: Any) -> None:
        write_atomic(Path(task.out), json.dumps(data, allow_nan=False))
        if poisoned(task.where):
            raise Poisoned("the device answers nothing any more in this process")

    try:
        PARTS[task.part](task, console, save)
    except Poisoned as error:
        console.print(str(error))
        return POISONED
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
