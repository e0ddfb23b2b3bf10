"""Calls outside the case space: calls that an op must refuse, and one with parameters that require grad."""

import time

from validation.cases.errors import bad_calls, good_case
from validation.executor import Death, Executor
from validation.judge.signature import signature_of
from validation.parity import profiles
from validation.parity.repro import op_command
from validation.record import Level, Record
from validation.verdict import Status


def bad_input_record(op: str, executor: Executor) -> Record:
    """One record on all the calls that an op must refuse (`validation.cases.errors`).

    A refusal is a TypeError, a ValueError or a NotImplementedError whose message names the argument, raised before
    anything is written. The first call that ends its process gives the record its status; after
    `profiles.MAX_DEATHS` of them the rest is not tried.
    """
    start = time.perf_counter()
    # Where PTX is executed the op believes in a GPU (`validation.adapters.shells`), and looks at no value either.
    looks = executor.device.kind == "interpreter"
    bad_ones = [bad for bad in bad_calls(signature_of(op)) if looks or not bad.looks]
    wrong, deaths, tried = [], [], 0
    for bad in bad_ones:
        came = executor.not_refused(bad)
        tried += 1
        if isinstance(came, Death):
            deaths.append(came)
            came = came.reason
        if came:
            wrong.append(f"{bad.name}: {came}")
        if len(deaths) == profiles.MAX_DEATHS:
            break
    status = deaths[0].status if deaths else Status.BAD_INPUT_ACCEPTED if wrong else Status.PASSED
    reason = f"{len(wrong)} of {tried} bad calls were not refused as they should be"
    if deaths:
        reason = f"{reason}, {len(deaths)} of which hung or crashed; the first {deaths[0].reason}"
    if tried < len(bad_ones):
        reason = f"{reason}; stopped before {len(bad_ones) - tried} more"
    command = op_command(op, executor)
    lines = [f"{op}  {executor.ops.name}  {status}", reason, *wrong, f"repeat: {command}"]
    return Record(
        level=Level.RUN,
        subject=op,
        op_set=executor.ops.name,
        status=status,
        check="bad input",
        reason=reason if wrong else f"all {tried} bad calls were refused, each naming the argument",
        numbers={"bad_calls": tried, "not_refused": len(wrong)},
        seconds={"total": round(time.perf_counter() - start, 6)},
        message="\n".join(lines) if wrong else "",
        repro=command,
    )


def grad_record(op: str, executor: Executor) -> Record:
    """One record on a call under ``torch.no_grad()`` with ``nn.Parameter``, as a model's own weights are.

    An op may refuse tensors that require grad only if grad mode is on.
    """
    start = time.perf_counter()
    case = good_case(signature_of(op))
    verdict = executor.judge(case, grad=True)
    command = op_command(op, executor)
    reason = f"called under torch.no_grad() with tensors that require grad: {verdict.reason}"
    return Record(
        level=Level.RUN,
        subject=op,
        op_set=executor.ops.name,
        status=verdict.status,
        check="grad mode off",
        reason=reason,
        seconds={"total": round(time.perf_counter() - start, 6)},
        message=f"{op}  {executor.ops.name}  {verdict.status}\n{reason}\nrepeat: {command}"
        if verdict.status.failed
        else "",
        repro=command,
    )
