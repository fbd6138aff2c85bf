"""Triton's interpreter with bfloat16 as it is on a GPU.

It holds bfloat16 as its 16 bits, and calculates with these as if they were whole numbers. Here tiles are widened to
float32 before anything is calculated, and rounded to the nearest after it.
"""

from __future__ import annotations

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

Builder, Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
NAN = np.uint16(0x7FC0)


def widened(bits):
    """float32 from the bits of bfloat16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(values):
    """The bits of the nearest bfloat16, ties to even."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    nearest = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), NAN, nearest)


def is_short(handle):
    """Is a tile of bfloat16?"""
    return handle.dtype.scalar == tl.bfloat16


def wide(handle):
    """The tile in float32."""
    return Handle(widened(handle.data), tl.float32) if is_short(handle) else handle


def short(values):
    """A tile of bfloat16."""
    return Handle(rounded(values), tl.bfloat16)


def install():
    """Mend the interpreter of this process, once."""
    if hasattr(Builder, "mended"):
        return
    dot, binary, unary, cast, truncate = (
        Builder.create_dot,
        Builder.binary_op,
        Builder.unary_op,
        Builder.cast_impl,
        Builder.create_fp_to_fp,
    )

    def mended_dot(self, a, b, total, *rest):
        return dot(self, wide(a), wide(b), total, *rest)

    def mended_binary(self, a, b, op):
        if not (is_short(a) and is_short(b)):
            return binary(self, a, b, op)
        found = op(widened(a.data), widened(b.data))
        return Handle(found, a.dtype.scalar) if found.dtype == bool else short(found)

    def mended_unary(self, a, op):
        return short(op(widened(a.data))) if is_short(a) else unary(self, a, op)

    def mended_cast(self, source, dtype):
        to = dtype.scalar
        if is_short(source):
            return (
                source if to == tl.bfloat16 else wide(source) if to == tl.float32 else cast(self, wide(source), dtype)
            )
        return short(source.data) if to == tl.bfloat16 else cast(self, source, dtype)

    def mended_truncate(self, source, dtype, mode):
        some = is_short(source) or dtype.scalar == tl.bfloat16
        return mended_cast(self, source, dtype) if some else truncate(self, source, dtype, mode)

    Builder.create_dot, Builder.binary_op, Builder.unary_op = mended_dot, mended_binary, mended_unary
    Builder.cast_impl, Builder.create_fp_to_fp = mended_cast, mended_truncate
    Builder.mended = True
