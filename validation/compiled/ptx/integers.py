"""Integer arithmetic as PTX has it, on arrays of the operands' own types; overflow wraps."""

from collections.abc import Callable

import numpy as np

from validation.compiled.ptx.bits import DTYPES, U4, U8, Array, halves, joined


def shl(x: Array, by: Array) -> Array:
    """Logic and Shift Instructions, shl: shifts beyond the register's width give 0."""
    width = 8 * x.dtype.itemsize
    return np.where(by < width, x << (by & U4.type(width - 1)).astype(x.dtype), x.dtype.type(0))


def shr(x: Array, by: Array) -> Array:
    """Logic and Shift Instructions, shr: signed types fill with the sign; shifts are clamped to the width."""
    width = 8 * x.dtype.itemsize
    if x.dtype.kind == "i":
        return x >> np.minimum(by, width - 1).astype(x.dtype)
    return np.where(by < width, x >> (by & U4.type(width - 1)).astype(x.dtype), x.dtype.type(0))


def bfe(x: Array, position: Array, length: Array) -> Array:
    """Integer Arithmetic Instructions, bfe: bit field extract; position and length are 8 bits each.

    A signed field is extended with its topmost bit, or with the topmost bit of x where it reaches beyond it; bits
    beyond x's width are that bit too (0 if unsigned).
    """
    width = 8 * x.dtype.itemsize
    length = length & U4.type(255)
    shifted = shr(x, position & U4.type(255))  # a signed x is filled with its sign
    if x.dtype.kind == "u":
        return shifted & _low_bits(length, x)
    kept = np.minimum(length, width)
    up = (width - kept.astype(np.int64)).astype(U4)
    return shr(shl(shifted.view(f"u{x.dtype.itemsize}"), up).view(x.dtype), up)


def bfi(field: Array, into: Array, position: Array, length: Array) -> Array:
    """Integer Arithmetic Instructions, bfi: bit field insert; position and length are 8 bits each."""
    position, length = position & U4.type(255), length & U4.type(255)
    mask = shl(_low_bits(length, into), position)
    return (into & ~mask) | (shl(field, position) & mask)


def _low_bits(count: Array, like: Array) -> Array:
    """Unsigned integers of the type of `like` whose lowest bits are 1: all of them from its width on."""
    return shl(np.ones_like(like), count) - like.dtype.type(1)


def prmt(a: Array, b: Array, selector: Array) -> Array:
    """Data Movement and Conversion Instructions, prmt: four bytes of {b, a}, or their signs, by four selectors."""
    pair = a.astype(U8) | (b.astype(U8) << U8.type(32))
    result = U4.type(0)
    for n in range(4):
        select = (selector >> U4.type(4 * n)) & U4.type(15)
        byte = ((pair >> ((select & U4.type(7)).astype(U8) * U8.type(8))) & U8.type(255)).astype(U4)
        sign = np.where((byte & U4.type(128)) != 0, U4.type(255), U4.type(0))
        result = result | (np.where((select & U4.type(8)) != 0, sign, byte) << U4.type(8 * n))
    return np.asarray(result)


def lop3(a: Array, b: Array, c: Array, table: Array) -> Array:
    """Logic and Shift Instructions, lop3: any function of three bits, by its table of truth."""
    result = np.zeros_like(a & b & c)
    for n in range(8):
        term = (a if n & 4 else ~a) & (b if n & 2 else ~b) & (c if n & 1 else ~c)
        result = result | np.where((table >> U4.type(n)) & U4.type(1) != 0, term, U4.type(0))
    return result


def wide(a: Array, b: Array) -> Array:
    """Integer Arithmetic Instructions, mul.wide: the whole product of two 16-bit or 32-bit integers."""
    whole = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
    return a.astype(whole) * b.astype(whole)


