"""The native backend: a C++ library for CPUs (csrc/), built by CMake when the package is installed, loaded with ctypes.

Its operations run on PyTorch's own threads and so on as many as `torch.set_num_threads` says; their results are the
same on any number of them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[1] / "_native"
LIBRARY = FOLDER / "libtitn.so"
NOT_BUILT = FOLDER / "not_built.txt"
"""Written by setup.py where it could not build the library: why not, in one line."""
STORAGE = (torch.float32, torch.bfloat16)
"""What tokens may be stored in; sums are float32."""
PATHS = ("generic", "avx2", "avx512")
"""Instruction sets that the library may have been compiled for, the slowest first."""

Pointer = ctypes.c_void_p


def _told(count: str, *numbers: str) -> tuple[tuple[str, Any], ...]:
    """Members that every structure of csrc/titn.h has, and its own whole numbers, `count` of 64 bits."""
    own = ((count, ctypes.c_int64), *((name, ctypes.c_int32) for name in numbers))
    return (("parallel_for", Pointer), *own, ("eps", ctypes.c_float), ("weights", ctypes.POINTER(Pointer)))


class InnerBlock(ctypes.Structure):
    _fields_ = _told("sequences", "length", "channels", "heads", "hidden", "bf16")


class OuterAttention(ctypes.Structure):
    _fields_ = _told("images", "threads", "length", "width", "heads", "bf16", "bf16_kept", "residual")


class LayerNormMlp(ctypes.Structure):
    _fields_ = _told("rows", "threads", "width", "hidden", "bf16", "bf16_kept", "residual")


class PixelsToPatches(ctypes.Structure):
    _fields_ = _told(
        "images", "threads", "patches", "tokens", "pixels", "channels", "width", "bf16_pixels", "bf16_patches"
    )


_OPERATIONS: dict[str, tuple[type, int, int]] = {
    "inner_block": (InnerBlock, 3, 5),
    "outer_attention": (OuterAttention, 3, 5),
    "layernorm_mlp": (LayerNormMlp, 3, 5),
    "pixels_to_patches": (PixelsToPatches, 3, 4),
}
"""Operations: what they are told, and how many addresses their forward and their backward take."""


_CALLED_BY_OTHERS = ("equalize", "autocontrast")
"""Functions of csrc/levels.cpp, which other libraries call by their address."""


def load(path: Path) -> ctypes.CDLL:
    """The library at `path`, its entry points declared.

    Raises:
        OSError: it is not there, or not for this machine.
        AttributeError: it is of another version.
    """
    library = ctypes.CDLL(str(path))
    for name, (told, *counts) in _OPERATIONS.items():
        for direction, count in zip(("forward", "backward"), counts, strict=True):
            function = getattr(library, f"titn_{name}_{direction}")
            function.argtypes = [ctypes.POINTER(told), *[Pointer] * count]
            function.restype = ctypes.c_int
    for name in _CALLED_BY_OTHERS:
        getattr(library, f"titn_{name}")
    library.titn_path.restype = ctypes.c_char_p
    library.titn_take_path.argtypes = [ctypes.c_char_p]
    library.titn_take_path.restype = ctypes.c_int
    return library


def _load() -> tuple[ctypes.CDLL | None, int | None, str | None]:
    """The library, the address of PyTorch's parallel loop, and why the backend is absent."""
    if not LIBRARY.is_file():
        why = NOT_BUILT.read_text().strip() if NOT_BUILT.is_file() else "pip install has not built it"
        return None, None, f"the native library is absent: {why}"
    try:
        library = load(LIBRARY)
    except (OSError, AttributeError) as error:
        return None, None, f"the native library does not load ({error}): install the package again"
    try:
        loop = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).torch_parallel_for
    except (OSError, AttributeError):
        return None, None, f"PyTorch {torch.__version__} lends no threads (torch_parallel_for)"
    return library, ctypes.cast(loop, Pointer).value, None


_library, _parallel_for, ABSENT = _load()
"""ABSENT: why the backend is not there, or None."""


