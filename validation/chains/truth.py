"""The truth of a call as an op set: the reference op in float64 on the exact inputs, rounded once.

An op that returns (y, residual_out) rounds residual_out first, and y is the norm of that rounded value.
"""

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

import reference_ops
from validation.ops import Op, OpSet

_RESIDUAL_NORMS = {
    "scale_residual_layer_norm_scale_shift": "layer_norm_scale_shift",
    "scale_residual_rms_norm_scale_shift": "rms_norm_scale_shift",
}


def truth() -> OpSet:
    """An op set of all ops that computes the truth."""

    def make(op: str) -> Op:
        def call(*given: Any, **named: Any) -> Any:
            arguments, options = bound(op, given, named)
            exact = exact_outputs(op, *arguments, **options)
            return delivered(rounded_outputs(op, exact, arguments), arguments, options)

        return call

    return OpSet("truth", {op: make(op) for op in reference_ops.OP_NAMES}, "truth")


def bound(op: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments bound to the reference op's signature: positional where allowed, keyword-only by name."""
    given = _signature(op).bind(*arguments, **options)
    return given.args, given.kwargs


@functools.cache
def _signature(op: str) -> inspect.Signature:
    return inspect.signature(getattr(reference_ops, op))


def exact_outputs(op: str, *arguments: Any, **options: Any) -> tuple[Tensor, ...]:
    """The unrounded float64 outputs of a call from `bound`; y is the norm of the rounded residual_out."""
    kept = {name: value for name, value in options.items() if name != "inplace"}
    if op in _RESIDUAL_NORMS:
        residual, x, gate, *rest = arguments
        mode = {name: kept[name] for name in ("casting_mode",) if name in kept}
        total = reference_ops.residual_gate_add(*_wide((residual, x, gate)), **mode)
        rounded = total.to(x.dtype)
        y = getattr(reference_ops, _RESIDUAL_NORMS[op])(rounded.double(), *_wide(rest), **_wide_options(kept))
        return y, total
    y = getattr(reference_ops, op)(*_wide(arguments), **_wide_options(kept))
    return y if isinstance(y, tuple) else (y,)


def delivered(outputs: tuple[Tensor, ...], arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """Outputs as the op returns them: written over its first arguments if it works in place."""
    if options.get("inplace"):
        outputs = tuple(x.copy_(y) for x, y in zip(arguments, outputs, strict=False))
    return outputs if len(outputs) > 1 else outputs[0]


def rounded_outputs(op: str, exact: Sequence[Tensor], arguments: Sequence[Any]) -> tuple[Tensor, ...]:
    """The outputs rounded to their own dtypes: those of q and k, or else of the activation."""
    like = arguments if op.startswith("qk_norm") else [arguments[0]] * len(exact)
    return tuple(y.to(t.dtype) for y, t in zip(exact, like, strict=False))


def _wide(arguments: Any) -> list[Any]:
    return [_double(value) for value in arguments]


def _wide_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _double(value) for name, value in options.items()}


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if hasattr(value, "table"):
        return reference_ops.IndexedRows(value.table.double(), value.index)
    return value
