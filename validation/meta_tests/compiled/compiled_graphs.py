"""What torch.compile makes for a target, executed, in a process of its own: prints what `test_inductor` looks at."""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from validation.adapters.inductor import backend
from validation.cases.case import Case
from validation.compiled.ptx import executing
from validation.compiled.ptx.launch import Launch
from validation.judge.verdict import judge_call

# Dynamo makes a size a symbol when it has seen two of it: another batch, one row, another width, one channel.
SHAPES = ((2, 16, 160), (3, 5, 160), (1, 1, 160), (2, 16, 96), (4, 3, 1))


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """A norm whose mean is a quotient by a constant, with a float that is no constant of the graph."""
    half = x.float() / 3
    return (torch.nn.functional.rms_norm(half, x.shape[-1:], eps=eps) * weight).to(x.dtype)


def positions(x: Tensor) -> Tensor:
    """Makes a tensor on its argument's device, copies one that is not contiguous, and indexes by a tensor."""
    at = torch.arange(x.shape[0], device=x.device) % 3
    return x.t().contiguous().t()[at] + at[:, None]


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    from validation.adapters import torch_compile  # which asks for the target

    return torch_compile.compiled(function)


def _error(y: Tensor, truth: Tensor) -> float:
    return float(((y.double() - truth).abs() / (1 + truth.abs())).max())


def shapes(target: str, count: str) -> None:
    """The largest error of each of the last shapes, the first with an eps of its own; violations, launches."""
    torch.manual_seed(0)
    errors = []
    with executing.executing(target) as runs:
        call = _compiled(norm)
        for eps, shape in zip((1e-6, *[0.25] * len(SHAPES)), SHAPES[-int(count) :], strict=False):
            x, weight = torch.randn(shape, dtype=torch.float16), torch.randn(shape[-1])
            errors.append(_error(call(x, weight, eps), norm(x.double(), weight.double(), eps)))
        x = torch.randn(4, 6)
        errors.append(_error(_compiled(positions)(x), positions(x).double()))
    print(json.dumps([errors, [str(one) for one in runs.violations], runs.launches, runs.not_executed]))


def thirds(x: Tensor) -> Tensor:
    """A quotient by a constant: one kernel, which Inductor would time in several configurations."""
    return x / 3


def code(target: str) -> None:
    """For each turn: grid, threads and whether it multiplies by 1/3; then whether the code is the target's."""
    launches: list[Launch] = []
    executing.begun.append(launches.append)
    x = torch.randn(4096)
    with executing.executing(target):
        call = _compiled(thirds)
        for turn in range(3):
            with executing.how(turn=turn):
                call(x)
    found = []
    for launch in launches:
        entry = launch.ptx[launch.ptx.index(".reqntid") :]
        reciprocal = "0f3EAAAAAB" in launch.ptx and "div." not in launch.ptx
        found.append([launch.grid, entry.split("\n")[0], reciprocal])
    print(json.dumps([found, f".target {target}" in launches[0].ptx]))


def judged(target: str) -> None:
    """Verdicts on an op with and without the roundings that the function has, compiled by the adapter."""
    executing.execute_launches(target)
    from validation.adapters import torch_compile, torch_native

    case = Case.from_json(json.loads(sys.stdin.read()))
    for keep in (True, False):
        op = torch_compile.compiled(getattr(torch_native, case.op), emulate_precision_casts=keep)
        verdict = judge_call(case, op, "cpu")
        print(json.dumps([str(verdict.status), verdict.reason]))


def everything(target: str) -> None:
    """A line of `refused`, of `shapes` and of `code`, and the lines of `judged`."""
    refused()
    shapes(target, str(len(SHAPES)))
    code(target)
    judged(target)


def refused() -> None:
    """The backend outside of a process that executes launches."""
    try:
        torch.compile(norm, backend=backend())(torch.ones(2, 3), torch.ones(3), 1e-6)
    except Exception as error:  # Dynamo's own class around it
        print(json.dumps(str(error)))
