"""The child that counts: calls arms at workloads, compiled for a target; kernels see the addresses of their arguments.

Run by `validation.bench.counters` in a process in which Triton does not interpret.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from reference_ops import IndexedRows
from validation.bench.forward_bytes import StepBytes, fake_tensors
from validation.bench.forward_bytes import count as count_operators
from validation.bench.results import one_line
from validation.cases.case import Case
from validation.compiled.aot import unwritten
from validation.compiled.counters.launch import Counters, count
from validation.compiled.ptx.executing import execute_launches
from validation.compiled.ptx.launch import Launch
from validation.compiled.ptx.machine import Outcome
from validation.errors import CannotExpress, UsageError
from validation.ops import Op, load_op_set


def main() -> None:
    """Read ``{"target", "arms" (modules by name), "eager", "cases"}`` from stdin; print one line for each case and arm.

    Eager arms launch no kernel of Triton, and are called with tensors without memory.
    """
    request = json.load(sys.stdin)
    target = request["target"]
    with _counted(target) as found:
        for n, text in enumerate(request["cases"]):
            for arm, module in request["arms"].items():
                line = _of_arm(module, Case.from_json(text), found, fake=arm in request["eager"])
                print(json.dumps({"target": target, "case": n, "arm": arm, **line}), flush=True)


def _of_arm(module: str, case: Case, found: list[Counters], *, fake: bool) -> dict[str, Any]:
    found.clear()
    try:
        function = load_op_set(module)[case.op]
        moved = _operators(function, case, fake=fake)
    except KeyError:
        return {"left_out": "the library has no such op"}
    except (CannotExpress, UsageError) as error:
        return {"left_out": str(error)}
    except Exception as error:  # of any kind: the other arms and workloads are still counted
        return {"left_out": one_line(error)}
    # What an op of torch.library launches is counted by its launches.
    launching = sum(number for name, number in moved.by_operator.items() if "::" in name)
    return {
        "launches": [one.to_dict() for one in found],
        "torch_bytes": moved.total - launching,
        "torch_kernels": {name: number for name, number in sorted(moved.kernels.items()) if "::" not in name},
    }


def arguments_of(case: Case) -> dict[str, Any]:
    """Uninitialised arguments of a workload. Runs of tokens share a row of an index, as history and current ones do."""
    kwargs = unwritten(case).kwargs
    for value in kwargs.values():
        if isinstance(value, IndexedRows):
            tokens = value.index.shape[1]
            value.index.copy_(torch.arange(tokens) * value.table.shape[-2] // tokens)
    return kwargs


def _operators(function: Op, case: Case, *, fake: bool) -> StepBytes:
    """What PyTorch's own kernels move in a call."""
    with torch.no_grad():
        if fake:
            # Errors are of many kinds: what looks at values cannot be done without any.
            with contextlib.suppress(Exception), fake_tensors():
                kwargs = arguments_of(case)
                return count_operators(lambda: function(**kwargs))
        kwargs = arguments_of(case)
        return count_operators(lambda: function(**kwargs))


@contextlib.contextmanager
def _counted(target: str) -> Iterator[list[Counters]]:
    """Count the launches of the ``with`` block in place of making them."""
    found: list[Counters] = []

    def instead(launch: Launch) -> Outcome:
        if launch.programs:
            found.append(count(launch, target))
        return Outcome((), ())

    end: Callable[[], None] = execute_launches(target, run=instead)
    try:
        yield found
    finally:
        end()
