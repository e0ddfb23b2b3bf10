"""Every elementwise opcode against a second opinion: corner values with one another, then random bits."""

import itertools
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from validation.compiled.ptx.errors import NotExecutedError
from validation.compiled.ptx.opcodes import OPCODES
from validation.compiled.ptx.table import Elementwise
from validation.meta_tests.compiled.exact import WIDTHS, fmaf, libm, rounded
from validation.meta_tests.compiled.one_opcode import apply
from validation.meta_tests.compiled.scalar import meaning, size_of

EXACT = {name: e for name, e in OPCODES.items() if isinstance(e, Elementwise) and not e.approximate}
FAMILIES = sorted({name.partition(".")[0] for name in EXACT})
# Zeros, subnormals, one and its neighbours, halves, the largest, infinities, NaN with payloads and signs.
CORNERS = {
    "f32": [0, 1, 0x007FFFFF, 0x00800000, 0x3F800000, 0x3F800001, 0x3F7FFFFF, 0x3F000000, 0x4B800000, 0x7F7FFFFF,
            0x7F800000, 0x7FADFEED, 0x4F000000, 0x5F000000, 0x33800000, 0x40490FDB],
    "f16": [0, 1, 0x03FF, 0x0400, 0x3C00, 0x3C01, 0x3BFF, 0x7BFF, 0x7C00, 0x7DED],
    "f64": [0, 1, 0x000FFFFFFFFFFFFF, 0x0010000000000000, 0x3FF0000000000000, 0x3FF0000000000001, 0x3FEFFFFFFFFFFFFF,
            0x3FE0000000000000, 0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000, 0x7FFADFEED0000001, 0x41E0000000000000,
            0x43E0000000000000, 0x3690000000000000, 0x36A0000000000001, 0x47EFFFFFEFFFFFFF, 0x40EFFE0000000000],
    "bf16": [0, 1, 0x7F, 0x80, 0x3F80, 0x3F81, 0x3F7F, 0x7F7F, 0x7F80, 0x7FAD],
}  # fmt: skip
CORNERS = {kind: values + [v | 1 << (WIDTHS[kind] - 1) for v in values] for kind, values in CORNERS.items()}
RANDOM = 100
MOST = 600


