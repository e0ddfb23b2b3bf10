"""Reads outside of elements: what interpreted kernels load beyond the arguments, and beyond what the call allocated.

Guards show a store outside, for its bits stay. A load outside leaves nothing: where the value is discarded
(``tl.where``), the numbers are right, and on a GPU the load faults or returns foreign memory. So under Triton's
interpreter the address of each unmasked lane is looked at (`validation.device.reads`); on a GPU, and where PyTorch or
C++ computes, nothing is.

The elements of a storage run from the first element of any argument in it to the last one. Holes between them (the rest
of a padded row, v in a packed q, k, v) may be read, as a GPU may: they belong to the same allocation. They hold NaN, so
that a hole that is used shows in the numbers. Beyond the last element an argument's allocation may end.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Protocol

from torch import Tensor

from validation.cases.case import extent
from validation.cases.tensors import Arguments
from validation.device.reads import Memory, Outside
from validation.device.reads import watched as watched_loads
from validation.ops import tracebacks


class Guarded(Protocol):
    """Memory with guards: elements from ``start`` on, ``size`` of them."""

    memory: Tensor
    start: int
    size: int


@contextlib.contextmanager
def watched(arguments: Arguments, allocations: Collection[Guarded]) -> Iterator[Callable[[], str]]:
    """Look at the loads of a call; gives the function that describes those outside, "" if there are none.

    Args:
        arguments: the call's; if they have no storages of ours, nothing is looked at.
        allocations: what the call allocates, filled in while it runs.
    """
    if not arguments.storages:
        yield lambda: ""
        return
    of_arguments = [_of_storage(storage, arguments) for storage in arguments.storages.values()]

    def known() -> list[Memory]:
        ours = ("what the call allocated",) * 2
        return of_arguments + [_memory(a.memory, a.start, a.start + a.size, ours) for a in allocations]

    empty = [name for name, t in arguments.tensors.items() if not t.numel()]
    with watched_loads(known, " or ".join(empty) or "a tensor without elements") as reads:
        yield lambda: "; ".join(_words(*key, outside) for key, outside in reads.outside.items())


def _of_storage(storage: Guarded, arguments: Arguments) -> Memory:
    """From the first element of any argument in a storage to the last of any."""
    start = storage.memory.untyped_storage().data_ptr()
    tensors = {n: t for n, t in arguments.tensors.items() if t.untyped_storage().data_ptr() == start}
    spans = [(int(t.storage_offset()), extent(t.shape, t.stride()), name) for name, t in tensors.items() if t.numel()]
    if not spans:
        return _memory(storage.memory, storage.start, storage.start, (next(iter(tensors)),) * 2)
    first = min((offset, name) for offset, _, name in spans)
    last = max((offset + size, name) for offset, size, name in spans)
    return _memory(storage.memory, first[0], last[0], (first[1], last[1]))


def _memory(memory: Tensor, first: int, end: int, names: tuple[str, str]) -> Memory:
    address, size = memory.data_ptr(), memory.element_size()
    start, stop = address, address + memory.numel() * size
    return Memory(start, address + first * size, address + end * size, stop, size, names)


def _words(name: str, side: str, outside: Outside) -> str:
    lanes = f"{outside.lanes} lanes" if outside.lanes > 1 else "1 lane"
    end = "before its first element" if side == "before" else "after its last element"
    away = f"from {outside.nearest} to {outside.furthest}" if outside.furthest > outside.nearest else outside.nearest
    return f"{name}: {lanes} of loads {end} ({away} {side}){tracebacks.place(outside.frames)}"
