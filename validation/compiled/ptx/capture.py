"""Takes the launches that a Python function makes on CPU tensors, compiles them for a target, and runs their PTX.

`execute` does so in a forked process: where TRITON_INTERPRET is set, as in most of the suite's own processes,
``triton.jit`` gives functions that cannot be compiled.
"""

import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from validation.cases.case import Case
from validation.cases.tensors import materialise
from validation.compiled.aot import compile_for
from validation.compiled.ptx.approximate import Approximation
from validation.compiled.ptx.errors import NotExecutedError, Violation
from validation.compiled.ptx.machine import run
from validation.compiled.ptx.memory import Memory
from validation.compiled.ptx.program import program
from validation.device.private import bound_arguments, triton_module
from validation.forking.forked import start_call
from validation.forking.server import Order
from validation.judge.expected import absent, outputs_of

# A parameter of each type of Triton's signatures, as the bits that PTX reads.
_SCALARS: Mapping[str, Callable[[Any], Any]] = {
    "i1": lambda v: np.uint8(bool(v)),
    "i8": lambda v: np.uint8(v & 0xFF), "u8": lambda v: np.uint8(v & 0xFF),
    "i16": lambda v: np.uint16(v & 0xFFFF), "u16": lambda v: np.uint16(v & 0xFFFF),
    "i32": lambda v: np.uint32(v & 0xFFFFFFFF), "u32": lambda v: np.uint32(v & 0xFFFFFFFF),
    "i64": lambda v: np.uint64(v & 0xFFFFFFFFFFFFFFFF), "u64": lambda v: np.uint64(v & 0xFFFFFFFFFFFFFFFF),
    "fp32": lambda v: np.float32(v).view(np.uint32), "fp64": lambda v: np.float64(v).view(np.uint64),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch, compiled but not made.

    Attributes:
        ptx: of the kernel.
        grid: programs in x, y and z.
        arguments: name, Triton's type and value of each parameter of the PTX, but for the scratch pointers at its end.
        shared_bytes: shared memory of a program.
    """

    ptx: str
    grid: tuple[int, int, int]
    arguments: tuple[tuple[str, str, Any], ...]
    shared_bytes: int


@dataclasses.dataclass
class Runs:
    """The launches that were run.

    Attributes:
        violations: what the kernels must not have done.
        launches: how many there were.
        seconds: that their PTX took, without the compiler.
    """

    violations: list[Violation] = dataclasses.field(default_factory=list)
    launches: int = 0
    seconds: float = 0.0


def run_launch(
    launch: Launch,
    *,
    approximation: Approximation | None = None,
    races: bool = False,
    ctas: Iterable[int] | None = None,
) -> list[Violation]:
    """Run a launch, or some of its CTAs, and write its results into its tensors.

    Raises:
        NotExecutedError: something in it is not executed.
    """
    bound = program(launch.ptx)
    memory = Memory((name, value) for name, _, value in launch.arguments if isinstance(value, Tensor))
    parameters = [
        np.uint64(memory.address(value)) if isinstance(value, Tensor) else _scalar(type_, value)
        for _, type_, value in launch.arguments
    ]
    # Triton appends two pointers to scratch memory; a kernel that used them would access what is no argument's.
    missing = len(bound.kernel.parameters) - len(parameters)
    if missing not in (0, 1, 2):
        raise NotExecutedError(f"{bound.kernel.name} has {missing} parameters more than the launch has arguments")
    parameters += [np.uint64(0)] * missing
    violations = run(
        bound,
        launch.grid,
        parameters,
        memory,
        shared_bytes=launch.shared_bytes,
        approximation=approximation,
        races=races,
        ctas=ctas,
    )
    memory.write_back()
    return violations


def _scalar(type_: str, value: Any) -> Any:
    if type_ not in _SCALARS:
        raise NotExecutedError(f"a kernel with an argument of type {type_} is not executed")
    return _SCALARS[type_](value)


def _flat(name: str, type_: Any, value: Any) -> Iterator[tuple[str, str, Any]]:
    """The parameters of an argument: a tuple is one for each of its values, a constant none."""
    if isinstance(type_, tuple):
        fields = getattr(value, "_fields", range(len(type_)))
        for field, inner, one in zip(fields, type_, value, strict=True):
            yield from _flat(f"{name}.{field}", inner, one)
    elif type_ != "constexpr":
        yield name, type_, value


@contextlib.contextmanager
def executing(
    target: str,
    *,
    options: Mapping[str, Any] | None = None,
    approximation: Approximation | None = None,
    races: bool = False,
    launched: Callable[[Launch], list[Violation]] | None = None,
) -> Iterator[Runs]:
    """Run Triton's launches on the CPU, in this process, in which the interpreter must be off.

    Args:
        target: a name in `validation.compiled.aot.TARGETS` that has PTX.
        options: Triton's compile options that replace the launchers'.
        approximation: what ``.approx`` gives.
        races: look for races too.
        launched: runs each launch instead of `run_launch`.
    """
    from fused_ops import _launch

    if not target.startswith("sm_"):
        raise NotExecutedError(f"{target} has no PTX, expected one of sm_80, sm_90, sm_100")
    compile_for(target)
    jit_function = triton_module("triton.runtime.jit").JITFunction
    compile_, runs = jit_function.run, Runs()
    run_it = launched or (lambda launch: run_launch(launch, approximation=approximation, races=races))

    def launch_here(self: Any, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        assert not warmup
        keywords |= options or {}
        kernel = compile_(self, *arguments, grid=grid, warmup=True, **keywords)
        bound = bound_arguments(self, arguments, keywords)
        sizes = tuple(grid(bound) if callable(grid) else grid)
        flat = [
            one
            for (name, type_), value in zip(kernel.src.signature.items(), bound.values(), strict=True)
            for one in _flat(name, type_, value)
        ]
        launch = Launch(kernel.asm["ptx"], (*sizes, 1, 1)[:3], tuple(flat), kernel.metadata.shared)
        began = time.process_time()
        runs.violations += run_it(launch)
        runs.seconds += time.process_time() - began
        runs.launches += 1

    devices = _launch.DEVICE_TYPES
    jit_function.run, _launch.DEVICE_TYPES = launch_here, ("cpu",)
    try:
        yield runs
    finally:
        jit_function.run, _launch.DEVICE_TYPES = compile_, devices


@dataclasses.dataclass(frozen=True)
class Execution:
    """What an op gave for a case.

    Attributes:
        outputs: its outputs.
        violations: what its kernels must not have done.
        seconds: processor time that the PTX took, without the compiler.
    """

    outputs: tuple[Tensor, ...]
    violations: tuple[Violation, ...]
    seconds: float


def execute(op: str, case: Case, target: str = "sm_90", **how: Any) -> Execution:
    """Run an op of ``fused_ops`` on a case of it; as `execute_cases`."""
    return execute_cases([dataclasses.replace(case, op=op)], target, **how)[0]


def execute_cases(
    cases: Sequence[Case],
    target: str = "sm_90",
    *,
    options: Mapping[str, Any] | None = None,
    mode: str = "nearest",
    races: bool = False,
) -> list[Execution]:
    """Run the ops of ``fused_ops`` on cases, as compiled for a target, in one forked process.

    Args:
        cases: each names its op.
        target: ``sm_80``, ``sm_90`` or ``sm_100``.
        options: Triton's compile options that replace the launchers' (``{"enable_fp_fusion": False}``).
        mode: of `validation.compiled.ptx.approximate.Approximation`.
        races: look for races too.

    Raises:
        RuntimeError: an op or the compiler raised an exception, or the PTX is not executed; the message is its text.
    """
    with tempfile.TemporaryDirectory(prefix="ptx-") as folder:
        file = Path(folder) / "outputs.pt"
        request = {
            "cases": [case.to_json() for case in cases],
            "target": target,
            "options": {**(options or {})},
            "mode": mode,
            "races": races,
            "file": str(file),
        }
        order = Order("validation.compiled.ptx.forked", "main", (), str(Path.cwd()), {})
        start_call(order, json.dumps(request), without=("TRITON_INTERPRET",)).output()
        return [
            Execution(tuple(outputs), tuple(Violation(**v) for v in violations), seconds)
            for outputs, violations, seconds in torch.load(file, weights_only=True)
        ]


def _execute_here(
    cases: Sequence[str], target: str, options: Mapping[str, Any], mode: str, races: bool, file: str
) -> None:
    import fused_ops

    done = []
    approximation = Approximation(mode)
    for case in map(Case.from_json, cases):
        kwargs = materialise(case).kwargs
        with executing(target, options=options, approximation=approximation, races=races) as runs:
            outputs = outputs_of(getattr(fused_ops, case.op)(**kwargs | absent(case, kwargs)))
        violations = [dataclasses.asdict(v) for v in runs.violations]
        done.append(([t.clone() for t in outputs], violations, runs.seconds))
    torch.save(done, file)


def main() -> None:
    """Do what the request on stdin asks for, in this process, and write the outputs to its file."""
    _execute_here(**json.load(sys.stdin))
