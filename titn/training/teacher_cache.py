"""The teacher cache: a teacher's answers to every image of an epoch, stored once and read by any number of students.

A record belongs to an identity, an epoch and an image id. The identity names everything that the answer depends on: the
plan (version, seed, augmentation, sizes), the training images and their normalisation, the teacher's architecture and
weights, its precision, and what is kept of its answer. Since the plan is a function of (seed, epoch, id), the record is
exactly what a live teacher would say to the image that the student sees, in whatever batch it comes.

    runs/teacher-cache/cifar10-small_cnn-hard-1f0c2d3e4a5b/
        manifest.json               identity, its SHA-256, how it was measured; written once
        epoch-0001.safetensors      answers to all images in the first epoch, by image id
        .lock                       byte e is locked by the process that fills epoch e, counted from 0

What is kept, per image: "hard" the decision, 1 byte (2 above 256 classes); "top-k" the k largest logits and their
classes, and the mean of the others; "logits" all. Logits are float16, less the image's largest: softmax, and every
distillation by it, is the same, and the rounding is smallest where the probability is largest.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from titn.data.dataset import Dataset, explain_difference
from titn.errors import UserError
from titn.files import read_json, write_atomic
from titn.pipelines import Augmentation
from titn.pipelines.make import BACKENDS, Backend
from titn.pipelines.plan import PLAN_VERSION
from titn.training.run import plain_name

FOLDER = "teacher-cache"
"""Name of the folder of all caches inside the runs folder."""
MANIFEST = "manifest.json"
_FORMAT = 1
_KEY = "titn"
EPOCH_FILE = re.compile(r"epoch-(\d{4,})\.safetensors")
"""Name of an epoch's file, counted from 1."""

_MANIFEST_BYTE = 2**62
"""Of the lock file; the bytes before it are the epochs'."""
REFILL = "fill it with python -m titn.cache fill and the flags of the training"

Records = dict[str, np.ndarray]
"""Answers of one epoch, arrays [N, ...] by image id."""


class MissingRecords(UserError):
    """The cache lacks an epoch."""


class DamagedRecords(UserError):
    """A file of the cache is not what was written, or belongs to another cache."""


def kept_targets(distillation: str, top_k: int | None, num_classes: int) -> str:
    """What a cache for this distillation keeps: "hard", "top-k" for a number k, or "logits"."""
    if distillation == "hard":
        return "hard"
    return "logits" if top_k is None or top_k >= num_classes else f"top-{top_k}"


def cache_identity(
    dataset: Dataset,
    augmentation: Augmentation,
    seed: int,
    *,
    teacher: Mapping[str, Any],
    precision: str,
    targets: str,
    pipeline: Backend = "torch",
) -> dict[str, Any]:
    """Everything that a teacher's answers depend on, as values for JSON.

    Args:
        dataset: gives the training images, their normalisation and the classes.
        augmentation: of the plan.
        seed: of the plan.
        teacher: its `identity` (`titn.teachers.find`).
        precision: "float32" or "bfloat16"; see `TeacherAnswers`.
        targets: see `kept_targets`.
        pipeline: what makes the batches; named only if its floats are not the torch pipeline's to the last bit.
    """
    data = dataset.identity()
    identity = {
        "format": _FORMAT,
        "targets": targets,
        "teacher": dict(teacher),
        "precision": precision,
        "seed": seed,
        "augmentation": augmentation.effective(),
        "plan_version": PLAN_VERSION,
        "data": {name: data[name] for name in ("class_names", "image_size", "channels", "train")},
        "normalisation": {"mean": dataset.mean, "std": dataset.std},
    }
    if not BACKENDS[pipeline].exact:
        identity["pipeline"] = pipeline
    values: dict[str, Any] = json.loads(json.dumps(identity))
    return values


def digest(identity: Mapping[str, Any]) -> str:
    """SHA-256 of an identity, hexadecimal."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The fields in which two identities differ, in words, the one that comes first in `wanted` first."""
    found = []
    for name in dict.fromkeys((*wanted, *stored)):
        old, new = stored.get(name), wanted.get(name)
        if old == new:
            continue
        if name == "data" and isinstance(old, Mapping) and isinstance(new, Mapping):
            found.append(f"data ({explain_difference(old, new)})")
        elif isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [
                f"{name}.{each} ({_short(old.get(each))}, not {_short(new.get(each))})"
                for each in dict.fromkeys((*new, *old))
                if old.get(each) != new.get(each)
            ]
        else:
            found.append(f"{name} ({_short(old)}, not {_short(new)})")
    return found


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text


