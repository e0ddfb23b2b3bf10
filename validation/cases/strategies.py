"""Hypothesis strategies: what a case of each op may be.

A strategy is made from the op's signature alone: each argument name has a role (`x`, `residual`, `shift`,
`weight`, `q`, `cos`, ...), and the roles say which shapes go together. An op whose arguments all have known
roles needs nothing here.

Every discrete choice goes through `Chooser.pick` under a name, so that a corner (see `corners.py`) can be
forced by fixing some choices, and Hypothesis shrinks towards the first option of each. All choices but those of
`VALUES` together are the compile key: the cases that share them are computed by one compiled kernel. So the width,
and then the batch, frames and tokens together, are chosen in two steps (`Chooser.member`): the class, by what Triton
and the kernels' blocks tell apart, is part of the key; which member of that class is not.
"""

import dataclasses
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import hypothesis.strategies as st

from validation.cases.case import FLOAT_DTYPES, MAX_LITERALS, Case, TensorSpec
from validation.cases.values import MODULATIONS, REGIMES
from validation.errors import UsageError

T = TypeVar("T")

KNOWN_ARGUMENTS = frozenset(
    {"x", "residual", *MODULATIONS, "weight", "bias", "q", "k", "q_weight", "k_weight", "cos", "sin"}
    | {"eps", "casting_mode", "inplace", "interleaved", "scale_constant"}
)

# About 40 k elements an activation: a launch of a few programs, 2 to 4 ms each under the interpreter.
MAX_ELEMENTS = 40_000


def _power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _primes(low: int, high: int) -> tuple[int, ...]:
    return tuple(n for n in range(low, high + 1) if all(n % factor for factor in range(2, math.isqrt(n) + 1)))


WIDTHS = {
    "pow2": (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
    "one": (1,),
    "prime": _primes(2, 1021),
    "pow2-1": (15, 63, 255, 511, 1023, 2047, 4095),
    "pow2+1": (9, 17, 33, 65, 129, 257, 513, 1025, 4097),
    "16k": tuple(n for n in range(48, 3073, 16) if not _power_of_two(n)),
    "even": tuple(n for n in range(6, 3075, 2) if n % 16),
    "model": (64, 128, 1024, 3072, 5120),
    # One whole block of columns, and beyond it: the kernels loop.
    "beyond": (8192, 8193, 9000, 16384),
}
# Per head: Helios 128, Hunyuan3D-2 and FLUX 64 and 128; the rest to hurt.
HEAD_DIMS = {
    "pow2": (4, 8, 16, 32, 256),
    "two": (2,),
    "even": (*(n for n in range(6, 131, 2) if not _power_of_two(n)), 160, 192),
    "model": (64, 128),
}
ROTATED_ODD_HEAD_DIMS = {"prime": _primes(3, 127)}
ODD_HEAD_DIMS = {"one": (1,), **ROTATED_ODD_HEAD_DIMS}

# name -> (batch, frames, tokens a frame), each an inclusive range
SIZES: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "general": ((1, 3), (1, 4), (1, 16)),
    "frames": ((2, 4), (2, 4), (2, 12)),
    "one_batch": ((1, 1), (1, 3), (1, 24)),
    "one_token": ((1, 8), (1, 1), (1, 1)),
    "one_token_each": ((2, 8), (1, 1), (1, 1)),
    "sixteens": ((1, 3), (1, 3), (16, 16)),
    "ragged": ((1, 2), (1, 1), (33, 75)),
    "square": ((2, 7), (1, 1), (2, 7)),  # B == L
    "items": ((9, 20), (1, 2), (1, 4)),
    "many_frames": ((2, 2), (9, 33), (1, 3)),
    "long": ((1, 2), (1, 3), (100, 300)),  # several tiles of tokens in one item, and in one frame
    "long_frames": ((2, 2), (2, 3), (100, 160)),  # the same of frames that are more than one
    "no_batch": ((0, 0), (1, 2), (1, 4)),
    "no_tokens": ((1, 2), (1, 2), (0, 0)),
    "single_tokens": ((12, 24), (1, 1), (1, 1)),
    "many_rows": ((2, 2), (1, 1), (32_800, 33_500)),  # more than 65535 rows
    "many_tokens": ((1, 1), (1, 1), (65_600, 66_500)),  # more than 65536 tokens in one item
    "many_items": ((65_600, 66_500), (1, 1), (1, 1)),  # more than a grid's second axis takes
    "far": ((1, 1), (1, 1), (9, 9)),
}
# Most cases compute something: of the sizes drawn freely, two in sixteen are empty.
COMMON_SIZES: tuple[str, ...] = ("general",) * 3 + ("frames",) * 2 + ("ragged",) * 2
COMMON_SIZES += ("one_batch", "sixteens", "one_token", "square", "sixteens", "items", "long", "no_batch", "no_tokens")
RARE_SIZES = ("one_token_each", "single_tokens", "many_rows", "many_tokens", "many_items", "far")
RARE_WIDTHS = ("beyond",)

