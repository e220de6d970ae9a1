"""Atomic writes: a file or a folder is there whole, or not at all. What is written obeys the umask."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from titn.errors import UserError


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` under a temporary name, fsync it and rename it to `path`."""
    with open_atomic(path) as file:
        file.write(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file to write; on a clean exit it is synced and becomes `path`, else it is removed."""
    temporary = _temporary(path)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        raise _named(error, path) from None
    sync_folder(path.parent)


@contextlib.contextmanager
def folder_atomic(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; on a clean exit its files are synced and it becomes `path`, else it is removed."""
    temporary = _temporary(path)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            file.chmod(temporary.stat().st_mode & 0o666)
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        sync_folder(temporary)
        temporary.rename(path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _named(error, path) from None
    sync_folder(path.parent)


class HostCopies:
    """Copies of tensors in the CPU's memory, which keep what the tensors hold now.

    A GPU's are made in its own time: nothing waits before `tensors` is read.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._copies = {
            name: (
                tensor.detach().contiguous().to("cpu", non_blocking=True)
                if tensor.is_cuda
                else tensor.detach().clone(memory_format=torch.contiguous_format)
            )
            for name, tensor in tensors.items()
        }
        self._done: list[torch.cuda.Event] = []
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            with torch.cuda.device(device):
                self._done.append(torch.cuda.Event(blocking=True))
                self._done[-1].record()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The copies, once they are made."""
        for event in self._done:
            event.synchronize()
        return self._copies


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, contiguous in the CPU's memory, as safetensors.

    Raises:
        OSError: the disk is full or the file cannot be written; safetensors itself raises a type of its own.
    """
    try:
        save_file(dict(tensors), path, metadata=dict(metadata or {}))
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: it is missing, cannot be read or is damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: it is no JSON ({error})") from None


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary(path: Path) -> Path:
    """A name beside `path` that nobody has."""
    return path.with_name(f".{path.name[:64]}.{secrets.token_hex(8)}")


def _named(error: BaseException, path: Path) -> BaseException:
    """`error`, but an OSError without a file name (a full disk's, on fsync) names `path`."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        return OSError(error.errno, error.strerror, str(path))
    return error
