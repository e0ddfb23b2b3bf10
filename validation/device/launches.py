"""Counts the Triton kernels that a call launches: an op that quietly leaves its kernel out launches none."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass
class Launches:
    """A count that goes on while `counted` is active."""

    count: int = 0


@contextlib.contextmanager
def counted() -> Iterator[Launches]:
    """Count the launches of this process: of compiled kernels by Triton's launch hook, of interpreted ones too."""
    from triton import knobs
    from triton.runtime.interpreter import GridExecutor

    launches = Launches()
    launch = GridExecutor.__call__

    def interpreted(self: Any, *args: Any, **kwargs: Any) -> Any:
        launches.count += 1
        return launch(self, *args, **kwargs)

    def compiled(_: Any) -> None:
        launches.count += 1

    GridExecutor.__call__ = interpreted
    knobs.runtime.launch_enter_hook.add(compiled)
    try:
        yield launches
    finally:
        GridExecutor.__call__ = launch
        knobs.runtime.launch_enter_hook.remove(compiled)