FORMS = (
    "[D]",
    "scalar",
    "[1]",
    "[B,D]",
    "[1,1,D]",
    "[B,1,D]",
    "[1,L,D]",
    "[B,L,D]",
    "[B,F,1,D]",
    "indexed",
    "indexed[B]",
)
ACTIVATION_LAYOUTS = ("contiguous", "offset1", "gapped", "transposed", "strided_last", "packed", "sliced")
MODULATION_LAYOUTS = ("contiguous", "offset1", "gapped", "strided_last", "chunked", "expanded", "sliced")
ROW_LAYOUTS = ("contiguous", "offset1", "strided_last")
TABLE_LAYOUTS = ("contiguous", "offset1", "gapped", "strided_last", "sliced")
RARE_TABLE_ROWS = (300,)  # more than a byte counts, or a kernel keeps at hand
INDEX_LAYOUTS = (*ROW_LAYOUTS, "expanded")
# Layout "sliced", x[:, n:]: what follows the first so many tokens of each batch item, or rows of each item's table.
SKIPPED = 16
# The row is one of three (q of a packed qkv), or of six (shift, scale and gate, twice).
PARTS = {"packed": 3, "chunked": 6}
ANGLE_LAYOUTS = ("contiguous", "offset1", "gapped", "strided_last", "expanded", "sliced")
AS_Q = "as q"  # k's dtype
QK_LAYOUTS = ("own", "packed", "same")
HEADS = (2, 1, 3, 5, 2, 1, 3, 5, 9, 0)  # none in one of ten
RARE_HEADS = (40,)  # Helios: more than a tile of 32 or 16 of them, and no multiple of either
# An activation of stride 0, which any input may be, tells no rows apart: corners alone ask for it.
RARE_LAYOUTS = ("far", "repeated")
# Layout "far": nine rows that begin in the middle of 2 FAR elements, FAR / 8 apart and a bit more. The ninth is
# past FAR, and a row offset that wraps at 32 bits leads to poison before the first row, not out of the memory.
FAR = 2**31
EPS = (1e-6, 1e-5, 1e-3)
# With an eps of 0 a row of variance zero is 0 / 0, and what is nearly one is whatever its rounding makes of it.
WITHOUT_EPS = ("normal", "variance_eps", "zeros")

# Arguments that may be one tensor, where their shapes and dtypes agree; corners alone ask for it.
SHARED = (("residual", "x"), ("shift", "scale"), ("q_weight", "k_weight"), ("cos", "sin"))

# Choices that compile no kernel of their own: what tensors hold, and numbers that kernels take as floats.
VALUES = frozenset({"values", "literals", "eps", "scale_constant"})


def size_class(number: int) -> int:
    """0, or what Triton can tell of a number and of its products: 1, or the power of two in it, up to 16, negative.

    Triton compiles another kernel for an integer that is 1 and for one that 16 divides.
    """
    return number if number in (0, 1) else -math.gcd(number, 16)


