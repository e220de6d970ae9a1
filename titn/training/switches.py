"""What of the fast parts is on in a run, and why each other one is off; nothing falls back silently."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from rich.console import Console
from rich.text import Text

from titn.errors import UserError
from titn.kernels.common.backend import BackendUnavailable, installed, triton_reasons
from titn.kernels.common.native import native_reasons
from titn.kernels.common.native import path as native_path
from titn.own_parts import own_network
from titn.pipelines.make import BACKENDS, Backend, choose_backend

if TYPE_CHECKING:
    from titn.config import RunConfig


@dataclass(frozen=True)
class Switch:
    """One of the parts: what it is set to, whether that is the fast way, and if not, why it cannot be."""

    name: str
    value: str
    on: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Switches:
    """What a run uses: `amp` is the autocast dtype, `kernels` the backend of the fused operations as asked for,
    `pipeline` the one that makes the batches.

    `cuda_graph` with `compile` replays the compiled network as CUDA graphs, without it the whole step as one;
    `in_front` says what of a step is then still made in front of its graph.
    """

    device: torch.device
    amp: torch.dtype | None
    compile: bool
    cuda_graph: bool
    kernels: str
    pipeline: Backend
    in_front: tuple[str, ...]
    rows: tuple[Switch, ...]

    @property
    def backend(self) -> str:
        """What of `kernels` runs here: "triton", "native" or "torch", where that was left to each operation."""
        return next((row.value for row in self.rows if row.name == "kernels"), self.kernels)

    @property
    def captured(self) -> bool:
        """Whether the whole step is one CUDA graph."""
        return self.cuda_graph and not self.compile

    @property
    def captured_epochs(self) -> bool:
        """Whether that graph takes batches and answers from the device itself."""
        return self.captured and not self.in_front

    def show(self, console: Console) -> None:
        """Print one line per part."""
        for row in self.rows:
            line = Text.assemble("  ", f"{row.name:<14}", (row.value, "bold"))
            if row.reasons:
                line.append("  " + "; ".join(row.reasons), "dim")
            console.print(line)


def select(config: RunConfig) -> Switches:
    """Decide what is on from the configuration and this machine.

    Raises:
        UserError: something that was asked for by name cannot run here.
    """
    device = select_device(config.device)
    amp, amp_row = _select_amp(config, device)
    kernels = _select_kernels(config, device)
    pipeline = _select_pipeline(config, device)
    in_front = _in_front(config, pipeline.value)
    compiled, cuda_graph = _select_graph(config, device, capture_reasons(config, device, amp, kernels), in_front)
    cache = [_teacher_cache(config)] if config.role == "student" else []
    where = Switch("device", describe(device), device.type == "cuda")
    rows = (where, amp_row, compiled, cuda_graph, kernels, pipeline, *cache)
    made_by = cast(Backend, pipeline.value)
    return Switches(device, amp, compiled.on, cuda_graph.on, _backend(config), made_by, tuple(in_front), rows)


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
        if device.index is None:
            return torch.device("cuda", torch.cuda.current_device())
    elif device.type != "cpu":
        raise UserError(f"--device {name}: only cpu and cuda are supported")
    return device


def describe(device: torch.device) -> str:
    """The device in words: its name and, for a CPU, the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)"


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def compile_reasons(device: torch.device) -> list[str]:
    """Why torch.compile cannot run on `device`; on a CPU its C++ compiler is tried once."""
    if device.type == "cuda":
        return [] if installed("triton") else ["the package triton is not installed"]
    return list(_compiler_reasons(os.environ.get("CXX", ""), os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")))


@functools.cache
def _compiler_reasons(chosen: str, cache: str) -> tuple[str, ...]:
    compiler = chosen or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    if compiler is None:
        return ("no C++ compiler: install g++ or clang++",)
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return ("no Python headers: install python3-dev",)
    if cache:
        place = next(each for each in (Path(cache).absolute(), *Path(cache).absolute().parents) if each.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            return (f"TORCHINDUCTOR_CACHE_DIR {cache} is no folder that can be written",)
    try:
        with tempfile.TemporaryDirectory() as folder:
            include = sysconfig.get_paths()["include"]
            command = [compiler, "-x", "c++", "-fopenmp", "-shared", "-fPIC", f"-I{include}", "-o", f"{folder}/a", "-"]
            done = subprocess.run(
                command, input="#include <Python.h>\n#include <omp.h>\n", capture_output=True, text=True, timeout=60
            )
    except (OSError, subprocess.SubprocessError) as error:
        return (f"the C++ compiler {compiler} does not work ({error})",)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
        return (f"the C++ compiler {compiler} does not work ({said})",)
    return ()


def _switch(name: str, asked: str, fast: bool, reasons: Sequence[str]) -> Switch:
    """on, off or auto: on with --fast where it can run.

    Raises:
        UserError: it is asked for and cannot run here.
    """
    if asked == "on" and reasons:
        raise UserError(f"--{name} on cannot run here: {'; '.join(reasons)}")
    on = asked == "on" or (asked == "auto" and fast and not reasons)
    why = () if on or asked == "off" else tuple(reasons) if fast else ("--fast switches it on",)
    return Switch(name, "on" if on else "off", on, why)


def _select_amp(config: RunConfig, device: torch.device) -> tuple[torch.dtype | None, Switch]:
    asked = config.amp
    kind = "GPU" if device.type == "cuda" else "CPU"
    bf16 = () if native_bfloat16(device) else (f"the {kind} has no bfloat16 arithmetic",)
    if asked == "fp16":
        if device.type != "cuda":
            raise UserError("--amp fp16 cannot run here: fp16 with gradient scaling needs a GPU; use --amp bf16 or off")
        return torch.float16, Switch("amp", "fp16", True)
    if asked == "bf16":
        return torch.bfloat16, Switch("amp", "bf16", True, bf16)
    row = _switch("amp", asked, config.fast, bf16)
    return (torch.bfloat16 if row.on else None), Switch("amp", "bf16" if row.on else "off", row.on, row.reasons)


def _teacher_cache(config: RunConfig) -> Switch:
    """Whether a student reads stored answers of its teacher."""
    value = config.stored_answers
    why = () if value != "off" or "teacher_cache" in config.said else ("--fast switches it on",)
    return Switch("teacher-cache", value, value != "off", ("no teacher",) if config.distils_from == "none" else why)


def capture_reasons(config: RunConfig, device: torch.device, amp: torch.dtype | None, kernels: Switch) -> list[str]:
    """Why the whole step cannot be one CUDA graph."""
    if device.type != "cuda":
        return ["no GPU"]
    reasons = []
    if config.compile == "on":
        reasons.append("--compile on")
    if own_network(config.network) is not None or config.network.startswith("timm:"):
        reasons.append(f"{config.network} is not of this project")
    if not kernels.on:
        reasons.append("without Triton kernels torch.compile fuses more")
    elif amp is None and config.fused_kernels != "triton":
        reasons.append("in float32 most operations take Triton kernels only by name (--kernels triton)")
    if config.optimizer == "apex_sgd":
        reasons.append("apex reads its learning rate on the host")
    if amp is torch.float16 and config.optimizer in ("muon", "rmsprop"):
        reasons.append(f"fp16's gradient scaler waits for the host with --optimizer {config.optimizer}")
    return reasons


def _in_front(config: RunConfig, pipeline: str) -> list[str]:
    """What of a step cannot be in its CUDA graph, as the host has a part in it."""
    batches = [] if pipeline == "triton" else [f"batches of the {pipeline} pipeline"]
    live = config.distils_from != "none" and config.stored_answers == "off"
    return batches + ["a live teacher's answers"] * live


def _select_graph(
    config: RunConfig, device: torch.device, not_whole: Sequence[str], in_front: Sequence[str]
) -> tuple[Switch, Switch]:
    """torch.compile, and CUDA graphs: of the whole step, which needs no compiler, or of the compiled network."""
    wanted = config.cuda_graph == "on" or (config.cuda_graph == "auto" and config.fast)
    if wanted and not not_whole:
        why = (
            ()
            if config.compile == "off"
            else ("one CUDA graph holds the whole step; --compile on has the compiled network",)
        )
        whole = "the whole step as one" + (f", behind {' and '.join(in_front)}" if in_front else ", its batch included")
        return Switch("compile", "off", False, why), Switch("cuda-graph", "on", True, (whole,))
    compiled = _switch("compile", config.compile, config.fast, compile_reasons(device))
    if compiled.on and device.type == "cpu":
        compiled = replace(compiled, reasons=("block by block: a network as a whole starts later and is no faster",))
    reasons = [] if device.type == "cuda" else ["no GPU"]
    reasons += [] if compiled.on else ["torch.compile is off"]
    reasons += [] if config.accumulate == 1 else ["--accumulate adds gradients up over several replays"]
    rejected = [f"not the whole step: {why}" for why in not_whole] if device.type == "cuda" else []
    row = _switch("cuda-graph", config.cuda_graph, config.fast, reasons and [*reasons, *rejected])
    return compiled, replace(row, reasons=("of the compiled network", *rejected)) if row.on else row


def _select_pipeline(config: RunConfig, device: torch.device) -> Switch:
    if config.pipeline == "auto" and not config.fast:
        return Switch("pipeline", "torch", False, ("--fast takes the fastest that can run",))
    try:
        chosen, faster = choose_backend(config.pipeline, device, config.image_size)
    except BackendUnavailable as error:
        raise UserError(f"--pipeline {config.pipeline} cannot run here: {error}") from None
    why = [f"{name}: {reason}" for name, reasons in faster.items() for reason in reasons]
    why += BACKENDS[chosen].notes(device)
    return Switch("pipeline", chosen, chosen == next(iter(BACKENDS)), tuple(why))


def _select_kernels(config: RunConfig, device: torch.device) -> Switch:
    """Triton on a GPU, native code on a CPU, torch elsewhere and where neither can run."""
    asked = config.fused_kernels
    if asked == "torch":
        return Switch("kernels", "torch", False)
    if asked == "auto" and not config.fast:
        return Switch("kernels", "torch", False, ("--fast takes the fastest that can run",))
    x = torch.empty(0, device=device)
    reasons = {"triton": triton_reasons(x, asked), "native": native_reasons(x)}
    if reasons.get(asked):
        raise UserError(f"--kernels {asked} cannot run here: {'; '.join(reasons[asked])}")
    tried = asked if asked != "auto" else "native" if device.type == "cpu" else "triton"
    if reasons[tried]:
        return Switch("kernels", "torch", False, tuple(f"{tried}: {why}" for why in reasons[tried]))
    code = f"{native_path()} code for both streams' blocks and the projection between them, torch for the rest"
    return Switch("kernels", tried, True, (code,) if tried == "native" else ())


def _backend(config: RunConfig) -> str:
    """What the operations are asked for: of those for which there is no native code, auto takes PyTorch's."""
    asked = config.fused_kernels
    if asked == "auto":
        return "auto" if config.fast else "torch"
    return "auto" if asked == "native" else asked
