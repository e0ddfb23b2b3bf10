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
    "sin.approx": (mp.sin, lambda _: mp.mpf(2) ** mp.mpf("-20.5")),
    "cos.approx": (mp.cos, lambda _: mp.mpf(2) ** mp.mpf("-20.5")),
    "lg2.approx": (lambda x: mp.log(x, 2), lambda v: mp.mpf(2) ** -22 * max(abs(v), 1)),
}
HALVES: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    "tanh.approx.f16": (mp.tanh, lambda _: mp.mpf(2) ** mp.mpf("-10.987")),
    "tanh.approx.bf16": (mp.tanh, lambda _: mp.mpf(2) ** -8),
    "ex2.approx.f16": (lambda x: mp.mpf(2) ** x, lambda v: v * mp.mpf(2) ** mp.mpf("-9.9")),
    "ex2.approx.ftz.bf16": (lambda x: mp.mpf(2) ** x, lambda v: v * mp.mpf(2) ** -7),
}
EVERY = [name for name, e in OPCODES.items() if isinstance(e, Elementwise) and e.approximate]
SPELLINGS = [name for name in EVERY if name.endswith(".f32")]


def rule_of(spelling: str) -> tuple[Callable[..., Any], Callable[[Any], Any]]:
    return RULES[".".join(spelling.split(".")[:2])]


def inputs(spelling: str) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    entry = OPCODES[spelling]
    assert isinstance(entry, Elementwise)
    if spelling.startswith(("ex2", "tanh")):
        return [random.uniform(-8, 8, 300).astype(np.float32)]
    if spelling.startswith(("sin", "cos")):
        return [random.uniform(-2 * np.pi, 2 * np.pi, 300).astype(np.float32)]
    if spelling.startswith("lg2"):
        return [np.concatenate([random.uniform(0.51, 1.99, 150), np.exp2(random.uniform(-60, 60, 150))]).astype("f4")]
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


@pytest.mark.parametrize("spelling", HALVES)
def test_16_bits_stay_within_the_interval_and_pairs_are_two_of_them(spelling: str) -> None:
    assert {name.removesuffix("x2") for name in EVERY if name not in SPELLINGS} == {*HALVES}
    value, error = HALVES[spelling]
    random = np.random.default_rng(0)
    wide = np.where(random.random(512) < 0.5, 1, 4) * random.normal(size=512)
    half = spelling.rpartition(".")[2]
    raw = wide.astype("f2").view("u2") if half == "f16" else (wide.astype("f4").view("u4") >> 16).astype("u2")

    def numbers(x: np.ndarray[Any, Any]) -> list[float]:
        return [float(v) for v in (x.view("f2") if half == "f16" else (x.astype("u4") << 16).view("f4"))]

    results = {mode: apply(f"{spelling} %rs0, %rs1", raw, mode=mode) for mode in MODES}
    for x, *got in zip(numbers(raw), *map(numbers, results.values()), strict=True):
        exact = value(mp.mpf(x))
        within = [g for g in got if abs(mp.mpf(g) - exact) <= error(exact) * (1 + mp.mpf(2) ** -20)]
        assert len(within) == len(got) or len(set(got)) == 1  # else there is no number inside
    assert (results["low"] != results["high"]).any()
    pairs = raw[:256].astype("u4") | raw[256:].astype("u4") << 16
    for mode in ("low", "nearest", "high"):
        both = apply(f"{spelling}x2 %r0, %r1", pairs, mode=mode)
        assert (both == results[mode][:256].astype("u4") | results[mode][256:].astype("u4") << 16).all()
    nan = np.array([0x7FFF], np.uint16)
    assert apply(f"{spelling} %rs0, %rs1", nan).tolist() == [0x7FFF]


@pytest.mark.parametrize("mode", MODES)
def test_sines_and_logarithms_of_what_the_isa_fixes(mode: str) -> None:
    inf, nan = np.inf, np.nan
    x = np.array([0.0, -0.0, inf, -inf, nan, 1e-40], np.float32)
    want = {
        "sin.approx.ftz.f32": [0.0, -0.0, nan, nan, nan, 0.0],
        "cos.approx.ftz.f32": [1.0, 1.0, nan, nan, nan, 1.0],
        "lg2.approx.ftz.f32": [-inf, -inf, inf, nan, nan, -inf],
    }
    for spelling, values in want.items():
        got = compute(spelling, [x], mode)
        assert np.array_equal(got, np.array(values, np.float32), equal_nan=True), spelling
        assert (np.signbit(got[:2]) == np.signbit(np.array(values[:2]))).all()


def test_a_sine_is_less_sure_of_larger_angles() -> None:
    """2^-20.5 within 2 pi, 2^-14.7 within 100 pi; of others the ISA says nothing."""
    x = np.array([1.0, 100.0, 1e6], np.float32)
    low, high = (compute("sin.approx.f32", [x], mode).astype(float) for mode in ("low", "high"))
    width = np.log2(high - low)
    # Each end is up to 2^-24 inside, 4.4 % of 2^-19.5 together: 0.13.
    assert (np.abs(width - np.array([-19.5, -13.7, 2.0])) < 0.13).all()


def test_a_logarithm_of_one_may_be_off_on_both_sides() -> None:
    one = np.array([1.0], np.float32)
    low, high = (compute("lg2.approx.f32", [one], mode)[0] for mode in ("low", "high"))
    assert -(2.0**-22) <= low < 0 < high <= 2.0**-22
