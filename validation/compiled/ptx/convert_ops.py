"""Opcode cvt: PTX ISA, "Data Movement and Conversion Instructions: cvt"."""

from collections.abc import Callable
from functools import partial

import numpy as np

from validation.compiled.ptx import rounding
from validation.compiled.ptx.bits import DTYPES, F4, F8, Array, bits, joined
from validation.compiled.ptx.table import elementwise

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


def _to_integer(x: Array, to: str, whole: Callable[[Array], Array]) -> Array:
    """Saturates; NaN is 0, or the topmost bit alone in 64 bits."""
    dtype = DTYPES[to]
    limits = np.iinfo(dtype)
    value = whole(x.astype(F8))
    inside = (value > float(limits.min)) & (value < float(limits.max))
    low_or_high = np.where(value <= float(limits.min), dtype.type(limits.min), dtype.type(limits.max))
    result = np.where(inside, np.where(inside, value, 0.0).astype(dtype), low_or_high)
    of_nan = dtype.type(0) if dtype.itemsize < 8 else np.uint64(1 << 63).astype(dtype)
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
    _add(f"cvt.{_mode}.f16.f32", "b16 f32", _f16)
    _add(f"cvt.{_mode}.bf16.f32", "bf16 f32", _bf16)
    if _mode in ("rn", "rz"):
        _add(f"cvt.{_mode}.f16x2.f32", "f16x2 f32 f32", partial(_two, convert=_f16))
        _add(f"cvt.{_mode}.bf16x2.f32", "bf16x2 f32 f32", partial(_two, convert=_bf16))
