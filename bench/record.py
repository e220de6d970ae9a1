"""Result files: where a measurement was taken, and its sections; one file a command, rewritten as it goes.

Numbers that were taken several times stand in them as `statistic`, errors as `described`.
"""

from __future__ import annotations

import json
import platform
import re
import statistics
import subprocess
import time
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from titn.files import write_atomic
from titn.provenance import ROOT, source_commit, versions

RESULTS = ROOT / "bench" / "results"
PACKAGES = ("torch", "triton", "torchvision", "timm", "xformers", "numpy", "nvidia-dali-cuda130", "kornia")


class Record:
    """The result file of one command: `OUT/DEVICE/DATE-COMMIT.json`; nothing is written before the first section.

    Its "commit" ends in "+changes" where the checkout has changes that are not committed, and is "unknown" outside of
    a checkout. "finished" is false until the command has come to its end, "tf32" whether float32 products may be
    rounded to TF32.

    Args:
        command: the command line that takes the measurement, such as "python -m bench.throughput --rounds 9".
        device: what is measured.
        seed: seed of everything drawn.
        out: folder of the results of all devices.
        dry_run: toy sizes, whose times mean nothing.
    """

    def __init__(
        self, command: str, device: torch.device, seed: int, out: Path = RESULTS, *, dry_run: bool = False
    ) -> None:
        self._began = time.perf_counter()
        now, commit = datetime.now(UTC), commit_in_words(source_commit())
        hardware = describe_device(device)
        self.content: dict[str, Any] = {
            "command": command,
            "utc": now.isoformat(timespec="seconds"),
            "commit": commit,
            "dry_run": dry_run,
            "seed": seed,
            "device": hardware,
            "versions": {**versions(*PACKAGES), "cuda": torch.version.cuda},
            "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
            "wall_seconds": 0.0,
            "finished": False,
            "sections": {},
        }
        names = (f"{now:%Y%m%d-%H%M%S}-{commit}{suffix}.json" for suffix in ("", *map("-{}".format, range(2, 100))))
        paths = (out / label(hardware) / name for name in names)
        self.path = next(path for path in paths if not path.exists())

    def add(self, section: str, data: Any) -> None:
        """Add (or replace) a section and write the file; `data` is JSON without NaN or infinity."""
        self.content["sections"][section] = data
        self._write()

    def finish(self) -> None:
        """Say in the file that it is complete."""
        self.content["finished"] = True
        self._write()

    def _write(self) -> None:
        self.content["wall_seconds"] = round(time.perf_counter() - self._began, 1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps(self.content, indent=1, allow_nan=False) + "\n")


def commit_in_words(commit: str | None) -> str:
    """What `source_commit` found: "6f76b15a8a8b", "6f76b15a8a8b+changes", or "unknown" outside of a checkout."""
    return "unknown" if commit is None else re.sub(r"\+$", "+changes", commit)


def statistic(values: Sequence[float]) -> dict[str, Any]:
    """Median and extremes: `low` and `high` are the smallest and the largest of the repetitions."""
    return {
        "median": statistics.median(values), "low": min(values), "high": max(values), "repetitions": len(values),
    }  # fmt: skip


def described(error: BaseException, notes: Sequence[warnings.WarningMessage] = ()) -> str:
    """An error in one line, with what was warned about before it."""
    parts = [f"{type(error).__name__}: {error}" if str(error) else type(error).__name__]
    parts += [str(note.message) for note in notes if issubclass(note.category, UserWarning)]
    return "; ".join(dict.fromkeys(" ".join(part.split())[:300].rstrip() for part in parts))[:600]


def describe_device(device: torch.device) -> dict[str, Any]:
    """Name, type and size of a device: what a reader needs to compare two results.

    A GPU: memory in bytes, compute capability, multiprocessors, driver. A CPU: vector instructions, whether it has
    bfloat16 products of its own, threads in use.
    """
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {
            "type": "cuda",
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "driver": nvidia_smi("driver_version").get("driver_version"),
        }
    return {
        "type": "cpu",
        "name": _cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "threads": torch.get_num_threads(),
    }


def label(hardware: dict[str, Any]) -> str:
    """The folder name of a device: "NVIDIA-H200", "CPU-AMD-EPYC-AVX512-2-threads"."""
    words = [hardware["name"]]
    if hardware["type"] == "cpu":
        words = ["CPU", hardware["name"], hardware["instructions"], *(["AMX"] if hardware["amx"] else [])]
        words.append(f"{hardware['threads']} threads")
    return re.sub(r"[^A-Za-z0-9]+", "-", " ".join(words)).strip("-")


def nvidia_smi(*names: str) -> dict[str, str]:
    """Fields of `nvidia-smi --query-gpu` of the first GPU, by name; empty where there is no nvidia-smi."""
    query = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        line = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(names, map(str.strip, line.split(",")), strict=False))


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()
