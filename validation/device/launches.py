"""Counts the Triton kernels that a call launches: an op that silently skips its kernel launches none.

Under the interpreter the programs can be counted too, for a process that watches this one (`count_programs`).
"""

import contextlib
import dataclasses
import mmap
from collections.abc import Iterator
from typing import Any

from validation.device.private import triton_module


@dataclasses.dataclass
class Launches:
    """The number of launches, updated while `counted` is active."""

    count: int = 0


@contextlib.contextmanager
def counted() -> Iterator[Launches]:
    """Count the launches of this process: compiled kernels by Triton's launch hook, interpreted ones by a patch."""
    executor = triton_module("triton.runtime.interpreter").GridExecutor
    hook = triton_module("triton.knobs").runtime.launch_enter_hook
    launches = Launches()
    launch = executor.__call__

    def interpreted(self: Any, *args: Any, **kwargs: Any) -> Any:
        launches.count += 1
        return launch(self, *args, **kwargs)

    def compiled(_: Any) -> None:
        launches.count += 1

    executor.__call__ = interpreted
    hook.add(compiled)
    try:
        yield launches
    finally:
        executor.__call__ = launch
        hook.remove(compiled)


class Counts:
    """Launches and programs of an interpreting process, in memory that another one reads.

    Attributes:
        launches: kernels launched since `clear`.
        programs: programs begun since `clear`.
    """

    def __init__(self, descriptor: int) -> None:
        """Map the memory of a descriptor, of at least 16 bytes."""
        self._numbers = memoryview(mmap.mmap(descriptor, 16)).cast("q")

    @property
    def launches(self) -> int:
        """Kernels launched since `clear`."""
        return self._numbers[0]

    @property
    def programs(self) -> int:
        """Programs begun since `clear`."""
        return self._numbers[1]

    def clear(self) -> None:
        """Count from 0."""
        self._numbers[0] = self._numbers[1] = 0

    def launch(self) -> None:
        """Count a launch."""
        self._numbers[0] += 1

    def program(self) -> None:
        """Count a program."""
        self._numbers[1] += 1


def count_programs(counts: Counts) -> None:
    """Count what the interpreter launches in this process from now on."""
    builder = triton_module("triton.runtime.interpreter").InterpreterBuilder
    set_dim, set_idx = builder.set_grid_dim, builder.set_grid_idx

    def set_grid_dim(self: Any, *grid: Any) -> Any:
        counts.launch()
        return set_dim(self, *grid)

    def set_grid_idx(self: Any, *index: Any) -> Any:
        counts.program()
        return set_idx(self, *index)

    builder.set_grid_dim, builder.set_grid_idx = set_grid_dim, set_grid_idx
