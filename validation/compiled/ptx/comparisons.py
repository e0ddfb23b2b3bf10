"""Comparisons by PTX's names: PTX ISA, "Integer Comparisons", "Floating Point Comparisons"."""

import operator
from collections.abc import Callable, Mapping

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


OF_INTEGERS: Mapping[str, Compare] = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
# Those with a u hold for NaN too.
OF_FLOATS: Mapping[str, Compare] = {
    **{name: _ordered(function) for name, function in OF_INTEGERS.items()},
    **{f"{name}u": _unordered(function) for name, function in OF_INTEGERS.items()},
    "nan": nan,
    "num": lambda a, b: ~nan(a, b),
}
