"""A CUDA device that does not exist: how it is built, why it cannot be, and how a script runs on it.

The C++ sources in device/ stand in for the CUDA runtime, the driver and cuBLAS. PyTorch's CUDA build, Triton and
inductor run on it as they do on an NVIDIA H200, but no kernel computes anything: crashes, illegal captures, wrong
devices, launches, synchronisations and copies show; values and kernel times do not.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
Report = dict[str, Any]

_NOT_INHERITED = ("TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def missing() -> list[str]:
    """Why there can be no null device here."""
    reasons = []
    if not sys.platform.startswith("linux"):
        reasons.append("it needs Linux")
    if torch.version.cuda is None or int(torch.version.cuda.partition(".")[0]) < 13:
        reasons.append(f"torch {torch.__version__} is not built for CUDA 13")
    if importlib.util.find_spec("triton") is None:
        reasons.append("the package triton is not installed")
    if shutil.which("g++") is None:
        reasons.append("there is no g++")
    if _headers() is None:
        reasons.append("there are no CUDA 13 headers: neither a CUDA toolkit nor the package nvidia-cuda-runtime")
    return reasons


def build(folder: Path) -> Path:
    """Compile the device into `folder`; returns the library."""
    headers = _headers()
    assert headers is not None
    library = folder / "libcuda.so.1"  # the name by which PyTorch and Triton look for the driver
    command = [
        "g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror",
        "-isystem", str(headers), "-idirafter", str(HERE / "device" / "without_toolkit"),
        *map(str, sorted((HERE / "device").glob("*.cpp"))),
        f"-Wl,-soname,{library.name}", "-o", str(library), "-ldl",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    (folder / "libcuda.so").symlink_to(library.name)
    return library


@dataclass(frozen=True)
class NullDevice:
    """The built device; compiled kernels of all scripts are kept in `caches`."""

    library: Path
    caches: Path

    def run(self, script: str, *arguments: str, devices: int = 1) -> Any:
        """Run scripts/`script` on `devices` null devices; returns the JSON of its last line."""
        process = self.start(script, *arguments, devices=devices)
        output, _ = process.communicate()
        assert process.returncode == 0, f"{script} {' '.join(arguments)} ended with {process.returncode}:\n{output}"
        return json.loads(output.splitlines()[-1])

    def start(self, script: str, *arguments: str, devices: int = 1) -> subprocess.Popen[str]:
        """The process of a script, its standard error in its standard output."""
        return subprocess.Popen(
            [sys.executable, str(HERE / "scripts" / script), *arguments],
            cwd=ROOT, env=self.environment(devices), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def environment(self, devices: int = 1) -> dict[str, str]:
        """The variables of a process that sees `devices` null devices, as do all that it starts."""
        inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        return inherited | {
            "LD_PRELOAD": str(self.library),
            "NULL_CUDA_DEVICES": str(devices),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{HERE / 'startup'}{os.pathsep}{ROOT}",
            "TORCHINDUCTOR_CACHE_DIR": str(self.caches / "inductor"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "TRITON_CACHE_DIR": str(self.caches / "triton"),
            "TRITON_LIBCUDA_PATH": str(self.library.parent),
        }


def count(report: Report, *prefixes: str) -> int:
    """How often happened what begins with one of the words, for instance "synchronize" or "copy pageable"."""
    return sum(number for what, number in report["counts"].items() if what.startswith(prefixes))


def _headers() -> Path | None:
    """The folder of CUDA 13's cuda_runtime_api.h: of a toolkit or, without nvcc's own part, of the pip packages."""
    from torch.utils.cpp_extension import CUDA_HOME

    places = [Path(CUDA_HOME) / "include"] if CUDA_HOME else []
    nvidia = importlib.util.find_spec("nvidia")
    for package in (nvidia.submodule_search_locations or ()) if nvidia else ():
        places += [path.parent for path in sorted(Path(package).glob("*/include/cuda_runtime_api.h"))]
    for place in places:
        header = place / "cuda_runtime_api.h"
        if header.is_file() and "#define CUDART_VERSION  13" in header.read_text(errors="replace"):
            return place
    return None
