"""Check the form of a call's outputs and the memory that it wrote."""

from typing import Any

import torch
from torch import Tensor

from validation.cases.tensors import Arguments
from validation.compiled.ptx.executing import Runs
from validation.judge import structure, where
from validation.verdict import REPORT_ORDER, Status, Verdict


def wrong_form(outputs: tuple[Any, ...], expected: tuple[Tensor, ...], *, alone: bool) -> Verdict | None:
    """The failure in the outputs' form, None if it is right; `alone`: a single value was returned, not a tuple."""

    def wrong(status: Status, check: str, came: object, wanted: object, index: int) -> Verdict:
        place = f" {index} of {len(expected)}" if len(expected) > 1 else ""
        return Verdict(status, check, f"output{place} is {came}, expected {wanted}")

    tensors = all(isinstance(output, Tensor) for output in outputs)
    if not tensors or alone != (len(expected) == 1) or len(outputs) != len(expected):
        came = ", ".join(type(o).__name__ for o in outputs)
        wanted = "a tensor" if len(expected) == 1 else f"a tuple of {len(expected)} tensors"
        came = came if alone else f"({came}{',' if len(outputs) == 1 else ''})"
        return Verdict(Status.INCORRECT_STRUCTURE, "structure", f"returned {came}, expected {wanted}")
    for i, (output, want) in enumerate(zip(outputs, expected, strict=True)):
        if odd := _odd(output):
            return wrong(Status.INCORRECT_STRUCTURE, "structure", odd, "a plain torch.Tensor", i)
        if output.dtype != want.dtype:
            return wrong(Status.INCORRECT_DTYPE, "dtype", str(output.dtype)[6:], str(want.dtype)[6:], i)
        if output.shape != want.shape:
            return wrong(Status.INCORRECT_SHAPE, "shape", list(output.shape), list(want.shape), i)
        if output.device.type != want.device.type:
            return wrong(Status.INCORRECT_DEVICE, "device", output.device, want.device, i)
    return None


def _odd(output: Tensor) -> str:
    """Name the output's kind if its address does not lead a kernel to its values; "" for a plain tensor."""
    if type(output) is not Tensor:  # an nn.Parameter and other subclasses too
        return f"a {type(output).__module__}.{type(output).__qualname__}"
    if output.is_nested or output.layout is not torch.strided:
        return "a nested tensor" if output.is_nested else f"a tensor of layout {str(output.layout)[6:]}"
    if output.is_neg() or output.is_conj():
        return "a view that negates lazily"
    return "a tensor that requires grad under torch.no_grad()" if output.requires_grad else ""


def wrong_memory(
    outputs: tuple[Tensor, ...],
    arguments: Arguments,
    guards: structure.GuardedAllocations,
    written: tuple[str, ...],
) -> Verdict | None:
    """The failure in the memory that a call wrote, returned or left unwritten; None if there is none.

    Args:
        outputs: the call's outputs, in the right form.
        arguments: the call's arguments.
        guards: the guards under which it ran.
        written: names of the tensors that it may write.
    """
    if guards.moved:
        reason = f"an argument was made another tensor: {guards.moved}"
        return Verdict(Status.INPUT_MODIFIED, "inputs untouched", reason)
    changed, outside = structure.inputs_changed(arguments, written)
    if changed:
        return Verdict(Status.INPUT_MODIFIED, "inputs untouched", f"an input was written: {changed}")
    for name, output in zip(written, outputs, strict=False):
        if output is not arguments.tensors[name]:
            reason = f"inplace=True returned another tensor than {name}, expected {name} itself"
            return Verdict(Status.OUTPUT_ALIASES_INPUT, "in place", reason)
    alias = structure.aliased_input(outputs, arguments, written)
    if alias:
        return Verdict(Status.OUTPUT_ALIASES_INPUT, "no alias", f"an output shares memory with the input {alias}")
    outside = outside or guards.written_outside()
    if outside:
        return Verdict(Status.OUT_OF_BOUNDS_WRITE, "canaries", f"written outside: {outside}")
    executed = wrong_execution(guards.launched.executed)
    if executed is not None:
        return executed
    if guards.read_outside:
        return Verdict(Status.OUT_OF_BOUNDS_READ, "reads", f"read outside: {guards.read_outside}")
    for output in outputs:
        missed = structure.unwritten(output)
        if bool(missed.any()):
            reason = f"{int(missed.sum())} of {output.numel()} elements were never written"
            return Verdict(
                Status.NOT_WRITTEN, "poison", f"{reason}, the first at {_first(missed)}", lines=where.lines(missed)
            )
    return None


def wrong_execution(runs: Runs) -> Verdict | None:
    """The failure in what executed kernels did to memory; None if there is none, or nothing was executed."""
    if not runs.violations:
        return None
    worst = min(runs.violations, key=lambda violation: REPORT_ORDER.index(Status(violation.kind)))
    lines = tuple(str(violation) for violation in runs.violations if violation is not worst)
    return Verdict(Status(worst.kind), "executed PTX", str(worst), lines=lines)


def _first(hit: Tensor) -> str:
    return where.index_text(hit.nonzero()[0].tolist())
