"""Judge one case: its record, with the message and the command line that repeats it."""

import dataclasses
import time

from validation.cases.case import Case
from validation.cases.corners import Corner, corners_of
from validation.cases.tensors import materialise
from validation.device.threads import one_thread
from validation.errors import UsageError
from validation.executor import Executor
from validation.judge import calls
from validation.judge.expected import absent, expect
from validation.judge.oracle import WrongTruthError
from validation.ops import tracebacks
from validation.parity.repro import case_command
from validation.record import Level, Record
from validation.verdict import Status

# A case of which fewer elements are finite, not zero and not all the same is passed by nearly any op. It counts for
# nothing, as in oneDNN's benchdnn, whose word this is.
LEAST_INFORMATIVE = 0.1

SHORT_DTYPE = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def check_fits(case: Case, device: str) -> None:
    """Raise UsageError if the reference op does not take a case: one written by hand, or from another release."""
    try:
        with one_thread():
            arguments = materialise(case, device)
            arguments.kwargs |= absent(case, arguments.kwargs)
            expect(case, arguments, device)
    except UsageError:
        raise
    except WrongTruthError:  # a verdict of its own
        return
    except Exception as error:
        words = f"{type(error).__name__}: {tracebacks.said(error)[:120]}"
        raise UsageError(f"case: {case.op} does not take it: {words}") from error


def judge_case(case: Case, executor: Executor, corners: tuple[Corner, ...] = ()) -> Record:
    """Judge one case.

    Args:
        case: the case.
        executor: runs the candidate.
        corners: the op's declared corners; the record notes which of them the case reaches.

    Raises:
        UsageError: the op set lacks the op.

    A case that the reference op does not take raises the reference's own exception: call `check_fits` before.
    """
    ops = executor.ops
    if case.op not in ops:
        raise UsageError(f"{ops.name} does not provide {case.op}, expected one of: {', '.join(ops.functions)}")
    start = time.perf_counter()
    verdict = executor.judge(case)
    seconds = time.perf_counter() - start
    share = verdict.numbers.get("informative_share")
    if verdict.status is Status.PASSED and isinstance(share, float) and share < LEAST_INFORMATIVE:
        reason = f"{100 * share:.0f} % of the elements tell something: {verdict.reason}"
        verdict = dataclasses.replace(verdict, status=Status.MISTRUSTED, check="informative", reason=reason, tier=None)
    repro, failed = case_command(case, executor=executor), verdict.status.failed
    lines = [
        f"{case.op}  {ops.name}  {SHORT_DTYPE[case.dtype]}  {verdict.status}",
        case.describe(),
        verdict.reason,
        *verdict.lines,
        *([f"called: {calls.described(case)}"] if failed else []),
        f"repeat: {repro}",
    ]
    return Record(
        level=Level.OP,
        subject=case.op,
        op_set=ops.name,
        status=verdict.status,
        check=verdict.check,
        reason=verdict.reason,
        case=case.to_dict(),
        dtype=case.dtype,
        tier=verdict.tier,
        numbers=dict(verdict.numbers),
        seconds={**verdict.seconds, "total": round(seconds, 6)},
        message="\n".join(lines) if failed else "",
        repro=repro,
        corners=corners_of(case, corners),
    )
