"""A teacher cache as one file: an uncompressed tar of its folder, checked byte by byte on the way out and in."""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from titn.errors import UserError
from titn.files import open_atomic, write_atomic
from titn.training.teacher_cache import (
    EPOCH_FILE,
    FOLDER,
    MANIFEST,
    MissingRecords,
    TeacherCache,
    check_manifest,
    decode,
)

_CONTENTS = "epochs.json"
"""First in the archive: the epochs that it holds, counted from 0."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")


def export_cache(cache: TeacherCache, file: Path) -> int:
    """Write the cache to a new archive; the same records give the same bytes. Returns the number of epochs.

    Raises:
        UserError: the file exists.
        DamagedRecords: the cache is damaged.
        MissingRecords: it has no epoch.
    """
    if file.exists():
        raise UserError(f"{file} exists already: choose another name")
    epochs = cache.epochs()
    if not epochs:
        raise MissingRecords(f"{cache.folder} holds no epoch yet")
    with open_atomic(file) as raw, tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        contents = {_CONTENTS: json.dumps(epochs).encode(), MANIFEST: (cache.folder / MANIFEST).read_bytes()}
        cache.check()
        for name, data in contents.items():
            _add(archive, f"{cache.folder.name}/{name}", data)
        for epoch in epochs:
            path = cache.path(epoch)
            data = path.read_bytes()
            decode(data, path, cache.digest, epoch)
            _add(archive, f"{cache.folder.name}/{path.name}", data)
    return len(epochs)


def import_cache(file: Path, root: Path) -> tuple[TeacherCache, int]:
    """Bring the cache in an archive into the runs folder `root`; epochs that are there already stay.

    Nothing is written unless the whole archive is as it was exported. Returns the cache and the number of new epochs.

    Raises:
        UserError: the file is no such archive, or damaged.
    """
    cache, manifest, epochs = _check(file, root)
    for _ in _records(file, cache, epochs):
        pass
    cache.create(manifest["measured"])
    new = 0
    for epoch, data in _records(file, cache, epochs):
        with cache.claim(epoch, wait=True):
            if not cache.holds(epoch):
                write_atomic(cache.path(epoch), data)
                new += 1
    return cache, new


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """A file without owner and time."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    archive.addfile(member, io.BytesIO(data))


def _check(file: Path, root: Path) -> tuple[TeacherCache, dict[str, Any], list[int]]:
    """The cache that the archive is of, its manifest and its epochs."""
    members = _members(file)
    try:
        (folder, first, contents), (same, second, text) = next(members), next(members)
        if (first, second, same) != (_CONTENTS, MANIFEST, folder):
            raise ValueError("its first files are others")
        manifest = check_manifest(json.loads(text), file)
        cache = TeacherCache(root / FOLDER / folder, manifest["identity"])
        if not folder.endswith(cache.digest[:12]):
            raise ValueError("its folder has another name")
        epochs = [int(epoch) for epoch in json.loads(contents)]
    except StopIteration:
        raise _foreign(file, "it is too short") from None
    except (ValueError, TypeError) as error:
        raise _foreign(file, str(error)) from None
    return cache, manifest, epochs


def _records(file: Path, cache: TeacherCache, epochs: list[int]) -> Iterator[tuple[int, bytes]]:
    """Each epoch, from 0, and the bytes of its file, which are checked."""
    found = []
    for _, name, data in itertools.islice(_members(file), 2, None):
        match = EPOCH_FILE.fullmatch(name)
        if match is None:
            raise _foreign(file, f"it holds {name}")
        epoch = int(match[1]) - 1
        decode(data, file / name, cache.digest, epoch)
        found.append(epoch)
        yield epoch, data
    if found != epochs:
        raise _foreign(file, "epochs are missing")


def _members(file: Path) -> Iterator[tuple[str, str, bytes]]:
    """Folder, name and bytes of every file in the archive; anything but plain files in one folder is refused."""
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.partition("/")
                content = archive.extractfile(member) if member.isreg() else None
                if content is None or not _NAME.fullmatch(folder) or not _NAME.fullmatch(name):
                    raise _foreign(file, f"it holds {member.name!r}")
                yield folder, name, content.read()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None
    except tarfile.TarError as error:
        raise _foreign(file, str(error)) from None


def _foreign(file: Path, why: str) -> UserError:
    return UserError(f"{file} is no archive of a teacher cache, or is damaged: {why}")
