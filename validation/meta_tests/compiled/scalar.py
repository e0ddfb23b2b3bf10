"""A second meaning of every elementwise opcode, for one thread, on Python's integers and fractions.

It reads the spelling part by part, where `validation.compiled.ptx` has a table of whole spellings, and shares no code
with it.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from validation.meta_tests.compiled.exact import FORMATS, WIDTHS, number, rounded

Meaning = Callable[..., int]
NAN = {kind: (1 << (width - 1)) - 1 for kind, width in WIDTHS.items()}
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}  # fmt: skip


def size_of(type_: str) -> int:
    """Bits of a type."""
    if type_ in ("e4m3", "e5m2"):
        return 8
    if type_ == "pred":
        return 1
    if type_.endswith("x2"):
        return 2 * size_of(type_[:-2])
    return int("".join(c for c in type_ if c.isdigit()))


def integer(raw: int, type_: str) -> int:
    """The value of bits of an integer type."""
    size = size_of(type_)
    return raw - (1 << size) if type_[0] == "s" and raw >> (size - 1) else raw


def wrap(value: int, size: int) -> int:
    return value & ((1 << size) - 1)


def meaning(opcode: str) -> Meaning:
    """The function of operands' bits that an opcode is."""
    name, *parts = opcode.split(".")
    type_ = parts[-1]
    if name == "cvt":
        return _convert(parts)
    if name == "setp":
        return _compare(parts)
    if name == "selp":
        return lambda a, b, p: a if p else b
    if name == "testp":
        return _tested(parts)
    if type_ in ("s16x2", "u16x2"):
        one = _integer(name, [*parts[:-1], type_[:3]])
        return lambda a, b: one(a & 0xFFFF, b & 0xFFFF) | one(a >> 16, b >> 16) << 16
    if type_ in FORMATS or type_ in ("f16x2", "bf16x2", "f32x2"):
        return _floating(name, parts)
    return _integer(name, parts)


def _integer(name: str, parts: list[str]) -> Meaning:
    type_ = parts[-1]
    size = size_of(type_)

    def of(*raws: int) -> list[int]:
        return [integer(raw, type_) for raw in raws]

    def divide(a: int, b: int) -> int:
        return (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1) if b else -1

    def prmt(a: int, b: int, s: int) -> int:
        bytes_, result = [(b << 32 | a) >> 8 * n & 255 for n in range(8)], 0
        for n in range(4):
            byte = bytes_[s >> 4 * n & 7]
            if s >> 4 * n & 8:
                byte = 255 if byte & 128 else 0
            result |= byte << 8 * n
        return result

    def extract(x: int, position: int, length: int) -> int:
        position, length = position & 255, length & 255
        unsigned = type_[0] == "u" or length == 0
        sign = 0 if unsigned else x >> min(position + length - 1, size - 1) & 1
        inside = range(size)
        return sum((x >> position + i & 1 if i < length and position + i < size else sign) << i for i in inside)

    def insert(a: int, b: int, position: int, length: int) -> int:
        for i in range(length & 255):
            if (position & 255) + i < size:
                at = (position & 255) + i
                b = b & ~(1 << at) | (a >> i & 1) << at
        return b

    def shift_right(x: int, n: int) -> int:
        return integer(x, type_) >> min(n, size)

    def topmost(x: int) -> int:
        return (~x if integer(x, type_) < 0 else x) & ((1 << size) - 1)

    def find(x: int) -> int:
        return topmost(x).bit_length() - 1 if topmost(x) else 0xFFFFFFFF

    def funnel(low: int, high: int, by: int) -> int:
        n, whole = by % 32 if "wrap" in parts else min(by, 32), high << 32 | low
        return whole << n >> 32 if parts[0] == "l" else whole >> n

    simple: dict[str, Meaning] = {
        "cvta.global": lambda x: x,  # a generic address of global memory is its own
        "cvta.to.global": lambda x: x,
        "popc": lambda x: f"{x:b}".count("1"),
        "clz": lambda x: size - x.bit_length(),
        "brev": lambda x: int(f"{x:0{size}b}"[::-1], 2),
        "bfind": find,
        "bfind.shiftamt": lambda x: size - 1 - find(x) if topmost(x) else 0xFFFFFFFF,
        **{f"shf.{side}.{mode}": funnel for side in "lr" for mode in ("wrap", "clamp")},
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul.lo": lambda a, b: a * b,
        "mul.hi": lambda a, b: (integer(a, type_) * integer(b, type_)) >> size,
        "mul.wide": lambda a, b: math.prod(of(a, b)),
        "mad.lo": lambda a, b, c: a * b + c,
        "mad.wide": lambda a, b, c: math.prod(of(a, b)) + c,
        "div": lambda a, b: divide(*of(a, b)),
        "rem": lambda a, b: integer(a, type_) - divide(*of(a, b)) * integer(b, type_),
        "min": lambda a, b: min(of(a, b)),
        "max": lambda a, b: max(of(a, b)),
        "neg": lambda a: -a,
        "abs": lambda a: abs(integer(a, type_)),
        "and": lambda a, b: a & b,
        "or": lambda a, b: a | b,
        "xor": lambda a, b: a ^ b,
        "not": lambda a: ~a,
        "shl": lambda a, n: a << n if n < size else 0,
        "shr": shift_right,
        "bfe": extract,
        "bfi": insert,
        "prmt": prmt,
        "lop3": lambda a, b, c, t: sum(
            (t >> (4 * (a >> i & 1) + 2 * (b >> i & 1) + (c >> i & 1)) & 1) << i for i in range(32)
        ),
    }
    key = ".".join([name, *parts[:-1]])
    function = simple[key]
    into = 2 * size if "wide" in parts else size
    return lambda *raws: wrap(function(*raws), into)


