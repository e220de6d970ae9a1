"""The command line of the training commands: tyro's parsing, with one-line errors."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from pathlib import Path
from typing import TypeVar

from titn.config import RunConfig, read_yaml, resolve
from titn.errors import OneLineParser, UserError

Config = TypeVar("Config", bound=RunConfig)
_WITH_RESUME = ("--resume", "--runs-dir", "--device", "--help")


def parse(cls: type[Config], argv: list[str] | None) -> Config:
    """Parse `argv` over the values of its `--config` file and of the recipe for its `--dataset`.

    `--help` shows these values and leaves.

    Raises:
        UserError: one line, for an unknown flag, a value of the wrong type or an unreadable `--config`.
    """
    try:
        import tyro
    except ImportError:
        raise UserError("the command line needs the package tyro: pip install tyro") from None
    arguments, prog = sys.argv[1:] if argv is None else argv, cls.program
    first_look = OneLineParser(prog=prog, add_help=False, allow_abbrev=False)
    first_look.add_argument("--config")
    first_look.add_argument("--dataset")
    first_look.add_argument("--resume")
    seen, _ = first_look.parse_known_args(arguments)
    if seen.resume:
        for argument in arguments:
            name = argument.split("=")[0].replace("_", "-")
            if name.startswith("--") and name not in _WITH_RESUME:
                raise UserError(f"--resume goes on with the run's own configuration: drop {name}")
    values = read_yaml(Path(seen.config), cls) if seen.config else {}
    default = resolve(cls(**(values | ({"dataset": seen.dataset} if seen.dataset else {}))))
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            config = tyro.cli(cls, prog=prog, args=arguments, default=default)
    except SystemExit as left:
        if not left.code:
            raise
        raise UserError(_one_line(printed.getvalue(), prog)) from None
    return dataclasses.replace(config, config=None)


def _one_line(text: str, prog: str) -> str:
    """tyro's boxed message as one line: what stands between its first two rules."""
    body: list[str] = []
    for line in text.splitlines()[1:]:
        line = line.strip(" │|")
        if set(line) & set("─-") and not set(line) - set("─-╭╮╰╯├┤"):
            if body:
                break
        elif line:
            body.append(line)
    message = " ".join(body).split(" Got errors:")[0]
    return f"{message} (see {prog} --help)"
