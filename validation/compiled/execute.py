"""Runs the ops of ``fused_ops`` on cases as compiled for a target, in a forked process.

Where TRITON_INTERPRET is set, as in most of the suite's own processes, ``triton.jit`` gives functions that cannot be
compiled.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from validation.cases.case import Case
from validation.cases.tensors import materialise
from validation.compiled.ptx.errors import Violation
from validation.compiled.ptx.executing import executing, how
from validation.forking.forked import start_call
from validation.forking.server import Order
from validation.judge.expected import absent, outputs_of


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
        order = Order("validation.compiled.forked", "execute", (), str(Path.cwd()), {})
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
    for case in map(Case.from_json, cases):
        kwargs = materialise(case).kwargs
        with how(mode=mode, races=races), executing(target, options=options) as runs:
            outputs = outputs_of(getattr(fused_ops, case.op)(**kwargs | absent(case, kwargs)))
        violations = [dataclasses.asdict(v) for v in runs.violations]
        done.append(([t.clone() for t in outputs], violations, runs.seconds))
    torch.save(done, file)


def main() -> None:
    """Do what the request on stdin asks for, in this process, and write the outputs to its file."""
    _execute_here(**json.load(sys.stdin))