def _negative(raw: int, kind: str) -> bool:
    return raw >> (WIDTHS[kind] - 1) == 1


def _flush(raw: int) -> int:
    return raw & 0x80000000 if raw & 0x7F800000 == 0 else raw


def _floating(name: str, parts: list[str]) -> Meaning:
    kind = parts[-1]
    mode = next((p for p in parts if p in ("rn", "rz", "rm", "rp")), "rn")
    if kind.endswith("x2"):
        one = _floating(name, [*parts[:-1], kind[:-2]])
        half = size_of(kind) // 2

        def both(*raws: int) -> int:
            low = one(*(raw & ((1 << half) - 1) for raw in raws))
            return low | one(*(raw >> half for raw in raws)) << half

        return both
    if len(parts) > 1 and parts[-2] == "f32" and kind != "f32":  # add.f32.bf16: the first operands are narrow
        wide = _floating(name, [*parts[:-2], "f32"])
        return lambda *raws: wide(*(_widen(raw, kind) for raw in raws[:-1]), raws[-1])
    if name == "copysign":
        top = 1 << (WIDTHS[kind] - 1)
        return lambda a, b: (a & top) | (b & (top - 1))
    ftz = "ftz" in parts

    def compute(*raws: int) -> int:
        raws = tuple(map(_flush, raws)) if ftz else raws
        if "xorsign" in parts:
            top = 1 << (WIDTHS[kind] - 1)
            size = _arithmetic(name, tuple(raw & (top - 1) for raw in raws), kind, mode)
            result = size if size == NAN[kind] else size | (raws[0] ^ raws[1]) & top
            return _flush(result) if ftz else result
        result = _arithmetic(name, raws, kind, mode, keep_nan="NaN" in parts)
        return _flush(result) if ftz else result

    return compute


def _widen(raw: int, kind: str) -> int:
    value = number(raw, kind)
    if isinstance(value, float):
        return NAN["f32"] if math.isnan(value) else 0x7F800000 | (0x80000000 if value < 0 else 0)
    return rounded(value, "f32", "rn", int(_negative(raw, kind)))


def _infinity(kind: str, negative: bool) -> int:
    width = WIDTHS[kind]
    return negative << (width - 1) | ((1 << (width - FORMATS[kind][0])) - 1) << (FORMATS[kind][0] - 1)


