"""Floating-point arithmetic to the bit: float64 and error-free transformations, rounded once.

A product of two float32 is exact in float64; a sum of it and a third is not, and to round it twice, to 53 bits and
then to 24, is wrong: a = 2^-12 (1 + 2^-23), b = 2^-12 (1 - 2^-23), c = 1 + 2^-23 comes out one ulp off. So the sum is
rounded to odd: its last bit says that something was cut off, and a second rounding to 24 bits or fewer is right in
every mode (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).

Functions take and return arrays of float32 or float16, of bits (unsigned) for bfloat16. Roundings are PTX's: rn to
nearest even, rz towards zero, rm towards minus infinity, rp towards plus infinity.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from validation.compiled.ptx.bits import CANONICAL_NAN, F2, F4, F8, U2, U4, U8, Array

_TINY = np.float32(2.0**-126)  # the smallest normal float32


def odd_sum(a: Array, b: Array) -> Array:
    """a + b in float64, rounded to odd where it is inexact."""
    s = a + b
    t = s - a
    error = (a - (s - t)) + (b - t)  # TwoSum: exact
    even = (s.view(U8) & U8.type(1)) == 0
    inexact = (error != 0) & np.isfinite(s)
    return np.where(inexact & even, np.nextafter(s, np.where(error > 0, np.inf, -np.inf)), s)


def to_f32(x: Array, mode: str = "rn") -> Array:
    """float64, exact or rounded to odd, to float32."""
    return _rounded(x, F4, mode)


def to_f16(x: Array, mode: str = "rn") -> Array:
    """float64, exact or rounded to odd, or float32, to float16."""
    return _rounded(x, F2, mode)


def _rounded(x: Array, dtype: np.dtype[Any], mode: str) -> Array:
    """x rounded to nearest, then moved by one unit where the mode wants the other neighbour."""
    r = x.astype(dtype)
    if mode == "rn":
        return r
    to: Any = dtype.type
    back = r.astype(x.dtype)
    if mode == "rz":
        return np.where(np.abs(back) > np.abs(x), np.nextafter(r, to(0)), r)
    if mode == "rm":
        return np.where(back > x, np.nextafter(r, to(-np.inf)), r)
    return np.where(back < x, np.nextafter(r, to(np.inf)), r)


def to_bf16(x: Array, mode: str = "rn") -> Array:
    """float32, or float64 exact or rounded to odd, to bits of bfloat16; NaN is canonical."""
    if x.dtype == F8:
        # float32 rounded to odd: 24 bits are enough for a second rounding to 8.
        cut = to_f32(x, "rz")
        raw = cut.view(U4) | (cut.astype(F8) != x)
    else:
        raw = x.view(U4)
    if mode == "rn":
        raw = raw + (U4.type(0x7FFF) + ((raw >> U4.type(16)) & U4.type(1)))
    elif mode != "rz":
        away: Any = (raw >> U4.type(31)) == (mode == "rm")  # negative numbers go away from zero towards minus infinity
        raw = np.where(away & np.isfinite(x), raw + U4.type(0xFFFF), raw)
    r, nan = (raw >> U4.type(16)).astype(U2), np.isnan(x)
    return np.where(nan, CANONICAL_NAN[2], r) if nan.any() else r


def from_bf16(raw: Array) -> Array:
    """Bits of bfloat16 to float32, exact."""
    return (raw.astype(U4) << U4.type(16)).view(F4)


def ftz(x: Array) -> Array:
    """float32 with subnormals flushed to zero of the same sign (PTX ISA: .ftz, of inputs and results)."""
    small = np.abs(x) < _TINY
    return np.where(small, np.copysign(F4.type(0), x), x) if small.any() else x


def fma_f32(a: Array, b: Array, c: Array, mode: str = "rn") -> Array:
    """a * b + c of float32, rounded once."""
    product, addend = a.astype(F8) * b, c.astype(F8)
    s = product + addend
    if mode != "rn":
        return _signed_zero(to_f32(odd_sum(product, addend), mode), s, product, addend, mode)
    r = s.astype(F4)
    # Only where the float64 sum lies half-way between two float32, or the result is subnormal, may it matter that
    # the sum itself was rounded.
    doubtful = (s.view(U8) & U8.type(0x1FFFFFFF)) == U8.type(0x10000000)
    small = np.abs(s) < _TINY
    if small.any():
        doubtful |= small & (s != 0)
    if not doubtful.any():
        return r
    product, addend = np.broadcast_to(product, s.shape), np.broadcast_to(addend, s.shape)
    r[doubtful] = odd_sum(product[doubtful], addend[doubtful]).astype(F4)
    return r


def sum_f32(a: Array, b: Array, mode: str) -> Array:
    """a + b of float32."""
    if mode == "rn":
        return a + b
    x, y = a.astype(F8), b.astype(F8)
    return _signed_zero(to_f32(odd_sum(x, y), mode), x + y, x, y, mode)


def _signed_zero(r: Array, s: Array, x: Array, y: Array, mode: str) -> Array:
    """IEEE 754, 6.3: an exact sum of zero is -0 when rounding towards minus infinity, unless both terms are +0."""
    if mode != "rm":
        return r
    return np.where((s == 0) & (np.signbit(x) | np.signbit(y)), F4.type(-0.0), r)


def product_f32(a: Array, b: Array, mode: str) -> Array:
    """a * b of float32."""
    return a * b if mode == "rn" else to_f32(a.astype(F8) * b, mode)


def quotient_f32(a: Array, b: Array, mode: str) -> Array:
    """a / b of float32. In float64 a quotient of two is exact or farther from any float32 than it was rounded."""
    return to_f32(a.astype(F8) / b, mode)


def fma_f16(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of float16, rounded once to nearest."""
    return odd_sum(a.astype(F8) * b.astype(F8), c.astype(F8)).astype(F2)


