"""The same training with several seeds: a run each, and what they say together."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from titn.config import Config, RunConfig
from titn.errors import UserError
from titn.metrics import confidence_interval
from titn.training.result import Result
from titn.training.run import Run, default_name

_MAY_DIFFER = {"seeds", "seed", "name", "config", "resume", "runs_dir", "device", "overwrite"}


def repeat(config: Config, train: Callable[[Config], Result], console: Console) -> list[Result]:
    """Train with the seeds `seed`, `seed + 1`, ... as runs NAME-seed0, NAME-seed1, ...

    One that is finished is taken as it is, one that was stopped goes on.

    Args:
        config: asks for `seeds` runs.
        train: trains one.
        console: where is said what is done.

    Raises:
        UserError: a run of such a name has other settings than those given.
    """
    if config.minutes is not None:
        raise UserError("--minutes is for one run, whose epochs it chooses: give --epochs with --seeds")
    name = config.name or default_name(config)
    results = []
    for seed in range(config.seed, config.seed + config.seeds):
        one = config.changed(seed=seed, seeds=1, name=f"{name}-seed{seed}")
        run = Run(Path(config.runs_dir).expanduser() / str(one.name))
        if (run.folder / "config.yaml").is_file() and not config.overwrite:
            _check_same(one, run)
            if (found := run.result()) is not None:
                console.print(Text(f"{run.folder} is finished and taken as it is"), soft_wrap=True)
                results.append(_stored(found, run))
                continue
            one = type(config)(resume=str(run.folder), device=config.device)
        results.append(train(one))
    return results


def show_together(results: list[Result], console: Console) -> None:
    """A table of the runs, and mean and interval of their accuracies."""
    table = Table("run", "seed", "top-1", "best top-1")
    for each in results:
        best = each.best_top1 if each.best_test_top1 is None else each.best_test_top1
        cells = (Path(each.run).name, str(each.seed), f"{each.top1:.2%}", f"{best:.2%}")
        table.add_row(*(Text(cell, overflow="fold") for cell in cells))
    console.print(table)
    console.print(Text(f"top-1 {in_words([each.top1 for each in results])}"), soft_wrap=True)


def in_words(values: list[float]) -> str:
    """Mean and 95 % interval of the mean (Student's t) of shares."""
    mean = statistics.fmean(values)
    ends = confidence_interval(values)
    if ends is None:
        return f"{mean:.2%} (one run)"
    return f"{mean:.2%}, {len(values)} seeds, 95% interval of the mean {ends[0]:.2%} to {ends[1]:.2%}"


def _check_same(wanted: RunConfig, run: Run) -> None:
    stored = run.config()
    for name in sorted(wanted.said - _MAY_DIFFER):
        asked, has = getattr(wanted, name), getattr(stored, name, None)
        if asked not in (None, "auto") and asked != has and not _same_place(asked, has):
            raise UserError(f"{run.folder} was trained with {name} {has}, not {asked}: give another --name")


def _same_place(one: Any, other: Any) -> bool:
    """Whether both are paths of one file or folder."""
    if not isinstance(one, str) or not isinstance(other, str):
        return False
    paths = Path(one).expanduser(), Path(other).expanduser()
    return paths[0].absolute() == paths[1].absolute()


def _stored(found: dict[str, Any], run: Run) -> Result:
    """A result as `Run.finish` wrote it."""
    try:
        return Result(
            **{each.name: found[each.name] for each in fields(Result) if each.name != "run"} | {"run": str(run.folder)}
        )
    except KeyError as error:
        raise UserError(f"{run.folder} is of another version, without {error}: give another --name") from None
