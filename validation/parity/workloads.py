"""The fused sites of all models, by op."""

import functools

from validation.cases.workloads import Workload
from validation.samples.registry import module_of, names


def workloads(op: str) -> tuple[Workload, ...]:
    """The workloads of an op, models in alphabetical order."""
    return tuple(workload for workload in _all() if workload.op == op)


@functools.cache
def _all() -> tuple[Workload, ...]:
    return tuple(
        workload for name in names() if (part := module_of(name, "workloads")) for workload in part.workloads()
    )
