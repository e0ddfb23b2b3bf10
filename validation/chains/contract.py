"""Put the contract's own checks in front of functions without checks, so that they refuse bad input as the op must."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reference_ops import contract
from validation.chains.chain import OPS
from validation.ops import reference_op

Op = Callable[..., Any]


def checked(op: str, function: Op) -> Op:
    """Wrap a function in an op's checks; it is called with keyword arguments."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(**checked_arguments(op, args, kwargs, float64=True))

    return call


def checked_arguments(op: str, args: Sequence[Any], kwargs: Mapping[str, Any], *, float64: bool) -> dict[str, Any]:
    """All arguments of a call by name, checked, except those of an op without a chain, which checks its own.

    Args:
        op: its name.
        args, kwargs: of the call.
        float64: whether the function takes float64.

    Raises:
        TypeError, ValueError, NotImplementedError: as the reference op raises them.
    """
    given = _signature(op).bind(*args, **kwargs)
    given.apply_defaults()
    if op in OPS:
        _check(op, given.arguments, float64=float64)
    return given.arguments


@functools.cache
def _signature(op: str) -> inspect.Signature:
    return inspect.signature(reference_op(op))


def _check(op: str, arguments: Mapping[str, Any], *, float64: bool) -> None:
    rows = {name: arguments[name] for name in ("weight", "bias") if name in arguments}
    modulation = {name: arguments[name] for name in ("gate", "shift", "scale") if name in arguments}
    like_x = {name: arguments[name] for name in ("residual",) if name in arguments}
    x: Any = arguments.get("x")
    eps, mode = arguments.get("eps", 0.0), arguments.get("casting_mode", "float32")
    match op:
        case "qk_norm" | "qk_norm_rope":
            _check_qk(op, dict(arguments), float64=float64)
        case "rotary_embedding":
            contract.check_rotary(**arguments, float64=float64)
        case "split_rotary_embedding":
            contract.check_split_rotary(**arguments, float64=float64)
        case "layer_norm" | "rms_norm":
            contract.check_norm(op, x, rows, eps, float64=float64)
            contract.check_casting_mode(op, mode)
        case _:
            contract.check_modulated_norm(op, x, modulation, rows, eps, mode, float64=float64, like_x=like_x)
            contract.check_number(op, "scale_constant", arguments.get("scale_constant", 1.0))


def _check_qk(op: str, arguments: dict[str, Any], *, float64: bool) -> None:
    if op == "qk_norm_rope":
        contract.check_qk_rope(**arguments, float64=float64)
        return
    contract.check_qk(op, **arguments, rank=None, float64=float64)
    if arguments["inplace"]:
        weights = {name: arguments[name] for name in ("q_weight", "k_weight")}
        contract.check_inplace(op, {"q": arguments["q"], "k": arguments["k"]}, weights)
