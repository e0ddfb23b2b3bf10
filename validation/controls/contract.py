"""The contract's own checks in front of an op set that has none: controls refuse bad input as the op must."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from reference_ops import contract
from validation.ops import reference_op

Op = Callable[..., Any]


def checked(op: str, function: Op) -> Op:
    """The function behind the checks of the op of that name; it is called with keyword arguments."""
    signature = inspect.signature(reference_op(op))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        _check(op, bound.arguments)
        return function(**bound.arguments)

    return call


def _check(op: str, arguments: Mapping[str, Any]) -> None:
    rows = {name: arguments[name] for name in ("weight", "bias") if name in arguments}
    modulation = {name: arguments[name] for name in ("gate", "shift", "scale") if name in arguments}
    like_x = {name: arguments[name] for name in ("residual",) if name in arguments}
    x: Any = arguments.get("x")
    eps, mode = arguments.get("eps", 0.0), arguments.get("casting_mode", "float32")
    match op:
        case "qk_norm" | "qk_norm_rope":
            _check_qk(op, dict(arguments))
        case "rotary_embedding":
            contract.check_rotary(**arguments, float64=True)
        case "split_rotary_embedding":
            contract.check_split_rotary(**arguments, float64=True)
        case "layer_norm" | "rms_norm":
            contract.check_norm(op, x, rows, eps, float64=True)
            contract.check_casting_mode(op, mode)
        case _:
            contract.check_modulated_norm(op, x, modulation, rows, eps, mode, float64=True, like_x=like_x)
            contract.check_number(op, "scale_constant", arguments.get("scale_constant", 1.0))


def _check_qk(op: str, arguments: dict[str, Any]) -> None:
    if op == "qk_norm_rope":
        contract.check_qk_rope(**arguments, float64=True)
        return
    contract.check_qk(op, **arguments, rank=None, float64=True)
    if arguments["inplace"]:
        weights = {name: arguments[name] for name in ("q_weight", "k_weight")}
        contract.check_inplace(op, {"q": arguments["q"], "k": arguments["k"]}, weights)
