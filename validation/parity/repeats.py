"""Calls enough that a fault of few calls shows: what a sweep's cases lack is made up by calls of some cases again.

A race, or memory read before it is written, shows in some calls of a case and not in others. A fault that shows in one
call of 300, independently of the case, is in at least one of n calls with probability ``1 - (1 - 1/300)^n``. Each call
of a sweep counts: first calls are judged, second calls and the repeats here are compared with the first. So a profile
says how many calls it makes at least (`Profile.calls`), and the record of an op says what that is worth.
"""

import time
from collections.abc import Sequence

from validation.cases.case import Case
from validation.executor import Executor
from validation.judge import same_bits
from validation.judge.repeated import CHECK
from validation.parity.profiles import Profile
from validation.record import Level, Record
from validation.verdict import Status

# On the CPU, where programs run one after another or in lock step, small cases are repeated: those with no tensor of
# more elements. On a GPU the largest ones, where programs run side by side.
SMALL = 256
LARGEST = 16

# The fault that the chance is given for: it shows in one call of this many.
ONE_IN = 300


def chance(calls: int) -> float:
    """The probability that a fault in one call of `ONE_IN` shows in at least one of some calls."""
    return 1.0 - (1.0 - 1.0 / ONE_IN) ** calls


def calls_of(done: Sequence[Record], executor: Executor) -> int:
    """How many calls the cases of a sweep made; without second calls if a library may not express them."""
    counted = [record for record in done if record.numbers.get("elements")]
    if any(record.status is Status.NOT_EXPRESSED for record in done):
        return len(counted)
    device = executor.device.torch
    return sum(1 + len(same_bits.due(Case.from_dict(r.case), device)) for r in counted)


def repeats(done: Sequence[Record], executor: Executor, profile: Profile) -> list[tuple[Case, int]]:
    """The cases to repeat, and the calls of each: two at least, as many in all as the profile lacks."""
    lacking = profile.calls - calls_of(done, executor)
    if lacking <= 0:
        return []
    passed = [record for record in done if record.status is Status.PASSED and record.numbers["elements"]]
    cases = [(_largest(case := Case.from_dict(record.case)), case) for record in passed]
    if executor.device.gpu:
        chosen = [case for _, case in sorted(cases, key=lambda pair: -pair[0])[:LARGEST]]
    else:
        chosen = [case for size, case in cases if size <= SMALL]
    if not chosen:
        return []
    chosen = chosen[: max(lacking // 2, 1)]
    each, more = divmod(lacking, len(chosen))
    return [(case, max(each + (n < more), 2)) for n, case in enumerate(chosen)]


def _largest(case: Case) -> int:
    return max(spec.numel for spec in case.tensors.values())


def repeated_record(op: str, executor: Executor, due: Sequence[tuple[Case, int]], command: str) -> Record:
    """One record on all repeats of an op's cases; it ends with the first that gives other bits.

    Args:
        op: its name.
        executor: runs the candidate.
        due: cases and calls, as `repeats` gives them.
        command: the command line that repeats the sweep: no single case surely shows again what one call showed.
    """
    start, calls = time.perf_counter(), 0
    status, lines = Status.PASSED, [f"the same bits in {sum(n for _, n in due)} calls of {len(due)} cases"]
    for case, count in due:
        verdict = executor.repeated(case, count)
        calls += count
        if verdict.status is not Status.PASSED:
            status, lines = verdict.status, [verdict.reason, case.describe()]
            break
    message = [f"{op}  {executor.ops.name}  {status}", *lines, f"repeat: {command}"]
    return Record(
        level=Level.RUN,
        subject=op,
        op_set=executor.ops.name,
        status=status,
        check=CHECK,
        reason=lines[0],
        numbers={"repeated_cases": len(due), "repeated_calls": calls},
        seconds={"total": round(time.perf_counter() - start, 6)},
        message="\n".join(message) if status.failed else "",
        repro=command,
    )
