"""Opcodes of float64: PTX ISA, "Floating Point", "Comparison and Selection"."""

import ctypes
import ctypes.util
import operator
from typing import Any

import numpy as np

from validation.compiled.ptx import rounding
from validation.compiled.ptx.bits import F8, U8, Array
from validation.compiled.ptx.comparisons import OF_FLOATS
from validation.compiled.ptx.table import elementwise

_FLOAT = "Floating Point Instructions: "
_COMPARISON = "Comparison and Selection Instructions: "
_TWO = "f64 f64 f64"

_libm = ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6")
_libm.fma.restype = ctypes.c_double
_libm.fma.argtypes = [ctypes.c_double] * 3
_fma: Any = np.frompyfunc(_libm.fma, 3, 1)


def _fma_f64(a: Array, b: Array, c: Array) -> Array:
    """a * b + c, rounded once: libm's, an element at a time. Few kernels have float64 arithmetic."""
    result: Array = np.asarray(_fma(a, b, c)).astype(F8)
    return result


for _name, _function in (("add", operator.add), ("sub", operator.sub), ("mul", operator.mul)):
    elementwise(_FLOAT + _name, (f"{_name}.f64", f"{_name}.rn.f64"), _TWO, _function)
elementwise(_FLOAT + "fma", "fma.rn.f64", "f64 f64 f64 f64", _fma_f64)
elementwise(_FLOAT + "div", "div.rn.f64", _TWO, operator.truediv)
elementwise(_FLOAT + "sqrt", "sqrt.rn.f64", "f64 f64", np.sqrt)
elementwise(_FLOAT + "rcp", "rcp.rn.f64", "f64 f64", lambda x: 1 / x)
elementwise(_FLOAT + "neg", "neg.f64", "f64 f64", operator.neg)
elementwise(_FLOAT + "abs", "abs.f64", "f64 f64", np.abs)
elementwise(_FLOAT + "min", "min.f64", _TWO, rounding.smaller)
elementwise(_FLOAT + "max", "max.f64", _TWO, rounding.greater)
_SIGN = U8.type(1 << 63)
elementwise(_FLOAT + "copysign", "copysign.f64", "b64 b64 b64", lambda a, b: (a & _SIGN) | (b & ~_SIGN))


for _name, _compare in OF_FLOATS.items():
    elementwise(_COMPARISON + "setp", f"setp.{_name}.f64", "pred f64 f64", _compare)


def _normal(x: Array) -> Array:
    return np.isfinite(x) & (np.abs(x) >= np.finfo(x.dtype).tiny)


def _subnormal(x: Array) -> Array:
    return (x != 0) & (np.abs(x) < np.finfo(x.dtype).tiny)


for _type in ("f32", "f64"):
    for _name, _test in (
        ("finite", np.isfinite),
        ("infinite", np.isinf),
        ("number", lambda x: ~np.isnan(x)),
        ("notanumber", np.isnan),
        ("normal", _normal),
        ("subnormal", _subnormal),
    ):
        elementwise(_FLOAT + "testp", f"testp.{_name}.{_type}", f"pred {_type}", _test)
