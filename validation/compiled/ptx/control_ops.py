"""Barriers, shuffles and branches: PTX ISA, "Parallel Synchronization", "Data Movement: shfl.sync", "Control Flow"."""

import functools
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from validation.compiled.ptx import rounding, warps
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
    """A lane's value from another lane of its segment; its own where that lies outside.

    What comes from a lane that does not take part is not defined; here all its bits are 1.
    """
    target, source, b, c, mask = instruction.operands
    value, *predicate = target.split("|")
    get, get_b, get_c = binder.get(source, "b32"), binder.get(b, "u32"), binder.get(c, "u32")
    get_members, mask_of = binder.get(mask, "b32"), binder.mask(instruction)
    put = binder.put(instruction, value, "b32")
    put_inside = binder.put(instruction, predicate[0], "pred") if predicate else None

    def step(run: Any) -> None:
        part = warps.members(run, instruction, mask_of(run), get_members)
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
        y = x.take(at[0], axis=1) if len(at) == 1 else np.take_along_axis(x, np.broadcast_to(at, run.shape), 1)
        if part is not None:
            _, together = part
            lanes = warps.by_warp(at & 31, run.shape)
            takes = np.take_along_axis(together, lanes[:, :, None], 2)
            y = np.where(takes.reshape(run.shape), y, warps.ALL)
        put(run, y)
        if put_inside is not None:
            put_inside(run, inside)

    return step


for _mode in ("up", "down", "bfly", "idx"):
    add(
        f"shfl.sync.{_mode}.b32",
        Bound("Data Movement and Conversion Instructions: shfl.sync", partial(_shuffle, mode=_mode)),
    )


def _reduce(instruction: Instruction, binder: Any, type_: str, combine: Callable[[Array, Array], Array]) -> Step:
    """Every lane gets what the lanes of its mask combine to."""
    target, source, mask = instruction.operands
    get, get_members = binder.get(source, type_), binder.get(mask, "b32")
    put, mask_of = binder.put(instruction, target, type_), binder.mask(instruction)

    def step(run: Any) -> None:
        part = warps.members(run, instruction, mask_of(run), get_members)
        value = warps.by_warp(get(run), run.shape)
        if part is None:
            result = functools.reduce(combine, (value[:, n] for n in range(32)))
            put(run, np.repeat(result.reshape(run.shape[0], -1), 32, axis=1))
            return
        _, together = part
        results, started = np.zeros(value.shape, value.dtype), np.zeros(value.shape, bool)
        for n in range(32):
            takes, one = together[:, :, n], value[:, n, None]
            results = np.where(takes, np.where(started, combine(results, one), one), results)
            started |= takes
        put(run, results.reshape(run.shape))

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


def _vote(instruction: Instruction, binder: Any, mode: str) -> Step:
    """What the lanes of a mask say together."""
    target, source, mask = instruction.operands
    get, get_members, mask_of = binder.get(source, "pred"), binder.get(mask, "b32"), binder.mask(instruction)
    put = binder.put(instruction, target, "b32" if mode == "ballot" else "pred")

    def step(run: Any) -> None:
        part = warps.members(run, instruction, mask_of(run), get_members)
        says = warps.by_warp(get(run), run.shape)[:, None, :]
        together = np.ones((len(says), 32, 32), bool) if part is None else part[1]
        yes, no = (says & together).any(2), (~says & together).any(2)
        if mode == "ballot":
            ones = (says & together).astype(np.uint32) << warps.LANES
            result: Array = np.bitwise_or.reduce(ones, axis=2)
        else:
            result = {"any": yes, "all": ~no, "uni": ~(yes & no)}[mode]
        put(run, result.reshape(run.shape))

    return step


for _mode in ("any", "all", "uni"):
    add(f"vote.sync.{_mode}.pred", Bound(_TOGETHER + "vote.sync", partial(_vote, mode=_mode)))
add("vote.sync.ballot.b32", Bound(_TOGETHER + "vote.sync", partial(_vote, mode="ballot")))


def _active_mask(instruction: Instruction, binder: Any) -> Step:
    """The lanes that are here. Which these are where lanes part is the scheduler's choice: that is refused."""
    put = binder.put(instruction, instruction.operands[0], "b32")

    def step(run: Any) -> None:
        active = warps.by_warp(np.True_ if run.active is None else run.active, run.shape)
        gone = warps.by_warp(np.False_ if run.gone is None else run.gone, run.shape)
        if (active.any(1, keepdims=True) & ~active & ~gone).any():
            raise instruction.refuse("lanes of a warp have parted")
        words = np.bitwise_or.reduce(active.astype(np.uint32) << warps.LANES, axis=1)
        put(run, np.repeat(words, 32).reshape(run.shape))

    return step


add("activemask.b32", Bound(_TOGETHER + "activemask", _active_mask))


def _warp_barrier(instruction: Instruction, binder: Any) -> Step:
    get_members, mask_of = binder.get(instruction.operands[0], "b32"), binder.mask(instruction)

    def step(run: Any) -> None:
        part = warps.members(run, instruction, mask_of(run), get_members)
        if part is None and run.shape[1] == 32:
            run.barrier(instruction)  # of a CTA of one warp: so Triton spells its barrier there
        elif run.races is not None:
            raise instruction.refuse("races are not looked for where the lanes of a warp alone meet")

    return step


add("bar.warp.sync", Bound(_TOGETHER + "bar.warp.sync", _warp_barrier, writes=0))


def _nothing(_instruction: Instruction, _binder: Any) -> Step:
    """The machine itself follows branches, at the end of a block."""
    return lambda _run: None


for _name in (*BRANCHES, *RETURNS):
    add(_name, Bound("Control Flow Instructions", _nothing, writes=0))
