"""What the commands that time training steps have in common: options, device, precision and result file."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.contenders import SEED
from bench.record import RESULTS, Record
from titn.errors import OneLineParser, UserError
from titn.training.switches import native_bfloat16, select_device


@dataclass(frozen=True)
class Setting:
    """Where a command measures, in which precision (None: float32), and where it prints and records."""

    device: torch.device
    amp: torch.dtype | None
    console: Console
    record: Record


def parser(name: str, doc: str | None, rounds: int | None = None) -> OneLineParser:
    """A parser of `python -m bench.NAME` with the options that all have; `rounds` is the default of --rounds."""
    options = OneLineParser(prog=f"python -m bench.{name}", description=(doc or "").splitlines()[0])
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options.add_argument("--dry-run", action="store_true", help="toy sizes, whose times mean nothing")
    if rounds is not None:
        options.add_argument("--rounds", type=int, default=rounds, help=f"repeats of every step (default: {rounds})")
    return options


def parse(options: OneLineParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The parsed options.

    Raises:
        UserError: one line, for an unknown option or a whole number below 1.
    """
    found = options.parse_args(argv)
    for name, value in vars(found).items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int) and not isinstance(each, bool) and each < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {each}")
    return found


def setting(options: OneLineParser, found: argparse.Namespace, argv: Sequence[str] | None) -> Setting:
    """The device that was asked for, bfloat16 where it has it, and a result file that nothing is written to yet."""
    device = select_device(found.device)
    amp = torch.bfloat16 if native_bfloat16(device) else None
    line = shlex.join([*options.prog.split(), *(sys.argv[1:] if argv is None else argv)])
    record = Record(line, device, SEED, found.out, dry_run=found.dry_run)
    return Setting(device, amp, Console(width=None if os.isatty(1) else 120), record)


def show_reasons(what: Iterable[tuple[str, str | None]], console: Console) -> None:
    """One line for each thing that has a reason why it was not measured."""
    for name, reason in what:
        if reason:
            console.print(f"not measured: {name}: {reason}", highlight=False, markup=False)


def write(at: Setting, section: str, found: Any) -> None:
    """Write the section to the result file and say where it is."""
    at.record.add(section, found)
    at.console.print(f"written to {at.record.path}", highlight=False, soft_wrap=True)
