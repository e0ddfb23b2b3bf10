"""Where a 16-bit candidate rounds: which of the plausible placements of roundings its bits match best.

A verdict says that a kernel differs; this says why. Each placement is replayed with float64 arithmetic between
its roundings, so that what is left of a difference is the candidate's own float32 arithmetic: it turns about
one rounding in a thousand.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from reference_ops.contract import expand_modulation
from validation.judge.same_bits import CHAINED, equal_bits
from validation.ops import reference_op

ONCE = "rounded once"
NORMALISED = "normalised value rounded"
EAGER = "eager chain in the input dtype"
RESIDUAL = "residual not rounded before the norm"
TRUNCATED = "truncated"
STATISTICS = "statistics in the input dtype"

# A share below this speaks for none of the placements.
NAMED = 0.5

# Shares as close as this are one: what float32 arithmetic turns. With float32 modulation the eager chain rounds
# the normalised value and nothing else.
TIE = 1e-3

# By op, in the order that decides between equals. A rotation alone has one rounding and no other place for it.
_MODULATED = (ONCE, NORMALISED, EAGER, TRUNCATED, STATISTICS)
PLACEMENTS: dict[str, tuple[str, ...]] = {
    "layer_norm": (ONCE, TRUNCATED, STATISTICS),
    "rms_norm": (ONCE, EAGER, TRUNCATED, STATISTICS),
    "qk_norm": (ONCE, EAGER, TRUNCATED, STATISTICS),
    "qk_norm_rope": (ONCE, NORMALISED, EAGER, TRUNCATED, STATISTICS),
    "layer_norm_scale_shift": _MODULATED,
    "rms_norm_scale_shift": _MODULATED,
    "scale_residual_layer_norm_scale_shift": (*_MODULATED, RESIDUAL),
    "scale_residual_rms_norm_scale_shift": (*_MODULATED, RESIDUAL),
    "scale_shift": (ONCE, EAGER, TRUNCATED),
    "residual_gate_add": (ONCE, EAGER, TRUNCATED),
}


def shares(op: str, arguments: Mapping[str, Any], outputs: tuple[Tensor, ...]) -> dict[str, float]:
    """The share of elements in which a candidate's bits are those of each placement, the best first.

    Args:
        op: its name.
        arguments: what the candidate was called with, as it was before the call.
        outputs: what it returned.

    Returns:
        Nothing for an op without placements, outputs without elements, or a float32 output, in which
        float32 arithmetic is as large as the rounding.
    """
    elements = sum(t.numel() for t in outputs)
    if not elements or any(t.dtype is torch.float32 for t in outputs):
        return {}
    found = {}
    with torch.no_grad():
        for name in PLACEMENTS.get(op, ()):
            replayed = replay(op, arguments, name)
            pairs = zip(outputs, replayed, strict=True)
            found[name] = sum(int(equal_bits(t, r).sum()) for t, r in pairs) / elements
    best, expected = max(found.values(), default=0.0), _expected(arguments)

    def rank(item: tuple[str, float]) -> tuple[bool, bool, float]:
        name, share = item
        tied = share >= best - TIE
        return (not tied, tied and name != expected, 0.0 if tied else -share)

    return dict(sorted(found.items(), key=rank))


def _expected(arguments: Mapping[str, Any]) -> str:
    """The placement that the contract asks for."""
    return ONCE if arguments.get("casting_mode", "float32") == "float32" else EAGER


def sentence(arguments: Mapping[str, Any], found: Mapping[str, float]) -> str:
    """The best match in words, beside the placement that the contract asks for, or beside the next best."""
    best, second, *_ = found
    expected = _expected(arguments)
    other = expected if best != expected and expected in found else second
    return f"matches {best!r} in {100 * found[best]:.4g} % of the elements, {other!r} in {100 * found[other]:.4g} %"


def summary(found: Iterable[tuple[str, float, int]]) -> tuple[str, float] | None:
    """Of many cases, as (best placement, its share, elements): the one that most elements speak for, its share."""
    totals: dict[str, tuple[float, int]] = {}
    for name, share, elements in found:
        matched, count = totals.get(name, (0.0, 0))
        totals[name] = (matched + share * elements, count + elements)
    if not totals:
        return None
    best = max(totals, key=lambda name: totals[name][1])
    return best, totals[best][0] / totals[best][1]


def replay(op: str, arguments: Mapping[str, Any], placement: str) -> tuple[Tensor, ...]:
    """The outputs of an op under one placement."""
    if placement == EAGER:
        out_of_place = {"inplace": False} if "inplace" in arguments else {}
        result = reference_op(op)(**{**arguments, "casting_mode": "input", **out_of_place})
        return result if isinstance(result, tuple) else (result,)
    names = ("q", "k") if op.startswith("qk_norm") else ("x",)
    final: Callable[[Tensor, torch.dtype], Tensor] = _truncated if placement == TRUNCATED else Tensor.to
    sums = {name: _gated(arguments, name) for name in names}
    read = sums
    if op.startswith(CHAINED):
        # The norm reads the residual_out that comes with its result.
        sums = {name: final(value, arguments[name].dtype) for name, value in sums.items()}
        read = read if placement == RESIDUAL else {name: value.double() for name, value in sums.items()}
    results = (final(_before_last(op, arguments, name, read[name], placement), arguments[name].dtype) for name in names)
    return (*results, *(sums.values() if op.startswith(CHAINED) else ()))


def _truncated(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded towards zero; dtype has 16 bits."""
    nearest = value.to(dtype)
    # The bits of a 16-bit float are its sign and, below, its size: one less is one step towards zero.
    return (nearest.view(torch.int16) - (nearest.double().abs() > value.abs()).to(torch.int16)).view(dtype)


