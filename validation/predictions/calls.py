"""Makes the calls of predictions, on the device that the process has selected, and says what they gave."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from validation.cases.case import Case
from validation.cases.tensors import materialise
from validation.cases.workloads import Workload
from validation.compiled.ptx import executing
from validation.compiled.ptx.launch import Launch
from validation.device import Device
from validation.device.private import triton_module
from validation.errors import CannotExpress, NotExecutedError
from validation.judge.expected import outputs_of
from validation.ops import OpSet
from validation.predictions.kept import Call, Output, hash_of, inputs_of


def call(op: str, name: str, case: Case, ops: OpSet, device: Device) -> Call:
    """Make a call.

    Args:
        op: the op.
        name: of its workload.
        case: what to call.
        ops: has the op.
        device: selected.

    Raises:
        Exception: whatever the op raises, but for `CannotExpress` and `NotExecutedError`, which say that it has none.
    """
    arguments = materialise(case, device.torch)
    inputs = inputs_of(arguments.tensors)
    with launched() as kernels, executing.watched(arguments.tensors) as runs, torch.no_grad():
        try:
            outputs: Sequence[Tensor] = outputs_of(ops[op](**arguments.kwargs))
            unknown = _unknown(runs)
        except (CannotExpress, NotExecutedError) as error:
            outputs, unknown = (), str(error)
        except Exception as error:
            if not runs.not_executed:
                raise
            outputs, unknown = (), f"{runs.not_executed} ({type(error).__name__})"
    hashes = tuple(map(hash_of, kernels))
    return Call(op, name, case, inputs, hashes, () if unknown else tuple(map(Output.of, outputs)), unknown)


def _unknown(runs: executing.Runs) -> str:
    """Why what was executed does not have the bits of a GPU; "" if it has."""
    if runs.not_executed:
        return runs.not_executed
    if runs.violations:
        return str(runs.violations[0])
    if runs.approximate:
        return "it has .approx instructions, whose results are known within an interval"
    if runs.unordered:
        return f"the order of threads decides in {', '.join(runs.unordered)}"
    return ""


@contextlib.contextmanager
def launched() -> Iterator[list[str]]:
    """The PTX of each kernel that is launched in this process, in order: on a GPU, or executed."""
    function = triton_module("triton.runtime.jit").JITFunction
    run = function.run
    found: list[str] = []

    def watched(self: Any, *arguments: Any, warmup: bool = False, **keywords: Any) -> Any:
        kernel = run(self, *arguments, warmup=warmup, **keywords)
        if not warmup and hasattr(kernel, "asm") and "ptx" in kernel.asm:
            found.append(kernel.asm["ptx"])
        return kernel

    def begun(launch: Launch) -> None:
        found.append(launch.ptx)

    function.run = watched
    executing.begun.append(begun)
    try:
        yield found
    finally:
        executing.begun.remove(begun)
        function.run = run


def calls(
    workloads: Sequence[Workload],
    ops: OpSet,
    device: Device,
    *,
    whole: bool = True,
    progress: Callable[[str], None] = lambda _text: None,
) -> Iterator[Call]:
    """Make the call of each workload that the op set has an op for.

    Args:
        workloads: the workloads.
        ops: the op set.
        device: selected.
        whole: at full size; else with a few tokens.
        progress: is told of each call.
    """
    mine = [workload for workload in workloads if workload.op in ops]
    for n, workload in enumerate(mine):
        progress(f"{n + 1} of {len(mine)}: {workload.op}, {workload.name}")
        yield call(workload.op, workload.name, workload.make(whole), ops, device)