def other_caches(root: Path, identity: Mapping[str, Any]) -> list[tuple[Path, list[str]]]:
    """The other caches in the runs folder `root` and in what they differ from `identity`, the nearest one first."""
    found = []
    for path in sorted((root / FOLDER).glob(f"*/{MANIFEST}")):
        try:
            differing = differences(read_manifest(path)["identity"], identity)
        except UserError:
            continue
        if differing:
            found.append((path.parent, differing))
    return sorted(found, key=lambda each: len(each[1]))


def epochs_in_words(epochs: Iterable[int]) -> str:
    """Epochs, counted from 0, as people count them: "1 to 3, 7"; "none"."""
    runs: list[list[int]] = []
    for epoch in sorted(epochs):
        if runs and epoch == runs[-1][1] + 1:
            runs[-1][1] = epoch
        else:
            runs.append([epoch, epoch])
    return ", ".join(f"{a + 1}" if a == b else f"{a + 1} to {b + 1}" for a, b in runs) or "none"


class TeacherCache:
    """One cache folder and the identity that its records must have; the folder need not exist yet.

    Args:
        folder: of the cache.
        identity: see `cache_identity`.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = dict(identity)
        self.digest = digest(identity)

    @classmethod
    def at(cls, root: Path, identity: Mapping[str, Any], name: str) -> TeacherCache:
        """The cache of `identity` in the runs folder `root`; `name` is that of the data set.

        Raises:
            DamagedRecords: its manifest is damaged.
            UserError: a field of its manifest differs.
        """
        words = (name, identity["teacher"]["architecture"], identity["targets"], digest(identity)[:12])
        cache = cls(root / FOLDER / plain_name(*words), identity)
        if cache.exists:
            cache.check()
        return cache

    @classmethod
    def open(cls, folder: Path) -> TeacherCache:
        """The cache in `folder`, whatever it holds.

        Raises:
            UserError: there is none.
            DamagedRecords: its manifest is damaged.
        """
        if not (folder / MANIFEST).is_file():
            raise UserError(f"{folder} is no teacher cache (it has no {MANIFEST})")
        return cls(folder, read_manifest(folder / MANIFEST)["identity"])

    @property
    def targets(self) -> str:
        """What its records keep; see `kept_targets`."""
        return str(self.identity["targets"])

    @property
    def num_classes(self) -> int:
        """Number of classes that the teacher tells apart."""
        return len(self.identity["data"]["class_names"])

    @property
    def exists(self) -> bool:
        """Whether the folder is there."""
        return (self.folder / MANIFEST).is_file()

    def create(self, measured: Mapping[str, Any]) -> None:
        """Make the folder and its manifest, unless another process has done so in the meantime.

        Args:
            measured: what else the manifest should tell: agreement, versions, device.
        """
        manifest = {"identity": self.identity, "sha256": self.digest, "measured": dict(measured)}
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._claim(_MANIFEST_BYTE, self.folder / MANIFEST, wait=True):
            if not self.exists:
                write_atomic(self.folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        self.check()

    def check(self) -> None:
        """Raise UserError, by the name of the first field that differs, unless the manifest has this identity."""
        differing = differences(self.manifest()["identity"], self.identity)
        if differing:
            raise UserError(f"{self.folder} is the cache of another run: it differs in {differing[0]}")

    def manifest(self) -> dict[str, Any]:
        """What manifest.json holds.

        Raises:
            DamagedRecords: it is damaged.
        """
        return read_manifest(self.folder / MANIFEST)

    def epochs(self) -> list[int]:
        """Epochs, from 0, that have a file, in order."""
        names = (EPOCH_FILE.fullmatch(path.name) for path in self.folder.iterdir()) if self.folder.is_dir() else ()
        return sorted(int(name[1]) - 1 for name in names if name)

    def path(self, epoch: int) -> Path:
        """The file of an epoch."""
        return self.folder / f"epoch-{epoch + 1:04d}.safetensors"

    def read(self, epoch: int) -> Records:
        """The answers of an epoch, counted from 0; every byte is checked.

        Raises:
            MissingRecords: the epoch is not there.
            DamagedRecords: its file is damaged or belongs to another cache or epoch.
        """
        path = self.path(epoch)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise MissingRecords(f"{self.folder} lacks epoch {epoch + 1}: {REFILL}") from None
        return decode(data, path, self.digest, epoch)

    def write(self, epoch: int, records: Mapping[str, np.ndarray]) -> None:
        """Store the answers of an epoch, whole or not at all; the same answers give the same bytes."""
        label = {"cache": self.digest, "epoch": epoch, "sha256": _checksum(records, self.digest, epoch)}
        tensors = {name: np.ascontiguousarray(array) for name, array in records.items()}
        write_atomic(self.path(epoch), safetensors.numpy.save(tensors, {_KEY: json.dumps(label)}))

    def holds(self, epoch: int) -> bool:
        """Whether the epoch is there and undamaged."""
        try:
            self.read(epoch)
        except (MissingRecords, DamagedRecords):
            return False
        return True

    def require(self, epochs: Sequence[int]) -> None:
        """Raise UserError unless all these epochs are there and undamaged."""
        missing = sorted(set(epochs) - set(self.epochs()))
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise MissingRecords(f"{self.folder} lacks epoch {missing[0] + 1}{more} of {len(epochs)}: {REFILL}")
        for epoch in epochs:
            self.read(epoch)

    def claim(self, epoch: int, *, wait: bool) -> contextlib.AbstractContextManager[bool]:
        """Keep other processes from filling the same epoch meanwhile; a claim goes with its process, however it ends.

        As a context it gives True, or without `wait` False where another process holds the claim. On a file system
        without locks it is always True: two processes then do the same work, and write the same file.
        """
        return self._claim(epoch, self.path(epoch), wait=wait)

    @contextlib.contextmanager
    def _claim(self, byte: int, path: Path, *, wait: bool) -> Iterator[bool]:
        """Lock a byte of the lock file while `path` is written; what a killed process left of it is removed."""
        with (self.folder / ".lock").open("a") as lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    yield False
                    return
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                    raise
            else:
                for leftover in self.folder.glob(f".{path.name}.*"):
                    leftover.unlink(missing_ok=True)
            yield True


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest whose identity has the hash that stands beside it.

    Raises:
        UserError: it is not there.
        DamagedRecords: it is damaged, or of another version.
    """
    return check_manifest(read_json(path), path)