def _arithmetic(name: str, raws: tuple[int, ...], kind: str, mode: str, *, keep_nan: bool = False) -> int:
    values = [number(raw, kind) for raw in raws]
    signs = [_negative(raw, kind) for raw in raws]
    flip = 1 << (WIDTHS[kind] - 1)
    nan = [isinstance(v, float) and math.isnan(v) for v in values]
    if name in ("min", "max"):
        if any(nan):
            return NAN[kind] if all(nan) or keep_nan else raws[nan.index(False)]
        # -0 is less than +0
        order = sorted(range(2), key=lambda n: (float(values[n]), not signs[n]))
        return raws[order[0 if name == "min" else 1]]
    if name in ("neg", "abs") and kind == "bf16":
        return raws[0] ^ flip if name == "neg" else raws[0] & ~flip
    if any(nan):
        return NAN[kind]
    if name == "neg":
        return raws[0] ^ flip
    if name == "abs":
        return raws[0] & ~flip
    if name == "sub":
        return _arithmetic("add", (raws[0], raws[1] ^ flip), kind, mode)
    if name in ("sqrt", "rcp"):
        return _root(values[0], signs[0], kind) if name == "sqrt" else _divide(Fraction(1), values[0], signs[0], kind)
    if name == "div":
        return _divide(values[0], values[1], signs[0] != signs[1], kind, mode)
    if name == "mul":
        return _multiply(values, signs[0] != signs[1], kind, mode)
    if name == "fma":
        return _fma(values, signs, kind, mode)
    return _fma([values[0], Fraction(1), values[1]], [signs[0], False, signs[1]], kind, mode)


def _multiply(values: list[Any], negative: bool, kind: str, mode: str) -> int:
    if any(isinstance(v, float) for v in values):
        return NAN[kind] if 0 in values else _infinity(kind, negative)
    return rounded(values[0] * values[1], kind, mode, int(negative))


def _fma(values: list[Any], signs: list[bool], kind: str, mode: str) -> int:
    a, b, c = values
    negative = signs[0] != signs[1]
    if isinstance(a, float) or isinstance(b, float):
        if a == 0 or b == 0 or (isinstance(c, float) and signs[2] != negative):
            return NAN[kind]
        return _infinity(kind, negative)
    if isinstance(c, float):
        return _infinity(kind, signs[2])
    zero = negative if negative == signs[2] and a * b == 0 and c == 0 else mode == "rm"
    return rounded(a * b + c, kind, mode, int(zero))


def _divide(a: Any, b: Any, negative: bool, kind: str, mode: str = "rn") -> int:
    if isinstance(a, float) or b == 0:
        return NAN[kind] if isinstance(b, float) or (b == 0 and a == 0) else _infinity(kind, negative)
    if isinstance(b, float):
        return rounded(Fraction(0), kind, "rn", int(negative))
    return rounded(a / b, kind, mode, int(negative))


