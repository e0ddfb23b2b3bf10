"""Opcodes of integers, bits, predicates, selection: PTX ISA, "Integer Arithmetic", "Logic and Shift", "Comparison"."""

import itertools
import operator
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np

from validation.compiled.ptx import integers
from validation.compiled.ptx.bits import DTYPES, MOVED_AS, Array
from validation.compiled.ptx.comparisons import OF_INTEGERS
from validation.compiled.ptx.table import elementwise

_INTEGER = "Integer Arithmetic Instructions: "
_LOGIC = "Logic and Shift Instructions: "
_COMPARISON = "Comparison and Selection Instructions: "

_SIZED = ("s16", "u16", "s32", "u32", "s64", "u64")
_BITS = ("b16", "b32", "b64")


def _alike(section: str, types: Iterable[str], count: int, functions: Mapping[str, Callable[..., Array]]) -> None:
    """Add opcodes of `count` operands that have the result's type, by their names before that type."""
    for type_, (name, function) in itertools.product(types, functions.items()):
        elementwise(section + name.partition(".")[0], f"{name}.{type_}", " ".join([type_] * (count + 1)), function)


_alike(_INTEGER, _SIZED, 2, {
    "add": operator.add, "sub": operator.sub, "mul.lo": operator.mul, "mul.hi": integers.mulhi,
    "div": integers.div, "rem": integers.rem, "min": np.minimum, "max": np.maximum,
})  # fmt: skip
_alike(_INTEGER, _SIZED, 3, {"mad.lo": lambda a, b, c: a * b + c})
_alike(_INTEGER, ("s16", "s32", "s64"), 1, {"neg": operator.neg, "abs": np.abs})
for _t, _w in (("s16", "s32"), ("u16", "u32"), ("s32", "s64"), ("u32", "u64")):
    elementwise(_INTEGER + "mul", f"mul.wide.{_t}", f"{_w} {_t} {_t}", integers.wide)
    elementwise(_INTEGER + "mad", f"mad.wide.{_t}", f"{_w} {_t} {_t} {_w}", lambda a, b, c: integers.wide(a, b) + c)
for _t in ("s32", "u32", "s64", "u64"):
    elementwise(_INTEGER + "bfe", f"bfe.{_t}", f"{_t} {_t} u32 u32", integers.bfe)
for _t in ("b32", "b64"):
    elementwise(_INTEGER + "bfi", f"bfi.{_t}", f"{_t} {_t} {_t} u32 u32", integers.bfi)

_alike(_LOGIC, ("pred", *_BITS), 2, {"and": operator.and_, "or": operator.or_, "xor": operator.xor})
_alike(_LOGIC, ("pred", *_BITS), 1, {"not": operator.invert})
for _t in _BITS:
    elementwise(_LOGIC + "shl", f"shl.{_t}", f"{_t} {_t} u32", integers.shl)
for _t in (*_BITS, *_SIZED):
    elementwise(_LOGIC + "shr", f"shr.{_t}", f"{_t} {_t} u32", integers.shr)
elementwise(_LOGIC + "lop3", "lop3.b32", "b32 b32 b32 b32 u32", integers.lop3)
for _t in ("b32", "b64"):
    elementwise(_INTEGER + "popc", f"popc.{_t}", f"u32 {_t}", integers.popc)
    elementwise(_INTEGER + "clz", f"clz.{_t}", f"u32 {_t}", integers.clz)
    elementwise(_INTEGER + "brev", f"brev.{_t}", f"{_t} {_t}", integers.brev)
for _t in ("u32", "s32", "u64", "s64"):
    elementwise(_INTEGER + "bfind", f"bfind.{_t}", f"u32 {_t}", integers.bfind)
    elementwise(_INTEGER + "bfind", f"bfind.shiftamt.{_t}", f"u32 {_t}", integers.bfind_shift)
for _name, _left in (("l", True), ("r", False)):
    for _mode, _wrap in (("wrap", True), ("clamp", False)):
        elementwise(_LOGIC + "shf", f"shf.{_name}.{_mode}.b32", "b32 b32 b32 u32",
                    partial(integers.shf, left=_left, wrap=_wrap))  # fmt: skip
# Pairs of 16 bits (sm_90).
for _t in ("s16", "u16"):
    for _name, _function in (("add", operator.add), ("min", np.minimum), ("max", np.maximum)):
        elementwise(_INTEGER + _name, f"{_name}.{_t}x2", "b32 b32 b32", partial(integers.pair, _function, _t))
elementwise("Data Movement and Conversion Instructions: prmt", "prmt.b32", "b32 b32 b32 b32", integers.prmt)

for _name, _compare in OF_INTEGERS.items():
    for _t in (*_SIZED, *(_BITS if _name in ("eq", "ne") else ())):
        elementwise(_COMPARISON + "setp", f"setp.{_name}.{_t}", f"pred {_t} {_t}", _compare)


def _select(a: Array, b: Array, condition: Array) -> Array:
    return np.where(condition, a, b)


for _t, _bits in MOVED_AS.items():
    if DTYPES[_t].itemsize > 1:
        elementwise(_COMPARISON + "selp", f"selp.{_t}", f"{_bits} {_bits} {_bits} pred", _select)
