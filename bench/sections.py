"""Result files read back: per device the newest measurement of each section, and what their rows have in common."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.record import label
from titn.errors import UserError

SECTIONS = (
    "ceilings", "correctness", "kernels", "waterfall", "throughput", "scaling", "step_profile", "launches", "accuracy",
    "harvest", "tune",
)  # fmt: skip
"""Names a result file may use. Not shown: "harvest" (which part took how long, which failed) and "tune"."""

FAST = "titn --fast"
"""The contender of "throughput" that trains as `--fast` does."""

KINDS = ("products", "attention", "fused kernels", "element-wise", "optimiser", "rest")
"""Matrix products of libraries; attention of libraries; this project's kernels; element-wise work, reductions, casts
and copies, compiled or not; the optimiser; and the rest: on a GPU waiting for work, on a CPU Python, autograd and the
compiler's checks."""
ARITHMETIC = KINDS[:3]
"""The kinds that do the operations that are counted as FLOPs."""

_ENVELOPE: dict[str, type | tuple[type, ...]] = {
    "command": str, "utc": str, "commit": (str, type(None)), "dry_run": bool, "seed": int, "device": dict,
    "versions": dict, "wall_seconds": (int, float), "sections": dict,
}  # fmt: skip

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """A section and the result file it stands in: `path`, its `content` without "sections", and the section's data."""

    name: str
    path: Path
    content: dict[str, Any]
    data: Any

    @property
    def error(self) -> str | None:
        """Why the section holds nothing, or (from a harvest) why it was cut short."""
        if isinstance(self.data, dict) and "error" in self.data:
            return str(self.data["error"])
        return next((part["error"] for part in self.content["parts"] if part["part"] == self.name), None)

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
    sections: dict[str, Found]
    accuracy: tuple[Found, ...]


def read_results(folder: Path) -> list[Device]:
    """All devices with a result below `folder`, GPUs first; dry runs are checked and left out.

    Of each section the newest that measured anything is taken; of "accuracy" the newest of each data set's test split,
    and of its development split, where choices are made, the newest of each choice of settings.

    Raises:
        UserError: a JSON file that is not a result file, or is not at DEVICE/DATE-COMMIT.json of its own device.
    """
    devices: dict[str, list[Found]] = {}
    for path in sorted(folder.rglob("*.json")):
        content = _read(path)
        name = label(content["device"])
        if path.parent != folder / name:
            raise UserError(f"{path}: a result of {name} belongs into {folder / name}")
        if not content["dry_run"]:
            sections = content.pop("sections")
            content["parts"] = [part for part in sections.get("harvest", {}).get("parts", []) if part["error"]]
            devices.setdefault(name, []).extend(Found(key, path, content, data) for key, data in sections.items())
    found = [_newest(name, sections) for name, sections in devices.items() if sections]
    return sorted(found, key=lambda device: (not device.is_gpu, device.label))


def describe(hardware: Mapping[str, Any]) -> str:
    """A device in a few words: "NVIDIA H200" or "CPU, AVX512, 2 threads (Intel Xeon)"."""
    if hardware["type"] == "cuda":
        return str(hardware["name"])
    amx = " with AMX" if hardware["amx"] else ""
    threads = "1 thread" if hardware["threads"] == 1 else f"{hardware['threads']} threads"
    return f"CPU, {hardware['instructions']}{amx}, {threads} ({hardware['name']})"


def choices(sections: Sequence[Row]) -> list[str]:
    """For each section "accuracy", in words, the settings that not all of its data set and split share.

    What is None is the recipe's, and not mentioned.
    """
    told = []
    for section in sections:
        settings = section["settings"]
        among = [
            one["settings"] for one in sections
            if all(one[key] == section[key] for key in ("dataset", "split"))
        ]  # fmt: skip
        differing = [name for name in settings if any(other.get(name) != settings[name] for other in among)]
        told.append(
            ", ".join(f"{name.replace('_', ' ')} {settings[name]}" for name in differing if settings[name] is not None)
        )
    return told


def is_ours(contender: str) -> bool:
    """Whether a contender of "throughput" or a step of "waterfall" is this project's."""
    return not contender.startswith("timm")


def our_kernel(provider: str) -> bool:
    """Whether a provider of "kernels" is a backend of this project, and not what it is compared with."""
    return provider.split()[0] in ("triton", "native")


def arithmetic(percent: Mapping[str, float]) -> float:
    """Percent of the time in which operations are done that count as FLOPs."""
    return sum(percent[name] for name in ARITHMETIC)


def elsewhere(percent: Mapping[str, float]) -> tuple[str, float]:
    """The kind without arithmetic that takes most, and its percent of the time."""
    return max(((name, percent[name]) for name in KINDS if name not in ARITHMETIC), key=lambda one: one[1])


def timed(kernels: Iterable[Row]) -> dict[tuple[str, str, str, str], list[Row]]:
    """Rows of "kernels" with a time, by (operation, case, dtype, mode)."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in kernels:
        if "us" in row:
            groups.setdefault((row["operation"], row["case"], row["dtype"], row["mode"]), []).append(row)
    return groups


def kernel_times(row: Row) -> Row:
    """Times of a row of "kernels": in a CUDA graph, without launch overhead, where there is one."""
    graph = row.get("graph_us") or {}
    times: Row = graph if "median" in graph else row["us"]
    return times


def kernel_us(row: Row) -> float:
    """Median microseconds of a row of "kernels"."""
    return float(kernel_times(row)["median"])


def fastest(rows: Sequence[Row], ours: bool) -> Row | None:
    """The fastest of this project's providers, or of the others, in one group of `timed`."""
    return min((row for row in rows if our_kernel(row["provider"]) == ours), key=kernel_us, default=None)


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
    accuracy = {_run_key(found.data): found for found in ordered if found.name == "accuracy" and not found.empty}
    newest = {found.name: found for found in ordered if found.name not in ("accuracy", "harvest")}
    hardware = max(sections, key=lambda found: found.content["utc"]).content["device"]
    runs = tuple(accuracy[key] for key in sorted(accuracy))
    return Device(name, describe(hardware), hardware["type"] == "cuda", newest, runs)


def _run_key(section: Row) -> tuple[str, ...]:
    """What a newer section "accuracy" replaces an older one by."""
    settings = [json.dumps(section["settings"], sort_keys=True)] if section["split"] == "development" else []
    return section["dataset"], section["split"], *settings
