"""Opcodes of integers, bits, predicates, selection: PTX ISA, "Integer Arithmetic", "Logic and Shift", "Comparison"."""

import operator
from functools import partial

import numpy as np

from validation.compiled.ptx import integers
from validation.compiled.ptx.bits import Array
from validation.compiled.ptx.table import elementwise

_INTEGER = "Integer Arithmetic Instructions: "
_LOGIC = "Logic and Shift Instructions: "
_COMPARISON = "Comparison and Selection Instructions: "

_COMPARE = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt}
_COMPARE |= {"ge": operator.ge}

for _t in ("s16", "u16", "s32", "u32", "s64", "u64"):
    elementwise(_INTEGER + "add", f"add.{_t}", f"{_t} {_t} {_t}", operator.add)
    elementwise(_INTEGER + "sub", f"sub.{_t}", f"{_t} {_t} {_t}", operator.sub)
    elementwise(_INTEGER + "mul", f"mul.lo.{_t}", f"{_t} {_t} {_t}", operator.mul)
    elementwise(_INTEGER + "mul", f"mul.hi.{_t}", f"{_t} {_t} {_t}", integers.mulhi)
    elementwise(_INTEGER + "mad", f"mad.lo.{_t}", f"{_t} {_t} {_t} {_t}", lambda a, b, c: a * b + c)
    elementwise(_INTEGER + "div", f"div.{_t}", f"{_t} {_t} {_t}", integers.div)
    elementwise(_INTEGER + "rem", f"rem.{_t}", f"{_t} {_t} {_t}", integers.rem)
    elementwise(_INTEGER + "min", f"min.{_t}", f"{_t} {_t} {_t}", np.minimum)
    elementwise(_INTEGER + "max", f"max.{_t}", f"{_t} {_t} {_t}", np.maximum)
for _t in ("s16", "s32", "s64"):
    elementwise(_INTEGER + "neg", f"neg.{_t}", f"{_t} {_t}", operator.neg)
    elementwise(_INTEGER + "abs", f"abs.{_t}", f"{_t} {_t}", np.abs)
for _t, _w in (("s16", "s32"), ("u16", "u32"), ("s32", "s64"), ("u32", "u64")):
    elementwise(_INTEGER + "mul", f"mul.wide.{_t}", f"{_w} {_t} {_t}", integers.wide)
    elementwise(_INTEGER + "mad", f"mad.wide.{_t}", f"{_w} {_t} {_t} {_w}", lambda a, b, c: integers.wide(a, b) + c)
for _t in ("s32", "u32", "s64", "u64"):
    elementwise(_INTEGER + "bfe", f"bfe.{_t}", f"{_t} {_t} u32 u32", integers.bfe)
for _t in ("b32", "b64"):
    elementwise(_INTEGER + "bfi", f"bfi.{_t}", f"{_t} {_t} {_t} u32 u32", integers.bfi)

for _t in ("pred", "b16", "b32", "b64"):
    elementwise(_LOGIC + "and", f"and.{_t}", f"{_t} {_t} {_t}", operator.and_)
    elementwise(_LOGIC + "or", f"or.{_t}", f"{_t} {_t} {_t}", operator.or_)
    elementwise(_LOGIC + "xor", f"xor.{_t}", f"{_t} {_t} {_t}", operator.xor)
    elementwise(_LOGIC + "not", f"not.{_t}", f"{_t} {_t}", operator.invert)
for _t in ("b16", "b32", "b64"):
    elementwise(_LOGIC + "shl", f"shl.{_t}", f"{_t} {_t} u32", integers.shl)
for _t in ("b16", "u16", "s16", "b32", "u32", "s32", "b64", "u64", "s64"):
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

for _t in ("s16", "u16", "b16", "s32", "u32", "b32", "s64", "u64", "b64"):
    for _name, _compare in _COMPARE.items():
        if _t[0] == "b" and _name not in ("eq", "ne"):
            continue
        elementwise(_COMPARISON + "setp", f"setp.{_name}.{_t}", f"pred {_t} {_t}", _compare)


def _select(a: Array, b: Array, condition: Array) -> Array:
    return np.where(condition, a, b)


# A selection of f32 keeps the bits of a NaN: it moves them.
for _t, _bits in (("b16", "b16"), ("u16", "u16"), ("s16", "s16"), ("b32", "b32"), ("u32", "u32"), ("s32", "s32"),
                  ("f32", "b32"), ("b64", "b64"), ("u64", "u64"), ("s64", "s64")):  # fmt: skip
    elementwise(_COMPARISON + "selp", f"selp.{_t}", f"{_bits} {_bits} {_bits} pred", _select)
