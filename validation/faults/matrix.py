"""The kill matrix: which check catches which planted fault, in how many cases, in which value regimes.

A fault is swept as the op set that it pretends to be, and must reach the tier that `fused_ops` must reach. One seed
gives the matrix of the whole sweep; with several seeds each sweep ends at the first verdict that names the bug,
because then the question is whether there is one. From the second seed on, cases come first that share corners with the
case that caught the bug last: if it is caught, by a seventh of the cases (272 faults: 15,837, then 2,140 to 2,540).
"""

import contextlib
import functools
import itertools
import math
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from validation.cases.values import REGIMES
from validation.device import Device, select
from validation.errors import UsageError
from validation.executor import InProcess
from validation.faults import FAULTS, load
from validation.forking.server import die_with
from validation.judge import remembered
from validation.ops import check_op_name
from validation.options import repeat_line
from validation.parity.profiles import Profile
from validation.parity.refusals import bad_input_record, grad_record
from validation.parity.sweep import Sweep
from validation.record import Level, Record
from validation.verdict import Status, Tier

REQUIRED_TIER = Tier.LOSSLESS
OP_SET = "planted faults"

# The columns of the matrix: a case's value regime, and the checks of an op as a whole.
COLUMNS = (*REGIMES, "whole op")

# From this number of sweeps on, separate processes pay off: each takes 6 s to start.
PARALLEL = 8

# GPU memory that a process may hold: the far corner's tensors take 9 GB, copies from before the call as much again,
# and a second call doubles both.
GPU_BYTES = 40 * 10**9


