"""Many calls of one case, each compared with the first bit by bit: for faults that show in one call of hundreds."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from validation.cases.case import Case
from validation.cases.tensors import materialise
from validation.compiled.ptx import executing
from validation.device.threads import one_thread
from validation.judge.bits import difference
from validation.judge.expected import absent, outputs_of, written_arguments
from validation.ops import surroundings, tracebacks
from validation.verdict import Status, Verdict

CHECK = "repeated calls"


def judge_repeated(case: Case, candidate: Callable[..., Any], device: str, calls: int) -> Verdict:
    """Call a candidate several times with the same arguments, which are in the same memory.

    The calls run without the guards of a judged call, as a model makes them: what an output's fresh memory held is
    another thing each time.

    Args:
        case: a case that the candidate passes.
        candidate: the op, called with keyword arguments.
        device: ``cpu`` or ``cuda``.
        calls: how many in all; two at least, or nothing is compared.
    """
    arguments = materialise(case, device)
    kwargs = {**arguments.kwargs, **absent(case, arguments.kwargs)}
    written = written_arguments(case)
    first: tuple[Tensor, ...] = ()
    with torch.no_grad(), one_thread(), surroundings.kept(), executing.how(turn=case.seed):
        for n in range(1, calls + 1):
            if written:
                arguments.restore(written)
            try:
                outputs = outputs_of(candidate(**kwargs))
                words = difference(outputs, first) if n > 1 else ""
            except BaseException as error:  # whatever a candidate raises is its verdict
                if tracebacks.is_interrupt(error):
                    raise
                words = f"raised {type(error).__name__}: {tracebacks.said(error)[:300]}{tracebacks.of_error(error)}"
            if words:
                reason = f"call {n} of {calls} with the same arguments gives other bits: {words}"
                return Verdict(Status.NOT_REPRODUCIBLE, CHECK, reason)
            if n == 1:
                first = tuple(output.clone() for output in outputs)
    return Verdict(Status.PASSED, CHECK, f"the same bits in {calls} calls")
