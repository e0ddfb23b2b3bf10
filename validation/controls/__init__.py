"""Correct op sets that the suite must never flag: the other half of the proof that a verdict can be trusted.

``python -m validation.controls`` judges them all and prints what was flagged, which should be nothing.
"""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from validation.cases.roles import ACTIVATIONS
from validation.chains.arithmetic import ARITHMETIC
from validation.chains.chain import functions as functions_of
from validation.chains.contract import checked
from validation.errors import UsageError
from validation.ops import OpSet, load_op_set

# Name -> argument of `load_op_set`.
OWN = {"reference": "reference_ops", "fused": "fused_ops"}
ADAPTERS = {"torch_native": "validation.adapters.torch_native", "torch_compile": "validation.adapters.torch_compile"}
NAMES = (*OWN, *ADAPTERS, *ARITHMETIC)


def op_set(name: str) -> OpSet:
    """A control as an op set: ``--ops validation.controls:NAME``. Device and kernels as in `load_op_set`.

    Raises:
        UsageError: there is no control of that name.
    """
    if name in OWN:
        return load_op_set(OWN[name])
    if name in ADAPTERS:
        functions = load_op_set(ADAPTERS[name]).functions
        if name == "torch_compile":
            functions = {op: _rows_together(function) for op, function in functions.items()}
    elif name in ARITHMETIC:
        functions = functions_of(ARITHMETIC[name]())
    else:
        raise UsageError(f"unknown control {name!r}, expected one of: {', '.join(NAMES)}")
    guarded = {op: checked(op, function) for op, function in functions.items()}
    return OpSet(f"control:{name}", guarded, f"validation.controls:{name}")


def _rows_together(function: Callable[..., Any]) -> Callable[..., Any]:
    """Pass activations with a strided last dimension as contiguous copies.

    Inductor's C++ (torch 2.13) sums such a row in one chain. For 1024 squares the sum is 121 roundings short; torch's
    own is 0.4 short (docs/third-party.md). That is not a correct control, and the adapter is flagged for it.
    """

    @functools.wraps(function)
    def call(**arguments: Any) -> Any:
        strided = {
            name: value
            for name in ACTIVATIONS
            if isinstance(value := arguments.get(name), Tensor) and value.dim() and value.stride(-1) != 1
        }
        results = function(**arguments | {name: value.contiguous() for name, value in strided.items()})
        if not arguments.get("inplace"):
            return results
        targets = [arguments[name] for name in ("x", "q", "k") if name in arguments]
        for target, result in zip(targets, results if len(targets) > 1 else (results,), strict=True):
            if target is not result:
                target.copy_(result)
        return tuple(targets) if len(targets) > 1 else targets[0]

    return call