def check_manifest(manifest: Any, path: Path) -> dict[str, Any]:
    """`manifest`, read from `path`, as `read_manifest` gives it."""
    try:
        identity = manifest["identity"]
        if identity["format"] != _FORMAT:
            raise DamagedRecords(f"{path} has cache format {identity['format']}, this version reads {_FORMAT}")
        if digest(identity) == manifest["sha256"]:
            checked: dict[str, Any] = manifest
            return checked
    except (KeyError, TypeError):
        pass
    raise DamagedRecords(f"{path} is damaged (its identity has another hash); move its folder elsewhere and {REFILL}")


def decode(data: bytes, path: Path, cache: str, epoch: int) -> Records:
    """The records in the bytes of a file, which must be of this cache (its digest) and epoch.

    Args:
        data: all of the file.
        path: its name, for messages.
        cache: digest of the identity.
        epoch: counted from 0.

    Raises:
        DamagedRecords: the file is damaged, or of another cache or epoch.
    """
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        label = json.loads(header["__metadata__"][_KEY])
        of = (label["cache"], label["epoch"])
        records: Records = safetensors.numpy.load(data)
        intact = label["sha256"] == _checksum(records, *of)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedRecords(f"{path} is damaged ({type(error).__name__}: {error}): {REFILL}") from None
    if not intact:
        raise DamagedRecords(f"{path} is damaged (its checksum differs): {REFILL}")
    if of != (cache, epoch):
        what = f"epoch {of[1] + 1}" if of[0] == cache else f"another cache ({str(of[0])[:12]}, not {cache[:12]})"
        raise DamagedRecords(f"{path} belongs to {what}: {REFILL}")
    return records


def _checksum(records: Mapping[str, np.ndarray], cache: str, epoch: int) -> str:
    found = hashlib.sha256(f"{cache} {epoch}\n".encode())
    for name, array in sorted(records.items()):
        found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
