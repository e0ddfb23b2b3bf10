"""What interpreted kernels read: the address of each unmasked lane of a load is held to the memory that is known.

The interpreter computes all addresses of a load before it reads, block pointers' and descriptors' included, and so it
does for atomics. Memory that is not known is not judged: a table that the op keeps between calls, or what PyTorch's
arithmetic returned, may be read.
"""

import contextlib
import dataclasses
import sys
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from traceback import walk_stack
from typing import Any

import numpy as np
import numpy.typing as npt

from validation.device.private import triton_module


@dataclasses.dataclass(frozen=True)
class Memory:
    """A piece of memory with a guard at each end, by addresses in bytes.

    Attributes:
        start: its first byte, the guard's.
        first: the first byte of the first element.
        end: the byte after the last element.
        stop: the byte after the guard.
        element: bytes of an element.
        names: of what begins at `first`, and of what ends at `end`.
    """

    start: int
    first: int
    end: int
    stop: int
    element: int
    names: tuple[str, str]


@dataclasses.dataclass
class Outside:
    """Lanes that were read on one side of the elements of one piece of memory.

    Attributes:
        lanes: how many.
        nearest, furthest: how many elements before the first or after the last; the element next to it is 1.
        frames: the stack at the first such load, innermost frame first: file, line, function.
    """

    lanes: int
    nearest: int
    furthest: int
    frames: tuple[tuple[str, int, str], ...]


# A tensor without elements has address 0, and no memory lies below this.
NOWHERE = 1 << 16
# `bisect` in the four bounds of each piece of memory: before its first element (1), in its elements (2), after its last
# (3); 0 is between two pieces.
_BEFORE, _AFTER, _SIDES = 1, 3, 4


class Reads:
    """The loads of a call.

    Attributes:
        outside: lanes outside of all elements, by the name of the nearest and the side (before, after).
    """

    def __init__(self, nowhere: str) -> None:
        self.outside: dict[tuple[str, str], Outside] = {}
        self._nowhere = nowhere
        self._known: list[Memory] = []
        self._bounds: list[int] = []

    def know(self, known: Collection[Memory]) -> None:
        """Hold the loads that follow to these pieces of memory, which do not overlap."""
        self._known = sorted(known, key=lambda memory: memory.start)
        self._bounds = [bound for m in self._known for bound in (m.start, m.first, m.end, m.stop)]

    def look(self, ptrs: Any, mask: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_] | None:
        """Look at the addresses of a load or an atomic.

        Args:
            ptrs: Triton's handle of the pointers.
            mask: the lanes that are read; None: all.

        Returns:
            The lanes that must not be read, where no memory lies, for the process would die of it; None: there is none.
        """
        lanes, size = ptrs.data, max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
        if self._fine(lanes, size):  # masked lanes included
            return None
        nowhere = lanes < NOWHERE
        if mask is not None:
            read = np.broadcast_to(mask, lanes.shape).astype(bool)
            nowhere = nowhere & read
            lanes = lanes[read]
        if nowhere.any():
            addresses = ptrs.data[nowhere]
            away = [int(at) // size + 1 for at in (addresses.min(), addresses.max())]
            self._note((self._nowhere, "after"), addresses.size, away)
            lanes = lanes[lanes >= NOWHERE]
        if lanes.size and not self._fine(lanes, size):
            self._keep(lanes.ravel(), size)
        return nowhere if nowhere.any() else None

    def _fine(self, lanes: npt.NDArray[np.uint64], size: int) -> bool:
        """Whether all lie in the elements of one piece of memory, or between two pieces: most loads do."""
        least = int(np.minimum.reduce(lanes, axis=None))
        low = bisect_right(self._bounds, least)
        if least < NOWHERE or low % _SIDES in (_BEFORE, _AFTER):
            return False
        return low == bisect_right(self._bounds, int(np.maximum.reduce(lanes, axis=None)) + size - 1)

    def _keep(self, lanes: npt.NDArray[np.uint64], size: int) -> None:
        """Count the lanes outside, by memory and side."""
        bounds = np.array(self._bounds, dtype=np.uint64)
        first, last = (np.searchsorted(bounds, lanes + np.uint64(more), "right") for more in (0, size - 1))
        # A lane is outside of elements if its first byte or its last one is, and in our memory.
        for at in np.unique(np.concatenate([first, last])):
            side = int(at) % _SIDES
            if side not in (_BEFORE, _AFTER):
                continue
            hit = lanes[(first == at) | (last == at)]
            memory, before = self._known[(int(at) - 1) // _SIDES], side == _BEFORE
            past = [memory.first - int(a) if before else int(a) + size - memory.end for a in (hit.min(), hit.max())]
            away = sorted(-(-bytes_past // memory.element) for bytes_past in past)
            self._note((memory.names[not before], "before" if before else "after"), hit.size, away)

    def _note(self, key: tuple[str, str], lanes: int, away: Sequence[int]) -> None:
        """Count lanes outside: how many elements away the nearest and the furthest are."""
        kept = self.outside.get(key)
        if kept is None:
            frames = walk_stack(sys._getframe())
            stack = tuple((f.f_code.co_filename, line, f.f_code.co_name) for f, line in frames)
            self.outside[key] = Outside(lanes, away[0], away[1], stack)
        else:
            kept.lanes += lanes
            kept.nearest, kept.furthest = min(kept.nearest, away[0]), max(kept.furthest, away[1])


@contextlib.contextmanager
def watched(known: Callable[[], Collection[Memory]], nowhere: str = "a tensor without elements") -> Iterator[Reads]:
    """Look at all loads of the kernels that are interpreted while this is active.

    Args:
        known: the pieces of memory to hold them to, asked at each launch.
        nowhere: the name of what has no elements.
    """
    interpreter = triton_module("triton.runtime.interpreter")
    builder, executor, reads = interpreter.InterpreterBuilder, interpreter.GridExecutor, Reads(nowhere)
    load, rmw, cas = builder.create_masked_load, builder.create_atomic_rmw, builder.create_atomic_cas
    launch = executor.__call__

    def masked_load(self: Any, ptrs: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        nothing = reads.look(ptrs, np.asarray(mask.data))  # a handle, or an array: of a block pointer
        if nothing is not None:
            mask = mask & ~nothing if isinstance(mask, np.ndarray) else type(mask)(mask.data & ~nothing, mask.dtype)
        return load(self, ptrs, mask, *rest, **options)

    def atomic_rmw(self: Any, op: Any, ptr: Any, value: Any, mask: Any, *rest: Any) -> Any:
        nothing = reads.look(ptr, mask.data)
        mask = mask if nothing is None else type(mask)(mask.data & ~nothing, mask.dtype)
        return rmw(self, op, ptr, value, mask, *rest)

    def atomic_cas(self: Any, ptr: Any, *rest: Any) -> Any:
        reads.look(ptr, None)
        return cas(self, ptr, *rest)

    def run_launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        reads.know(known())
        return launch(self, *args, **kwargs)

    builder.create_masked_load, builder.create_atomic_rmw, builder.create_atomic_cas = (
        masked_load,
        atomic_rmw,
        atomic_cas,
    )
    executor.__call__ = run_launch
    try:
        yield reads
    finally:
        builder.create_masked_load, builder.create_atomic_rmw, builder.create_atomic_cas = load, rmw, cas
        executor.__call__ = launch
