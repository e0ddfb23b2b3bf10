"""``.approx`` and ``.full``: results that the PTX ISA gives only within an interval.

Each function computes the value in float64 and gives its interval; `Approximation` picks a float32 inside.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from validation.compiled.ptx.bits import F4, F8, Array
from validation.compiled.ptx.rounding import to_f32

MODES = ("low", "nearest", "high", "seeded")


@dataclasses.dataclass
class Approximation:
    """Picks results from the intervals that the PTX ISA allows.

    Attributes:
        mode: ``low``, ``high``: the interval's ends; ``nearest``: the value, rounded; ``seeded``: at random inside.
        random: the generator of ``seeded``.
        used: whether a result was picked.
    """

    mode: str = "nearest"
    random: np.random.Generator = dataclasses.field(default_factory=lambda: np.random.default_rng(0))
    used: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r}, expected one of {', '.join(MODES)}")

    def pick(self, value: Array, error: Array) -> Array:
        """A float32 within `error` of `value`, both float64; zeros and what is not finite stay."""
        self.used = True
        with np.errstate(all="ignore"):
            nearest = to_f32(value)
            fixed = (value == 0) | ~np.isfinite(value)
            if self.mode == "nearest":
                return nearest
            if self.mode == "seeded":
                share = self.random.uniform(-1.0, 1.0, value.shape)
                chosen = to_f32(value + share * error)
                # A value near the interval's end may round out of it.
                off = np.abs(chosen.astype(F8) - value) > error
                return np.where(fixed | off, nearest, chosen)
            low = self.mode == "low"
            end = to_f32(value - error, "rp") if low else to_f32(value + error, "rm")
            # Where no float32 lies inside the interval the nearest is the best that there is.
            beside = np.abs(end.astype(F8) - value) > error
            return np.where(fixed | beside, nearest, end)


def _ulp(value: Array) -> Array:
    """The distance of float32 numbers at a value, in float64."""
    _, exponent = np.frexp(value)
    return np.ldexp(np.ones_like(value), np.maximum(exponent, -125) - 24)


def relative(bound: float) -> Callable[[Array], Array]:
    """An error of so much of the value."""
    return lambda value: np.abs(value) * bound


def ulps(bound: float) -> Callable[[Array], Array]:
    """An error of so many units in the last place of float32."""
    return lambda value: bound * _ulp(value)


def rsqrt(x: Array) -> Array:
    """1 / sqrt(x) in float64; infinite of x's sign at a zero."""
    return 1.0 / np.sqrt(x.astype(F8))


def rcp(x: Array) -> Array:
    """1 / x in float64."""
    return 1.0 / x.astype(F8)


def div_full(a: Array, b: Array) -> Array:
    """a / b in float64."""
    return a.astype(F8) / b.astype(F8)


def div_approx(a: Array, b: Array) -> Array:
    """a / b in float64; 0 for 2^126 < |b| < 2^128 and finite a, NaN for infinite a (PTX ISA, div.approx.f32)."""
    q = a.astype(F8) / b.astype(F8)
    beyond = (np.abs(b) > F4.type(2.0**126)) & np.isfinite(b)
    zero = np.copysign(0.0, q)
    return np.where(beyond, np.where(np.isinf(a), np.nan, zero), q)
