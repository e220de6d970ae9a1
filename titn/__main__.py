"""The `titn` command: `titn train --fast` is `python -m titn.train --fast`, and so on."""

from __future__ import annotations

import difflib
import importlib
import sys

from titn.errors import UserError, command

COMMANDS = {
    "train": "train a student, distilled from a teacher",
    "teacher": "train a teacher",
    "predict": "the classes that a trained network sees in images",
    "evaluate": "test accuracy of a run",
    "export": "a trained network for others: ONNX, torch.export, safetensors, timm, a release",
    "runs": "a table of all runs",
    "cache": "store and check a teacher's answers",
    "preview": "a picture of what a training sees of its images",
    "profile": "parameters and multiply-accumulates of the models",
}


def main(argv: list[str] | None = None) -> None:
    """Hand the arguments to the command that the first of them names."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] in COMMANDS:
        importlib.import_module(f"titn.{arguments[0]}").main(arguments[1:])
    else:
        _help(arguments)


@command
def _help(argv: list[str] | None) -> None:
    if argv and argv[0] not in ("-h", "--help"):
        close = difflib.get_close_matches(argv[0], COMMANDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(COMMANDS)}"
        raise UserError(f"titn has no command {argv[0]}; {hint}")
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    print(f"usage: titn COMMAND [--FLAG VALUE ...]\n\n{lines}\n\ntitn COMMAND --help explains each.")


if __name__ == "__main__":
    main()
