"""Comparisons of floats: PTX ISA, "Floating Point Comparisons"; those with a u hold for NaN too."""

import operator
from collections.abc import Callable

import numpy as np

from validation.compiled.ptx.bits import Array

Compare = Callable[[Array, Array], Array]


def nan(a: Array, b: Array) -> Array:
    """Whether either is NaN."""
    return np.isnan(a) | np.isnan(b)


def _ordered(function: Compare) -> Compare:
    return lambda a, b: function(a, b) & ~nan(a, b)


def _unordered(function: Compare) -> Compare:
    return lambda a, b: function(a, b) | nan(a, b)


_PLAIN: dict[str, Compare] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip
COMPARISONS: dict[str, Compare] = {
    **{name: _ordered(function) for name, function in _PLAIN.items()},
    **{f"{name}u": _unordered(function) for name, function in _PLAIN.items()},
    "nan": nan,
    "num": lambda a, b: ~nan(a, b),
}
