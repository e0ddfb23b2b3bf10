"""Host time of a call of each fused op, on any machine: everything except the GPU driver's own launch.

    python benchmarks/host_time.py

Calls the ops on CPU tensors through Triton's launch path, without compiled kernels and the launcher
(`validation.meta_tests.launch_plans`), at each model's first workload of an op. Prints processor time per call in
microseconds, the least of several runs, for the op itself and for the op that follows a plan (`fused_ops._plan`), as
users call it. The driver's time comes on top; `validate bench ops --gpu` measures the whole.
"""

import inspect
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
import triton

from validation.bench.ops_results import HOST_GOAL
from validation.bench.results import aligned
from validation.bench.selection import chosen
from validation.bench.traffic import argument_sets
from validation.meta_tests.launch_plans import launched, note_launches
from validation.record import cpu_name

CALLS, RUNS = 200, 15


def least(op: Callable[..., Any], arguments: dict[str, Any]) -> float:
    """Microseconds of processor time per call, the least of several runs."""
    seconds = []
    for _ in range(RUNS):
        launched.clear()
        start = time.process_time()
        for _ in range(CALLS):
            op(**arguments)
        seconds.append((time.process_time() - start) / CALLS)
    return 1e6 * min(seconds)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    note_launches()
    import fused_ops

    first = {(each.op, each.model, "compact" in each.site): each for each in reversed(chosen())}
    cells: list[tuple[str, ...]] = [("op, workload", "itself", "by its plan")]
    for workload in reversed(first.values()):
        op = getattr(fused_ops, workload.op)
        (arguments,) = argument_sets(workload.make(False), "cpu", 1)
        times = (least(call, arguments) for call in (inspect.unwrap(op), op))
        cells.append((f"{workload.op}, {workload.name}", *(f"{microseconds:.1f}" for microseconds in times)))
    print(f"{cpu_name()}, Python {platform.python_version()}, torch {torch.__version__}, triton {triton.__version__}")
    print("\n".join(aligned(cells)))
    print(f"The goal, the driver's launch included: {1e6 * HOST_GOAL:.0f} us.")


if __name__ == "__main__":
    main()
