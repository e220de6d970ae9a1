"""The run folder: configuration, data set, metrics, checkpoints and the result.

No path in it decides whether it can be read: a folder that was moved or copied is the same run.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Self

from rich.console import Console
from rich.text import Text

from titn.config import Config, RunConfig, stored_config, to_yaml
from titn.data.dataset import DATASETS
from titn.errors import UserError
from titn.files import folder_atomic, read_json, write_atomic
from titn.own_parts import own_dataset
from titn.teachers.architectures import is_teacher
from titn.training import checkpoint

_CONFIG, _DATASET, _METRICS, _HISTORY, _RESULT, PARTS = (
    "config.yaml", "dataset.json", "metrics.jsonl", "history.jsonl", "result.json", "own_parts.py",
)  # fmt: skip


class RunInUse(UserError):
    """Another process holds the run, or was the first to make it."""


class Run:
    """One run folder. As a context it is locked against a second process, however it is left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self._lock: IO[str] | None = None

    @classmethod
    def create(cls, config: RunConfig, dataset: dict[str, Any]) -> Run:
        """Make a new run folder with the configuration and the data set's identity in it.

        Args:
            config: where the run is to lie and what it is called, by default data set, network and time; with
                `overwrite` a run of that name is removed.
            dataset: see `Dataset.identity`.

        Raises:
            RunInUse: the name is taken.
            UserError: `runs_dir` is not a folder.
        """
        root = Path(config.runs_dir).expanduser()
        if root.exists() and not root.is_dir():
            raise UserError(f"--runs-dir {config.runs_dir} is not a folder")
        root.mkdir(parents=True, exist_ok=True)
        given = config.name
        if given and config.overwrite:
            _remove(root / given)
        for chosen in [given] if given else _default_names(config):
            try:
                with folder_atomic(root / chosen) as folder:
                    (folder / _CONFIG).write_text(to_yaml(config.changed(name=chosen, **_placed(config))), "utf-8")
                    if config.import_ is not None and Path(config.import_).expanduser().is_file():
                        shutil.copyfile(Path(config.import_).expanduser(), folder / PARTS)
                    (folder / _DATASET).write_text(json.dumps(dataset, indent=1) + "\n")
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
                if given:
                    raise RunInUse(_taken(root / chosen, config.program)) from None
            else:
                return cls(root / chosen)
        raise AssertionError("names never end")

    @classmethod
    def find(cls, name: str, runs_dir: str = "runs") -> Run:
        """An existing run by its folder, or by its name under `runs_dir`.

        Raises:
            UserError: there is no such run folder.
        """
        for folder in (Path(name).expanduser(), Path(runs_dir).expanduser() / name):
            if (folder / _CONFIG).is_file():
                return cls(folder)
        raise UserError(f"{name} is no run folder (neither {name}/{_CONFIG} nor {runs_dir}/{name}/{_CONFIG} exists)")

    def __enter__(self) -> Self:
        self.lock()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def lock(self, waiting: Callable[[], None] | None = None) -> None:
        """Keep other processes from this run; the lock goes with the process, however it ends.

        Args:
            waiting: called once if another process holds the run, which is then waited for.

        Raises:
            RunInUse: another process holds the run and `waiting` is None.
        """
        if self._lock is not None:
            return
        lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                lock.close()
                raise RunInUse(f"{self.folder} is in use by another process; wait for it or stop it") from None
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                lock.close()
                raise
        self._lock = lock
        self.checkpoints.mkdir(exist_ok=True)
        for leftover in (*self.folder.glob(".*.*"), *self.checkpoints.glob(".*")):
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
        self._lock = None

    def config(self, data_dir: str | None = None) -> RunConfig:
        """The configuration the run was created with, of a student or of a teacher.

        Args:
            data_dir: where the data set lies now, or the data set's own folder; by default where the run read it.

        Raises:
            UserError: it is damaged.
        """
        config = stored_config(self.folder / _CONFIG)
        if data_dir is None:
            return config
        if config.dataset in DATASETS or own_dataset(config.dataset) is not None:
            return config.changed(data_dir=data_dir)
        inside = Path(data_dir).expanduser() / Path(config.dataset).name
        return config.changed(data_dir=data_dir, dataset=str(inside if inside.is_dir() else data_dir))

    def reconfigure(self, config: RunConfig) -> None:
        """Store a changed configuration."""
        write_atomic(self.folder / _CONFIG, to_yaml(config))

    def reopen(self) -> None:
        """Take back that the run is finished: it goes on."""
        (self.folder / _RESULT).unlink(missing_ok=True)

    def set_aside_after(self, start: Path) -> list[str]:
        """Let `start` be the newest checkpoint; the names of the later ones, which are renamed and no longer read."""
        found = checkpoint.folders(self.checkpoints)
        later = found[found.index(self.checkpoints / start.name) + 1 :]
        for folder in later:
            names = (f"{folder.name}.aside{number}" for number in itertools.count(1))
            folder.rename(next(path for name in names if not (path := folder.with_name(name)).exists()))
        return [folder.name for folder in later]

    def dataset(self) -> dict[str, Any]:
        """Identity of the data set the run was created with.

        Raises:
            UserError: it is damaged.
        """
        stored: dict[str, Any] = read_json(self.folder / _DATASET)
        return stored

    def note(self, line: dict[str, Any]) -> None:
        """Append to history.jsonl when the run was begun, resumed or changed."""
        self._append(_HISTORY, {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **line})

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one per epoch.

        Raises:
            UserError: the file is damaged.
        """
        return self._lines(_METRICS)

    def rewind(self, epochs: int) -> None:
        """Drop what was logged after the first `epochs` epochs: the run goes on from there."""
        kept = self.metrics()[:epochs]
        write_atomic(self.folder / _METRICS, "".join(json.dumps(line) + "\n" for line in kept))

    def log(self, line: dict[str, Any]) -> None:
        """Append one epoch to metrics.jsonl."""
        self._append(_METRICS, line)

    def result(self) -> dict[str, Any] | None:
        """result.json of a finished run.

        Raises:
            UserError: it is damaged.
        """
        path = self.folder / _RESULT
        return read_json(path) if path.exists() else None

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json."""
        write_atomic(self.folder / _RESULT, json.dumps(result, indent=1) + "\n")

    def newest_checkpoint(self) -> Path:
        """The checkpoint to evaluate or to learn from.

        Raises:
            UserError: the run has none yet.
        """
        found = checkpoint.newest(self.checkpoints)
        if found is None:
            raise UserError(f"{self.folder} has no checkpoint yet; train it with --resume {self.folder}")
        return found

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        try:
            return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
        except ValueError as error:
            raise UserError(f"{path} is damaged: a line is no JSON ({error})") from None

    def _append(self, name: str, line: dict[str, Any]) -> None:
        text = "".join(json.dumps(each) + "\n" for each in (*self._lines(name), line))
        write_atomic(self.folder / name, text)


