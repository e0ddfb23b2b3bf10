"""What a run that was cut has judged, and what it has not."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from validation.record import Level, Record, op_is_judged
from validation.run_plan import NO_PLAN, RunState

UNFINISHED = "UNFINISHED"


@dataclasses.dataclass(frozen=True)
class Left:
    """What a run has left.

    Attributes:
        unfinished: whether it was cut.
        subjects: ops and models that were begun and not judged to the end.
        text: all of it in one sentence; of an older run, that it has no plan; "" if nothing is left.
    """

    unfinished: bool = False
    subjects: frozenset[str] = frozenset()
    text: str = ""


NOTHING = Left()


def left_of(state: RunState | None, records: Sequence[Record]) -> Left:
    """What a run has left; `NOTHING` if its state is not known."""
    if state is None:
        return NOTHING
    if state.plan is None:
        return Left(text=NO_PLAN)
    if state.finished(len(records)):
        return NOTHING
    plan = state.plan
    cases = Counter(record.subject for record in records if record.level is Level.OP)
    samples = Counter(record.subject for record in records if record.level is Level.SAMPLE)
    judged = sum(op_is_judged(op, records) for op in plan.ops)
    begun = {
        op: f"{op} {min(cases[op], planned):,} of {planned:,} cases"
        for op, planned in plan.ops.items()
        if cases[op] and not op_is_judged(op, records)
    }
    begun |= {
        model: f"{model} {samples[model]:,} of {len(planned):,} samples"
        for model, planned in plan.models.items()
        if samples[model]
    }
    names = [op for op in plan.ops if not cases[op] and not op_is_judged(op, records)]
    names += [model for model in plan.models if not samples[model]]
    parts = [f"{judged:,} of {len(plan.ops):,} ops judged to the end"] * bool(plan.ops)
    parts += [f"cut at {', '.join(begun.values())}"] * bool(begun)
    parts += [f"not begun: {', '.join(names)}"] * bool(names)
    if plan.faults:
        faults = sum(record.level is Level.FAULT for record in records)
        parts.append(f"{faults:,} of {len(plan.faults):,} planted faults judged")
    if state.closed is not None:
        parts.append(f"{len(records):,} of {state.closed:,} records are there")
    return Left(True, frozenset(begun), "the run was cut; " + "; ".join(parts))