def fma_bf16(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of bits of bfloat16, rounded once to nearest."""
    x, y, z = (from_bf16(v).astype(F8) for v in (a, b, c))
    return to_bf16(odd_sum(x * y, z))


def product_bf16(a: Array, b: Array) -> Array:
    """a * b of bits of bfloat16. float32 rounds such a product only below 2^-134, far from a tie."""
    return to_bf16(from_bf16(a) * from_bf16(b))


def sum_bf16(a: Array, b: Array) -> Array:
    """a + b of bits of bfloat16. Through float32, whose 24 bits are at least 2 * 8 + 2."""
    return to_bf16(from_bf16(a) + from_bf16(b))


def through_f32(operation: Any, *xs: Array) -> Array:
    """An operation of float16 through float32, whose 24 bits are at least 2 * 11 + 2: the double rounding is right."""
    r: Array = operation(*(x.astype(F4) for x in xs)).astype(F2)
    return r


def smaller(a: Array, b: Array) -> Array:
    """PTX ISA, Floating-Point Instructions, min: a NaN gives way to the other operand; -0 is less than +0."""
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), a, b), np.fmin(a, b))


def greater(a: Array, b: Array) -> Array:
    """As `smaller`, the maximum."""
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), b, a), np.fmax(a, b))


def or_nan(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """PTX ISA, .NaN: a function of two floats whose result is NaN if an operand is."""
    return lambda a, b: np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), function(a, b))


def _to_fp8(x: Array, mantissa: int, lowest: int, largest: float) -> Array:
    """The magnitude of float32 in units of the smallest subnormal's exponent, as bits of a sign and 7 others."""
    size = np.minimum(np.abs(x.astype(F8)), largest)
    _, exponent = np.frexp(size)
    unit = np.where(size == 0, lowest, np.maximum(exponent - 1, lowest)) - mantissa
    whole = np.rint(np.ldexp(size, -unit)).astype(np.int64)  # to nearest even; below 2^(mantissa + 1), or equal
    raw = whole + ((unit + mantissa - lowest) << mantissa)
    return (raw | (np.signbit(x).astype(np.int64) << 7)).astype(np.uint8)


def to_e4m3(x: Array) -> Array:
    """float32 to bits of e4m3, to nearest even; what is beyond the largest, 448, becomes it; NaN is 0x7f."""
    return np.where(np.isnan(x), np.uint8(0x7F), _to_fp8(np.where(np.isnan(x), F4.type(0), x), 3, -6, 448.0))


def to_e5m2(x: Array) -> Array:
    """float32 to bits of e5m2, to nearest even; what is beyond the largest, 57344, becomes it; NaN is 0x7f."""
    return np.where(np.isnan(x), np.uint8(0x7F), _to_fp8(np.where(np.isnan(x), F4.type(0), x), 2, -14, 57344.0))


def from_e4m3(raw: Array) -> Array:
    """Bits of e4m3 to float16, exact."""
    exponent, fraction = (raw >> 3 & 15).astype(np.int64), (raw & 7).astype(F8)
    size = np.where(exponent == 0, np.ldexp(fraction, -9), np.ldexp(fraction + 8, exponent - 10))
    size = np.where((raw & 0x7F) == 0x7F, np.nan, size)
    return np.where(raw >> 7 != 0, -size, size).astype(F2)


def from_e5m2(raw: Array) -> Array:
    """Bits of e5m2 to float16, exact."""
    return (raw.astype(U2) << U2.type(8)).view(F2)
