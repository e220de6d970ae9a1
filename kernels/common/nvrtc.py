"""CUDA C++ of csrc/*.cu, compiled when first needed for the GPU at hand, and launched through the driver.

NVIDIA's run-time compiler NVRTC comes with every CUDA build of PyTorch, so that neither a CUDA toolkit nor a compiler
has to be installed, and no binary for a GPU yet to come has to be shipped.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCES = Path(__file__).resolve().parents[1] / "csrc"
_REGISTERS, _SHARED = 4, 1  # CU_FUNC_ATTRIBUTE_NUM_REGS, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES


@functools.cache
def _compiler() -> ctypes.CDLL | str:
    """NVRTC of PyTorch's own CUDA version, or why it is not there."""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is no CUDA build"
    name = f"libnvrtc.so.{torch.version.cuda.partition('.')[0]}"
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    found = [path for folder in folders for path in sorted(folder.glob(f"*/lib/{name}"))]
    try:
        for part in sorted(found[0].parent.glob("libnvrtc-builtins.so*")) if found else ():
            ctypes.CDLL(str(part))  # NVRTC looks for it by name alone
        return ctypes.CDLL(str(found[0]) if found else name)
    except OSError as error:
        return f"NVIDIA's run-time compiler does not load ({error})"


def nvrtc_reasons() -> list[str]:
    """Why CUDA C++ cannot be compiled here."""
    found = _compiler()
    return [found] if isinstance(found, str) else []


@functools.cache
def compiled(source: str, arch: int) -> bytes:
    """The machine code (cubin) of csrc/`source` for compute capability `arch`, such as 90.

    Raises:
        RuntimeError: NVRTC is absent, or refuses the source or the architecture; the message holds what it says.
    """
    nvrtc = _compiler()
    if isinstance(nvrtc, str):
        raise RuntimeError(nvrtc)
    headers = sorted(SOURCES.glob("*.h"))
    names, texts = [path.name.encode() for path in headers], [path.read_bytes() for path in headers]
    options = [f"--gpu-architecture=sm_{arch}", "--std=c++17", "--device-as-default-execution-space"]
    program = ctypes.c_void_p()
    text = (SOURCES / source).read_bytes()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, source.encode(), len(names), _strings(texts), _strings(names))
    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), _strings([option.encode() for option in options])):
            said = _read(nvrtc, program, "ProgramLog").rstrip(b"\0").decode()
            raise RuntimeError(f"{source} does not compile for sm_{arch}: {said}")
        return _read(nvrtc, program, "CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _strings(texts: Sequence[bytes]) -> Any:
    return (ctypes.c_char_p * len(texts))(*texts)


def _read(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, text)
    return text.raw


@dataclass(frozen=True)
class Kernel:
    """A kernel loaded on one device: registers of a thread, bytes of shared memory of a program."""

    function: ctypes.c_void_p
    registers: int
    shared: int


@functools.cache
def kernel(source: str, name: str, device: torch.device) -> Kernel:
    """The kernel `name` of csrc/`source` on a CUDA device, which must be the current one."""
    driver, module, function = _driver(), ctypes.c_void_p(), ctypes.c_void_p()
    major, minor = torch.cuda.get_device_capability(device)
    _check(driver.cuModuleLoadData(ctypes.byref(module), compiled(source, 10 * major + minor)))
    _check(driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
    value, found = ctypes.c_int(), []
    for attribute in (_REGISTERS, _SHARED):
        _check(driver.cuFuncGetAttribute(ctypes.byref(value), attribute, function))
        found.append(value.value)
    return Kernel(function, *found)


def launch(kernel: Kernel, programs: int, threads: int, *arguments: Tensor | int | float | None) -> None:
    """Starts `programs` x `threads` on the current stream of the current device.

    arguments: tensors, or None, for pointers; whole numbers for `unsigned`, others for `float`.
    """
    values = [_argument(argument) for argument in arguments]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    _check(_driver().cuLaunchKernel(kernel.function, programs, 1, 1, threads, 1, 1, 0, stream, pointers, None))


def _argument(value: Tensor | int | float | None) -> Any:
    if value is None or isinstance(value, Tensor):
        return ctypes.c_void_p(None if value is None else value.data_ptr())
    return ctypes.c_uint(value) if isinstance(value, int) else ctypes.c_float(value)


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _check(result: int) -> None:
    if result:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(result, ctypes.byref(text))
        raise RuntimeError(f"the CUDA driver says: {(text.value or b'unknown error').decode()} ({result})")
