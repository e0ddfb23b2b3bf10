"""Opcodes of float32, float16 and bfloat16: PTX ISA, "Floating Point", "Half Precision", "Mixed Precision"."""

import operator
from collections.abc import Callable
from functools import partial, reduce

import numpy as np

from validation.compiled.ptx import approximate, rounding
from validation.compiled.ptx.approximate import Approximation
from validation.compiled.ptx.bits import F4, F8, U2, U4, Array, bits, halves, joined
from validation.compiled.ptx.comparisons import OF_FLOATS
from validation.compiled.ptx.rounding import from_bf16, ftz
from validation.compiled.ptx.table import elementwise

_FLOAT = "Floating Point Instructions: "
_HALF = "Half Precision Floating Point Instructions: "
_MIXED = "Mixed Precision Floating Point Instructions: "
_COMPARISON = "Comparison and Selection Instructions: "


def _flushed(function: Callable[..., Array]) -> Callable[..., Array]:
    """.ftz: subnormal inputs and results are flushed to zero of the same sign."""
    return lambda *xs: ftz(function(*map(ftz, xs)))


def _both(spelling: str, section: str, types: str, function: Callable[..., Array], *, third: bool = False) -> None:
    """An opcode of float32 (``{}`` in its spelling) and its form with .ftz."""
    elementwise(section, spelling.format(""), types, function, third=third)
    elementwise(section, spelling.format(".ftz"), types, _flushed(function), third=third)