def _root(value: Any, negative: bool, kind: str) -> int:
    if value == 0:
        return rounded(Fraction(0), kind, "rn", int(negative))
    if negative:
        return NAN[kind]
    if isinstance(value, float):
        return _infinity(kind, False)
    scaled = value * 4**700  # the integer root has hundreds of bits; a last one stands for all that follow
    whole = math.isqrt(scaled.numerator // scaled.denominator)
    exact = whole * whole * scaled.denominator == scaled.numerator
    return rounded(Fraction(2 * whole + (not exact), 2 * 2**700), kind, "rn")


def _tested(parts: list[str]) -> Meaning:
    kind, lowest = parts[-1], FORMATS[parts[-1]][1]
    bits = FORMATS[kind][0]

    def holds(raw: int) -> int:
        value = number(raw, kind)
        infinite = value in (float("inf"), -float("inf"))
        lost = isinstance(value, float) and math.isnan(value)
        small = not isinstance(value, float) and abs(value) < Fraction(2) ** (lowest + bits - 1)
        return int(
            {
                "finite": not infinite and not lost,
                "infinite": infinite,
                "number": not lost,
                "notanumber": lost,
                "normal": not infinite and not lost and not small,
                "subnormal": small and value != 0,
            }[parts[0]]
        )

    return holds


def _compare(parts: list[str]) -> Meaning:
    relation, type_ = parts[0], parts[-1]
    if type_ not in FORMATS:
        compare = COMPARE[relation]
        return lambda a, b: int(compare(integer(a, type_), integer(b, type_)))
    flush = _flush if "ftz" in parts else int

    def holds(a: int, b: int) -> int:
        x, y = number(flush(a), type_), number(flush(b), type_)
        unordered = any(isinstance(v, float) and math.isnan(v) for v in (x, y))
        if relation in ("nan", "num"):
            return int(unordered == (relation == "nan"))
        if unordered:
            return int(relation.endswith("u"))
        return int(COMPARE[relation[:2]](x, y))

    return holds


def _convert(parts: list[str]) -> Meaning:
    to, of = parts[-2:]
    mode = next((p for p in parts if p in ("rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi")), "rn")
    if "sat" in parts:
        return _saturate("ftz" in parts)
    if to.endswith("x2"):
        one, half = _convert([*parts[:-2], to[:-2], of.removesuffix("x2")]), size_of(to) // 2
        if of.endswith("x2"):
            width = size_of(of) // 2
            return lambda raw: one(raw >> width) << half | one(raw & ((1 << width) - 1))
        return lambda high, low: one(high) << half | one(low)
    if "e4m3" in (to, of):
        return _to_e4m3(of) if to == "e4m3" else lambda raw: _exactly(e4m3(raw), raw >> 7, to)
    if of not in FORMATS and to not in FORMATS:
        return lambda raw: wrap(integer(raw, of), size_of(to))
    if of not in FORMATS:
        return lambda raw: rounded(Fraction(integer(raw, of)), to, mode)
    flush = _flush if "ftz" in parts else int
    wholes: dict[str, Callable[[Any], int]] = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}
    whole = wholes.get(mode)

    def convert(raw: int) -> int:
        raw = flush(raw)
        value, negative = number(raw, of), _negative(raw, of)
        if to in FORMATS:
            if isinstance(value, float):
                if "satfinite" in parts and math.isinf(value):
                    return _infinity(to, negative) - 1
                return NAN[to] if math.isnan(value) else _infinity(to, negative)
            if "satfinite" in parts:
                value = max(-Fraction(57344), min(value, Fraction(57344)))
            return rounded(Fraction(whole(value)) if whole else value, to, "rn" if whole else mode, int(negative))
        assert whole is not None
        low = -(1 << (size_of(to) - 1)) if to[0] == "s" else 0
        high = low + (1 << size_of(to)) - 1
        if isinstance(value, float):
            if math.isnan(value):
                return 1 << (size_of(to) - 1) if 64 in (size_of(to), size_of(of)) else 0
            return wrap(low if value < 0 else high, size_of(to))
        return wrap(max(low, min(high, whole(value))), size_of(to))

    return convert


def _saturate(flushed: bool) -> Meaning:
    def clamp(raw: int) -> int:
        value = number(_flush(raw) if flushed else raw, "f32")
        if isinstance(value, float):
            return 0x3F800000 if value > 0 else 0
        return rounded(max(Fraction(0), min(value, Fraction(1))), "f32", "rn")

    return clamp


def e4m3(raw: int) -> Fraction | float:
    """The value of bits of e4m3: a sign, 4 bits of exponent with bias 7, 3 of fraction; no infinity."""
    exponent, fraction = raw >> 3 & 15, raw & 7
    if raw & 0x7F == 0x7F:
        return math.nan
    size = Fraction(fraction, 512) if exponent == 0 else Fraction(8 + fraction, 8) * Fraction(2) ** (exponent - 7)
    return -size if raw >> 7 else size


def _exactly(value: Fraction | float, sign: int, to: str) -> int:
    return NAN[to] if isinstance(value, float) else rounded(value, to, "rn", sign)


_E4M3 = {raw: Fraction(e4m3(raw)) for raw in range(0x7F)}


def _to_e4m3(of: str) -> Meaning:
    """The nearest of all values, the even one of two; beyond the largest it is the largest."""

    def nearest(raw: int) -> int:
        value, sign = number(raw, of), int(_negative(raw, of)) << 7
        if isinstance(value, float):
            return 0x7F if math.isnan(value) else sign | 0x7E
        return sign | min(_E4M3, key=lambda code: (abs(_E4M3[code] - abs(value)), code & 1))

    return nearest
