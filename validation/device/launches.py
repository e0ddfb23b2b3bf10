"""Counts the Triton kernels that a call launches: an op that silently skips its kernel launches none.

On the CPU the programs can be counted too, for a process that watches this one (`count_programs`).
"""

import contextlib
import dataclasses
import mmap
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from validation.compiled.ptx import executing
from validation.compiled.ptx.launch import Launch
from validation.device.private import triton_module


@dataclasses.dataclass
class Launches:
    """The launches of this process, updated while `counted` is active.

    Attributes:
        interpreted: how many Triton's interpreter ran. on_gpu: how many a GPU ran.
        executed: those whose PTX ran on the CPU.
    """

    executed: executing.Runs
    interpreted: int = 0
    on_gpu: int = 0

    @property
    def count(self) -> int:
        """How many in all."""
        return self.interpreted + self.on_gpu + self.executed.launches


@contextlib.contextmanager
def counted(known: Mapping[str, Tensor] | None = None) -> Iterator[Launches]:
    """Count the launches of this process: on a GPU by Triton's launch hook, interpreted ones by a patch.

    Args:
        known: tensors by name, as in `validation.compiled.ptx.executing.Runs`.
    """
    executor = triton_module("triton.runtime.interpreter").GridExecutor
    hook = triton_module("triton.knobs").runtime.launch_enter_hook
    launch = executor.__call__

    def interpreted(self: Any, *args: Any, **kwargs: Any) -> Any:
        launches.interpreted += 1
        return launch(self, *args, **kwargs)

    def on_gpu(_: Any) -> None:
        launches.on_gpu += 1

    executor.__call__ = interpreted
    hook.add(on_gpu)
    try:
        with executing.watched(known) as runs:
            launches = Launches(runs)
            yield launches
    finally:
        executor.__call__ = launch
        hook.remove(on_gpu)


class Counts:
    """Launches and programs of a process, in memory that another one reads.

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

    def program(self, number: int = 1) -> None:
        """Count a program, or several."""
        self._numbers[1] += number


def count_programs(counts: Counts) -> None:
    """Count what is launched on the CPU in this process from now on."""
    builder = triton_module("triton.runtime.interpreter").InterpreterBuilder
    set_dim, set_idx = builder.set_grid_dim, builder.set_grid_idx

    def set_grid_dim(self: Any, *grid: Any) -> Any:
        counts.launch()
        return set_dim(self, *grid)

    def set_grid_idx(self: Any, *index: Any) -> Any:
        counts.program()
        return set_idx(self, *index)

    def begin(launch: Launch) -> None:
        counts.launch()
        counts.program(launch.programs)

    builder.set_grid_dim, builder.set_grid_idx = set_grid_dim, set_grid_idx
    executing.begun.append(begin)
