"""Opcode cvt: PTX ISA, "Data Movement and Conversion Instructions: cvt"."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from validation.compiled.ptx import rounding
from validation.compiled.ptx.bits import DTYPES, F2, F4, F8, Array, bits, halves, joined
from validation.compiled.ptx.parse import Instruction
from validation.compiled.ptx.table import Bound, Step, add, elementwise

_SECTION = "Data Movement and Conversion Instructions: cvt"
_add = partial(elementwise, _SECTION, loose=True)
_WHOLE = (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil))
_INTEGERS = ("s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64")


def _cast(to: str) -> Callable[[Array], Array]:
    """Between integers: the operand's type says how it is extended, the lower bits are kept."""
    return lambda x: x.astype(DTYPES[to])


for _to in _INTEGERS:
    for _from in _INTEGERS:
        _add(f"cvt.{_to}.{_from}", f"{_to} {_from}", _cast(_to))

# Integers to float32. NumPy's casts round to nearest even, once.
for _from in _INTEGERS:
    _add(f"cvt.rn.f32.{_from}", f"f32 {_from}", lambda x: x.astype(F4))


def _to_integer(x: Array, to: str, whole: Callable[[Array], Array], *, double: bool = False) -> Array:
    """Saturates; NaN is 0, or the topmost bit alone if either side has 64 bits."""
    dtype = DTYPES[to]
    limits = np.iinfo(dtype)
    value = whole(x.astype(F8))
    inside = (value > float(limits.min)) & (value < float(limits.max))
    low_or_high = np.where(value <= float(limits.min), dtype.type(limits.min), dtype.type(limits.max))
    result = np.where(inside, np.where(inside, value, 0.0).astype(dtype), low_or_high)
    top = np.uint64(1 << (8 * dtype.itemsize - 1)).astype(dtype)
    of_nan = top if double or dtype.itemsize == 8 else dtype.type(0)
    return np.where(np.isnan(value), of_nan, result)


for _to in ("s16", "u16", "s32", "u32", "s64", "u64"):
    for _mode, _whole in _WHOLE:
        _add(f"cvt.{_mode}.{_to}.f32", f"{_to} f32", partial(_to_integer, to=_to, whole=_whole))
        _add(f"cvt.{_mode}.ftz.{_to}.f32", f"{_to} f32",
             lambda x, t=_to, w=_whole: _to_integer(rounding.ftz(x), t, w))  # fmt: skip
for _mode, _whole in _WHOLE:
    _add(f"cvt.{_mode}.f32.f32", "f32 f32", _whole)
    _add(f"cvt.{_mode}.ftz.f32.f32", "f32 f32", lambda x, w=_whole: w(rounding.ftz(x)))

# To and from 16 bits.
_add("cvt.f32.f16", "f32 f16", lambda x: x.astype(F4))
_add("cvt.f32.bf16", "f32 bf16", rounding.from_bf16)


def _to_f16(x: Array, mode: str) -> Array:
    return bits(rounding.to_f16(x, mode))


def _two(high: Array, low: Array, convert: Callable[[Array], Array]) -> Array:
    """The first operand goes into the upper half."""
    return joined(*np.broadcast_arrays(convert(low), convert(high)))


for _mode in ("rn", "rz", "rm", "rp"):
    _f16, _bf16 = partial(_to_f16, mode=_mode), partial(rounding.to_bf16, mode=_mode)
    for _from in ("f32", "f64"):
        _add(f"cvt.{_mode}.f16.{_from}", f"b16 {_from}", _f16)
        _add(f"cvt.{_mode}.bf16.{_from}", f"bf16 {_from}", _bf16)
    if _mode in ("rn", "rz"):
        _add(f"cvt.{_mode}.f16x2.f32", "f16x2 f32 f32", partial(_two, convert=_f16))
        _add(f"cvt.{_mode}.bf16x2.f32", "bf16x2 f32 f32", partial(_two, convert=_bf16))

