"""Makes the calls of predictions, on the device that the process has selected, and says what they gave."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from validation.bench.results import one_line
from validation.cases.case import Case
from validation.cases.tensors import materialise
from validation.cases.workloads import Workload
from validation.compiled.ptx import executing
from validation.compiled.ptx.launch import Launch
from validation.compiled.ptx.parse import parse
from validation.compiled.ptx.sass import contracted
from validation.device import Device
from validation.device.private import DispatchMode, schema_of, tree_leaves, triton_module
from validation.errors import CannotExpress, NotExecutedError
from validation.judge.expected import outputs_of
from validation.ops import OpSet
from validation.predictions.kept import Call, Output, hash_of, inputs_of


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel that was launched, as compiled."""

    ptx: str
    cubin: bytes

    def contracted(self) -> str:
        """As `validation.compiled.ptx.sass.contracted`; "" for PTX that is not parsed."""
        try:
            return contracted(parse(self.ptx), self.cubin)
        except NotExecutedError:
            return ""


def call(op: str, name: str, case: Case, ops: OpSet, device: Device) -> Call:
    """Make a call; what an op raises, or returns that is no result, is told as `Call.unknown`.

    Args:
        op: the op.
        name: of its workload.
        case: what to call.
        ops: has the op.
        device: selected.
    """
    arguments = materialise(case, device.torch)
    inputs = inputs_of(arguments.tensors)
    outputs: tuple[Output, ...] = ()
    with launched() as kernels, executing.watched(arguments.tensors) as runs, torch.no_grad(), Computed() as torch_ops:
        try:
            result = ops[op](**arguments.kwargs)
            unknown = _unknown(runs, kernels, torch_ops.names)
        except CannotExpress as error:
            unknown = str(error)
        except Exception as error:  # of any kind: other calls are still made
            unknown = runs.not_executed or f"it raised {one_line(error)}"
    if not unknown:
        try:
            outputs = tuple(map(Output.of, outputs_of(result)))
        except (TypeError, AttributeError, RuntimeError) as error:
            unknown = f"it returned a {type(result).__name__}: {one_line(error)}"
    return Call(op, name, case, inputs, tuple(hash_of(kernel.ptx) for kernel in kernels), outputs, unknown)


class Computed(DispatchMode):
    """Notes PyTorch's operators that compute floating-point numbers: a GPU may give other bits than the CPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = schema_of(func).name.removeprefix("aten::")
        moves = any(one.alias_info is not None for one in schema_of(func).returns) or name in COPIES
        floats = any(isinstance(t, Tensor) and t.is_floating_point() for t in tree_leaves(result))
        if floats and not moves and "::" not in name:
            self.names.add(name)
        return result


# They make or copy numbers, and compute none.
COPIES = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "clone", "zeros", "ones", "full",
          "zeros_like", "ones_like", "new_zeros", "new_ones", "_unsafe_view", "cat", "stack")  # fmt: skip


def _unknown(runs: executing.Runs, kernels: Sequence[Kernel], torch_ops: Collection[str]) -> str:
    """Why what was called does not have the bits of a GPU, or is not known to have them; "" if it has."""
    if runs.not_executed:
        return runs.not_executed
    if torch_ops:
        return f"PyTorch computes in it: {', '.join(sorted(torch_ops))}"
    if not kernels:
        return "it launches no kernel"
    changed = [text for kernel in kernels if (text := kernel.contracted())]
    if changed:
        return changed[0]
    if runs.violations:
        return str(runs.violations[0])
    if runs.approximate:
        return "it has .approx instructions, whose results are known within an interval"
    if runs.unordered:
        return f"the order of threads decides in {', '.join(runs.unordered)}"
    return ""


@contextlib.contextmanager
def launched() -> Iterator[list[Kernel]]:
    """The kernels that are launched in this process, in order: on a GPU, or executed."""
    function = triton_module("triton.runtime.jit").JITFunction
    run = function.run
    found: list[Kernel] = []

    def watched(self: Any, *arguments: Any, warmup: bool = False, **keywords: Any) -> Any:
        kernel = run(self, *arguments, warmup=warmup, **keywords)
        if not warmup and hasattr(kernel, "asm") and "ptx" in kernel.asm:
            found.append(Kernel(kernel.asm["ptx"], kernel.asm["cubin"]))
        return kernel

    def begun(launch: Launch) -> None:
        found.append(Kernel(launch.ptx, launch.cubin))

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
