"""Barriers, shuffles and branches: PTX ISA, "Parallel Synchronization", "Data Movement: shfl.sync", "Control Flow"."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from validation.compiled.ptx.bits import bits
from validation.compiled.ptx.parse import Instruction
from validation.compiled.ptx.table import Bound, add

Step = Callable[[Any], None]


def _barrier(instruction: Instruction, _binder: Any) -> Step:
    if instruction.operands != ("0",) or instruction.guard:
        raise ValueError("only barrier 0 for all threads is executed")
    return lambda run: run.barrier(instruction)


add("bar.sync", Bound("bar", _barrier, writes=0))


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
    add(f"shfl.sync.{_mode}.b32", Bound("shfl.sync", partial(_shuffle, mode=_mode)))


def _nothing(_instruction: Instruction, _binder: Any) -> Step:
    """The machine itself follows branches, at the end of a block."""
    return lambda _run: None


for _name in ("bra", "bra.uni", "ret", "exit"):
    add(_name, Bound("Control Flow Instructions", _nothing, writes=0))
