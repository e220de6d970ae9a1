"""`python -m titn.teacher`: train a teacher."""

from __future__ import annotations

import logging
import shlex

from rich.console import Console

from titn.cli import parse
from titn.config import TeacherConfig
from titn.errors import command
from titn.train import train
from titn.training.result import show_result
from titn.training.run import free_name


@command
def main(argv: list[str] | None = None) -> None:
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # on a CPU: that there is no CUDA
    console = Console()
    config = free_name(parse(TeacherConfig, argv), console)
    result = train(config, console=console)
    dataset, folder = shlex.quote(config.dataset), shlex.quote(result.run)
    show_result(result, console, ("Distil from it", f"python -m titn.train --dataset {dataset} --teacher {folder}"))


if __name__ == "__main__":
    main()
