"""Shrink a failure to the simplest case that fails in the same way."""

import contextlib
import time

from hypothesis import given
from hypothesis import seed as hypothesis_seed

from validation.cases.case import Case
from validation.cases.chooser import VALUES
from validation.cases.pool import draw_settings
from validation.cases.strategies import cases
from validation.executor import Executor
from validation.parity.one_case import judge_case
from validation.parity.plan import Plan, Planned
from validation.record import Record
from validation.verdict import Status

# The most that shrinking one failure may take, in seconds.
SHRINK_SECONDS = 20.0


class _FoundError(Exception):
    pass


def shrunk(planned: Planned, plan: Plan, status: Status, executor: Executor) -> Record | None:
    """The record of the simplest case found that has the same status; None if none was found in time.

    In the drawn cases each choice is the failed case's three times in four, else the simplest.
    """
    known: dict[str, Record | None] = {}
    best: list[Record] = []
    deadline = time.monotonic() + SHRINK_SECONDS

    def judged(case: Case) -> Record | None:
        key = case.to_json()
        if key not in known:
            late = time.monotonic() > deadline
            known[key] = None if late else judge_case(case, executor, plan.corners)
        return known[key]

    case = planned.case
    hints = {**planned.key, "values": case.values, **{n: case.flags[n] for n in VALUES if n in case.flags}}

    @draw_settings(max(plan.profile.per_corner + 1, plan.profile.free), shrink=True)
    @hypothesis_seed(case.seed)
    @given(cases(plan.signature, planned.forced, bfloat16=plan.bfloat16, hints=hints))
    def check(case: Case) -> None:
        record = judged(case)
        if record is not None and record.status == status:
            best[:] = [record]
            raise _FoundError

    with contextlib.suppress(_FoundError):
        check()
    return best[0] if best else None