def _folded(function: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    """A function of two or more operands."""
    return lambda *xs: reduce(function, xs)


# ---- float32
_TWO, _THREE = "f32 f32 f32", "f32 f32 f32 f32"


def _difference(a: Array, b: Array, mode: str) -> Array:
    return rounding.sum_f32(a, -b, mode)


for _name, _exact, _rounded in (
    ("add", operator.add, rounding.sum_f32),
    ("sub", operator.sub, _difference),
    ("mul", operator.mul, rounding.product_f32),
):
    _both(f"{_name}{{}}.f32", _FLOAT + _name, _TWO, _exact)  # no mode: to nearest even, and ptxas may contract it
    _both(f"{_name}.rn{{}}.f32", _FLOAT + _name, _TWO, _exact)
    for _mode in ("rz", "rm", "rp"):
        _both(f"{_name}.{_mode}{{}}.f32", _FLOAT + _name, _TWO, partial(_rounded, mode=_mode))
for _mode in ("rn", "rz", "rm", "rp"):
    _both(f"fma.{_mode}{{}}.f32", _FLOAT + "fma", _THREE, partial(rounding.fma_f32, mode=_mode))
_both("div.rn{}.f32", _FLOAT + "div", _TWO, operator.truediv)
_both("sqrt.rn{}.f32", _FLOAT + "sqrt", "f32 f32", np.sqrt)
_both("rcp.rn{}.f32", _FLOAT + "rcp", "f32 f32", lambda x: F4.type(1) / x)
_both("neg{}.f32", _FLOAT + "neg", "f32 f32", operator.neg)
_both("abs{}.f32", _FLOAT + "abs", "f32 f32", np.abs)
for _mode in ("rz", "rm", "rp"):
    _both(f"div.{_mode}{{}}.f32", _FLOAT + "div", _TWO, partial(rounding.quotient_f32, mode=_mode))
# A third operand came with sm_100.
_MIN_MAX: tuple[tuple[str, Callable[[Array, Array], Array]], ...]
_MIN_MAX = (("min", rounding.smaller), ("max", rounding.greater))
for _name, _choose in _MIN_MAX:
    _both(f"{_name}{{}}.f32", _FLOAT + _name, _TWO, _folded(_choose), third=True)
    _both(f"{_name}{{}}.NaN.f32", _FLOAT + _name, _TWO, _folded(rounding.or_nan(_choose)), third=True)
elementwise(_FLOAT + "copysign", "copysign.f32", "b32 b32 b32",
            lambda a, b: (a & U4.type(0x80000000)) | (b & U4.type(0x7FFFFFFF)))  # fmt: skip


# ---- .approx and .full: float32, within an interval
def _approximate(value: Callable[..., Array], error: Callable[[Array], Array], *, flush: bool) -> Callable[..., Array]:
    def compute(approximation: Approximation, *xs: Array) -> Array:
        exact = value(*(map(ftz, xs) if flush else xs))
        result = approximation.pick(exact, error(exact))
        return ftz(result) if flush else result

    return compute


for _name, _types, _value, _error in (
    ("rsqrt.approx{}.f32", "f32 f32", approximate.rsqrt, approximate.relative(2.0**-22.9)),
    ("sqrt.approx{}.f32", "f32 f32", lambda x: np.sqrt(x.astype(F8)), approximate.relative(2.0**-23)),
    ("rcp.approx{}.f32", "f32 f32", approximate.rcp, approximate.ulps(1)),
    ("div.approx{}.f32", _TWO, approximate.div_approx, approximate.ulps(2)),
    ("div.full{}.f32", _TWO, approximate.div_full, approximate.ulps(2)),
    ("ex2.approx{}.f32", "f32 f32", lambda x: np.exp2(x.astype(F8)), approximate.ulps(2)),
):
    for _flush in ("", ".ftz"):
        elementwise(_FLOAT + _name.partition(".")[0], _name.format(_flush), _types,
                    _approximate(_value, _error, flush=bool(_flush)), approximate=True)  # fmt: skip


def _within(bounded: Callable[..., tuple[Array, Array]], *, flush: bool) -> Callable[..., Array]:
    """A function whose error depends on the operand too."""

    def compute(approximation: Approximation, x: Array) -> Array:
        result = approximation.pick(*bounded(ftz(x) if flush else x))
        return ftz(result) if flush else result

    return compute


for _name, _bounded in (("lg2", approximate.lg2), ("sin", approximate.sin), ("cos", approximate.cos)):
    for _flush in ("", ".ftz"):
        elementwise(_FLOAT + _name, f"{_name}.approx{_flush}.f32", "f32 f32",
                    _within(_bounded, flush=bool(_flush)), approximate=True)  # fmt: skip
elementwise(_FLOAT + "tanh", "tanh.approx.f32", "f32 f32",
            _approximate(lambda x: np.tanh(x.astype(F8)), approximate.relative(2.0**-11), flush=False),
            approximate=True)  # fmt: skip


# ---- pairs of float32 (sm_100)
def _pair(function: Callable[..., Array], *, view: str) -> Callable[..., Array]:
    """A function of pairs, given that of one number, whose operands are arrays of the NumPy type `view`."""

    def compute(*xs: Array) -> Array:
        parts = [halves(x) for x in xs]
        low, high = (bits(function(*(p[n].view(view) for p in parts))) for n in (0, 1))
        return joined(low, high)

    return compute


for _name, _function in (("add", operator.add), ("sub", operator.sub), ("mul", operator.mul)):
    elementwise(_FLOAT + _name, (f"{_name}.f32x2", f"{_name}.rn.f32x2"), "f32x2 f32x2 f32x2",
                _pair(_function, view="f4"))  # fmt: skip
elementwise(_FLOAT + "fma", "fma.rn.f32x2", "f32x2 f32x2 f32x2 f32x2", _pair(rounding.fma_f32, view="f4"))

# ---- operands of 16 bits, widened, into float32 (sm_100)
for _half, _widen in (("bf16", from_bf16), ("f16", lambda x: x.astype(F4))):
    for _name, _function in (("add", operator.add), ("sub", operator.sub)):
        elementwise(_MIXED + _name, (f"{_name}.f32.{_half}", f"{_name}.rn.f32.{_half}"), f"f32 {_half} f32",
                    lambda a, c, f=_function, w=_widen: f(w(a), c))  # fmt: skip
    elementwise(_MIXED + "fma", f"fma.rn.f32.{_half}", f"f32 {_half} {_half} f32",
                lambda a, b, c, w=_widen: rounding.fma_f32(w(a), w(b), c))  # fmt: skip


# ---- float16 and bfloat16, and pairs
def _bf16_sign(x: Array) -> Array:
    return x ^ U2.type(0x8000)


def _bf16_difference(a: Array, b: Array) -> Array:
    return rounding.sum_bf16(a, _bf16_sign(b))


def _bf16_choose(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda a, b: rounding.to_bf16(function(from_bf16(a), from_bf16(b)))


_OF_16_BITS: tuple[tuple[str, int, Callable[..., Array], Callable[..., Array]], ...] = (
    ("add", 2, partial(rounding.through_f32, operator.add), rounding.sum_bf16),
    ("sub", 2, partial(rounding.through_f32, operator.sub), _bf16_difference),
    ("mul", 2, partial(rounding.through_f32, operator.mul), rounding.product_bf16),
    ("fma", 3, rounding.fma_f16, rounding.fma_bf16),
    ("min", 2, rounding.smaller, _bf16_choose(rounding.smaller)),
    ("max", 2, rounding.greater, _bf16_choose(rounding.greater)),
    ("neg", 1, operator.neg, _bf16_sign),
    ("abs", 1, np.abs, lambda x: x & U2.type(0x7FFF)),
)


def _xorsign(choose: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """.xorsign.abs: the magnitudes' minimum or maximum, negative where one of the signs is."""

    def compute(a: Array, b: Array) -> Array:
        size = choose(np.abs(a), np.abs(b))
        return np.where(np.signbit(a) ^ np.signbit(b), -size, size)

    return compute


for _name, _choose in _MIN_MAX:
    _both(f"{_name}{{}}.xorsign.abs.f32", _FLOAT + _name, _TWO, _xorsign(_choose))
    for _modifier, _wrap in (("NaN", rounding.or_nan), ("xorsign.abs", _xorsign)):
        _f16, _bf16 = _wrap(_choose), _bf16_choose(_wrap(_choose))
        for _half, _operation, _view in (("f16", _f16, "f2"), ("bf16", _bf16, "u2")):
            elementwise(_HALF + _name, f"{_name}.{_modifier}.{_half}", f"{_half} {_half} {_half}", _operation)
            elementwise(_HALF + _name, f"{_name}.{_modifier}.{_half}x2", f"{_half}x2 {_half}x2 {_half}x2",
                        _pair(_operation, view=_view))  # fmt: skip
for _name, _operands, _f16, _bf16 in _OF_16_BITS:
    for _half, _operation, _view in (("f16", _f16, "f2"), ("bf16", _bf16, "u2")):
        _spelled = [f"{_name}.rn.{{}}"] if _name in ("add", "sub", "mul", "fma") else [f"{_name}.{{}}"]
        if _name in ("add", "sub", "mul"):
            _spelled.append(f"{_name}.{{}}")  # no mode: to nearest even, and ptxas may contract it
        _types = " ".join([_half] * (_operands + 1))
        _pairs = " ".join([f"{_half}x2"] * (_operands + 1))
        elementwise(_HALF + _name, [s.format(_half) for s in _spelled], _types, _operation)
        elementwise(_HALF + _name, [s.format(f"{_half}x2") for s in _spelled], _pairs, _pair(_operation, view=_view))


# ---- .approx of 16 bits, and of pairs
def _bf16_rounded(value: Array, mode: str = "rn") -> Array:
    return from_bf16(rounding.to_bf16(value, mode))


def _approximate_half(
    value: Callable[[Array], Array], error: Callable[[Array], Array], half: str
) -> Callable[..., Array]:
    def compute(approximation: Approximation, x: Array) -> Array:
        exact = value((x if half == "f16" else from_bf16(x)).astype(F8))
        if half == "f16":
            return approximation.pick(exact, error(exact), rounding.to_f16)
        return rounding.to_bf16(approximation.pick(exact, error(exact), _bf16_rounded))

    return compute


def _flushed_bf16(x: Array) -> Array:
    return rounding.to_bf16(ftz(from_bf16(x)))


def _ex2_bf16(approximation: Approximation, x: Array) -> Array:
    compute = _approximate_half(np.exp2, approximate.relative(2.0**-7), "bf16")
    return _flushed_bf16(compute(approximation, _flushed_bf16(x)))


for _name, _half, _approximation in (
    ("tanh.approx", "f16", _approximate_half(np.tanh, approximate.absolute(2.0**-10.987), "f16")),
    ("tanh.approx", "bf16", _approximate_half(np.tanh, approximate.absolute(2.0**-8), "bf16")),
    ("ex2.approx", "f16", _approximate_half(np.exp2, approximate.relative(2.0**-9.9), "f16")),
    ("ex2.approx.ftz", "bf16", _ex2_bf16),
):
    elementwise(_HALF + _name.partition(".")[0], f"{_name}.{_half}", f"{_half} {_half}", _approximation,
                approximate=True)  # fmt: skip
    elementwise(
        _HALF + _name.partition(".")[0],
        f"{_name}.{_half}x2",
        f"{_half}x2 {_half}x2",
        lambda a, x, f=_approximation, v={"f16": "f2", "bf16": "u2"}[_half]: _pair(partial(f, a), view=v)(x),
        approximate=True,
    )


# ---- comparisons
for _name, _compare in OF_FLOATS.items():
    elementwise(_COMPARISON + "setp", f"setp.{_name}.f32", "pred f32 f32", _compare)
    elementwise(_COMPARISON + "setp", f"setp.{_name}.ftz.f32", "pred f32 f32",
                lambda a, b, f=_compare: f(ftz(a), ftz(b)))  # fmt: skip
    elementwise(_COMPARISON + "setp", f"setp.{_name}.f16", "pred f16 f16", _compare)
    elementwise(_COMPARISON + "setp", f"setp.{_name}.bf16", "pred bf16 bf16",
                lambda a, b, f=_compare: f(from_bf16(a), from_bf16(b)))  # fmt: skip