def _taken(folder: Path, program: str) -> str:
    """What to say where `folder` exists already."""
    if (folder / _CONFIG).is_file():
        return (
            f"{folder} exists already: continue it with {program} --resume '{folder}', replace it with --overwrite or "
            "choose another --name"
        )
    return f"{folder} exists already and is no run; choose another --name"


def _remove(folder: Path) -> None:
    """Remove a run that nobody uses; where there is none, nothing is done.

    Raises:
        RunInUse: another process holds it.
        UserError: it is no run.
    """
    if not folder.exists():
        return
    if not (folder / _CONFIG).is_file():
        raise UserError(f"--overwrite: {folder} is no run and is left as it is; choose another --name")
    with Run(folder):
        doomed = folder.with_name(f".{folder.name}.removed-{secrets.token_hex(4)}")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def free_name(config: Config, console: Console) -> Config:
    """The configuration; with a numbered name where a run of that name was begun and not finished, which is said."""
    if config.name is None or config.resume is not None or config.overwrite:
        return config
    root = Path(config.runs_dir).expanduser()
    run = Run(root / config.name)
    if not (run.folder / _CONFIG).is_file() or run.result() is not None:
        return config
    name = next(name for number in itertools.count(2) if not (root / (name := f"{config.name}-{number}")).exists())
    again = f"{config.program} --resume {shlex.quote(str(run.folder))}"
    console.print(Text(f"{run.folder} is not finished ({again} continues it): this run is {name}"), soft_wrap=True)
    return config.changed(name=name)


def _placed(config: RunConfig) -> dict[str, Any]:
    """Paths that mean the same in any working directory."""
    placed = {"data_dir": str(Path(config.data_dir).expanduser().absolute())}
    if config.dataset not in DATASETS and Path(config.dataset).expanduser().is_dir():
        placed["dataset"] = str(Path(config.dataset).expanduser().absolute())
    for name in ("init", "import_"):
        if getattr(config, name) is not None:
            placed[name] = _absolute(getattr(config, name))
    if config.teachers:
        placed["teacher"] = ",".join(name if is_teacher(name) else _absolute(name) for name in config.teachers)
    return placed


def _absolute(given: str) -> str:
    """The path that is given, absolute where something is there; else what is given, perhaps a name."""
    path = Path(given).expanduser()
    return str(path.absolute()) if path.exists() else given


def plain_name(*words: str) -> str:
    """A name that `--name` accepts, made of words that may hold anything."""
    kept = (re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip(".-_")[:40] for word in words)
    return "-".join(word for word in kept if word)


def _default_names(config: RunConfig) -> Iterator[str]:
    """Data set, network and time, then the same with a number behind it."""
    name = default_name(config)
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


def default_name(config: RunConfig) -> str:
    """Data set, network and time."""
    dataset = config.dataset if config.dataset in DATASETS else Path(config.dataset).expanduser().resolve().name
    return plain_name(dataset, config.network, time.strftime("%Y%m%d-%H%M%S"))