def _modulation(arguments: Mapping[str, Any], argument: str) -> Tensor:
    return expand_modulation(arguments[argument], arguments["x"]).double()


def _gated(arguments: Mapping[str, Any], name: str) -> Tensor:
    """The activation of that name in float64, gated and added to its residual where the op has one."""
    value: Tensor = arguments[name].double()
    if "residual" not in arguments:
        return value
    gate = 1.0 if arguments.get("gate") is None else _modulation(arguments, "gate")
    total: Tensor = arguments["residual"].double() + value * gate
    return total


def _before_last(op: str, arguments: Mapping[str, Any], name: str, value: Tensor, placement: str) -> Tensor:
    """One output in float64, before its last rounding, from what is normalised, modulated or rotated."""
    dtype: torch.dtype = arguments[name].dtype
    if "norm" in op:
        value = _normalised(value, arguments, name, "layer_norm" in op, dtype if placement == STATISTICS else None)
        value = value.to(dtype).double() if placement == NORMALISED else value
    if "scale" in arguments:
        constant = arguments.get("scale_constant", 1.0)
        value = value * (constant + _modulation(arguments, "scale")) + _modulation(arguments, "shift")
    if "cos" in arguments:
        angles = (arguments[angle].double() for angle in ("cos", "sin"))
        value = reference_op("rotary_embedding")(value, *angles, interleaved=arguments.get("interleaved", True))
    return value


def _normalised(
    value: Tensor, arguments: Mapping[str, Any], name: str, centred: bool, statistics: torch.dtype | None
) -> Tensor:
    """Norm, weight and bias; mean, variance and rstd rounded to the dtype of that name, if one is given."""

    def kept(t: Tensor) -> Tensor:
        return t if statistics is None else t.to(statistics).double()

    if centred:
        value = value - kept(value.mean(-1, keepdim=True))
    variance = kept((value * value).mean(-1, keepdim=True))
    value = value * kept((variance + arguments.get("eps", 1e-6)).rsqrt())
    weight, bias = arguments.get("weight" if name == "x" else f"{name}_weight"), arguments.get("bias")
    value = value if weight is None else value * weight.double()
    return value if bias is None else value + bias.double()
