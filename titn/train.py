"""`python -m titn.train`: train a student, distilled from a teacher, from data to report."""

from __future__ import annotations

from dataclasses import replace

import torch
from rich.console import Console

from titn.cli import parse
from titn.config import TrainConfig
from titn.data.dataset import Dataset
from titn.errors import command
from titn.models import MODELS
from titn.network import NetworkSpec
from titn.teacher import find_or_train_teacher, load_teacher
from titn.training.experiment import Result, check_name, load_data, open_run, run_to_result, show_result
from titn.training.run import Run
from titn.training.switches import select
from titn.training.targets import LiveTeacher


def train(config: TrainConfig, *, console: Console | None = None, dataset: Dataset | None = None) -> Result:
    """Train a student as `config` says (unset fields come from the data set's recipe).

    A teacher given by name is trained first, unless its run is there already. Returns what result.json holds.

    Args:
        config: the configuration; `resume` continues a run folder.
        console: where progress goes (default: standard output).
        dataset: the data set, where it is loaded already.

    Raises:
        UserError: a mistake in the configuration, the data or the run folder.
        Interrupted: SIGINT or SIGTERM came; the run can be resumed.
    """
    console = console or Console()
    config, run = open_run(config)
    check_name("model", config.network, MODELS)
    console.print(f"Student [bold]{config.network}[/]", highlight=False)
    parts = select(config)
    parts.show(console)
    dataset, config = load_data(config, console, dataset)
    torch.manual_seed(config.seed)
    module = NetworkSpec.of(config, dataset).build(parts.kernels)
    targets, teacher, teacher_top1 = None, None, None
    if config.teacher != "none" and not getattr(module, "distilled", False):
        console.print(f"{config.network} has no distillation token: it trains without a teacher", highlight=False)
        config = replace(config, teacher="none")
    if config.teacher != "none":
        config = replace(config, teacher=find_or_train_teacher(config, dataset, console))
        network, teacher, teacher_top1 = load_teacher(config.teacher, dataset)
        targets = LiveTeacher(network.to(parts.device), config.distillation, parts.amp)
    run = run or Run.create(config)
    torch.manual_seed(config.seed)
    return run_to_result(
        config,
        parts,
        dataset,
        run,
        module,
        console,
        targets=targets,
        teacher=teacher,
        teacher_top1=teacher_top1,
    )


@command
def main(argv: list[str] | None = None) -> None:
    console = Console()
    result = train(parse(TrainConfig, argv), console=console)
    show_result(
        result,
        console,
        ("Evaluate it again", f"python -m titn.evaluate {result.run}"),
        ("Learning curves", f"tensorboard --logdir {result.run}/tensorboard"),
    )


if __name__ == "__main__":
    main()
