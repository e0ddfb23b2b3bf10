"""Make the executor of the op set that ``--ops`` names."""

import math
import os
from pathlib import Path

from validation.device import Device
from validation.errors import UsageError
from validation.executor.base import Executor, isolated_by_default
from validation.executor.in_process import InProcess
from validation.executor.isolated import Isolated
from validation.executor.worker import LIMIT_SECONDS, Worker
from validation.ops import load_op_set
from validation.ops.sources import source_digests


def load(origin: str, device: Device, *, isolate: bool | None = None, limit: float = LIMIT_SECONDS) -> Executor:
    """The executor of the op set that ``--ops`` names.

    An isolated op set is loaded by its process first, and then here: an import that exits, crashes or hangs does so
    there. The process stays for the cases; if none follow, ``close()`` ends it.

    Args:
        origin: the value of ``--ops``.
        device: the device selected for this process.
        isolate: whether to isolate it; None: if it is not ours.
        limit: seconds that one case may take in a process of its own.

    Raises:
        UsageError: the op set cannot be loaded.
        RuntimeError: the process could not be started.
    """
    if not (isolated_by_default(origin) if isolate is None else isolate):
        return InProcess(load_op_set(origin), device)
    worker = Worker(origin, device, limit=limit)
    try:
        worker.start()
        executor = Isolated(load_op_set(origin), device, worker)
        worker.digests = source_digests(executor.ops)
        return executor
    except BaseException:
        worker.close()
        raise


def anew(executor: Executor) -> Executor:
    """An executor of the same op set in a new process, which has made no call of it; close it after use.

    Raises:
        UsageError: the op set has no name by which a process can load it, or cannot be loaded.
    """
    if not executor.ops.origin:
        raise UsageError(f"--ops: {executor.ops.name} was made in memory, expected a module or .py file")
    used = executor.worker if isinstance(executor, Isolated) else None
    worker = Worker(executor.ops.origin, executor.device, limit=used.limit if used else LIMIT_SECONDS)
    if used is not None:
        worker.digests, worker.printed = used.digests, used.printed
    worker.printed = worker.printed or Path(os.devnull)
    try:
        worker.start()
    except BaseException:
        worker.close()
        raise
    return Isolated(executor.ops, executor.device, worker)


def limit_of(case_seconds: float | None) -> float:
    """The time limit that ``--case-seconds`` asks for; UsageError unless it is above 0."""
    if case_seconds is not None and not 0.0 < case_seconds < math.inf:
        raise UsageError(f"--case-seconds: {case_seconds:g}, expected a number above 0")
    return LIMIT_SECONDS if case_seconds is None else case_seconds
