"""What all commands have in common: options, device, precision, console and result file."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.record import RESULTS, Record
from bench.report.chapters import CHAPTERS, SEVERAL
from bench.report.render import show
from titn.errors import OneLineParser, UserError
from titn.kernels.common.backend import installed, interpreting
from titn.training.switches import native_bfloat16, select_device


@dataclass(frozen=True)
class Budget:
    """Seconds in which a command may start something new (None: any number)."""

    seconds: float | None = None
    began: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> float | None:
        """Seconds that are left, 0 where none are."""
        return None if self.seconds is None else max(0.0, self.seconds - (time.perf_counter() - self.began))

    def refusal(self) -> str | None:
        """Why nothing new is started; None: there is time."""
        return f"not reached within {self.seconds:g} seconds" if self.left == 0 else None


@dataclass(frozen=True)
class Setting:
    """Where a command measures, at which sizes and for how long, and where it prints and records.

    Attributes:
        device: what is measured.
        small: toy sizes, whose times mean nothing.
        budget: how long something new may be started.
        console: what is done is printed here.
        record: the result file.
    """

    device: torch.device
    small: bool = False
    budget: Budget = field(default_factory=Budget)
    console: Console = field(default_factory=lambda: Console(quiet=True))
    record: Record | None = None

    @property
    def amp(self) -> torch.dtype | None:
        """bfloat16 where the device has it; None: float32."""
        return torch.bfloat16 if native_bfloat16(self.device) else None

    def say(self, text: str) -> None:
        """A line of progress."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def save(self, section: str, data: Any) -> None:
        """Write what a section has so far, so that a command that is killed loses nothing else."""
        if self.record is not None:
            self.record.add(section, data)

    def show(self, section: str, data: Any) -> None:
        """Print a section as bench/RESULTS.md would show it."""
        chapter = CHAPTERS[section]
        self.console.print(f"\n[bold]{chapter.title}[/]", highlight=False)
        show(chapter.view([data] if section in SEVERAL else data), self.console)

    def finish(self) -> None:
        """Mark the result file as complete and say where it is."""
        if self.record is not None:
            self.record.finish()
            self.say(f"written to {self.record.path}")


def parser(name: str, doc: str | None, *, rounds: int | None = None) -> OneLineParser:
    """A parser of `python -m bench.NAME` with the options that all have; `rounds` is the default of --rounds."""
    options = OneLineParser(prog=f"python -m bench.{name}", description=(doc or "").splitlines()[0])
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options.add_argument("--seconds", type=float, metavar="S", help="start nothing new after S seconds")
    options.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options.add_argument("--dry-run", action="store_true", help="toy sizes, whose times mean nothing; auto is the CPU")
    if rounds is not None:
        options.add_argument("--rounds", type=int, default=rounds, help=f"repeats of every step (default: {rounds})")
    return options


def start(
    options: OneLineParser, argv: Sequence[str] | None, *, seed: int = 0, interpret: bool = False, timed: bool = True
) -> tuple[argparse.Namespace, Setting]:
    """The parsed options and what follows from them; float32 means float32 from here on, never TF32.

    Args:
        options: from `parser`, perhaps with more options.
        argv: arguments (None: the process's).
        seed: of everything drawn.
        interpret: a dry run on a CPU runs Triton's kernels in Triton's interpreter; the process is started again for
            that, since Triton reads TRITON_INTERPRET when it is first imported.
        timed: whether times are measured; without, `interpret` is for every run on a CPU.

    Raises:
        UserError: one line, for an unknown option, a number out of range or a device that is not there.
    """
    given, arguments = options.parse_args(argv), sys.argv[1:] if argv is None else list(argv)
    for name, value in vars(given).items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int) and not isinstance(each, bool) and each < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {each}")
            if isinstance(each, float) and not each > 0:
                raise UserError(f"--{name.replace('_', '-')} must be above 0, not {each:g}")
    device = select_device("cpu" if given.dry_run and given.device == "auto" else given.device)
    interpretable = (given.dry_run or not timed) and device.type == "cpu"
    if interpreting() and not interpretable:
        raise UserError("TRITON_INTERPRET=1 is set; unset it, or use --dry-run")
    if interpret and interpretable and not interpreting() and installed("triton"):
        again_interpreted(options.prog, arguments)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    relative = [Path(each).name if Path(each).is_absolute() else each for each in arguments]
    line = shlex.join([*options.prog.split(), *relative])
    record = Record(line, device, seed, given.out, dry_run=given.dry_run)
    return given, Setting(device, given.dry_run, Budget(given.seconds), console(), record)


def again_interpreted(prog: str, arguments: Sequence[str]) -> None:
    """Replace this process by the same command in Triton's interpreter."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    os.execve(sys.executable, [sys.executable, *prog.split()[1:], *arguments], environment)


def console() -> Console:
    """As wide as the terminal, or 160 columns where there is none."""
    return Console(width=None if os.isatty(1) else 160)
