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

    def pick(self, value: Array, error: Array, rounded: Callable[..., Array] = to_f32) -> Array:
        """A number within `error` of `value`, both float64, in a format; what is not finite or has no error stays.

        Args:
            value, error: float64.
            rounded: rounds float64 to the format in a mode; returns float32 or float16.
        """
        self.used = True
        with np.errstate(all="ignore"):
            nearest = rounded(value)
            fixed = (error == 0) | ~np.isfinite(value)
            if self.mode == "nearest":
                return nearest
            if self.mode == "seeded":
                share = self.random.uniform(-1.0, 1.0, value.shape)
                chosen = rounded(value + share * error)
                # A value near the interval's end may round out of it.
                off = np.abs(chosen.astype(F8) - value) > error
                return np.where(fixed | off, nearest, chosen)
            low = self.mode == "low"
            end = rounded(value - error, "rp") if low else rounded(value + error, "rm")
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
    """An error of so many units in the last place of float32; none at 0."""
    return lambda value: np.where(value == 0, 0.0, bound * _ulp(value))


def absolute(bound: float) -> Callable[[Array], Array]:
    """An error of so much, but none at 0."""
    return lambda value: np.where(value == 0, 0.0, bound)


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


def lg2(x: Array) -> tuple[Array, Array]:
    """log2(x) in float64 and its error: 2^-22, absolute for x in (1/2, 2), else relative (PTX ISA, lg2.approx.f32)."""
    wide = x.astype(F8)
    value = np.log2(wide)
    return value, np.where((wide > 0.5) & (wide < 2), 2.0**-22, np.abs(value) * 2.0**-22)


def _circular(value: Array, x: Array) -> tuple[Array, Array]:
    """The errors that the PTX ISA gives sin and cos: 2^-20.5 within 2 pi, 2^-14.7 within 100 pi, any beyond."""
    size = np.abs(x)
    error = np.where(size <= 2 * np.pi, 2.0**-20.5, np.where(size <= 100 * np.pi, 2.0**-14.7, 2.0))
    return value, np.where(x == 0, 0.0, error)


def sin(x: Array) -> tuple[Array, Array]:
    """sin(x) in float64 and its error; 0 stays."""
    wide = x.astype(F8)
    return _circular(np.sin(wide), wide)


def cos(x: Array) -> tuple[Array, Array]:
    """cos(x) in float64 and its error; that of 0 is 1."""
    wide = x.astype(F8)
    return _circular(np.cos(wide), wide)
