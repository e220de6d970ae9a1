"""`python -m titn.train`: train a student, distilled from a teacher, from data to report."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from titn.cli import parse
from titn.config import RunConfig, TrainConfig
from titn.data.dataset import Dataset
from titn.errors import Interrupted, UserError, command
from titn.network import NetworkSpec
from titn.pipelines import make_pipeline
from titn.profile import count_macs
from titn.provenance import source_commit
from titn.report import write_report
from titn.teachers.find import TeacherSource, find_teachers, load_teachers
from titn.training.callbacks import Callback
from titn.training.initial import start_from
from titn.training.phases import Phases
from titn.training.plans import EpochPlans
from titn.training.preparation import (
    announce,
    build_step,
    check_fit,
    check_room,
    check_same_data,
    check_surroundings,
    class_weights,
    open_run,
    prepare,
)
from titn.training.rehearsal import fit_epochs
from titn.training.repeat import repeat, show_together
from titn.training.result import Result, result_of, show_result
from titn.training.run import Run, RunInUse, free_name
from titn.training.schedule import Schedule
from titn.training.switches import describe
from titn.training.targets import teacher_targets
from titn.training.trackers import tracker
from titn.training.trainer import Trainer


@torch.enable_grad()
def train(
    config: RunConfig,
    *,
    console: Console | None = None,
    dataset: Dataset | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Train a student or a teacher; a student's teacher that is given by name is trained first, unless it is there.

    Whatever can be checked is checked before anything is written, and the run has its folder before anything long
    begins.

    Args:
        config: a TrainConfig or a TeacherConfig; `resume` continues a run folder.
        console: where progress goes (default: standard output).
        dataset: the data set, where it is loaded already.
        callbacks: told of this training's steps and epochs (not of its teacher's).

    Raises:
        UserError: a mistake in the configuration, the data or the run folder.
        Interrupted: SIGINT or SIGTERM came; the run can be resumed.
    """
    check_surroundings()
    console = console or Console()
    config, run, start = open_run(config)
    if config.seeds > 1:
        raise UserError(f"train takes one seed, not --seeds {config.seeds}: titn.training.repeat.repeat trains several")
    watching = [*tracker(config.tracker), *callbacks]
    switches, dataset = prepare(config, dataset)
    if run is None and config.minutes is not None:
        config = fit_epochs(config, dataset, train, console, switches.device.type)
    schedule = Schedule.of(config, len(dataset.train_labels), switches.device.type)
    torch.manual_seed(config.seed)
    spec = NetworkSpec.of(config, dataset)
    module = spec.build(switches.kernels, **config.training_options)
    random_state = torch.get_rng_state()
    macs = count_macs(module, dataset.channels, dataset.image_size)
    distils = bool(config.teachers) and getattr(module, "distilled", False)
    sources = find_teachers(config, dataset) if distils else ()
    to_train = any(source.to_train for source in sources)
    teacher = load_teachers([each.path for each in sources], dataset) if sources and not to_train else None
    check_fit(config, switches, schedule, dataset, module, sources)
    weights = class_weights(config.class_weights, dataset.train_labels, dataset.class_names)
    announce(config, switches, dataset, schedule, module, sources, console)
    plans = EpochPlans.of(config, schedule, dataset)
    targets = teacher_targets(config, switches, plans, dataset, teacher, console) if teacher else None
    term = config.distillation_term
    used = {"temperature": term["temperature"]} if distils and term["kind"] != "hard" else {}
    settled = config.changed(batch_size=schedule.batch_size, lr=schedule.peak, minutes=None, **used)
    resumed = run is not None
    if run is None:
        if config.init is not None:
            console.print(Text(start_from(module, spec, config.init, config.runs_dir)), soft_wrap=True)
        check_room(config, module)
        run = Run.create(settled, dataset.identity())
    else:
        check_same_data(run, dataset)

    with run:
        if resumed:
            run.reconfigure(settled)
        if start is not None and (later := run.set_aside_after(start)):
            console.print(Text(f"set aside, as {run.folder} goes on from {start.name}: {', '.join(later)}"))
        run.note({"commit": source_commit(), "device": describe(switches.device), "lr": schedule.peak})
        if to_train:
            again = f"{config.program} --resume {shlex.quote(str(run.folder))}"
            teacher = load_teachers(trained(sources, config, dataset, again, console), dataset)
            targets = teacher_targets(config, switches, plans, dataset, teacher, console)
        torch.set_rng_state(random_state)
        trainer = Trainer(
            run,
            build_step(config, switches, schedule, module, distils=distils, class_weights=weights),
            schedule,
            dataset,
            plans,
            Phases.of(config, schedule),
            spec=spec,
            targets=targets,
            pipeline=make_pipeline(dataset, backend=switches.pipeline, device=switches.device),
            console=console,
            program=config.program,
            eval_every=config.eval_every,
            patience=config.patience,
            callbacks=watching,
            compiles=switches.compile,
        )
        trainer.resume()
        if not trainer.ended:
            run.reopen()
        with contextlib.ExitStack() as closing:
            for callback in watching:
                callback.on_begin(run, config, trainer.progress.epoch)
                closing.callback(callback.on_close)
            try:
                logits = trainer.fit()
            except (Interrupted, UserError):
                write_report(run.folder, dataset, trainer.logits)
                raise
            if targets is not None:
                console.print(Text(targets.summary()), soft_wrap=True)
            result = result_of(trainer, logits, switches, macs, teacher)
            run.finish({name: value for name, value in asdict(result).items() if name != "run"})
            write_report(run.folder, dataset, logits)
            for callback in watching:
                callback.on_end(result)
    return result


def trained(
    teachers: Sequence[TeacherSource], config: RunConfig, dataset: Dataset, again: str, console: Console
) -> list[Path]:
    """Paths of the teachers, trained now if they have to be; one that another process is training is waited for.

    Raises:
        Interrupted: the training was stopped; `again` is the command that goes on.
    """
    paths = []
    for number, teacher in enumerate(teachers):
        while teacher.to_train is not None:
            try:
                train(teacher.to_train, console=console, dataset=dataset)
            except RunInUse:
                _wait_for(teacher.path, console)
            except Interrupted as stopped:
                message = f"stopped while training the teacher, everything is saved; continue with: {again}"
                raise Interrupted(stopped.signal_number, message) from None
            teacher = find_teachers(config, dataset)[number]
        paths.append(teacher.path)
    return paths


def _wait_for(folder: Path, console: Console) -> None:
    """Wait until no other process holds the run in `folder`."""
    run = Run.find(str(folder))
    run.lock(waiting=lambda: console.print(Text(f"waiting for another process that trains {folder}"), soft_wrap=True))
    run.close()


@command
def main(argv: list[str] | None = None) -> None:
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # on a CPU: that there is no CUDA
    console = Console()
    config = parse(TrainConfig, argv)
    if config.seeds > 1:
        show_together(repeat(config, partial(train, console=console), console), console)
        return
    config = free_name(config, console)
    result = train(config, console=console)
    folder = shlex.quote(result.run)
    parts = f" --import {shlex.quote(config.import_)}" if config.import_ else ""
    show_result(
        result,
        console,
        ("Evaluate it again", f"python -m titn.evaluate {folder}{parts}"),
        *([("Learning curves", f"tensorboard --logdir {folder}/tensorboard")] * (config.tracker == "tensorboard")),
    )


if __name__ == "__main__":
    main()
