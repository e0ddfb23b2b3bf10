"""Counts the Triton kernels that a call launches: an op that silently skips its kernel launches none."""

import contextlib
import dataclasses
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
