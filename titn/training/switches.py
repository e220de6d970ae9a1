"""Which fast parts a run uses, and why each other one is off; nothing falls back silently."""

from __future__ import annotations

import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from titn.config import RunConfig, TrainConfig, flag
from titn.errors import UserError
from titn.kernels.common.backend import installed, triton_reasons


@dataclass(frozen=True)
class Parts:
    """The parts of one run; `notes` has a line for each: (part, what runs, why)."""

    device: torch.device
    amp: torch.dtype | None
    compile: bool
    cuda_graph: bool
    kernels: str
    pipeline: str
    notes: tuple[tuple[str, str, str], ...]

    def show(self, console: Console) -> None:
        """Print one line a part."""
        for part, what, why in self.notes:
            console.print(f"  {part:<14} [bold]{what}[/]" + (f"  [dim]{why}[/]" if why else ""), highlight=False)


def select_device(name: str) -> torch.device:
    """The torch device for `--device`: "auto" takes a GPU where there is one.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: unknown device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UserError(f"--device {name}: PyTorch sees no GPU here; use --device cpu")
        if device.index is not None and device.index >= count:
            raise UserError(f"--device {name}: PyTorch sees {count} GPU(s), numbered from 0")
    elif device.type != "cpu":
        raise UserError(f"--device {name}: only cpu and cuda are supported")
    return device


def select(config: RunConfig) -> Parts:
    """Decide every part of the run from its switches and this machine.

    Raises:
        UserError: a part that was asked for by name cannot run here.
    """
    device = select_device(config.device)
    notes: list[tuple[str, str, str]] = [("device", describe(device), "")]

    def switch(name: str, reasons: list[str]) -> bool:
        asked = getattr(config, name)
        if asked == "on" and reasons:
            raise UserError(f"{flag(name)} on cannot run here: {'; '.join(reasons)}")
        on = asked == "on" or (asked == "auto" and config.fast and not reasons)
        why = "" if on else ("; ".join(reasons) if config.fast and asked == "auto" else _not_asked(asked))
        notes.append((flag(name)[2:], "on" if on else "off", why))
        return on

    amp = _select_amp(config, device, notes)
    compiled = switch("compile", compile_reasons(device))
    graph_reasons = [] if device.type == "cuda" else ["no GPU"]
    cuda_graph = switch("cuda_graph", graph_reasons + ([] if compiled else ["torch.compile is off"]))
    kernels = "torch"
    if isinstance(config, TrainConfig):
        kernels = _select_kernels(config, device, notes)
        switch("teacher_cache", ["not part of this version"])
    if config.pipeline not in ("auto", "torch"):
        raise UserError(f"--pipeline {config.pipeline} cannot run here: not part of this version; use --pipeline torch")
    notes.append(("pipeline", "torch", "dali and triton: not part of this version" if config.fast else ""))
    return Parts(device, amp, compiled, cuda_graph, kernels, "torch", tuple(notes))


def describe(device: torch.device) -> str:
    """The device in words: its name and, for a CPU, the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)"


def compile_reasons(device: torch.device) -> list[str]:
    """Why torch.compile cannot run on `device`."""
    if device.type == "cuda":
        return [] if installed("triton") else ["the package triton is not installed"]
    reasons = []
    if not any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
        reasons.append("no C++ compiler: install g++ or clang++")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        reasons.append("no Python headers: install python3-dev")
    return reasons


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _not_asked(asked: str) -> str:
    return "" if asked == "off" else "--fast switches it on"


def _select_amp(config: RunConfig, device: torch.device, notes: list[tuple[str, str, str]]) -> torch.dtype | None:
    asked = config.amp
    kind = "GPU" if device.type == "cuda" else "CPU"
    bf16 = [] if native_bfloat16(device) else [f"the {kind} has no bfloat16 arithmetic"]
    fp16 = [] if device.type == "cuda" else ["fp16 with gradient scaling needs a GPU"]
    if asked == "fp16" and fp16:
        raise UserError(f"--amp fp16 cannot run here: {'; '.join(fp16)}")
    if asked in ("bf16", "fp16"):
        notes.append(("amp", asked, "; ".join(bf16) if asked == "bf16" else ""))
        return torch.bfloat16 if asked == "bf16" else torch.float16
    on = asked == "auto" and config.fast and not bf16
    why = "" if on else ("; ".join(bf16) if config.fast and asked == "auto" else _not_asked(asked))
    notes.append(("amp", "bf16" if on else "off", why))
    return torch.bfloat16 if on else None


def _select_kernels(config: TrainConfig, device: torch.device, notes: list[tuple[str, str, str]]) -> str:
    reasons = {
        "triton": triton_reasons(torch.empty(0, device=device), config.kernels),
        "native": ["not part of this version"],
        "torch": [],
    }
    asked = config.kernels if config.fast or config.kernels != "auto" else "torch"
    if asked != "auto" and reasons[asked]:
        raise UserError(f"--kernels {asked} cannot run here: {'; '.join(reasons[asked])}")
    chosen = next(name for name in reasons if not reasons[name]) if asked == "auto" else asked
    why = (
        "; ".join(f"{name}: {', '.join(reasons[name])}" for name in reasons if reasons[name]) if asked == "auto" else ""
    )
    notes.append(("kernels", chosen, why or ("" if config.fast else _not_asked(config.kernels))))
    return asked