def selected(faults: Sequence[str], ops: Sequence[str], device: Device) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the faults to run, in order, and of those left out because only the other device can show them.

    Args:
        faults: names, all where empty.
        ops: of those, only the faults of these ops; all where empty.
        device: where they would run.

    Raises:
        UsageError: an unknown name, a fault that this device cannot show, or nothing selected.
    """
    known = load()
    for op in ops:
        check_op_name(op)
    for name in faults:
        if name not in known:
            raise UsageError(f"--fault: unknown fault {name!r}, expected one of: {', '.join(known)}")
        if device.kind not in known[name].on:
            where = ", ".join(sorted(known[name].on))
            raise UsageError(f"--fault: {name!r} does not show on the device {device.kind}, expected one of: {where}")
    # Sorted by op: the faults of one op get the same cases, which are drawn once.
    chosen = sorted((faults or known), key=lambda name: known[name].op)
    chosen = [name for name in chosen if not ops or known[name].op in ops]
    here = tuple(name for name in chosen if device.kind in known[name].on)
    if not here:
        raise UsageError(f"--op: no planted fault of {', '.join(ops)} among those selected, expected at least one")
    return here, tuple(name for name in chosen if name not in here)


def judge(
    name: str, device: Device, profile: Profile, seed: int, *, first_kill: bool, first: tuple[str, ...] = ()
) -> Record:
    """Sweep one fault; PASSED if a verdict that names the bug caught it.

    Args:
        name: of the fault.
        device: where.
        profile: how many cases.
        seed: all cases follow from it.
        first_kill: stop at the first verdict that names the bug.
        first: as in `Sweep`.

    Returns:
        The record; with first_kill, its corners are those of the case that the bug was caught in.
    """
    fault, start = FAULTS[name], time.perf_counter()
    cases: Counter[str] = Counter()
    kills: dict[Status, Counter[str]] = {}
    caught_in: list[str] = []
    executor = InProcess(fault.op_set(), device)
    records = Sweep(executor, profile, seed, REQUIRED_TIER, shrink=False, first=first).of_op(fault.op)
    if first_kill:
        # What a sweep asks last, and what of some faults alone names the bug: it is cheap.
        records = itertools.chain(_refusals(fault.op, executor), records)
    with remembered.remembering():  # the faults of an op get the same cases
        for record in records:
            column = str(record.case["values"]) if record.level is Level.OP else COLUMNS[-1]
            cases[column] += 1
            if record.status.failed:
                kills.setdefault(record.status, Counter())[column] += 1
                if first_kill and record.status in fault.caught_by:
                    caught_in = record.corners
                    break
    named = [status for status in kills if status in fault.caught_by]
    total = sum(cases.values())
    expected = " or ".join(sorted(fault.caught_by))
    caught = ", ".join(f"{status} in {sum(count.values())} of {total}" for status, count in kills.items())
    if named:
        status, reason = Status.PASSED, f"caught: {caught}"
    elif kills:
        status, reason = (
            Status.FAULT_MISNAMED,
            f"caught by a check that does not name it: {caught}; expected {expected}",
        )
    else:
        status, reason = Status.FAULT_SURVIVED, f"none of {total} records failed, expected {expected}"
    repro = repeat_line(
        "faults",
        always=("seed", "profile"),
        fault=[name],
        seed=seed,
        profile=profile.name,
        **device.options,
    )
    lines = [f"{fault.op}  {name}  {status}", f"the bug: {fault.bug}", reason, f"repeat: {repro}"]
    return Record(
        level=Level.FAULT,
        subject=fault.op,
        op_set=OP_SET,
        status=status,
        check="kill matrix",
        reason=reason,
        case={
            "fault": name,
            "bug": fault.bug,
            "caught_by": sorted(fault.caught_by),
            "seed": seed,
            "profile": profile.name,
            "first_kill": first_kill,
            "columns": list(COLUMNS),
        },
        numbers={"cases": total, "checks": len(kills)},
        series={
            "cases": [float(cases[column]) for column in COLUMNS],
            **{str(status): [float(count[column]) for column in COLUMNS] for status, count in kills.items()},
        },
        seconds={"total": round(time.perf_counter() - start, 3)},
        message="\n".join(lines) if status.failed else "",
        repro=repro,
        corners=caught_in,
    )


def _refusals(op: str, executor: InProcess) -> Iterator[Record]:
    yield grad_record(op, executor)
    yield bad_input_record(op, executor)


def kill_matrix(
    names: Sequence[str],
    device: Device,
    profile: Profile,
    seeds: Sequence[int],
    *,
    left_out: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Record]:
    """A record for each fault and seed, in that order; first one that names the faults left out, if any are.

    Many sweeps are shared out among processes, one for each core, on a GPU as many as its memory takes.
    """
    if left_out:
        reason = f"{len(left_out)} faults show on other devices alone and were not run: {', '.join(left_out)}"
        yield Record(Level.RUN, OP_SET, "", Status.PASSED, "another device", reason)
    count, first_kill = len(names) * len(seeds), len(seeds) > 1
    step = max(math.ceil(count / 20), 1)
    caught_in: dict[str, tuple[str, ...]] = dict.fromkeys(names, ())
    with _judges(device, count) as judged:
        numbered = itertools.count(1)
        for seed in seeds:
            for record in judged([(name, profile, seed, first_kill, caught_in[name]) for name in names]):
                n = next(numbered)
                caught_in[record.case["fault"]] = tuple(record.corners) or caught_in[record.case["fault"]]
                if record.status.failed:
                    progress(f"[{n}/{count}] {record.case['fault']}, seed {seed}: {record.status}")
                elif n % step == 0:
                    progress(f"[{n}/{count}] ...")
                yield record


Task = tuple[str, Profile, int, bool, tuple[str, ...]]


@contextlib.contextmanager
def _judges(device: Device, count: int) -> Iterator[Callable[[Sequence[Task]], Iterator[Record]]]:
    """What judges tasks, in their order: this process, or several if `count` tasks are enough for them."""
    judge_one = functools.partial(_judge_here, device.options)
    if count < PARALLEL:
        yield lambda tasks: map(judge_one, tasks)
        return
    pool = ProcessPoolExecutor(
        max_workers=_processes(device),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(device.options,),
    )

    def judged(tasks: Sequence[Task]) -> Iterator[Record]:
        # The first task starts the processes. `_begin` lets Ctrl-C through: before, it would end an import there.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return pool.map(judge_one, tasks)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        yield judged
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C nobody wants the others


def _processes(device: Device) -> int:
    """One a core, on a GPU no more than its memory takes."""
    cores = len(os.sched_getaffinity(0))
    return cores if not device.gpu else min(cores, max(torch.cuda.mem_get_info()[0] // GPU_BYTES, 1))


def _begin(device: Mapping[str, Any]) -> None:
    """Make a process ready, which ends with the one that started it, and at Ctrl-C without a word."""
    die_with(os.getppid())
    # One that waits for a task would print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    torch.set_num_threads(1)
    select(**device)
    load()


def _judge_here(device: Mapping[str, Any], task: Task) -> Record:
    name, profile, seed, first_kill, first = task
    return judge(name, select(**device), profile, seed, first_kill=first_kill, first=first)
