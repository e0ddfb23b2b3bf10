"""Registers as NumPy arrays: types of operands, and the bits of a value.

A register holds an array that broadcasts to [CTAs, threads]; (1, 1) where no thread differs. An array of integers is
raw bits. An array of floats came out of arithmetic, where every NaN is the canonical one: its bits become so as soon
as somebody looks at them (PTX ISA, Floating-Point Instructions: "all NaN results are canonical").
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# The array that an operand of a type is read as. bf16 and pairs have no such type: their functions take bits.
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        "pred": "bool",
        "b8": "u1", "u8": "u1", "s8": "i1",
        "b16": "u2", "u16": "u2", "s16": "i2", "f16": "f2", "bf16": "u2",
        "b32": "u4", "u32": "u4", "s32": "i4", "f32": "f4", "f16x2": "u4", "bf16x2": "u4",
        "b64": "u8", "u64": "u8", "s64": "i8", "f64": "f8", "f32x2": "u8",
    }.items()
}  # fmt: skip

# Types that are moved, loaded, stored and selected, and what each is read as: a move of floats keeps the bits of a NaN.
MOVED_AS = {f"{kind}{size}": f"{kind}{size}" for size in (8, 16, 32, 64) for kind in "bus"}
MOVED_AS |= {"f32": "b32", "f64": "b64"}

F2, F4, F8 = (np.dtype(code) for code in ("f2", "f4", "f8"))
U2, U4, U8 = (np.dtype(code) for code in ("u2", "u4", "u8"))
CANONICAL_NAN: dict[int, Any] = {2: np.uint16(0x7FFF), 4: np.uint32(0x7FFFFFFF), 8: np.uint64(0x7FFFFFFFFFFFFFFF)}
UNSIGNED = {n: np.dtype(f"u{n}") for n in (1, 2, 4, 8)}


def bits(value: Array) -> Array:
    """The bits of a value as unsigned integers of its size."""
    size = value.dtype.itemsize
    if value.dtype.kind != "f":
        return value if value.dtype.kind in "ub" else value.view(UNSIGNED[size])
    raw = value.view(UNSIGNED[size])
    nan = np.isnan(value)
    return np.where(nan, CANONICAL_NAN[size], raw) if nan.any() else raw


def read_as(value: Array, dtype: np.dtype[Any]) -> Array:
    """A value read as another type of the same size."""
    if value.dtype == dtype:
        return value
    return (bits(value) if value.dtype.kind == "f" else value).view(dtype)


def halves(pair: Array) -> tuple[Array, Array]:
    """The lower and the upper half of each element, as unsigned integers of half the size."""
    size = pair.dtype.itemsize // 2
    half = UNSIGNED[size]
    return pair.astype(half), (pair >> pair.dtype.type(8 * size)).astype(half)


def joined(low: Array, high: Array) -> Array:
    """Unsigned integers of twice the size."""
    size = low.dtype.itemsize
    whole = UNSIGNED[2 * size]
    return low.astype(whole) | (high.astype(whole) << whole.type(8 * size))
