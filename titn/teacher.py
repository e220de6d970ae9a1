"""`python -m titn.teacher`: train a teacher; and where a student's run gets its teacher from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from titn.cli import parse
from titn.config import TeacherConfig, TrainConfig, resolve
from titn.data.dataset import Dataset
from titn.errors import UserError, command
from titn.network import NetworkSpec, load_network, read_spec
from titn.teachers.architectures import TEACHERS, load_initial_weights
from titn.training import checkpoint
from titn.training.experiment import Result, check_name, load_data, open_run, run_to_result, show_result
from titn.training.run import Run
from titn.training.switches import select


def train_teacher(
    config: TeacherConfig,
    *,
    console: Console | None = None,
    dataset: Dataset | None = None,
    name: str | None = None,
) -> Result:
    """Train a teacher as `config` says (unset fields come from the data set's recipe).

    Args:
        config: the configuration; `resume` continues a run folder.
        console: where progress goes (default: standard output).
        dataset: the data set, where it is loaded already.
        name: default name of the run folder.

    Raises:
        UserError: a mistake in the configuration, the data or the run folder.
        Interrupted: SIGINT or SIGTERM came; the run can be resumed.
    """
    console = console or Console()
    config, run = open_run(config)
    check_name("teacher", config.network, TEACHERS)
    console.print(f"Teacher [bold]{config.network}[/]", highlight=False)
    parts = select(config)
    parts.show(console)
    dataset, config = load_data(config, console, dataset)
    torch.manual_seed(config.seed)
    module = NetworkSpec.of(config, dataset).build()
    if config.init is not None and run is None:
        console.print(load_initial_weights(module, config.network, Path(config.init)), highlight=False)
    run = run or Run.create(config, name)
    return run_to_result(config, parts, dataset, run, module, console)


def find_or_train_teacher(config: TrainConfig, dataset: Dataset, console: Console) -> str:
    """Path of the teacher that `config.teacher` means; a teacher given by name is trained unless a run of it is there.

    Such a run has the hash of its configuration and data in its name, so that it is found again, and taken up again if
    it was interrupted.
    """
    if config.teacher not in TEACHERS:
        if not Path(config.teacher).exists():
            known = ", ".join(TEACHERS)
            raise UserError(f"--teacher {config.teacher} is neither a file or folder nor one of none, {known}")
        return str(Path(config.teacher).resolve())
    wanted = resolve(
        TeacherConfig(
            dataset=config.dataset,
            data_dir=config.data_dir,
            image_size=config.image_size,
            limit_train=config.limit_train,
            teacher=config.teacher,
            epochs=config.teacher_epochs or config.epochs,
            seed=config.seed,
            device=config.device,
            fast=config.fast,
            amp=config.amp,
            runs_dir=config.runs_dir,
        )
    )
    machine = ("data_dir", "device", "runs_dir", "fast", "compile", "amp", "pipeline", "cuda_graph")
    identity = {name: value for name, value in asdict(wanted).items() if name not in machine}
    digest = hashlib.sha256(json.dumps([identity, dataset.fingerprint], sort_keys=True).encode()).hexdigest()[:12]
    name = f"teacher-{dataset.name}-{config.teacher}-{digest}"
    folder = Path(config.runs_dir) / name
    if not (folder / "config.yaml").is_file():
        train_teacher(wanted, console=console, dataset=dataset, name=name)
    elif Run(folder).result() is None:
        train_teacher(replace(wanted, resume=str(folder)), console=console, dataset=dataset)
    return str(folder.resolve())


def load_teacher(path: str, dataset: Dataset) -> tuple[nn.Module, str, float | None]:
    """Network, name and test accuracy (where its run is finished) of a trained teacher.

    `path` is a run folder, a checkpoint folder or a model.safetensors.

    Raises:
        UserError: nothing usable is there, or it was trained for other images or classes than `dataset` has.
    """
    given, top1 = Path(path), None
    if (given / "config.yaml").is_file():
        run = Run(given)
        result = run.result()
        top1 = None if result is None else result["top1"]
        given = run.newest_checkpoint()
    if given.is_dir():
        checkpoint.verify(given)
        given = given / checkpoint.MODEL
    elif given.suffix in (".pth", ".pt", ".bin"):
        raise UserError(
            f"--teacher {path}: only safetensors are read; start from it with {TeacherConfig.program} --init {path}"
        )
    spec = read_spec(given)
    for what, own, needed in (
        ("classes", spec.num_classes, dataset.num_classes),
        ("channels", spec.in_channels, dataset.channels),
        ("image size", spec.image_size, dataset.image_size),
        ("class names", spec.class_names, dataset.class_names),
        ("normalisation mean", spec.mean, dataset.mean),
        ("normalisation std", spec.std, dataset.std),
    ):
        if own != needed:
            raise UserError(
                f"--teacher {path} was trained with another {what} ({own}) than {dataset.name} has ({needed})"
            )
    return load_network(given)[0], spec.name, top1


@command
def main(argv: list[str] | None = None) -> None:
    console = Console()
    config = parse(TeacherConfig, argv)
    result = train_teacher(config, console=console)
    show_result(
        result,
        console,
        ("Distil from it", f"python -m titn.train --dataset {config.dataset} --teacher {result.run}"),
    )


if __name__ == "__main__":
    main()
