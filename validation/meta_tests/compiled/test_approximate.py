"""``.approx`` and ``.full`` stay within the interval of the PTX ISA, and reach its ends; mpmath is the judge."""

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest

from validation.compiled.ptx.approximate import MODES, Approximation
from validation.compiled.ptx.opcodes import OPCODES
from validation.compiled.ptx.table import Elementwise
from validation.meta_tests.compiled.one_opcode import apply

mp = mpmath.MPContext()  # its own precision
mp.prec = 200


def ulp(value: Any) -> Any:
    _, exponent = mp.frexp(value)
    return mp.ldexp(1, max(exponent, -125) - 24)


# The value, and the largest error at it.
RULES: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    "rsqrt.approx": (lambda x: 1 / mp.sqrt(x), lambda v: v * mp.mpf(2) ** mp.mpf("-22.9")),
    "sqrt.approx": (mp.sqrt, lambda v: v * mp.mpf(2) ** -23),
    "rcp.approx": (lambda x: 1 / x, lambda v: ulp(abs(v))),
    "div.approx": (lambda a, b: a / b, lambda v: 2 * ulp(abs(v))),
    "div.full": (lambda a, b: a / b, lambda v: 2 * ulp(abs(v))),
    "ex2.approx": (lambda x: mp.mpf(2) ** x, lambda v: 2 * ulp(v)),
    "tanh.approx": (mp.tanh, lambda v: abs(v) * mp.mpf(2) ** -11),
}
SPELLINGS = [name for name, e in OPCODES.items() if isinstance(e, Elementwise) and e.approximate]


def rule_of(spelling: str) -> tuple[Callable[..., Any], Callable[[Any], Any]]:
    return RULES[".".join(spelling.split(".")[:2])]


def inputs(spelling: str) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    entry = OPCODES[spelling]
    assert isinstance(entry, Elementwise)
    if spelling.startswith(("ex2", "tanh")):
        return [random.uniform(-8, 8, 300).astype(np.float32)]
    return [
        np.ldexp(random.uniform(1, 2, 300), random.integers(-40, 40, 300)).astype(np.float32) for _ in entry.operands
    ]


def compute(spelling: str, operands: list[np.ndarray[Any, Any]], mode: str, seed: int = 0) -> np.ndarray[Any, Any]:
    names = ", ".join(f"%r{n}" for n in range(len(operands) + 1))
    return apply(f"{spelling} {names}", *operands, mode=mode, seed=seed).view(np.float32)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_mode_stays_within_the_interval_and_the_ends_are_its_ends(spelling: str) -> None:
    operands = inputs(spelling)
    value, error = rule_of(spelling)
    exact = [value(*map(mp.mpf, map(float, row))) for row in zip(*operands, strict=True)]
    results = {mode: compute(spelling, operands, mode) for mode in MODES}
    for mode, got in results.items():
        for g, v in zip(got, exact, strict=True):
            assert abs(mp.mpf(float(g)) - v) <= error(v) * (1 + mp.mpf(2) ** -20), (spelling, mode, g, v)
    low, high = results["low"], results["high"]
    for end, beyond in ((low, -np.inf), (high, np.inf)):
        for g, v in zip(end, exact, strict=True):
            farther = mp.mpf(float(np.nextafter(g, np.float32(beyond))))
            assert abs(farther - v) > error(v) * (1 - mp.mpf(2) ** -20), (spelling, g, v)
    assert (low <= results["nearest"]).all()
    assert (results["nearest"] <= high).all()
    assert (low < high).any()


def test_seeds_differ_and_repeat() -> None:
    operands = inputs("rsqrt.approx.f32")
    first, again, other = (compute("rsqrt.approx.f32", operands, "seeded", seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("mode", MODES)
def test_values_that_the_isa_fixes_are_the_same_in_every_mode(mode: str) -> None:
    inf, nan = np.inf, np.nan
    x = np.array([0.0, -0.0, inf, -inf, nan, -1.0, 1e-40], np.float32)
    want = {
        "rsqrt.approx.f32": [inf, -inf, 0.0, nan, nan, nan],
        "rsqrt.approx.ftz.f32": [inf, -inf, 0.0, nan, nan, nan, inf],  # a subnormal counts as 0
        "sqrt.approx.ftz.f32": [0.0, -0.0, inf, nan, nan, nan, 0.0],
        "rcp.approx.ftz.f32": [inf, -inf, 0.0, -0.0, nan, -1.0, inf],
        "ex2.approx.ftz.f32": [1.0, 1.0, inf, 0.0, nan, 0.5, 1.0],
    }
    for spelling, values in want.items():
        got = compute(spelling, [x], mode)
        for g, w in zip(got, values, strict=False):
            if np.isfinite(w) and w not in (0.0, -0.0):
                assert abs(g - w) <= 2 * np.spacing(np.abs(np.float32(w)))
            else:
                assert np.array([g]).tobytes() == np.array([w], np.float32).tobytes() or (np.isnan(g) and np.isnan(w))


def test_a_divisor_beyond_2_to_the_126_gives_zero() -> None:
    """PTX ISA, div.approx: for 2^126 < |b| < 2^128 and finite a."""
    a, b = np.array([1e38, np.inf], np.float32), np.array([2.0**127, 2.0**127], np.float32)
    got = compute("div.approx.f32", [a, b], "nearest")
    assert got[0] == 0
    assert np.isnan(got[1])


def test_an_unknown_mode_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected one of low, nearest, high, seeded"):
        Approximation("middle")
