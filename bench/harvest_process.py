"""Runs the parts of a harvest in processes of their own, and merges what they find into the result file."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.harvest_parts import DIED, POISONED, RESUMED, Task
from bench.record import Record
from titn.provenance import ROOT

RESTARTS = 8
LOG_CHARACTERS = 4000
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome:
    """How a part went.

    Attributes:
        part: the part, and the section that it measures.
        seconds, budget_seconds: how long it took, and was to take at most.
        restarts: how often it went on in another process.
        error, log: why it failed and what it printed last; None if all went well.
    """

    part: str
    seconds: float
    budget_seconds: float
    restarts: int
    error: str | None
    log: str | None


@dataclass(frozen=True)
class Runner:
    """What the parts have in common.

    Attributes:
        interpreted: parts whose Triton kernels run in Triton's interpreter.
        program: what Python runs.
        clock: counts seconds.
    """

    record: Record
    device: torch.device
    dataset: str
    data_dir: str
    small: bool
    interpreted: tuple[str, ...] = ()
    program: tuple[str, ...] = ("-m", "bench.harvest_parts")
    clock: Callable[[], float] = time.monotonic

    def run(self, part: str, budget: float, ends: float, tick: Callable[[], None]) -> Outcome:
        """One part: at most half as long again as `budget` seconds, or 30 more, and never beyond `ends`.

        A part that can go on where it stopped is started again if its process dies.

        Args:
            part: key of PARTS.
            budget: seconds after which it is to start nothing more.
            ends: time of `clock` at which everything ends.
            tick: called twice a second; what it raises ends the process and is raised.
        """
        began = self.clock()
        limit = min(began + max(1.5 * budget, budget + 30), ends)
        restarts = 0
        while True:
            before = self._measured(part)
            left = began + budget - self.clock()
            task = Task(part, "", str(self.device), left, self.small, self.dataset, self.data_dir, self._sections)
            error, log = self._process(task, limit, tick)
            moved = part in RESUMED and self._measured(part) != before
            if error is None or not moved or restarts == RESTARTS or self.clock() > limit:
                break
            restarts += 1
        if self.clock() > limit and error:
            error = f"stopped after {self.clock() - began:.0f} s; {budget:.0f} s were meant for it"
        if part not in self._sections:
            self.record.add(part, {"error": error or "nothing was measured"})
        error = error or wrong(part, self._sections[part])
        took = round(self.clock() - began, 1)
        return Outcome(part, took, round(budget, 1), restarts, error, log if error else None)

    @property
    def _sections(self) -> dict[str, Any]:
        found: dict[str, Any] = self.record.content["sections"]
        return found

    def _measured(self, part: str) -> str:
        return json.dumps(self._sections.get(part))

    def _process(self, task: Task, limit: float, tick: Callable[[], None]) -> tuple[str | None, str]:
        """Run a part until it ends or the time is up; why it failed, and the end of what it printed."""
        with tempfile.TemporaryDirectory(prefix="titn-harvest-") as name:
            folder = Path(name)
            task.out = str(folder / "section.json")
            task.write(folder / "task.json")
            line = [sys.executable, *self.program, str(folder / "task.json")]
            log, changed = folder / "log", 0
            with log.open("w") as written:
                process = subprocess.Popen(
                    line, cwd=ROOT, env=self._environment(task.part), stdin=subprocess.DEVNULL,
                    stdout=written, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
                try:
                    while process.poll() is None and self.clock() < limit:
                        tick()
                        changed = self._merge(task, changed)
                        try:
                            process.wait(POLL_SECONDS)
                        except subprocess.TimeoutExpired:
                            continue
                    status = process.poll()
                finally:
                    _end(process)
                    self._merge(task, changed)
            text = log.read_text("utf-8", "replace")[-LOG_CHARACTERS:]
        return _why(status, text), text

    def _environment(self, part: str) -> dict[str, str]:
        """Ours, with the variable that Triton reads at its import."""
        kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        return kept | {"PYTHONUNBUFFERED": "1"} | ({"TRITON_INTERPRET": "1"} if part in self.interpreted else {})

    def _merge(self, task: Task, changed: int) -> int:
        """Save the section if its file was written after `changed` (ns); when it was."""
        path = Path(task.out)
        if not path.exists() or (now := path.stat().st_mtime_ns) == changed:
            return changed
        self.record.add(task.part, json.loads(path.read_text()))
        return now


def wrong(part: str, data: Any) -> str | None:
    """What is wrong with the section of a part that ended well; None if nothing is."""
    if isinstance(data, dict) and "error" in data:
        return str(data["error"])
    rows = data if isinstance(data, list) else data.get("rows", data.get("runs", [data]))
    if not rows:
        return "nothing was measured"
    if part == "correctness":
        bad = [row for row in rows if not row.get("ok") and "skipped" not in row]
        return f"{len(bad)} of {len(rows)} checks are not right" if bad else None
    dead = [row for row in rows if row.get("reason") == DIED]
    if dead:
        return f"the process died at {dead[0]['operation']}, {dead[0]['case']}, {dead[0]['provider']}"
    if all("reason" in row for row in rows):
        return f"nothing was measured: {rows[0]['reason']}"
    return None


def _why(status: int | None, log: str) -> str | None:
    """Why a process failed, by its exit status (None: it had to be ended); None if it did not."""
    if status is None:
        return "stopped when its time was over"
    if status == POISONED:
        return "the device answered nothing any more"
    if status < 0:
        return f"the process ended with {signal.Signals(-status).name}"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return (lines or [f"the process ended with {status}"])[-1][:300] if status else None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and whatever it started, at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
