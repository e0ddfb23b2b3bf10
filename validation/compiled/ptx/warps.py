"""Which lanes take part in an instruction of a warp: PTX ISA, the membermask of shfl.sync, vote.sync, redux.sync.

A mask names the lanes that execute the instruction together. One that is named and has returned is not waited for; one
that is elsewhere would be, which lock step cannot do: that is refused. Executed by a lane that its own mask does not
name, or under masks that differ, an instruction has no meaning.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from validation.compiled.ptx.bits import Array
from validation.compiled.ptx.parse import Instruction

ALL = np.uint32(0xFFFFFFFF)
LANES = np.arange(32, dtype=np.uint32)


def by_warp(value: Array | np.bool, shape: tuple[int, int]) -> Array:
    """[CTAs, threads] as [warps, 32]."""
    return np.broadcast_to(value, shape).reshape(-1, 32)


def members(
    run: Any, instruction: Instruction, mask: Array | None, get_members: Callable[[Any], Array]
) -> tuple[Array, Array] | None:
    """The lanes that take part.

    Returns:
        Which lanes execute the instruction, [warps, 32], and for each of them which lanes do so with it,
        [warps, 32, 32]; None if all lanes do of each warp that is here, as is usual.
    """
    named = get_members(run)
    active = by_warp(np.True_ if mask is None else mask, run.shape)
    if (named == ALL).all() and (mask is None or not (active.any(1) & ~active.all(1)).any()):
        if run.races is not None:
            run.races.meet(active.all(1))
        return None
    gone = by_warp(np.False_ if run.gone is None else run.gone, run.shape)
    words = by_warp(named, run.shape)
    together = ((words[:, :, None] >> LANES) & np.uint32(1)) != 0
    asked = active[:, :, None] & together
    if (active & ~together[:, LANES, LANES]).any():
        raise instruction.refuse("a lane executes it that its mask does not name")
    if (asked & ~active[:, None, :] & ~gone[:, None, :]).any():
        raise instruction.refuse("some lanes of a warp are inactive")
    if (asked & active[:, None, :] & (words[:, :, None] != words[:, None, :])).any():
        raise instruction.refuse("lanes of one mask execute it with another one")
    return active, asked & active[:, None, :]
