"""Result files read back: per device the newest measurement of each section."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.record import label
from bench.report.chapters import CHAPTERS, SEVERAL
from titn.errors import UserError

SECTIONS = (*CHAPTERS, "harvest", "tune")
"""Names a result file may use. Not shown: "harvest" (which command took how long, which failed) and "tune"."""

_ENVELOPE: dict[str, type | tuple[type, ...]] = {
    "command": str, "utc": str, "commit": (str, type(None)), "dry_run": bool, "seed": int, "device": dict,
    "versions": dict, "wall_seconds": (int, float), "sections": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A section and the result file it stands in: `path`, its `content` without "sections", and the section's data."""

    name: str
    path: Path
    content: dict[str, Any]
    data: Any

    @property
    def error(self) -> str | None:
        """Why the section holds nothing, or not everything."""
        if isinstance(self.data, dict) and "error" in self.data:
            return str(self.data["error"])
        if not self.content.get("finished", True):
            return "the command was stopped before its end"
        parts = self.content["parts"]
        return next((part["error"] for part in parts if part["error"] and self.name in part["sections"]), None)

    @property
    def empty(self) -> bool:
        """Whether nothing was measured."""
        return not self.data or (isinstance(self.data, dict) and set(self.data) == {"error"})


@dataclass(frozen=True)
class Device:
    """What is known of one device: its label and words, and the newest of each section, as `read_results` says."""

    label: str
    name: str
    is_gpu: bool
    sections: dict[str, tuple[Found, ...]]

    def of(self, section: str) -> tuple[Found, ...]:
        """The newest of a section, of SEVERAL all that `read_results` keeps."""
        return self.sections.get(section, ())


def read_results(folder: Path) -> list[Device]:
    """All devices with a result below `folder`, GPUs first; dry runs are checked and left out.

    Of each section the newest that measured anything is taken; of "accuracy" the newest of each data set's test split,
    and of its development split, where choices are made, the newest of each choice of settings; of "paper" the newest
    of each table and split.

    Raises:
        UserError: a JSON file that is not a result file, or is not in the folder of its own device.
    """
    devices: dict[str, list[Found]] = {}
    for path in sorted(folder.rglob("*.json")):
        content = _read(path)
        name = label(content["device"])
        if path.parent != folder / name:
            raise UserError(f"{path}: a result of {name} belongs into {folder / name}")
        if not content["dry_run"]:
            sections = content.pop("sections")
            content["parts"] = sections.get("harvest", {}).get("parts", [])
            devices.setdefault(name, []).extend(Found(key, path, content, data) for key, data in sections.items())
    known = [_newest(name, sections) for name, sections in devices.items() if sections]
    return sorted(known, key=lambda device: (not device.is_gpu, device.label))


def describe(hardware: Mapping[str, Any]) -> str:
    """A device in a few words: "NVIDIA H200" or "CPU, AVX512, 2 threads (Intel Xeon)"."""
    if hardware["type"] == "cuda":
        return str(hardware["name"])
    amx = " with AMX" if hardware["amx"] else ""
    threads = "1 thread" if hardware["threads"] == 1 else f"{hardware['threads']} threads"
    return f"CPU, {hardware['instructions']}{amx}, {threads} ({hardware['name']})"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a result file: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a result file: it holds no object")
    for key, kind in _ENVELOPE.items():
        if key not in content or not isinstance(content[key], kind):
            raise UserError(f"{path} is not a result file: {key!r} is missing or of the wrong type")
    unknown = sorted(set(content["sections"]) - set(SECTIONS))
    if unknown:
        raise UserError(f"{path}: unknown section {unknown[0]!r}; known are {', '.join(SECTIONS)}")
    try:
        label(content["device"])
    except KeyError as error:
        raise UserError(f"{path} is not a result file: its device has no {error}") from None
    return content


def _newest(name: str, sections: Sequence[Found]) -> Device:
    """The newest of each section that is not empty, else the newest."""
    ordered = sorted(sections, key=lambda found: (not found.empty, found.content["utc"]))
    newest: dict[str, tuple[Found, ...]] = {
        found.name: (found,) for found in ordered if found.name not in (*SEVERAL, "harvest")
    }
    for several in SEVERAL:
        kept = {_key(found): found for found in ordered if found.name == several and not found.empty}
        newest[several] = tuple(kept[key] for key in sorted(kept))
    hardware = max(sections, key=lambda found: found.content["utc"]).content["device"]
    return Device(name, describe(hardware), hardware["type"] == "cuda", newest)


def _key(found: Found) -> tuple[str, ...]:
    """What a newer section of SEVERAL replaces an older one by."""
    section = found.data
    if found.name == "paper":
        return section["table"], section["split"]
    settings = [json.dumps(section["settings"], sort_keys=True)] if section["split"] == "development" else []
    return section["dataset"], section["split"], *settings
