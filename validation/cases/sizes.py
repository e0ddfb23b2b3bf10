"""Widths, batches, frames and tokens, by the classes for which Triton compiles a kernel."""

import functools
import itertools
import math
from collections.abc import Iterable, Mapping

from validation.cases.chooser import Chooser

# The most elements of an activation: a launch of a few programs, at 2 to 4 ms each under the interpreter.
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
    "model": (64, 128, 1024, 3072, 3584, 4608, 5120, 5376, 6144, 7168),
    # One whole block of columns, and more than one: the kernels loop. 5, 6, 7 and 9 blocks of 2048, 3, 5, 6 of 4096.
    "beyond": (8192, 8193, 9000, 10240, 12288, 14336, 16384, 18432, 24576, 65536),
}
# Per head: Helios 128, Hunyuan3D-2 and FLUX 64 and 128; the others are chosen to hurt.
HEAD_DIMS = {
    "pow2": (4, 8, 16, 32, 256),
    "two": (2,),
    "even": (*(n for n in range(6, 131, 2) if not _power_of_two(n)), 160, 192),
    "model": (64, 128),
}
ROTATED_ODD_HEAD_DIMS = {"prime": _primes(3, 127)}
ODD_HEAD_DIMS = {"one": (1,), **ROTATED_ODD_HEAD_DIMS}

HEADS = (2, 1, 3, 5, 2, 1, 3, 5, 9, 0)  # one in ten has no heads
RARE_HEADS = (40,)  # Helios: more than a tile of 32 or 16 heads, and no multiple of either
MANY_HEADS = (33_000,)  # more than 16 bits count; with "many_heads", more rows than Helios' 441,600

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
    "long_frames": ((2, 2), (2, 3), (100, 160)),  # the same, with more than one frame
    "no_batch": ((0, 0), (1, 2), (1, 4)),
    "no_tokens": ((1, 2), (1, 2), (0, 0)),
    "single_tokens": ((12, 24), (1, 1), (1, 1)),
    "many_rows": ((2, 2), (1, 1), (32_800, 33_500)),  # more than 65535 rows
    "many_tokens": ((1, 1), (1, 1), (65_600, 66_500)),  # more than 65536 tokens in one item
    "many_items": ((65_600, 66_500), (1, 1), (1, 1)),  # more than a grid's second axis takes
    "more_frames": ((2, 2), (65, 80), (1, 2)),
    "many_heads": ((2, 2), (1, 1), (7, 7)),
    "most_rows": ((1, 1), (1, 1), (2**23 + 1, 2**23 + 16)),
    "nine_items": ((9, 9), (1, 1), (1, 1)),
    "nine_rows": ((1, 1), (1, 1), (9, 9)),
    "tall": ((2, 2), (1, 1), (300, 304)),  # more than 512 rows, however wide
}
# Most cases compute something: two in sixteen of the freely drawn sizes are empty.
COMMON_SIZES: tuple[str, ...] = ("general",) * 3 + ("frames",) * 2 + ("ragged",) * 2
COMMON_SIZES += ("one_batch", "sixteens", "one_token", "square", "sixteens", "items", "long", "no_batch", "no_tokens")
# What corners of large counts ask for.
LARGE_SIZES = ("many_rows", "many_tokens", "many_items", "tall", "many_heads", "most_rows", "nine_items", "nine_rows")
RARE_SIZES = ("one_token_each", "single_tokens", *LARGE_SIZES)
# Sizes that wide rows do not make smaller.
AT_ANY_WIDTH = ("sixteens", "square", *LARGE_SIZES)
RARE_WIDTHS = ("beyond",)

Sizes = tuple[int, int, int]

ONE_ROW = (1,) * 6
"""The class of one batch item with one frame of one token."""


def size_class(number: int) -> int:
    """0, 1, or minus the number's power of two, up to 16: all that Triton sees of it and of its products.

    Triton compiles another kernel for an integer that is 1 and for one that 16 divides.
    """
    return number if number in (0, 1) else -math.gcd(number, 16)


def width_class(width: int) -> tuple[int, ...]:
    """The properties of a width that kernels are compiled for: the block that holds it, and the strides it leads to.

    A rotary op also has rows of half and of a quarter of the width.
    """
    parts = [width // n for n in (1, 2, 4)]
    return (*map(size_class, parts), *((part - 1).bit_length() for part in parts))


@functools.cache
def _size_classes(size: str, width: int, units: frozenset[int]) -> dict[tuple[int, ...], tuple[Sizes, ...]]:
    """The batch, frames and tokens of a size, grouped by the properties that kernels are compiled for.

    Args:
        size: a key of `SIZES`.
        width: the greatest width of the rows.
        units: powers of two up to 16: each stride is a multiple of one of these, times one of the three numbers or a
            product of them.
    """
    all_sizes = [
        (batch, frames, tokens)
        for batch, frames, tokens in itertools.product(*(range(low, high + 1) for low, high in SIZES[size]))
        if size != "square" or batch == tokens
    ]
    if size not in AT_ANY_WIDTH:
        fits = [sizes for sizes in all_sizes if math.prod(sizes) * width <= MAX_ELEMENTS]
        all_sizes = fits or [min(all_sizes, key=math.prod)]
    members: dict[tuple[int, ...], list[Sizes]] = {}
    for sizes in all_sizes:
        batch, frames, tokens = sizes
        # Kernels also take the tokens of a frame and of all frames themselves as arguments.
        also = units | {1}
        numbers = (batch, frames, tokens, frames * tokens, batch * tokens, batch * frames * tokens)
        within = (units, units, also, also, units, units)
        key = tuple(_divisible(number, of) for number, of in zip(numbers, within, strict=True))
        members.setdefault(key, []).append(sizes)
    return {key: tuple(members[key]) for key in sorted(members, key=lambda key: [(c < 0, abs(c)) for c in key])}


def _divisible(number: int, units: frozenset[int]) -> int:
    """0, 1, or a negative number that counts the units whose product with the number is a multiple of 16."""
    return number if number in (0, 1) else -1 - sum(number * unit % 16 == 0 for unit in units)


def sizes_of(choose: Chooser, width: int, units: Iterable[int]) -> Sizes:
    """B, F and the tokens of a frame, fewer if rows are wide; ``units`` are the `units_of` of the tensors."""
    powers = frozenset(math.gcd(unit, 16) for unit in units)
    narrow = math.prod(low for low, _ in SIZES["long"]) * width <= MAX_ELEMENTS
    common = [size for size in COMMON_SIZES if size != "long" or narrow]
    classes = _size_classes(
        choose.pick("size", common, ("long", "long_frames", "many_frames", "more_frames", *RARE_SIZES)), width, powers
    )
    return choose.member("sizes", classes, by_size=True)


@functools.cache
def _width_classes(widths: tuple[int, ...]) -> dict[tuple[int, ...], list[int]]:
    classes: dict[tuple[int, ...], list[int]] = {}
    for width in widths:
        classes.setdefault(width_class(width), []).append(width)
    return classes


def width_of(choose: Chooser, table: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """A width from the table, and the widest of its class."""
    kind = choose.pick("width", [w for w in table if w not in RARE_WIDTHS], [w for w in table if w in RARE_WIDTHS])
    classes = _width_classes(table[kind])
    members = classes[choose.pick("width.class", list(classes))]
    return choose.pick("width.member", members), max(members)