def native_reasons(x: Tensor, *others: Tensor | None, dtype: torch.dtype | None = None) -> list[str]:
    """Why native operations cannot run on x and the other tensors with tokens stored in `dtype` (None: that of x)."""
    if ABSENT is not None:
        return [ABSENT]
    present = [x, *(t for t in others if t is not None)]
    if not x.is_cpu:
        return [f"the tensor is on {x.device.type}, native operations run on CPUs"]
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return ["an exported program must run without this package"]
    kind = x.dtype if dtype is None else dtype
    reasons = [] if kind in STORAGE else [f"{kind} is none of float32, bfloat16"]
    unknown = [t.dtype for t in present if not t.dtype.is_floating_point or t.dtype is torch.float64]
    reasons += [f"{unknown[0]} is none of float32, float16, bfloat16"] if unknown and not reasons else []
    if not all(t.is_cpu for t in present):
        reasons.append("the tensors are on different devices")
    return reasons


WIDEST = 192
"""Channels of wide rows up to which native code is taken unasked. Of eager PyTorch's time, forward and backward of the
attention half and of the MLP half took 0.73 and 0.89 with 192 channels in 1,152 rows, 1.0 and 1.1 with 384 in 288
(AVX2, float32, the least processor time of one thread)."""


def wide_limits(width: int, dtype: torch.dtype, requested: str) -> list[str]:
    """Why native code does not take products of rows of `width` channels in `dtype` unasked."""
    if requested != "auto":
        return []
    reasons = [] if width <= WIDEST else [f"{width} channels are more than {WIDEST}: PyTorch's products are as fast"]
    if dtype == torch.bfloat16 and HAS_AVX512:
        reasons.append("PyTorch multiplies bfloat16 by this CPU's own instructions, native code in float32")
    return reasons


def path() -> str | None:
    """The instruction set in use, one of PATHS; None where the backend is absent."""
    return None if _library is None else _library.titn_path().decode()


HAS_AVX512 = path() == "avx512"


def address(name: str) -> int:
    """Where the function `titn_<name>` of csrc/levels.cpp lies, for libraries that call it; `ABSENT` must be None."""
    where = ctypes.cast(getattr(_library, f"titn_{name}"), Pointer).value
    assert where is not None
    return where


@contextmanager
def on_path(name: str) -> Iterator[None]:
    """Within, operations take the code compiled for another instruction set.

    Raises:
        ValueError: the library or this CPU lacks it.
    """
    before = path()
    if _library is None or before is None or not _library.titn_take_path(name.encode()):
        raise ValueError(f"the native library or this CPU has no path {name!r}")
    try:
        yield
    finally:
        _library.titn_take_path(before.encode())


def in_float32(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Weights as the library reads them."""
    return [None if t is None else t.to(torch.float32).contiguous() for t in tensors]


def in_dtypes(gradients: Sequence[Tensor | None], weights: Sequence[Tensor | None]) -> list[Tensor]:
    """The gradients that are there, in the dtypes of their weights."""
    pairs = zip(gradients, weights, strict=True)
    return [gradient.to(weight.dtype) for gradient, weight in pairs if gradient is not None and weight is not None]


def bf16(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bfloat16


def addresses(tensors: Sequence[Tensor | None]) -> Any:
    """An array of the addresses of the tensors' data, null where one is absent."""
    return (Pointer * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))


def call(name: str, told: ctypes.Structure, *tensors: Tensor | Any | None) -> None:
    """The entry point `titn_<name>` with these tensors, which must be contiguous, or arrays of addresses.

    Raises:
        MemoryError: there was none left.
    """
    told.parallel_for = _parallel_for
    if hasattr(told, "threads"):
        told.threads = torch.get_num_threads()
    given = (t.data_ptr() if isinstance(t, Tensor) else t for t in tensors)
    if getattr(_library, f"titn_{name}")(ctypes.byref(told), *given):
        raise MemoryError(f"{name}: no memory left for scratch space")