# To integers and whole numbers from the other formats.
for _mode, _whole in _WHOLE:
    for _to in ("s16", "u16", "s32", "u32", "s64", "u64"):
        _add(f"cvt.{_mode}.{_to}.f64", f"{_to} f64", partial(_to_integer, to=_to, whole=_whole, double=True))
        _add(f"cvt.{_mode}.{_to}.f16", f"{_to} f16", partial(_to_integer, to=_to, whole=_whole))
        _add(f"cvt.{_mode}.{_to}.bf16", f"{_to} bf16",
             lambda x, t=_to, w=_whole: _to_integer(rounding.from_bf16(x), t, w))  # fmt: skip
    _add(f"cvt.{_mode}.f64.f64", "f64 f64", _whole)


def _odd_f64(x: Array) -> Array:
    """An integer as float64, rounded to odd: a second rounding to 16 bits is right."""
    if x.dtype.itemsize < 8:
        return x.astype(F8)
    low = x & x.dtype.type(0xFFFFFFFF)
    return rounding.odd_sum((x - low).astype(F8), low.astype(F8))


for _from in _INTEGERS:
    _add(f"cvt.rn.f64.{_from}", f"f64 {_from}", lambda x: x.astype(F8))
    _add(f"cvt.rn.f16.{_from}", f"f16 {_from}", lambda x: rounding.to_f16(_odd_f64(x)))
    _add(f"cvt.rn.bf16.{_from}", f"bf16 {_from}", lambda x: rounding.to_bf16(_odd_f64(x)))

_add("cvt.f64.f32", "f64 f32", lambda x: x.astype(F8))
_add("cvt.f64.f16", "f64 f16", lambda x: x.astype(F8))
for _mode in ("rn", "rz", "rm", "rp"):
    _add(f"cvt.{_mode}.f32.f64", "f32 f64", partial(rounding.to_f32, mode=_mode))


def _saturated(x: Array) -> Array:
    """.sat: clamped to [0, 1]; NaN is +0."""
    return np.where(x > 0, np.minimum(x, F4.type(1)), F4.type(0))


_add("cvt.sat.f32.f32", "f32 f32", _saturated)
_add("cvt.ftz.sat.f32.f32", "f32 f32", lambda x: rounding.ftz(_saturated(rounding.ftz(x))))

# 8 bits, in pairs: e4m3 has no infinity, and S.1111.111 as its NaN; e5m2 is the upper half of float16.
_FP8: tuple[tuple[str, Callable[[Array], Array], Callable[[Array], Array]], ...] = (
    ("e4m3", rounding.to_e4m3, rounding.from_e4m3),
    ("e5m2", rounding.to_e5m2, rounding.from_e5m2),
)
for _kind, _narrow, _widen in _FP8:
    _add(f"cvt.rn.satfinite.{_kind}x2.f32", "b16 f32 f32", partial(_two, convert=_narrow))
    _add(f"cvt.rn.satfinite.{_kind}x2.f16x2", "b16 f16x2",
         lambda x, n=_narrow: joined(*(n(half.view(F2).astype(F4)) for half in halves(x))))  # fmt: skip
    _add(f"cvt.rn.f16x2.{_kind}x2", "f16x2 b16",
         lambda x, w=_widen: joined(*(bits(w(half)) for half in halves(x))))  # fmt: skip


def _narrowed(instruction: Instruction, binder: Any) -> Step:
    """float16 to bfloat16 without a rounding: executed where it is exact, as after a conversion from 8 bits."""
    target, source = instruction.operands
    get, put, mask_of = binder.get(source, "f16"), binder.put(instruction, target, "bf16"), binder.mask(instruction)

    def step(run: Any) -> None:
        x, mask = get(run), mask_of(run)
        result = rounding.to_bf16(x.astype(F4))
        lost = (rounding.from_bf16(result) != x) & ~np.isnan(x)
        if (lost if mask is None else lost & mask).any():
            raise instruction.refuse("the value is no bfloat16, and the PTX ISA names no rounding")
        put(run, result)

    return step


add("cvt.bf16.f16", Bound(_SECTION, _narrowed))