def width_class(width: int) -> tuple[int, ...]:
    """What kernels are compiled for of a width: the block that holds it, and the strides it leads to.

    A rotary op has rows of a half and of a quarter of it besides.
    """
    parts = [width // n for n in (1, 2, 4)]
    return (*map(size_class, parts), *((part - 1).bit_length() for part in parts))


Sizes = tuple[int, int, int]


ONE_ROW = (1,) * 6
"""The class of one batch item with one frame of one token."""


@functools.cache
def _size_classes(size: str, width: int, units: frozenset[int]) -> dict[tuple[int, ...], tuple[Sizes, ...]]:
    """The batch, frames and tokens of a size, by what kernels are compiled for of them.

    Args:
        size: of `SIZES`.
        width: at most that wide are the rows.
        units: powers of two up to 16: the strides are multiples of one of the three, or of a product of them, and of
            one of these.
    """
    all_sizes = [
        (batch, frames, tokens)
        for batch, frames, tokens in itertools.product(*(range(low, high + 1) for low, high in SIZES[size]))
        if size != "square" or batch == tokens
    ]
    if size not in ("sixteens", "square", "many_rows", "many_tokens", "many_items", "far"):
        fits = [sizes for sizes in all_sizes if math.prod(sizes) * width <= MAX_ELEMENTS]
        all_sizes = fits or [min(all_sizes, key=math.prod)]
    members: dict[tuple[int, ...], list[Sizes]] = {}
    for sizes in all_sizes:
        batch, frames, tokens = sizes
        # The tokens of a frame and of all frames are also handed to kernels as they are.
        also = units | {1}
        numbers = (batch, frames, tokens, frames * tokens, batch * tokens, batch * frames * tokens)
        within = (units, units, also, also, units, units)
        key = tuple(_divisible(number, of) for number, of in zip(numbers, within, strict=True))
        members.setdefault(key, []).append(sizes)
    return {key: tuple(members[key]) for key in sorted(members, key=lambda key: [(c < 0, abs(c)) for c in key])}


def _divisible(number: int, units: frozenset[int]) -> int:
    """0, 1, or a negative number that counts the units whose product with the number is a multiple of 16."""
    return number if number in (0, 1) else -1 - sum(number * unit % 16 == 0 for unit in units)


class Chooser:
    """Draws named choices, some of them forced.

    Attributes:
        key: what was chosen, by name, but for the choices of `VALUES`.
    """

    def __init__(
        self,
        draw: Callable[[st.SearchStrategy[Any]], Any],
        forced: Mapping[str, Any],
        hints: Mapping[str, Any] | None = None,
    ) -> None:
        self._draw, self._forced, self._hints = draw, forced, hints or {}
        self.key: dict[str, Any] = {}

    def pick(self, name: str, options: Sequence[T], rare: Sequence[T] = ()) -> T:
        """One of the options, or what is forced under that name (rare options come only so).

        What has been picked under that name before stays.
        """
        chosen: T
        if name in self.key:
            chosen = self.key[name]
        elif name in self._forced:
            chosen = self._forced[name]
            if chosen not in options and chosen not in rare:
                raise ValueError(f"{name} is forced to {chosen!r}, expected one of {[*options, *rare]}")
        elif name in self._hints and self._hints[name] in (*options, *rare):
            chosen = self._draw(st.sampled_from((options[0], *(self._hints[name],) * 3)))
        else:
            chosen = self._draw(st.sampled_from(options))
        if name not in VALUES:
            self.key[name] = chosen
        return chosen

    def member(self, name: str, classes: Mapping[Any, Sequence[T]], *, by_size: bool = False) -> T:
        """One of the members of a class; which class is a choice of that name, which member is none.

        Classes are as likely as one another, or ``by_size`` as they have members.
        """
        options = [c for c, members in classes.items() for _ in members] if by_size else list(classes)
        members = classes[self.pick(name, options)]
        return members[self.integer(0, len(members) - 1)]

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        number: int = low if low == high else self._draw(st.integers(low, high))
        return number

    def literals(self, spec: TensorSpec) -> tuple[float, ...]:
        """Values for each element, drawn themselves so that they shrink."""
        width: Literal[16, 32] = 32 if spec.dtype == "float32" else 16
        numbers = st.floats(width=width, allow_nan=False, allow_infinity=False, min_value=-64.0, max_value=64.0)
        drawn: list[float] = self._draw(st.lists(numbers, min_size=spec.numel, max_size=spec.numel))
        return tuple(drawn)


@dataclasses.dataclass(frozen=True)
class Signature:
    """The arguments of an op, by role.

    Attributes:
        op: its name.
        names: of its arguments, in order.
        required: those without a default.
    """

    op: str
    names: tuple[str, ...]
    required: frozenset[str]

    @classmethod
    def of(cls, op: str, function: Callable[..., Any]) -> "Signature":
        """Read an op's signature.

        Raises:
            UsageError: an argument has a name that no case can be made for.
        """
        parameters = inspect.signature(function).parameters
        unknown = set(parameters) - KNOWN_ARGUMENTS
        if unknown:
            raise UsageError(
                f"op {op} has arguments {sorted(unknown)}, expected only names with a role: {sorted(KNOWN_ARGUMENTS)}"
            )
        required = {name for name, p in parameters.items() if p.default is inspect.Parameter.empty}
        return cls(op, tuple(parameters), frozenset(required))

    def __contains__(self, name: str) -> bool:
        return name in self.names

    @property
    def family(self) -> str:
        """``modulated`` (x [B, L, D]), ``norm`` (x [..., D]), ``rotary``, ``split_rotary`` or ``qk``."""
        if "q" in self:
            return "qk"
        if "cos" in self:
            return "rotary" if "interleaved" in self else "split_rotary"
        return "modulated" if any(name in self for name in (*MODULATIONS, "residual")) else "norm"

    @property
    def modulations(self) -> tuple[str, ...]:
        """Those of shift, scale and gate that it takes."""
        return tuple(name for name in MODULATIONS if name in self)

    @property
    def regimes(self) -> tuple[str, ...]:
        """The value regimes in which the op is judged."""
        left_out = set()
        if not self.modulations:
            left_out.add("zero_modulation")
        if not {"scale", "weight", "q_weight"} & set(self.names):
            left_out.add("large_modulation")
        if not self.modulations or ("eps" in self and "residual" not in self):
            left_out.add("ties")  # of a norm there is none
        return tuple(name for name in REGIMES if name not in left_out)


def cases(
    signature: Signature,
    forced: Mapping[str, Any] | None = None,
    *,
    bfloat16: bool = True,
    hints: Mapping[str, Any] | None = None,
) -> st.SearchStrategy[Case]:
    """Cases of an op.

    Args:
        signature: the op's.
        forced: choices that are fixed, by name (see `corners.Corner.forced`).
        bfloat16: False leaves bfloat16 out, where it cannot be judged.
        hints: choices made in three of four cases; in the fourth, the simplest.
    """

    @st.composite
    def make(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Case:
        return _draw_case(signature, Chooser(draw, forced or {}, hints), bfloat16)

    return make()


def compile_keys(
    signature: Signature, forced: Mapping[str, Any] | None = None, *, bfloat16: bool = True
) -> st.SearchStrategy[dict[str, Any]]:
    """Compile keys of an op: choices that, forced on `cases`, leave those free that compile no kernel of their own.

    The arguments are those of `cases`.
    """

    @st.composite
    def make(draw: Callable[[st.SearchStrategy[Any]], Any]) -> dict[str, Any]:
        choose = Chooser(draw, forced or {})
        _draw_case(signature, choose, bfloat16)
        return choose.key

    return make()


def _draw_case(signature: Signature, choose: Chooser, bfloat16: bool) -> Case:
    # The seed comes first: Hypothesis makes each example new in its first choice where it can, and with the dtype
    # in that place the one case of a corner was float32 in 1 of 53 corners.
    seed = choose.integer(0, 2**31 - 1)
    dtypes = [name for name in FLOAT_DTYPES if bfloat16 or name != "bfloat16"]
    dtype = choose.pick("dtype", dtypes)
    regime = choose.pick("values", signature.regimes)
    flags: dict[str, Any] = {}
    if "eps" in signature:
        flags["eps"] = choose.pick("eps", (*EPS, 0.0) if regime in WITHOUT_EPS else EPS)
    if "casting_mode" in signature:
        flags["casting_mode"] = choose.pick("casting_mode", ("float32", "input"))
    for name in ("interleaved", "inplace"):
        if name in signature:
            flags[name] = choose.pick(name, (False, True))
    if "scale_constant" in signature:
        flags["scale_constant"] = choose.pick("scale_constant", (1.0, 0.0, 0.5))
    family = {"modulated": _modulated, "norm": _norm, "qk": _qk, "rotary": _rotary, "split_rotary": _split_rotary}
    tensors = family[signature.family](signature, choose, dtype, dtypes)
    for first, second in SHARED:
        if first in signature and second in signature and choose.pick(f"{first} is {second}", (False,), (True,)):
            tensors |= {first: tensors[second]}
    if "k" in tensors and tensors["k"] == tensors["q"]:
        flags["inplace"] = False  # one tensor as q and k: what both are written to is refused
    if "inplace" in flags and any(choose.key.get(f"{name}.layout") == "repeated" for name in ("x", "q", "k")):
        flags["inplace"] = False  # so is what holds an element twice
    literals = {}
    if regime == "normal" and choose.pick("literals", (False, False, False, True)):
        small = {n: s for n, s in tensors.items() if 0 < s.numel <= MAX_LITERALS and not n.endswith(".index")}
        literals = {name: choose.literals(spec) for name, spec in small.items() if name in ("x", "q", "scale")}
    return Case(signature.op, tensors, flags, regime, seed, literals)


def _sizes(choose: Chooser, width: int, units: Iterable[int]) -> Sizes:
    """B, F and the tokens of a frame, fewer where rows are wide; ``units`` are the `_units` of the tensors."""
    powers = frozenset(math.gcd(unit, 16) for unit in units)
    narrow = math.prod(low for low, _ in SIZES["long"]) * width <= MAX_ELEMENTS
    common = [size for size in COMMON_SIZES if size != "long" or narrow]
    classes = _size_classes(
        choose.pick("size", common, ("long", "long_frames", "many_frames", *RARE_SIZES)), width, powers
    )
    return choose.member("sizes", classes, by_size=True)


def _width(choose: Chooser, table: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """A width, and the widest of its class."""
    kind = choose.pick("width", [w for w in table if w not in RARE_WIDTHS], [w for w in table if w in RARE_WIDTHS])
    classes: dict[tuple[int, ...], list[int]] = {}
    for width in table[kind]:
        classes.setdefault(width_class(width), []).append(width)
    width = choose.member("width.class", classes)
    return width, max(classes[width_class(width)])


def _mixed(choose: Chooser, name: str, dtype: str, dtypes: Sequence[str]) -> str:
    return choose.pick(f"{name}.dtype", [dtype, *(d for d in dtypes if d != dtype)])


def _layout(choose: Chooser, name: str, shape: tuple[int, ...], dtype: str, layouts: Sequence[str]) -> TensorSpec:
    """Lay a tensor out; its strides may overlap only where the layout says ``expanded``."""
    layout = choose.pick(f"{name}.layout", layouts, RARE_LAYOUTS)
    sizes, gap, offset, step = list(shape), 0, 0, 1
    order = list(range(len(shape)))
    match layout:
        case "offset1":
            offset = 1
        case "gapped":
            gap = _gap(choose, name, sizes[-1])
        case "transposed" if len(shape) > 1:
            # Swapping the inner two makes the last dimension a strided one. Of rank 4 the swap between those is
            # [B, S, H, Dh] in the memory of [B, H, S, Dh].
            first = choose.pick(f"{name}.swap", range(len(shape) - 1))
            order[first], order[first + 1] = order[first + 1], order[first]
        case "strided_last":
            step = _step(choose, name)
        case "packed" | "chunked":
            parts = PARTS[layout]
            width = sizes[-1] if sizes else 1
            part = choose.pick(f"{name}.part", range(parts))
            gap, offset = (parts - 1) * width, part * width
        case "sliced":
            skipped = min(1, len(shape) - 2)
            sizes[skipped] += SKIPPED
            offset = SKIPPED * math.prod(sizes[skipped + 1 :])
        case "far":
            offset = FAR
    strides = [0] * len(shape)
    run = step
    for axis in reversed(order):
        strides[axis] = run
        run *= max(sizes[axis], 1)
        if axis == order[-1]:
            run += gap
    if layout == "far":
        strides[:2] = FAR, FAR // 8 + 16
    if layout in ("expanded", "repeated"):
        wide = [axis for axis in range(len(shape) - 1) if sizes[axis] > 1]
        for axis in wide[: choose.pick(f"{name}.expanded", range(1, max(len(wide), 1) + 1))]:
            strides[axis] = 0
    return TensorSpec(shape, dtype, tuple(strides), offset, name)


def _units(choose: Chooser, name: str, row: int, layouts: Sequence[str], *, inner: bool = True) -> tuple[int, ...]:
    """What the strides of a tensor that grow with its sizes are multiples of, before the sizes are known.

    Args:
        choose: chooses the tensor's layout.
        name: the tensor's.
        row: the length of its rows.
        layouts: to choose from.
        inner: whether the dimension outside of the rows' own is a size, or a count that every case of a key has.
    """
    layout = choose.pick(f"{name}.layout", layouts, RARE_LAYOUTS)
    match layout:
        case "gapped":
            return (row + _gap(choose, name, row),)
        case "strided_last":
            return (row * _step(choose, name),)
        case "packed" | "chunked":
            return (row * PARTS[layout],)
        case "transposed" if inner:
            return 1, row  # that dimension may be the innermost
    return (row,)


def _step(choose: Chooser, name: str) -> int:
    return choose.pick(f"{name}.step", (2, 3))


def _gap(choose: Chooser, name: str, row: int) -> int:
    # 8 keeps rows of 16-byte-aligned bfloat16 aligned, 1 and 3 do not, 4 those of float32 alone. After a row of an odd
    # length 1 and 3 would lead to strides with powers of two that the class of the width does not tell: 2 and 4 do not.
    # After an odd multiple of 4 so would 4, and 8 does not.
    gap = choose.pick(f"{name}.gap", (8, 1, 3, 16, 4))
    return gap_after(row, gap)


def gap_after(row: int, gap: int) -> int:
    """The gap after a row of that length: such that all rows of a class of widths lead to one class of strides."""
    if gap == 4 and row % 8 == 4:
        return 8
    return gap + 1 if gap % 2 and row % 2 else gap


def _modulation_units(choose: Chooser, name: str, width: int) -> tuple[int, ...]:
    """`_units` of a modulation argument."""
    form = choose.pick(f"{name}.form", FORMS if name != "gate" else (*FORMS, "none"))
    if form in ("indexed", "indexed[B]"):
        return _units(choose, f"{name}.index", 1, INDEX_LAYOUTS, inner=False)
    if form in ("none", "scalar", "[1]", "[D]"):
        return ()
    return _units(choose, name, width, MODULATION_LAYOUTS, inner=False)


def _modulation(
    choose: Chooser, name: str, sizes: tuple[int, int, int, int], dtype: str, dtypes: Sequence[str]
) -> dict[str, TensorSpec]:
    """The tensors of one modulation argument; none of them for a gate of None."""
    batch, frames, tokens, width = sizes
    length = frames * tokens
    form = choose.pick(f"{name}.form", (*FORMS, "none") if name == "gate" else FORMS)
    if form == "none":
        return {}
    dtype = _mixed(choose, name, dtype, dtypes)
    if form in ("indexed", "indexed[B]"):
        rows = choose.pick(f"{name}.table.rows", (1, 2, 3, 4), RARE_TABLE_ROWS)
        shape: tuple[int, ...] = (rows, width) if form == "indexed" else (batch, rows, width)
        index_dtype = choose.pick(f"{name}.index.dtype", ("int64", "int32"))
        return {
            f"{name}.table": _layout(choose, f"{name}.table", shape, dtype, TABLE_LAYOUTS),
            f"{name}.index": _layout(choose, f"{name}.index", (batch, length), index_dtype, INDEX_LAYOUTS),
        }
    shape = {
        "scalar": (),
        "[1]": (1,),
        "[D]": (width,),
        "[B,D]": (batch, width),
        "[1,1,D]": (1, 1, width),
        "[B,1,D]": (batch, 1, width),
        "[1,L,D]": (1, length, width),
        "[B,L,D]": (batch, length, width),
        "[B,F,1,D]": (batch, frames, 1, width),
    }[form]
    layouts = MODULATION_LAYOUTS if len(shape) > 1 else ROW_LAYOUTS if shape else ("contiguous", "offset1")
    return {name: _layout(choose, name, shape, dtype, layouts)}


def _affine(
    signature: Signature, choose: Chooser, width: int, dtype: str, dtypes: Sequence[str]
) -> dict[str, TensorSpec]:
    names = [name for name in ("weight", "bias") if name in signature]
    if not names:
        return {}
    options = ("none", "weight", "bias", "both") if len(names) == 2 else ("none", "weight")
    affine = choose.pick("affine", options)
    return {
        name: _layout(choose, name, (width,), _mixed(choose, name, dtype, dtypes), ROW_LAYOUTS)
        for name in names
        if affine in (name, "both")
    }


def _modulated(signature: Signature, choose: Chooser, dtype: str, dtypes: Sequence[str]) -> dict[str, TensorSpec]:
    width, widest = _width(choose, WIDTHS)
    activations = [name for name in ("residual", "x") if name in signature]
    units = [unit for name in activations for unit in _units(choose, name, width, ACTIVATION_LAYOUTS)]
    units += [unit for name in signature.modulations for unit in _modulation_units(choose, name, width)]
    batch, frames, tokens = _sizes(choose, widest, units)
    if batch * frames * tokens > 10_000:
        width = min(width, 4)
    shape = (batch, frames * tokens, width)
    tensors = {name: _layout(choose, name, shape, dtype, ACTIVATION_LAYOUTS) for name in activations}
    for name in signature.modulations:
        tensors |= _modulation(choose, name, (batch, frames, tokens, width), dtype, dtypes)
    return tensors | _affine(signature, choose, width, dtype, dtypes)


def _norm(signature: Signature, choose: Chooser, dtype: str, dtypes: Sequence[str]) -> dict[str, TensorSpec]:
    width, widest = _width(choose, WIDTHS)
    rank = choose.pick("rank", (3, 1, 2, 4))
    layouts = ACTIVATION_LAYOUTS if rank > 1 else ROW_LAYOUTS
    batch, frames, tokens = _sizes(choose, widest, _units(choose, "x", width, layouts))
    if batch * frames * tokens > 10_000:
        width = min(width, 4)
    shape = {
        1: (width,),
        2: (batch * frames * tokens, width),
        3: (batch, frames * tokens, width),
        4: (batch, frames, tokens, width),
    }[rank]
    tensors = {"x": _layout(choose, "x", shape, dtype, layouts)}
    return tensors | _affine(signature, choose, width, dtype, dtypes)


def _qk_layouts(
    choose: Chooser, q: tuple[int, ...], k: tuple[int, ...], dtype: str, k_dtype: str
) -> dict[str, TensorSpec]:
    """Lay q and k out: each on its own, both in one packed ``[B, S, 3, H, head_dim]`` buffer, one as both."""
    layout = choose.pick("qk.layout", QK_LAYOUTS)
    alike = q == k and dtype == k_dtype
    if layout == "same" and alike:
        return dict.fromkeys(("q", "k"), _layout(choose, "q", q, dtype, ACTIVATION_LAYOUTS))
    if layout != "packed" or not alike or len(q) != 4:
        return {
            "q": _layout(choose, "q", q, dtype, ACTIVATION_LAYOUTS),
            "k": _layout(choose, "k", k, k_dtype, ACTIVATION_LAYOUTS),
        }
    batch, length, heads, width = q
    token = 3 * heads * width
    strides = (max(length, 1) * token, token, width, 1)
    del batch
    return {
        "q": TensorSpec(q, dtype, strides, 0, "qkv"),
        "k": TensorSpec(k, dtype, strides, heads * width, "qkv"),
    }


def _qk(signature: Signature, choose: Chooser, dtype: str, dtypes: Sequence[str]) -> dict[str, TensorSpec]:
    rope = "cos" in signature
    width, widest = _width(choose, HEAD_DIMS | (ROTATED_ODD_HEAD_DIMS if rope else ODD_HEAD_DIMS))
    heads = choose.pick("heads", HEADS, RARE_HEADS)
    rank = 4 if rope else choose.pick("qk.rank", (4, 4, 4, 3))
    other = choose.pick("k.shape", ("same", "heads", "fewer heads", *(() if rope else ("length", "shorter", "rank"))))
    k_dtype = choose.pick("k.dtype", [*(AS_Q,) * 4, *(d for d in dtypes if d != dtype)])
    k_dtype = dtype if k_dtype == AS_Q else k_dtype
    # Grouped queries: one head of k for several of q.
    k_heads = {"heads": heads + 1, "fewer heads": max(heads // 2, min(heads, 1)), "rank": 1}.get(other, heads)
    units = [width * heads]
    if choose.pick("qk.layout", QK_LAYOUTS) != "packed" or other != "same" or k_dtype != dtype or rank == 3:
        units = _head_units(choose, "q", width, heads)
        units += _head_units(choose, "k", width, k_heads, inner=other == "rank")
        if rank == 3:  # tokens may lie inside of heads
            units += [unit for name in ("q", "k") for unit in _units(choose, name, width, ACTIVATION_LAYOUTS)]
    if rope:
        units += _angle_units(choose, width, ANGLE_LAYOUTS)
    batch, frames, tokens = _sizes(choose, widest * max(heads, 1) * 2, units)
    if batch * frames * tokens > 10_000:
        width = min(width, 4)
    length = frames * tokens
    # 16 tokens more are of the same class.
    q_length, k_length = length + 16 * (other == "shorter"), length + 16 * (other == "length")
    q: tuple[int, ...] = (batch, q_length, heads, width)
    k: tuple[int, ...] = (batch, k_length, k_heads, width)
    if rank == 3:
        q, k = (batch * q_length, heads, width), (batch * k_length, k_heads, width)
    if other == "rank":
        k = (batch * length, width)
    tensors = _qk_layouts(choose, q, k, dtype, k_dtype)
    weights = choose.pick("qk.weights", ("both", "none", "q", "k"))
    for name in ("q_weight", "k_weight"):
        if weights in ("both", name[0]):
            tensors[name] = _layout(choose, name, (width,), _mixed(choose, name, dtype, dtypes), ROW_LAYOUTS)
    return tensors | (_angles(choose, batch, length, width, dtype, dtypes) if rope else {})


def _head_units(choose: Chooser, name: str, width: int, heads: int, *, inner: bool = False) -> list[int]:
    """`_units` of heads ``[B, S, H, head_dim]``; where they are swapped, heads may lie outside of tokens."""
    units = [heads * unit for unit in _units(choose, name, width, ACTIVATION_LAYOUTS, inner=inner)]
    return [*units, width] if choose.key[f"{name}.layout"] == "transposed" else units


def _angle_units(choose: Chooser, width: int, layouts: Sequence[str]) -> list[int]:
    """`_units` of cos and sin."""
    row = _rotated(choose, width) // 2
    return [unit for name in ("cos", "sin") for unit in _units(choose, name, row, layouts)]


def _rotated(choose: Chooser, width: int) -> int:
    """Dr: all channels that make pairs, half of them, or a few."""
    part = "full" if width < 4 else choose.pick("rotary_dim", ("full", "partial", "few"), ("all but two",))
    few = 8 if width > 16 else 2  # fewer than half of all for every width of its class
    all_but_two = max(width // 2 * 2 - 2, 2)
    return {"full": width // 2 * 2, "partial": 2 * (width // 4), "few": few, "all but two": all_but_two}[part]


def _angles(
    choose: Chooser, batch: int, length: int, width: int, dtype: str, dtypes: Sequence[str]
) -> dict[str, TensorSpec]:
    rows = (length, _rotated(choose, width) // 2)
    shapes: dict[str, tuple[int, ...]] = {"[S,Dr/2]": rows, "[B,S,Dr/2]": (batch, *rows)}
    form = choose.pick("cos.form", tuple(shapes))
    forms = {"cos": form, "sin": choose.pick("sin.form", [*(form,) * 3, *(f for f in shapes if f != form)])}
    kinds = _angle_dtypes(choose, dtype, dtypes)
    return {name: _layout(choose, name, shapes[forms[name]], kinds[name], ANGLE_LAYOUTS) for name in ("cos", "sin")}


def _angle_dtypes(choose: Chooser, dtype: str, dtypes: Sequence[str]) -> dict[str, str]:
    """Of cos, and of sin, mostly the same."""
    of_cos = _mixed(choose, "cos", dtype, dtypes)
    return {
        "cos": of_cos,
        "sin": choose.pick("sin.dtype", [*(of_cos,) * 4, *(d for d in dtypes if d != of_cos)]),
    }


def _rotary(signature: Signature, choose: Chooser, dtype: str, dtypes: Sequence[str]) -> dict[str, TensorSpec]:
    del signature
    width, widest = _width(choose, HEAD_DIMS | ROTATED_ODD_HEAD_DIMS)
    heads = choose.pick("heads", HEADS, RARE_HEADS)
    units = _head_units(choose, "x", width, heads)
    units += _angle_units(choose, width, ANGLE_LAYOUTS)
    batch, frames, tokens = _sizes(choose, widest * max(heads, 1), units)
    if batch * frames * tokens > 10_000:
        width = min(width, 4)
    length = frames * tokens
    x = _layout(choose, "x", (batch, length, heads, width), dtype, ACTIVATION_LAYOUTS)
    return {"x": x} | _angles(choose, batch, length, width, dtype, dtypes)


def _split_rotary(signature: Signature, choose: Chooser, dtype: str, dtypes: Sequence[str]) -> dict[str, TensorSpec]:
    del signature
    width, widest = _width(choose, HEAD_DIMS)
    heads = choose.pick("heads", [n for n in HEADS if n], RARE_HEADS)
    layouts = ("contiguous", "offset1", "gapped", "transposed", "strided_last", "expanded")
    angle_units = [unit for name in ("cos", "sin") for unit in _units(choose, name, width // 2, layouts)]
    units = [n * unit for n in (1, heads) for unit in angle_units]
    units += _units(choose, "x", heads * width, ACTIVATION_LAYOUTS)
    batch, frames, tokens = _sizes(choose, widest * heads, units)
    if batch * frames * tokens > 10_000:
        width = min(width, 4)
    length = frames * tokens
    x = _layout(choose, "x", (batch, length, heads * width), dtype, ACTIVATION_LAYOUTS)
    kinds = _angle_dtypes(choose, dtype, dtypes)
    shape = (batch, heads, length, width // 2)
    return {"x": x} | {name: _layout(choose, name, shape, kinds[name], layouts) for name in ("cos", "sin")}
