# mypy: disable-error-code="no-untyped-def"
"""Triton's CPU interpreter, mended where it computes something else than a GPU.

The interpreter holds bfloat16 as its bits in uint16. Up to Triton 3.8 at least it truncates where a GPU rounds to
nearest even, converts to and from most dtypes as if the bits were a number, and multiplies the bits in `tl.dot`. After
`mend` conversions and products are right (products in float32, as on tensor cores), and other arithmetic on bfloat16 is
an error: the kernels convert to float32 first. Up to Triton 3.6 it also takes `int` of an array with one element in one
dimension, which NumPy has refused since 2.4; `mend` takes the element.
"""

from __future__ import annotations

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_ARITHMETIC = ("binary_op", "unary_op")
_CONVERSIONS = (
    "cast_impl", "create_si_to_fp", "create_ui_to_fp", "create_fp_to_si", "create_fp_to_ui", "create_fp_ext",
    "create_fp_trunc",
)  # fmt: skip


def to_float32(bits: np.ndarray) -> np.ndarray:
    """Bits of bfloat16 numbers (uint16) to float32, exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(numbers: np.ndarray) -> np.ndarray:
    """Float32 to the bits of the nearest bfloat16 numbers, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(numbers), 0x7FC0, rounded).astype(np.uint16)


def mend() -> None:
    """Changes Triton's interpreter in this process; further calls do nothing."""
    builder = interpreter.InterpreterBuilder
    if hasattr(builder, "titn_mended"):
        return
    builder.titn_mended = True
    handle, original_cast, original_dot = interpreter.TensorHandle, builder.cast_impl, builder.create_dot

    def cast(self, source, kind, *_):
        before, after = source.dtype.scalar, kind.scalar
        if (before == tl.bfloat16) == (after == tl.bfloat16):
            return original_cast(self, source, kind)
        if after == tl.bfloat16:
            return handle(to_bfloat16(source.data.astype(np.float32)), after)
        return handle(to_float32(source.data).astype(interpreter._get_np_dtype(after)), after)

    def dot(self, a, b, accumulator, *rest):
        if a.dtype.scalar != tl.bfloat16:
            return original_dot(self, a, b, accumulator, *rest)
        product = np.matmul(to_float32(a.data), to_float32(b.data))
        return handle(product + accumulator.data, accumulator.dtype.scalar)

    def refusing(name):
        original = getattr(builder, name)

        def operation(self, *operands):
            if any(getattr(operand, "dtype", None) == tl.bfloat16 for operand in operands):
                raise TypeError(f"arithmetic on bfloat16 in the interpreter ({name}): convert to float32 first")
            return original(self, *operands)

        return operation

    original_float = builder.create_fp_to_fp

    def between_floats(self, source, kind, rounding):
        if tl.bfloat16 in (source.dtype.scalar, kind.scalar):
            return cast(self, source, kind)
        return original_float(self, source, kind, rounding)

    for name in _CONVERSIONS:
        setattr(builder, name, cast)
    for name in _ARITHMETIC:
        setattr(builder, name, refusing(name))
    builder.create_fp_to_fp = between_floats
    builder.create_dot = dot
    builder.get_bf16 = lambda self, value: handle(to_bfloat16(np.array([value], np.float32)), tl.bfloat16)

    original_patch = interpreter._patch_lang_tensor

    def patch(tensor, *scope):
        original_patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patch
