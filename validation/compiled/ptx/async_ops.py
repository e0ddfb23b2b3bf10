"""Asynchronous copies from global to shared memory: PTX ISA, "Data Movement and Conversion Instructions: cp.async".

A copy reads when it is issued and has written when its thread has waited for its group; between the two what it will
write is not defined, and here it is NaN. Others see it after the barrier that follows.
"""

import dataclasses
from functools import partial
from typing import Any

import numpy as np

from validation.compiled.ptx.bits import UNSIGNED, Array
from validation.compiled.ptx.parse import Instruction
from validation.compiled.ptx.table import Bound, Step, add

_SECTION = "Data Movement and Conversion Instructions: cp.async"


@dataclasses.dataclass
class Copies:
    """The copies of a chunk that have not been waited for.

    Attributes:
        committed: how many groups each thread has closed, [CTAs, threads].
        waiting: instruction, threads, their bytes' offsets, values [threads, bytes], and groups, of each copy.
    """

    committed: Array
    waiting: list[tuple[Instruction, Array, Array, Array, Array]] = dataclasses.field(default_factory=list)


def _copies(run: Any) -> Copies:
    if run.copies is None:
        run.copies = Copies(np.zeros(run.shape, np.int64))
    copies: Copies = run.copies
    return copies


def _copy(instruction: Instruction, binder: Any, sizes: tuple[int, ...]) -> Step:
    target, source, size, *given = instruction.operands
    count = int(size, 0)
    if count not in sizes or len(given) > 1:
        raise ValueError(f"a copy of {size} bytes")
    to, of, mask_of = binder.address(target), binder.address(source), binder.mask(instruction)
    get_given = binder.get(given[0], "u32") if given else None

    def step(run: Any) -> None:
        mask = mask_of(run)
        if mask is not None and not mask.any():
            return
        reads = mask
        if get_given is not None:
            # Bytes beyond those that are read are zeros.
            n = get_given(run)
            partly = (n != 0) & (n != np.uint32(count))
            if (partly if mask is None else partly & mask).any():
                raise instruction.refuse("only a copy of all of its bytes or of none is executed")
            reads = n != 0 if mask is None else mask & (n != 0)
        words = run.load(instruction, "global", of(run), reads, UNSIGNED[4], count // 4)
        values = np.stack([np.broadcast_to(word, run.shape) for word in words], axis=-1)
        if reads is not None:
            values = np.where(np.broadcast_to(reads, run.shape)[..., None], values, np.uint32(0))
        lanes, offset = run.begin_copy(instruction, to(run), mask, count)
        copies = _copies(run)
        at = offset[:, None] + np.arange(count)
        content = np.ascontiguousarray(values.reshape(-1, count // 4)[lanes]).view(np.uint8)
        copies.waiting.append((instruction, lanes, at, content, copies.committed.reshape(-1)[lanes]))

    return step


for _level, _sizes in (("ca", (4, 8, 16)), ("cg", (16,))):
    add(f"cp.async.{_level}.shared.global", Bound(_SECTION, partial(_copy, sizes=_sizes), writes=0))


def _commit(instruction: Instruction, binder: Any) -> Step:
    mask_of = binder.mask(instruction)

    def step(run: Any) -> None:
        mask = mask_of(run)
        _copies(run).committed += np.broadcast_to(np.True_ if mask is None else mask, run.shape)

    return step


def _wait(instruction: Instruction, binder: Any, *, everything: bool) -> Step:
    """Wait for all groups but the last so many, or for all copies."""
    last = 0 if everything else int(instruction.operands[0], 0)
    mask_of = binder.mask(instruction)

    def step(run: Any) -> None:
        copies, mask = _copies(run), mask_of(run)
        active = np.broadcast_to(np.True_ if mask is None else mask, run.shape).reshape(-1)
        before, copies.waiting = copies.waiting, []
        for copied, lanes, at, content, group in before:
            done = active[lanes] & (everything | (group < copies.committed.reshape(-1)[lanes] - last))
            run.end_copy(copied, lanes[done], at[done], content[done])
            if not done.all():
                rest = ~done
                copies.waiting.append((copied, lanes[rest], at[rest], content[rest], group[rest]))

    return step


add("cp.async.commit_group", Bound(_SECTION + ".commit_group", _commit, writes=0))
add("cp.async.wait_group", Bound(_SECTION + ".wait_group", partial(_wait, everything=False), writes=0))
add("cp.async.wait_all", Bound(_SECTION + ".wait_all", partial(_wait, everything=True), writes=0))
