"""Where the curves of a training go besides metrics.jsonl: TensorBoard's files, or an experiment tracker."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from titn.errors import UserError
from titn.training.callbacks import Callback

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from titn.config import RunConfig
    from titn.training.result import Result
    from titn.training.run import Run

PROJECT = "titn"
"""Project, or experiment, of all runs at a tracker."""


class TensorBoard(Callback):
    """Event files in the run folder's `tensorboard`."""

    def __init__(self) -> None:
        self._events: SummaryWriter | None = None

    def on_begin(self, run: Run, config: RunConfig, epoch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._events = SummaryWriter(str(run.folder / "tensorboard"), purge_step=epoch + 1)

    def on_epoch(self, line: dict[str, Any]) -> None:
        assert self._events is not None
        for name, value in numbers(line).items():
            self._events.add_scalar(name, value, line["epoch"])
        self._events.flush()

    def on_close(self) -> None:
        if self._events is not None:
            self._events.close()


@contextmanager
def _beginning(package: str) -> Iterator[None]:
    """What a tracker says when it cannot begin, in one line: no login, no server, a store that it no longer takes."""
    try:
        yield
    except Exception as error:  # of any tracker, of any kind
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--tracker {package} could not begin: {said}") from error


class WandbLike(Callback):
    """Weights & Biases, and trackio, which speaks as it does. A resumed run goes on under its name."""

    def __init__(self, package: str) -> None:
        self.package = package
        self._module = importlib.import_module(package)

    def on_begin(self, run: Run, config: RunConfig, epoch: int) -> None:
        options: dict[str, Any] = {"project": PROJECT, "name": run.folder.name, "config": asdict(config)}
        if self.package == "wandb":
            options |= {"dir": str(run.folder), "id": run.folder.name, "resume": "allow"}
        else:
            options |= {"resume": "allow"}
        with _beginning(self.package):
            self._module.init(**options)

    def on_epoch(self, line: dict[str, Any]) -> None:
        self._module.log(numbers(line), step=line["epoch"])

    def on_end(self, result: Result) -> None:
        self._module.log({f"result/{name}": value for name, value in numbers(asdict(result)).items()})

    def on_close(self) -> None:
        self._module.finish()


class Mlflow(Callback):
    """MLflow, at $MLFLOW_TRACKING_URI or where MLflow keeps its runs by default."""

    def __init__(self) -> None:
        self._mlflow: Any = importlib.import_module("mlflow")

    def on_begin(self, run: Run, config: RunConfig, epoch: int) -> None:
        with _beginning("mlflow"):
            self._mlflow.set_experiment(PROJECT)
            self._mlflow.start_run(run_name=run.folder.name)
            self._mlflow.log_params({name: _text(value) for name, value in asdict(config).items()})

    def on_epoch(self, line: dict[str, Any]) -> None:
        self._mlflow.log_metrics(numbers(line), step=line["epoch"])

    def on_end(self, result: Result) -> None:
        self._mlflow.log_metrics({f"result_{name}": value for name, value in numbers(asdict(result)).items()})

    def on_close(self) -> None:
        self._mlflow.end_run()


_TRACKERS: dict[str, tuple[str, Callable[[], Callback]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", lambda: WandbLike("wandb")),
    "trackio": ("trackio", lambda: WandbLike("trackio")),
    "mlflow": ("mlflow", Mlflow),
}


def tracker(name: str) -> list[Callback]:
    """The tracker of that name, or none.

    Raises:
        UserError: its package is not installed.
    """
    if name == "none":
        return []
    package, make = _TRACKERS[name]
    if importlib.util.find_spec(package) is None:
        raise UserError(f"--tracker {name} needs the package {package}: pip install {package}")
    return [make()]


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """What can be drawn of a line of metrics.jsonl or a result."""
    kept = {name: value for name, value in line.items() if name != "epoch" and not isinstance(value, bool)}
    return {name: float(value) for name, value in kept.items() if isinstance(value, int | float)}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
