"""The kill matrix: which check catches which planted fault, in how many cases, in which value regimes.

A fault is swept as the op set that it pretends to be, and must reach the tier that `fused_ops` must reach. One seed
gives the matrix of the whole sweep; with several seeds each sweep ends at the first verdict that names the bug,
because then the question is whether there is one.
"""

import functools
import itertools
import math
import multiprocessing
import os
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
        if known[name].gpu and not device.gpu:
            raise UsageError(f"--fault: {name!r} shows on a GPU only, expected --gpu with it")
        if known[name].cpu and device.gpu:
            raise UsageError(f"--fault: {name!r} shows on the CPU only, expected no --gpu with it")
    # Sorted by op: the faults of one op get the same cases, which are drawn once.
    chosen = sorted((faults or known), key=lambda name: known[name].op)
    chosen = [name for name in chosen if not ops or known[name].op in ops]
    here = tuple(name for name in chosen if not (known[name].cpu if device.gpu else known[name].gpu))
    if not here:
        raise UsageError(f"--op: no planted fault of {', '.join(ops)} among those selected, expected at least one")
    return here, tuple(name for name in chosen if name not in here)


def judge(name: str, device: Device, profile: Profile, seed: int, *, first_kill: bool) -> Record:
    """Sweep one fault; PASSED if a verdict that names the bug caught it.

    Args:
        name: of the fault.
        device: where.
        profile: how many cases.
        seed: all cases follow from it.
        first_kill: stop at the first verdict that names the bug.
    """
    fault, start = FAULTS[name], time.perf_counter()
    cases: Counter[str] = Counter()
    kills: dict[Status, Counter[str]] = {}
    executor = InProcess(fault.op_set(), device)
    records = Sweep(executor, profile, seed, REQUIRED_TIER, shrink=False).of_op(fault.op)
    if first_kill and Status.BAD_INPUT_ACCEPTED in fault.caught_by:
        # What a sweep asks last: of these faults it is the verdict that names the bug.
        records = itertools.chain(_refusals(fault.op, executor), records)
    with remembered.remembering():  # the faults of an op get the same cases
        for record in records:
            column = str(record.case["values"]) if record.level is Level.OP else COLUMNS[-1]
            cases[column] += 1
            if record.status.failed:
                kills.setdefault(record.status, Counter())[column] += 1
                if first_kill and record.status in fault.caught_by:
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
        where, check = ("the CPU", "needs the CPU") if device.gpu else ("a GPU", "needs a GPU")
        reason = f"{len(left_out)} faults show on {where} only and were not run: {', '.join(left_out)}"
        yield Record(Level.RUN, OP_SET, "", Status.PASSED, check, reason)
    tasks = [(name, profile, seed, len(seeds) > 1) for seed in seeds for name in names]
    step = max(math.ceil(len(tasks) / 20), 1)
    for n, record in enumerate(_judged(tasks, device), 1):
        if record.status.failed:
            progress(f"[{n}/{len(tasks)}] {record.case['fault']}, seed {record.case['seed']}: {record.status}")
        elif n % step == 0:
            progress(f"[{n}/{len(tasks)}] ...")
        yield record


Task = tuple[str, Profile, int, bool]


def _judged(tasks: Sequence[Task], device: Device) -> Iterator[Record]:
    if len(tasks) < PARALLEL:
        yield from (judge(name, device, profile, seed, first_kill=first) for name, profile, seed, first in tasks)
        return
    with ProcessPoolExecutor(
        max_workers=_processes(device),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(device.options,),
    ) as pool:
        yield from pool.map(functools.partial(_judge_here, device.options), tasks)


def _processes(device: Device) -> int:
    """One a core, on a GPU no more than its memory takes."""
    cores = len(os.sched_getaffinity(0))
    return cores if not device.gpu else min(cores, max(torch.cuda.mem_get_info()[0] // GPU_BYTES, 1))


def _begin(device: Mapping[str, Any]) -> None:
    """Make a process ready."""
    torch.set_num_threads(1)
    select(**device)
    load()


def _judge_here(device: Mapping[str, Any], task: Task) -> Record:
    name, profile, seed, first = task
    return judge(name, select(**device), profile, seed, first_kill=first)