def mulhi(a: Array, b: Array) -> Array:
    """Integer Arithmetic Instructions, mul.hi: the upper half of the product."""
    size = a.dtype.itemsize
    if size < 8:
        return (wide(a, b) >> np.dtype(f"{a.dtype.kind}{2 * size}").type(8 * size)).astype(a.dtype)
    x, y = a.view(U8), b.view(U8)
    half, low = U8.type(32), U8.type(0xFFFFFFFF)
    xh, xl, yh, yl = x >> half, x & low, y >> half, y & low
    middle = xh * yl + ((xl * yl) >> half)
    other = xl * yh + (middle & low)
    high = xh * yh + (middle >> half) + (other >> half)
    if a.dtype.kind == "i":  # take back what the signs added
        high = high - np.where(a < 0, y, U8.type(0)) - np.where(b < 0, x, U8.type(0))
    return high.view(a.dtype)


def div(a: Array, b: Array) -> Array:
    """Integer Arithmetic Instructions, div: towards zero; by zero, which PTX leaves unspecified, all bits are 1."""
    divisor = np.where(b == 0, a.dtype.type(1), b)
    if a.dtype.kind == "u":
        return np.where(b == 0, ~a.dtype.type(0), a // divisor)
    negates = divisor == -1  # the lowest integer divided by -1 wraps; NumPy's division of it is not defined
    safe = np.where(negates, a.dtype.type(1), divisor)
    floor = a // safe
    quotient = floor + ((floor * safe != a) & ((a < 0) != (safe < 0))).astype(a.dtype)
    return np.where(b == 0, a.dtype.type(-1), np.where(negates, -a, quotient))


def rem(a: Array, b: Array) -> Array:
    """Integer Arithmetic Instructions, rem: with the sign of a."""
    return (a - div(a, b) * b).astype(a.dtype)


def popc(x: Array) -> Array:
    """Integer Arithmetic Instructions, popc: the number of bits that are 1."""
    return np.bitwise_count(x).astype(U4)


def _smeared(x: Array) -> Array:
    """x with all bits below its topmost 1 set too."""
    for n in (1, 2, 4, 8, 16, 32)[: 5 if x.dtype.itemsize == 4 else 6]:
        x = x | (x >> x.dtype.type(n))
    return x


def clz(x: Array) -> Array:
    """Integer Arithmetic Instructions, clz: the number of zeros above the topmost 1."""
    return U4.type(8 * x.dtype.itemsize) - popc(_smeared(x))


def brev(x: Array) -> Array:
    """Integer Arithmetic Instructions, brev: the bits in reverse."""
    width = 8 * x.dtype.itemsize
    ones = (1 << width) - 1
    step = width // 2
    while step:
        mask = ones // ((1 << step) + 1)  # the lower half of each group of 2 * step bits
        low, by = x.dtype.type(mask), x.dtype.type(step)
        x = ((x & low) << by) | ((x >> by) & low)
        step //= 2
    return x


def bfind(x: Array) -> Array:
    """Integer Arithmetic Instructions, bfind: the place of the topmost bit that is not the sign; all ones if none."""
    if x.dtype.kind == "i":
        x = np.where(x < 0, ~x, x).view(f"u{x.dtype.itemsize}")
    return popc(_smeared(x)) - U4.type(1)


def bfind_shift(x: Array) -> Array:
    """Integer Arithmetic Instructions, bfind.shiftamt: the left shift that brings that bit to the top."""
    place = bfind(x)
    none = U4.type(0xFFFFFFFF)
    return np.where(place == none, none, U4.type(8 * x.dtype.itemsize - 1) - place)


def shf(low: Array, high: Array, by: Array, *, left: bool, wrap: bool) -> Array:
    """Logic and Shift Instructions, shf: the upper half of {high, low} shifted left, the lower half of it right."""
    whole = joined(*np.broadcast_arrays(low, high))
    n = (by & U4.type(31) if wrap else np.minimum(by, U4.type(32))).astype(U8)
    shifted = (whole << n) >> U8.type(32) if left else whole >> n
    return (shifted & U8.type(0xFFFFFFFF)).astype(U4)


def pair(function: Callable[[Array, Array], Array], type_: str, a: Array, b: Array) -> Array:
    """A function of two 16-bit integers on both halves; overflow wraps."""
    parts = zip(halves(a), halves(b), strict=True)
    low, high = (function(x.view(DTYPES[type_]), y.view(DTYPES[type_])).view("u2") for x, y in parts)
    return joined(low, high)