def corners(type_: str) -> list[int]:
    if type_ in CORNERS:
        return CORNERS[type_]
    if type_ == "pred":
        return [0, 1]
    size = size_of(type_)
    if type_.endswith("x2"):  # only floats have such types
        half = CORNERS[type_[:-2]]
        return [a | b << size // 2 for a, b in zip(half, half[3:] + half[:3], strict=True)]
    middle, top = 1 << (size - 1), (1 << size) - 1
    return sorted({0, 1, 2, 5, size - 1, middle - 1, middle, middle + 1, top - 1, top, 0x3F80 & top})


def tuples(spelling: str, entry: Elementwise) -> list[tuple[int, ...]]:
    random = np.random.default_rng(sum(spelling.encode()))
    # A copysign's bits are a float's.
    types = [spelling.partition(".")[2]] * 2 if spelling.startswith("copysign") else [*entry.operands]
    pools = [corners(t) for t in types]
    if entry.operands[-1] == "u32" and spelling.startswith(("shl", "shr", "bfe.", "bfi.", "shf")):
        for n in range(1 if spelling.startswith("sh") else 2):
            pools[-1 - n] = [0, 1, 7, 15, 16, 31, 32, 33, 63, 64, 200, 255]
    every = list(itertools.islice(itertools.product(*pools), 200_000))
    chosen = every if len(every) <= MOST else [every[n] for n in random.choice(len(every), MOST, replace=False)]
    drawn = [[int(x) >> (64 - size_of(t)) for x in random.integers(0, 2**64 - 1, RANDOM, np.uint64)] for t in types]
    near = []  # operands of like size, whose sums cancel and whose products are rounded
    if len(types) > 1 and types[0] == types[-1] and types[0] in ("f32", "f64"):
        values = np.ldexp(random.uniform(1, 2, (RANDOM, len(types))), random.integers(-2, 3, (RANDOM, len(types))))
        values = (values * random.choice([-1, 1], values.shape)).astype(
            types[0].replace("f32", "f4").replace("f64", "f8")
        )
        near = [tuple(map(int, row)) for row in values.view(np.uint32 if types[0] == "f32" else np.uint64)]
    if spelling.startswith("fma") and types[0] in ("f16", "bf16"):
        # (1 + 2^-i) (1 + 2^-j) is a tie of the format if i + j is the number of its bits; the addend decides.
        bits, one = (11, 0x3C00) if types[0] == "f16" else (8, 0x3F80)
        pairs = [(one | 1 << (bits - 1 - i), one | 1 << (bits - 1 - bits + i)) for i in range(1, bits)]
        near = [(a, b, c | sign) for a, b in pairs for c in (0, 1, 0x80, 0x0400, 0x1000) for sign in (0, 0x8000)]
    return [*chosen, *zip(*drawn, strict=True), *near]


REGISTERS = {1: "p", 16: "rs", 32: "r", 64: "rd"}
DTYPES = {1: bool, 16: np.uint16, 32: np.uint32, 64: np.uint64}


def computed(spelling: str, entry: Elementwise, operands: list[tuple[int, ...]]) -> list[int]:
    """What the machine gives; registers have the next size that exists, and operands of 8 bits lie in 16."""
    sizes = [max(size_of(t), 16) if t != "pred" else 1 for t in (entry.result, *entry.operands)]
    names = [f"%{REGISTERS[size]}{n}" for n, size in enumerate(sizes)]
    arrays = [
        np.array(column, DTYPES[size]) for column, size in zip(zip(*operands, strict=True), sizes[1:], strict=True)
    ]
    result = apply(f"{spelling} {', '.join(names)}", *arrays)
    return [int(x) & ((1 << size_of(entry.result)) - 1) for x in result]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_opcode_gives_what_a_second_opinion_gives(family: str) -> None:
    for spelling, entry in EXACT.items():
        if spelling.partition(".")[0] != family:
            continue
        operands = tuples(spelling, entry)
        want = [meaning(spelling)(*row) for row in operands]
        got = computed(spelling, entry, operands)
        wrong = [
            f"{spelling} {', '.join(map(hex, row))}: got {g:#x}, expected {w:#x}"
            for row, g, w in zip(operands, got, want, strict=True)
            if g != w
        ]
        assert not wrong, f"{len(wrong)} of {len(want)} wrong: " + "; ".join(wrong[:5])


def test_a_maximum_of_three_operands() -> None:
    a, b, c = (np.array(v, np.float32) for v in ([1, 5, np.nan], [2, 4, np.nan], [3, np.nan, -1]))
    assert apply("max.f32 %r0, %r1, %r2, %r3", a, b, c).view(np.float32).tolist() == [3, 5, -1]
    assert apply("min.f32 %r0, %r1, %r2, %r3", a, b, c).view(np.float32).tolist() == [1, 4, -1]
    assert apply("max.NaN.f32 %r0, %r1, %r2, %r3", a, b, c).tolist() == [0x40400000, 0x7FFFFFFF, 0x7FFFFFFF]


def test_a_signed_destination_is_extended_with_its_sign() -> None:
    raw = np.array([0x80, 0x7F, 0x1FF], np.uint32)
    assert apply("cvt.s8.s32 %rs0, %r1", raw).tolist() == [0xFF80, 0x7F, 0xFFFF]
    assert apply("cvt.u8.u32 %rs0, %r1", raw).tolist() == [0x80, 0x7F, 0xFF]
    assert apply("cvt.rn.f32.s8 %r0, %rs1", np.array([0x1FF], np.uint16)).view(np.float32).tolist() == [-1.0]


@pytest.mark.parametrize("opcode", ["cvt.f32.f16", "cvt.f32.bf16"])
def test_a_widening_of_16_bits_is_right_for_all_of_them(opcode: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    assert apply(f"{opcode} %r0, %rs1", every).tolist() == [meaning(opcode)(raw) for raw in range(1 << 16)]


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("operation", ["add", "sub", "mul"])
def test_arithmetic_of_16_bits_on_every_first_operand(kind: str, operation: str) -> None:
    """All 65,536 first operands with 24 second ones each, against one rounding of the exact float64 result."""
    seconds = [*CORNERS[kind], 0x3D55, 0xC2A7, 0x1234, 0x8642]
    first = np.tile(np.arange(1 << 16, dtype=np.uint16), len(seconds))
    second = np.repeat(np.array(seconds, np.uint16), 1 << 16)

    def value(raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if kind == "f16":
            return raw.view(np.float16).astype(np.longdouble)
        return (raw.astype(np.uint32) << 16).view(np.float32).astype(np.longdouble)

    with np.errstate(all="ignore"):
        exact = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[operation](value(first), value(second))
        # Sums of bfloat16 may take more than long double's 64 bits: leave out where the operands are 2^50 apart.
        sizes = np.abs(value(first)), np.abs(value(second))
        near = (np.maximum(*sizes) < np.minimum(*sizes) * 2.0**50) | (operation == "mul") | ~np.isfinite(exact)
        got = apply(f"{operation}.rn.{kind} %rs0, %rs1, %rs2", first, second)
        lost = np.isnan(exact)
        assert (got[lost] == 0x7FFF).all()
        kept = near & ~lost
        error = np.abs(value(got[kept]) - exact[kept])
        # Nearest: neither neighbour is nearer, and a tie goes to the even one.
        for step in (-1, 1):
            beside = (got[kept].astype(np.int32) + step) & 0xFFFF
            other = np.abs(value(beside.astype(np.uint16)) - exact[kept])
            tie = (other == error) & (beside & 0x7FFF < (0x7C00 if kind == "f16" else 0x7F80))
            finite = np.isfinite(other) & np.isfinite(error)
            assert (error <= other)[finite].all()
            assert (got[kept] % 2 == 0)[tie & finite & (error > 0)].all()


def test_a_conversion_to_16_bits_is_right_around_every_value_and_every_tie() -> None:
    for kind, shift in (("bf16", 16), ("f16", 13)):
        if kind == "bf16":
            base = np.arange(1 << 16, dtype=np.uint32) << 16
        else:
            base = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
        offsets = (0, 1, (1 << (shift - 1)) - 1, 1 << (shift - 1), (1 << (shift - 1)) + 1, (1 << shift) - 1)
        random = np.random.default_rng(0)
        for offset in offsets:
            some = random.choice(base, 800, replace=False) + np.uint32(offset)
            for mode in ("rn", "rz", "rm", "rp"):
                got = apply(f"cvt.{mode}.{kind}.f32 %rs0, %r1", some)
                assert got.tolist() == [meaning(f"cvt.{mode}.{kind}.f32")(int(raw)) for raw in some]


@pytest.mark.parametrize("kind", ["e4m3", "e5m2"])
def test_every_pair_of_8_bits_is_widened_right(kind: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    one = [meaning(f"cvt.rn.f16.{kind}")(raw) for raw in range(256)]
    got = apply(f"cvt.rn.f16x2.{kind}x2 %r0, %rs1", every)
    assert got.tolist() == [one[raw & 255] | one[raw >> 8] << 16 for raw in range(1 << 16)]


@pytest.mark.parametrize("kind", ["e4m3", "e5m2"])
def test_a_conversion_to_8_bits_is_right_at_every_value_and_every_tie(kind: str) -> None:
    """All 8-bit values, the midpoints between them and the numbers of float32 beside both."""
    values = np.array([meaning(f"cvt.rn.f16.{kind}")(raw) for raw in range(128)], np.uint16).view(np.float16)
    values = np.unique(values[np.isfinite(values)].astype(np.float32))
    points = np.concatenate([values, (values[1:] + values[:-1]) / 2, np.array([460, 480, 60000, 65000, 1e30, np.inf])])
    points = points.astype(np.float32)
    points = np.concatenate([np.nextafter(points, np.float32(0)), points, np.nextafter(points, np.float32(np.inf))])
    points = np.concatenate([points, -points, np.array([np.nan], np.float32)])
    got = apply(f"cvt.rn.satfinite.{kind}x2.f32 %rs0, %r1, %r2", points, points[::-1].copy())
    one = [meaning(f"cvt.rn.satfinite.{kind}.f32")(int(raw)) for raw in points.view(np.uint32)]
    assert got.tolist() == [high << 8 | low for high, low in zip(one, one[::-1], strict=True)]


def test_float16_becomes_bfloat16_without_a_rounding_where_it_is_one() -> None:
    exact = np.array([0x3C00, 0xC000, 0x0001, 0x7C00, 0x7C01], np.uint16)
    assert apply("cvt.bf16.f16 %rs0, %rs1", exact).tolist() == [0x3F80, 0xC000, 0x3380, 0x7F80, 0x7FFF]
    with pytest.raises(NotExecutedError, match=r"cvt\.bf16\.f16 .* names no rounding"):
        apply("cvt.bf16.f16 %rs0, %rs1", np.array([0x3C01], np.uint16))


def test_a_64_bit_integer_is_rounded_to_bfloat16_once() -> None:
    """2^60 + 2^52 + 1 lies above a tie, which float64 loses."""
    assert apply("cvt.rn.bf16.s64 %rs0, %rd1", np.array([2**60 + 2**52 + 1], np.int64)).tolist() == [0x5D81]
    assert apply("cvt.rn.bf16.s64 %rs0, %rd1", np.array([2**60 + 2**52], np.int64)).tolist() == [0x5D80]


def test_fma_is_not_float64_arithmetic() -> None:
    """The example of the module's docstring: float64's sum, rounded again, is one ulp off."""
    a, b, c = (np.array([v], np.float32) for v in (2**-12 * (1 + 2**-23), 2**-12 * (1 - 2**-23), 1 + 2**-23))
    got = apply("fma.rn.f32 %r0, %r1, %r2, %r3", a, b, c).view(np.float32)
    assert got[0] == fmaf(a, b, c)[0]
    assert (a.astype(np.float64) * b + c).astype(np.float32)[0] != got[0]


def test_fma_agrees_with_libm() -> None:
    """Random bits, values of like size, and sums built to lie beside a tie; NaN is canonical."""
    random = np.random.default_rng(1)
    n = 20_000
    raw = random.integers(0, 1 << 32, (3, n), np.uint64).astype(np.uint32).view(np.float32)
    like = (random.normal(size=(3, n)) * 2.0 ** random.integers(-3, 4, (3, n))).astype(np.float32)
    tiny = (random.normal(size=(3, n)) * np.array([[2.0**-70], [2.0**-76], [2.0**-140]])).astype(np.float32)
    # Products beside half of the smallest subnormal, added to large subnormals: float64 rounds the sum to the tie.
    step, scale = random.integers(0, 64, n) * 2.0**-23, 2.0**-75
    beside = np.stack([scale * (1 + step), scale * (1 - step), random.integers(-(2**23), 2**23, n) * 2.0**-149])
    one = (1 + random.integers(0, 64, (3, n)) * 2.0**-23).astype(np.float32)
    one[0] *= np.float32(2) ** random.integers(-30, -8, n).astype(np.float32)
    for abc in (raw, like, tiny, one, beside.astype(np.float32)):
        got = apply("fma.rn.f32 %r0, %r1, %r2, %r3", *abc)
        want = fmaf(*abc)
        bits = np.where(np.isnan(want), np.uint32(0x7FFFFFFF), want.view(np.uint32))
        assert (got == bits).all()


def test_the_second_opinions_fma_is_libms() -> None:
    random = np.random.default_rng(2)
    for row in random.integers(0, 1 << 32, (2000, 3), np.uint64).astype(np.uint32):
        want = libm.fmaf(*map(float, row.view(np.float32)))
        expected = 0x7FFFFFFF if want != want else int(np.float32(want).view(np.uint32))
        assert meaning("fma.rn.f32")(*map(int, row)) == expected


def test_the_second_opinions_rounding_is_numpys() -> None:
    random = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        for value in np.ldexp(random.normal(size=3000), random.integers(-160, 130, 3000)):
            assert rounded(Fraction(float(value)), "f32", "rn") == int(np.float32(value).view(np.uint32))
            assert rounded(Fraction(float(value)), "f16", "rn") == int(np.float16(value).view(np.uint16))


def test_the_planted_faults_of_two_prototypes_are_no_longer_there() -> None:
    """A signed bit field was not extended; the mixed addition of sm_100 was taken for one of bfloat16."""
    assert apply("bfe.s32 %r0, %r1, 4, 4", np.array([0xF0], np.uint32)).tolist() == [0xFFFFFFFF]
    a, c = np.array([0x3F80], np.uint16), np.array([2.0**-20], np.float32)
    assert apply("add.rn.f32.bf16 %r0, %rs1, %r2", a, c).view(np.float32).tolist() == [1 + 2.0**-20]


def test_every_opcode_names_its_section_of_the_isa() -> None:
    assert all(re.search("Instructions(: |$)", entry.section) for entry in OPCODES.values())
