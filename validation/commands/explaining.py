"""``validate explain``: where two kernels of one op part, in words."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from validation.commands import FAILED, INCONCLUSIVE, PASSED, Command, progress
from validation.errors import UsageError

if TYPE_CHECKING:
    from validation.cases.case import Case


def _explain(options: argparse.Namespace) -> int:
    from validation.commands.again import case_and_ops
    from validation.device import select
    from validation.ops import check_op_name, load_op_set
    from validation.parity.one_case import check_fits
    from validation.parity.plan import Plan
    from validation.parity.profiles import profile_named

    case = case_and_ops(options.case)[0] if options.case else None
    op = options.op or (case.op if case is not None else "")
    if not op:
        raise UsageError("--op: expected an op, or --case with one")
    check_op_name(op)
    if case is not None and case.op != op:
        raise UsageError(f"--op: {op}, expected {case.op}, of which the case is")
    device = select(compiled=options.compiled or "sm_90")
    if case is not None:
        check_fits(case, device.torch)
    from validation.explain.explain import explain_first

    a, b = load_op_set(options.ops), load_op_set(options.against)
    for name, ops in (("ops", a), ("against", b)):
        if op not in ops:
            raise UsageError(f"--{name}: {ops.origin} has no {op}, expected an op set that has it")
    cases: Iterator[Case] = iter([case] if case is not None else ())
    if case is None:
        plan = Plan.of(op, device, profile_named(options.profile), options.seed)
        cases = (one.case for one in plan.cases() if not _empty(one.case))
    found = explain_first(cases, a, b, device, progress=progress)
    print(f"a is {a.origin}, b is {b.origin}; {device.name}")
    if found.case is None:
        print(f"{op}: every output has the same bits, in {found.compared:,} case{'s' * (found.compared != 1)}")
    for line in (*found.lines, *(f"not compared: {text}" for text in found.left_out)):
        print(line)
    if found.case is not None and case is None:
        print(f"the case: {found.case.to_json()}")
    if found.case is not None:
        return FAILED if found.followed else INCONCLUSIVE
    return PASSED if found.compared else INCONCLUSIVE


def _empty(case: "Case") -> bool:
    return any(0 in spec.shape for spec in case.tensors.values())


COMMANDS = (
    Command(
        "explain",
        "where two kernels of one op part, in words",
        "Executes the compiled kernels of two op sets on the same inputs. Where bits differ, the first element that\n"
        "does is followed back through both kernels' PTX to the inputs, and the first value that differs is named:\n"
        "the order of a sum, a product that is not rounded (fma), one rounding more, rsqrt.approx for 1 / sqrt, one\n"
        "pass for two; with both values and the exact one. What was followed is computed again, and must give the\n"
        "kernel's bits. --ops is a, --against is b. Cases are drawn until one differs.",
        _explain,
        epilog="exit status: 0 all compared cases have the same bits, 1 they differ and it says where, 2 usage error,\n"
        "3 nothing could be compared, or a kernel that differs could not be followed\n",
    ),
)
