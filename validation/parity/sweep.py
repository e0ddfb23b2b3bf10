"""Judge ops over their whole case space. The command line, pytest and the nightly job all call this."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator

from validation.cases.corners import corners_of
from validation.device import Device
from validation.executor import DEATHS, Executor
from validation.ops import OpSet
from validation.parity import profiles
from validation.parity.alone import Alone
from validation.parity.one_case import judge_case
from validation.parity.plan import Plan, Planned
from validation.parity.profiles import PROFILES, Profile
from validation.parity.refusals import bad_input_record, grad_record
from validation.parity.repeats import calls_of, repeated_record, repeats
from validation.parity.repro import op_command
from validation.parity.shrink import shrunk
from validation.parity.summary import summary
from validation.parity.xfail import XFail
from validation.record import Level, Record
from validation.verdict import Status, Tier

# Seconds between two lines on the progress of an op.
PROGRESS_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Sweep:
    """How ops are judged.

    Attributes:
        executor: runs the candidates.
        profile: how many cases an op gets.
        seed: determines all cases.
        require: the tier that each op must reach; None: any.
        xfail: expected failures; one that does not occur is a failure itself.
        shrink: whether to try failures alone (`validation.parity.alone`) and to shrink them.
        results_only: leave out what only code that promises manners is asked: cases with empty tensors, the calls to
            refuse, parameters that require grad.
        first: names of corners; the more of them a case is in, the earlier it is judged. The sweep is the same.
    """

    executor: Executor
    profile: Profile
    seed: int
    require: Tier | None = None
    xfail: XFail = dataclasses.field(default_factory=XFail)
    shrink: bool = True
    results_only: bool = False
    first: tuple[str, ...] = ()

    def of_op(self, op: str) -> Iterator[Record]:
        """Judge one op.

        Known regressions first, then the real models' workloads (with few tokens on the CPU, whole on a GPU), then
        every declared corner, then free draws, then what was drawn with very many rows; then, for each kind of failure
        that shows alone, the same failure shrunk; without a failure one record on calls of some cases again
        (`validation.parity.repeats`); then one record on a call with parameters that require grad, one on the calls
        that the op must refuse; last, one record for the op: its tier, bias over all cases, corners not reached. After
        `profiles.MAX_DEATHS` cases that hung, crashed or lost the accelerator the rest is not judged, which is a
        failure whatever the xfail file expects; cases that are only too slow for the device do not count there.
        """
        executor, xfail = self.executor, self.xfail
        plan = Plan.of(op, executor.device, self.profile, self.seed)
        done: list[Record] = []
        left_out: set[str] = set()
        failed: dict[Status, Planned] = {}
        before = executor.deaths
        last_failed: Record | None = None
        alone, previous = Alone(executor, self.command(op)), None
        for planned in self._ordered(plan):
            if self.results_only and any(spec.numel == 0 for spec in planned.case.tensors.values()):
                left_out.update(corners_of(planned.case, plan.corners))
                continue
            record = judge_case(planned.case, executor, plan.corners)
            last_failed = record if record.status.failed else last_failed
            done.append(xfail.apply(record))
            if done[-1].status.failed:
                failed.setdefault(record.status, planned)
                if self.shrink:
                    done[-1] = alone.with_repeat_line(done[-1], previous)
            previous = planned.case
            yield done[-1]
            if executor.deaths - before >= profiles.MAX_DEATHS:
                yield self._stopped(op, len(done), last_failed or record)
                return
        if self.shrink:
            for status, planned in failed.items():
                if status in DEATHS or alone.passes(status):  # each attempt costs a process, or depends on others
                    continue
                small = shrunk(planned, plan, status, executor)
                if small is not None and alone.holds(small):
                    yield small
        calls = calls_of(done, executor)
        due = [] if any(record.status.failed for record in done) else repeats(done, executor, self.profile)
        if due:
            again = repeated_record(op, executor, due, self.command(op))
            calls += int(again.numbers["repeated_calls"] or 0)
            yield xfail.apply(again)
        if not self.results_only and any(record.status.judged for record in done):
            yield xfail.apply(grad_record(op, executor))
            yield xfail.apply(bad_input_record(op, executor))
        left_out -= {name for record in done for name in record.corners}
        corners = tuple(corner for corner in plan.corners if corner.name not in left_out)
        whole = summary(
            op, executor.ops, done, corners, self.require, self.command(op), calls=calls, out_of_reach=plan.out_of_reach
        )
        yield xfail.apply(whole)
        yield from xfail.unused(op, executor.ops.name)

    def _ordered(self, plan: Plan) -> Iterable[Planned]:
        if not self.first:
            return plan.cases()
        wanted = set(self.first)
        return sorted(
            plan.cases(), key=lambda planned: -len(wanted.intersection(corners_of(planned.case, plan.corners)))
        )

    def of_ops(self, names: tuple[str, ...], progress: Callable[[str], None] = lambda _: None) -> Iterator[Record]:
        """Judge several ops; `progress` gets a line for each op, for each death, and every `PROGRESS_SECONDS`."""
        problem = bfloat16_record(self.executor.device, self.executor.ops)
        if problem:
            yield problem
        for n, op in enumerate(names, 1):
            start, count, failed = time.perf_counter(), 0, 0
            said = start
            progress(f"[{n}/{len(names)}] {op} ...")
            for record in self.of_op(op):
                count += record.level is Level.OP
                failed += record.status.failed
                now = time.perf_counter()
                if record.level is Level.OP and record.status in DEATHS:
                    said = now
                    progress(f"[{n}/{len(names)}] {op}: case {count} {record.reason}")
                elif now - said > PROGRESS_SECONDS:
                    said = now
                    progress(f"[{n}/{len(names)}] {op}: {count} cases, {failed} failed so far, {now - start:.0f} s")
                yield record
            progress(f"[{n}/{len(names)}] {op}: {count} cases, {failed} failed, {time.perf_counter() - start:.1f} s")

    def cases(self, op: str) -> int:
        """How many cases an op gets, without the shrunk ones."""
        return Plan.of(op, self.executor.device, self.profile, self.seed).count()

    def command(self, op: str) -> str:
        """The command line that judges an op again with the same settings."""
        return op_command(
            op,
            self.executor,
            profile=self.profile.name if self.profile in PROFILES.values() else None,
            seed=self.seed,
            require=self.require,
            xfail=self.xfail.path,
            results_only=self.results_only,
        )

    def _stopped(self, op: str, cases: int, last: Record) -> Record:
        """The failed record that says why an op was judged no further; ``last`` is the last case that failed."""
        reason = (
            f"stopped after {cases} cases, {profiles.MAX_DEATHS} of which hung, crashed or lost the accelerator; the "
            f"last {last.reason}; the rest is not judged"
        )
        status, name, command = last.status if last.status in DEATHS else Status.CRASHED, last.op_set, self.command(op)
        message = f"{op}  {name}  {status}\n{reason}\nrepeat: {command}"
        return Record(Level.RUN, op, name, status, "runs", reason, message=message, repro=command)


def bfloat16_record(device: Device, ops: OpSet) -> Record | None:
    """The record that says bfloat16 was not judged, if it cannot be."""
    if not device.bfloat16_problems:
        return None
    reason = "the interpreter's bfloat16 conversion is wrong: " + "; ".join(device.bfloat16_problems)
    return Record(
        level=Level.RUN,
        subject="bfloat16",
        op_set=ops.name,
        status=Status.BFLOAT16_NOT_JUDGED,
        check="interpreter",
        reason=reason,
        message=f"bfloat16  {ops.name}  {Status.BFLOAT16_NOT_JUDGED}\n{reason}",
    )
