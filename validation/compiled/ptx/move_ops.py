"""Opcodes mov and ld.param: PTX ISA, "Data Movement and Conversion Instructions"."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from validation.compiled.ptx.bits import DTYPES, UNSIGNED, bits
from validation.compiled.ptx.parse import Instruction
from validation.compiled.ptx.table import Bound, add

Step = Callable[[Any], None]
_MOVEMENT = "Data Movement and Conversion Instructions: "


def _move(instruction: Instruction, binder: Any, type_: str) -> Step:
    """A register, an immediate or a special register; or a vector packed into one register, or unpacked from it."""
    target, source = instruction.operands
    if target.startswith("{"):
        return _unpack(instruction, binder, type_)
    if source.startswith("{"):
        return _pack(instruction, binder, type_)
    get, put = binder.get(source, type_), binder.put(instruction, target, type_)
    return lambda run: put(run, get(run))


def _unpack(instruction: Instruction, binder: Any, type_: str) -> Step:
    target, source = instruction.operands
    names = binder.vector(target)
    part, bits_of_part = _part(type_, len(names))
    get = binder.get(source, type_)
    puts = [binder.put(instruction, name, part) for name in names]
    whole, small = UNSIGNED[DTYPES[type_].itemsize], DTYPES[part]

    def step(run: Any) -> None:
        value = bits(get(run)).astype(whole)
        for n, put in enumerate(puts):
            put(run, (value >> whole.type(n * bits_of_part)).astype(small))

    return step


def _pack(instruction: Instruction, binder: Any, type_: str) -> Step:
    target, source = instruction.operands
    names = binder.vector(source)
    part, bits_of_part = _part(type_, len(names))
    gets = [binder.get(name, part) for name in names]
    put = binder.put(instruction, target, type_)
    whole = UNSIGNED[DTYPES[type_].itemsize]

    def step(run: Any) -> None:
        value = gets[0](run).astype(whole)
        for n, get in enumerate(gets[1:], 1):
            value = value | (get(run).astype(whole) << whole.type(n * bits_of_part))
        put(run, value)

    return step


def _part(type_: str, count: int) -> tuple[str, int]:
    size = 8 * DTYPES[type_].itemsize // count
    if f"b{size}" not in DTYPES:
        raise ValueError(f"{count} parts of {type_}")
    return f"b{size}", size


_BITS = {"f32": "b32", "f64": "b64"}  # a move of floats keeps the bits of a NaN
for _type in ("b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64"):
    _bits = _BITS.get(_type, _type)
    add(f"mov.{_type}", Bound(_MOVEMENT + "mov", partial(_move, type_=_bits)))
add("mov.pred", Bound(_MOVEMENT + "mov", partial(_move, type_="pred")))


def _parameter(instruction: Instruction, binder: Any, type_: str) -> Step:
    target, source = instruction.operands
    name = source.strip("[] ")
    declared = {parameter: kind for kind, parameter in binder.kernel.parameters}
    if DTYPES[declared[name]].itemsize != DTYPES[type_].itemsize:
        raise ValueError(f"{name} is declared {declared[name]}")
    put = binder.put(instruction, target, type_, loose=True)
    dtype = DTYPES[type_]
    return lambda run: put(run, np.full((1, 1), run.parameters[name].view(dtype)))


for _type in ("b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64"):
    add(f"ld.param.{_type}", Bound(_MOVEMENT + "ld", partial(_parameter, type_=_BITS.get(_type, _type))))
