"""Barriers, shuffles and branches: PTX ISA, "Parallel Synchronization", "Data Movement: shfl.sync", "Control Flow"."""

import functools
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from validation.compiled.ptx import rounding
from validation.compiled.ptx.bits import Array, bits
from validation.compiled.ptx.parse import BRANCHES, RETURNS, Instruction
from validation.compiled.ptx.table import Bound, Step, add

_TOGETHER = "Parallel Synchronization and Communication Instructions: "


def _barrier(instruction: Instruction, _binder: Any) -> Step:
    if instruction.operands != ("0",) or instruction.guard:
        raise ValueError("only barrier 0 for all threads is executed")
    return lambda run: run.barrier(instruction)


add("bar.sync", Bound(_TOGETHER + "bar", _barrier, writes=0))


def _shuffle(instruction: Instruction, binder: Any, mode: str) -> Step:
    """A lane's value from another lane of its segment; its own where that lies outside."""
    target, source, b, c, members = instruction.operands
    if instruction.guard or members not in ("-1", "0xffffffff", "0xFFFFFFFF"):
        raise ValueError("only a shuffle of all lanes is executed")
    value, *predicate = target.split("|")
    get, get_b, get_c = binder.get(source, "b32"), binder.get(b, "u32"), binder.get(c, "u32")
    put = binder.put(instruction, value, "b32")
    put_inside = binder.put(instruction, predicate[0], "pred") if predicate else None

    def step(run: Any) -> None:
        run.whole_warps(instruction, run.active)
        lane = np.arange(run.shape[1])[None, :] & 31
        base = np.arange(run.shape[1])[None, :] - lane
        by, control = get_b(run).astype(np.int64) & 31, get_c(run).astype(np.int64)
        clamp, segment = control & 31, (control >> 8) & 31
        first, last = lane & segment, (lane & segment) | (clamp & ~segment)
        from_lane, inside = {
            "up": (lane - by, lane - by >= last),
            "down": (lane + by, lane + by <= last),
            "bfly": (lane ^ by, (lane ^ by) <= last),
            "idx": (first | (by & ~segment), (first | (by & ~segment)) <= last),
        }[mode]
        at = base + np.where(inside, from_lane, lane)
        x = np.broadcast_to(bits(get(run)), run.shape)
        put(run, x.take(at[0], axis=1) if len(at) == 1 else np.take_along_axis(x, np.broadcast_to(at, run.shape), 1))
        if put_inside is not None:
            put_inside(run, inside)

    return step


for _mode in ("up", "down", "bfly", "idx"):
    add(
        f"shfl.sync.{_mode}.b32",
        Bound("Data Movement and Conversion Instructions: shfl.sync", partial(_shuffle, mode=_mode)),
    )


def _reduce(instruction: Instruction, binder: Any, type_: str, combine: Callable[[Array, Array], Array]) -> Step:
    """Every lane gets what all lanes of its warp combine to."""
    target, source, members = instruction.operands
    if instruction.guard:
        raise ValueError("only a reduction of all lanes is executed")
    get, get_members = binder.get(source, type_), binder.get(members, "b32")
    put = binder.put(instruction, target, type_)

    def step(run: Any) -> None:
        run.whole_warps(instruction, run.active)
        if (get_members(run) != np.uint32(0xFFFFFFFF)).any():
            raise instruction.refuse("only a reduction of all lanes is executed")
        value = np.broadcast_to(get(run), run.shape).reshape(len(run.ctas), -1, 32)
        result = functools.reduce(combine, (value[:, :, n] for n in range(32)))
        put(run, np.repeat(result, 32, axis=1))

    return step


_REDUCTIONS: tuple[tuple[str, str, Callable[[Array, Array], Array]], ...] = (
    *((f"add.{t}", t, operator.add) for t in ("s32", "u32")),
    *((f"min.{t}", t, np.minimum) for t in ("s32", "u32")),
    *((f"max.{t}", t, np.maximum) for t in ("s32", "u32")),
    ("and.b32", "b32", operator.and_),
    ("or.b32", "b32", operator.or_),
    ("xor.b32", "b32", operator.xor),
    ("min.f32", "f32", rounding.smaller),
    ("max.f32", "f32", rounding.greater),
    ("min.NaN.f32", "f32", rounding.or_nan(rounding.smaller)),
    ("max.NaN.f32", "f32", rounding.or_nan(rounding.greater)),
)
for _spelling, _type, _combine in _REDUCTIONS:
    add(f"redux.sync.{_spelling}", Bound(_TOGETHER + "redux.sync", partial(_reduce, type_=_type, combine=_combine)))


def _nothing(_instruction: Instruction, _binder: Any) -> Step:
    """The machine itself follows branches, at the end of a block."""
    return lambda _run: None


for _name in (*BRANCHES, *RETURNS):
    add(_name, Bound("Control Flow Instructions", _nothing, writes=0))
