"""The run folder: configuration, metrics, checkpoints, TensorBoard events and the result."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from torch.utils.tensorboard import SummaryWriter

from titn.config import RunConfig, check, kind_of, read_yaml, to_yaml
from titn.errors import UserError
from titn.files import write_atomic
from titn.training import checkpoint


class Run:
    """One run folder, locked against a second process while it is open for training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self._lock: IO[str] | None = None
        self._events: SummaryWriter | None = None

    @classmethod
    def create(cls, config: RunConfig, name: str | None = None) -> Run:
        """Make a new run folder and write the resolved configuration.

        Raises:
            UserError: the name is taken.
        """
        chosen = config.name or name or default_name(config)
        folder = Path(config.runs_dir) / chosen
        try:
            (folder / "checkpoints").mkdir(parents=True)
        except FileExistsError:
            raise UserError(
                f"{folder} exists already: continue it with --resume {folder} or choose another --name"
            ) from None
        except NotADirectoryError:
            raise UserError(f"--runs-dir {config.runs_dir} is not a folder") from None
        run = cls(folder)
        run.lock()
        write_atomic(folder / "config.yaml", to_yaml(replace(config, name=chosen)))
        return run

    @classmethod
    def find(cls, name: str, runs_dir: str = "runs") -> Run:
        """An existing run by its folder, or by its name under `runs_dir`.

        Raises:
            UserError: there is no such run folder.
        """
        for folder in (Path(name), Path(runs_dir) / name):
            if (folder / "config.yaml").is_file():
                return cls(folder)
        raise UserError(
            f"{name} is no run folder (neither {name}/config.yaml nor {runs_dir}/{name}/config.yaml exists)"
        )

    def config(self) -> RunConfig:
        """The configuration the run was created with, of a student or of a teacher.

        Raises:
            UserError: it is damaged.
        """
        path = self.folder / "config.yaml"
        kind = kind_of(path)
        config = kind(**read_yaml(path, kind))
        check(config)
        return config

    def lock(self) -> None:
        """Refuse a second process on the same run; the lock goes with the process, however it ends."""
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{self.folder} is in use by another process; wait for it or stop it") from None
        for leftover in (*self.folder.glob(".*.*"), *self.checkpoints.glob(".*")):
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()

    def close(self) -> None:
        """Release the lock and flush TensorBoard events."""
        if self._events is not None:
            self._events.close()
        if self._lock is not None:
            self._lock.close()

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one an epoch."""
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def rewind(self, epochs: int) -> None:
        """Drop what was logged after the first `epochs` epochs: the run goes on from there."""
        kept = self.metrics()[:epochs]
        write_atomic(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        self._events = SummaryWriter(str(self.folder / "tensorboard"), purge_step=epochs)

    def log(self, line: dict[str, Any]) -> None:
        """Append one epoch to metrics.jsonl and to the TensorBoard events."""
        text = "".join(json.dumps(entry) + "\n" for entry in (*self.metrics(), line))
        write_atomic(self.folder / "metrics.jsonl", text)
        if self._events is not None:
            for name, value in line.items():
                if name != "epoch" and value is not None:
                    self._events.add_scalar(name, value, line["epoch"])

    def result(self) -> dict[str, Any] | None:
        """result.json of a finished run."""
        path = self.folder / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json."""
        write_atomic(self.folder / "result.json", json.dumps(result, indent=1) + "\n")

    def newest_checkpoint(self) -> Path:
        """The checkpoint to evaluate or to learn from.

        Raises:
            UserError: the run has none yet.
        """
        found = checkpoint.newest(self.checkpoints)
        if found is None:
            raise UserError(f"{self.folder} has no checkpoint yet; train it with --resume {self.folder}")
        return found


def default_name(config: RunConfig) -> str:
    """Data set, network and time."""
    dataset = Path(config.dataset).resolve().name if "/" in config.dataset else config.dataset
    return f"{dataset}-{config.network}-{time.strftime('%Y%m%d-%H%M%S')}"
