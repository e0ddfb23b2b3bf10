"""The ops of ``fused_ops`` on cases, as compiled for a target: in a process without the interpreter."""

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
from validation.compiled.ptx.executing import executing
from validation.judge.expected import absent, outputs_of
from validation.meta_tests.compiled.without_interpreter import printed_by


@dataclasses.dataclass(frozen=True)
class Execution:
    """What an op gave for a case: its outputs, and what its kernels must not have done."""

    outputs: tuple[Tensor, ...]
    violations: tuple[Violation, ...]


def execute_cases(
    cases: Sequence[Case], target: str = "sm_90", options: Mapping[str, Any] | None = None
) -> list[Execution]:
    """Run each case's op; ``options`` are Triton's compile options that replace the launchers'."""
    with tempfile.TemporaryDirectory(prefix="ptx-") as folder:
        file = Path(folder) / "outputs.pt"
        request = {
            "cases": [case.to_json() for case in cases],
            "target": target,
            "options": {**(options or {})},
            "file": str(file),
        }
        printed_by("executed", text=json.dumps(request))
        return [
            Execution(tuple(outputs), tuple(Violation(**v) for v in violations))
            for outputs, violations in torch.load(file, weights_only=True)
        ]


def main() -> None:
    """Do what the request on stdin asks for, in this process, and write the outputs to its file."""
    import fused_ops

    request, done = json.load(sys.stdin), []
    for case in map(Case.from_json, request["cases"]):
        kwargs = materialise(case).kwargs
        with executing(request["target"], options=request["options"]) as runs:
            outputs = outputs_of(getattr(fused_ops, case.op)(**kwargs | absent(case, kwargs)))
        violations = [dataclasses.asdict(v) for v in runs.violations]
        done.append(([t.clone() for t in outputs], violations))
    torch.save(done, request["file"])
