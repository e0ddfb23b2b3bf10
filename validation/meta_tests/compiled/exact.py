"""A second opinion on arithmetic, by Python's fractions and integers and by libm; shares no code with it."""

import ctypes
import ctypes.util
from fractions import Fraction
from typing import Any

import numpy as np

libm = ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6")
libm.fmaf.restype = ctypes.c_float
libm.fmaf.argtypes = [ctypes.c_float] * 3

# Bits of the significand, and the exponent of the smallest subnormal.
FORMATS = {"f32": (24, -149, 128), "f16": (11, -24, 16), "bf16": (8, -133, 128), "f64": (53, -1074, 1024)}
FORMATS |= {"e5m2": (3, -16, 16)}
WIDTHS = {"f32": 32, "f16": 16, "bf16": 16, "f64": 64, "e5m2": 8}


def fmaf(a: Any, b: Any, c: Any) -> np.ndarray[Any, Any]:
    """libm's fused multiply-add of float32."""
    return np.array([libm.fmaf(*map(float, abc)) for abc in zip(a, b, c, strict=True)], np.float32)


def number(raw: int, kind: str) -> Fraction | float:
    """The value of bits of a format; a float for an infinity and a NaN."""
    bits, lowest, _ = FORMATS[kind]
    width = WIDTHS[kind]
    sign = -1 if raw >> (width - 1) else 1
    raw &= (1 << (width - 1)) - 1
    exponent, fraction = raw >> (bits - 1), raw & ((1 << (bits - 1)) - 1)
    if exponent == (1 << (width - bits)) - 1:
        return float("nan") if fraction else sign * float("inf")
    if exponent:
        return _scaled(sign * (fraction | 1 << (bits - 1)), lowest + exponent - 1)
    return _scaled(sign * fraction, lowest)


def _scaled(value: int, exponent: int) -> Fraction:
    return Fraction(value << exponent) if exponent >= 0 else Fraction(value, 1 << -exponent)


def rounded(value: Fraction, kind: str, mode: str, zero_sign: int = 0) -> int:
    """Bits of a format for an exact value; `zero_sign` is the sign bit of an exact zero."""
    bits, lowest, top = FORMATS[kind]
    width = WIDTHS[kind]
    if value == 0:
        return zero_sign << (width - 1)
    negative, size = value < 0, abs(value)
    exponent = max(lowest, size.numerator.bit_length() - size.denominator.bit_length() - bits - 1)
    while size.numerator << max(-exponent, 0) >= size.denominator << (bits + max(exponent, 0)):
        exponent += 1
    # size = (whole + rest / denominator) units of 2^exponent
    denominator = size.denominator << max(exponent, 0)
    whole, rest = divmod(size.numerator << max(-exponent, 0), denominator)
    up = {
        "rn": 2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1),
        "rz": False,
        "rm": negative and rest > 0,
        "rp": not negative and rest > 0,
    }[mode]
    whole += up
    if whole == 1 << bits:
        whole, exponent = whole >> 1, exponent + 1
    sign = int(negative) << (width - 1)
    if whole.bit_length() + exponent > top:
        infinite = mode == "rn" or (mode == "rm" and negative) or (mode == "rp" and not negative)
        largest = ((1 << (width - bits)) - 1) << (bits - 1)
        return sign | (largest if infinite else largest - 1)
    if whole < 1 << (bits - 1):
        return sign | whole
    return sign | ((exponent - lowest + 1) << (bits - 1)) | (whole & ((1 << (bits - 1)) - 1))
