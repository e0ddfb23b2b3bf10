"""The chains with 16-bit roundings in other places, for comparison with a candidate's bits.

Each placement is replayed with float64 arithmetic between its roundings, so that the remaining difference is the
candidate's own float32 arithmetic: it turns about one rounding in a thousand.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from validation.chains.chain import Chain
from validation.chains.steps import INPUT
from validation.ops import reference_op

ONCE = "rounded once"
NORMALISED = "normalised value rounded"
EAGER = "eager chain in the input dtype"
RESIDUAL = "residual not rounded before the norm"
TRUNCATED = "truncated"
STATISTICS = "statistics in the input dtype"
PARAMETERS = "weights and modulation rounded to the input dtype"
PADDED = "columns up to a power of two counted in the variance"

# Placements by op; the first wins a tie. A lone rotation has one rounding and no other place for it.
_MODULATED = (ONCE, NORMALISED, EAGER, TRUNCATED, STATISTICS, PARAMETERS)
PLACEMENTS: dict[str, tuple[str, ...]] = {
    "layer_norm": (ONCE, TRUNCATED, STATISTICS, PARAMETERS, PADDED),
    "rms_norm": (ONCE, EAGER, TRUNCATED, STATISTICS, PARAMETERS),
    "qk_norm": (ONCE, EAGER, TRUNCATED, STATISTICS, PARAMETERS),
    "qk_norm_rope": (ONCE, NORMALISED, EAGER, TRUNCATED, STATISTICS, PARAMETERS),
    "layer_norm_scale_shift": (*_MODULATED, PADDED),
    "rms_norm_scale_shift": _MODULATED,
    "scale_residual_layer_norm_scale_shift": (*_MODULATED, RESIDUAL, PADDED),
    "scale_residual_rms_norm_scale_shift": (*_MODULATED, RESIDUAL),
    "scale_shift": (ONCE, EAGER, TRUNCATED),
    "residual_gate_add": (ONCE, EAGER, TRUNCATED),
}


class _Placed(Chain[Tensor]):
    """float64 arithmetic with the roundings of one placement; in mode float32."""

    def __init__(self, placement: str) -> None:
        self.placement = placement
        self._parameters: torch.dtype | None = None  # of what is taken next

    def taken(self, t: Tensor, mode: str) -> Tensor:
        del mode
        return (t if self._parameters is None else t.to(self._parameters)).double()

    def modulation(self, name: str, m: Any, x: Tensor, mode: str) -> Tensor:
        self._parameters = x.dtype if self.placement == PARAMETERS else None
        return super().modulation(name, m, x, mode)

    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        def kept(t: Tensor) -> Tensor:
            return t.to(x.dtype).double() if self.placement == STATISTICS else t

        self._parameters = x.dtype if self.placement == PARAMETERS else None
        value, mean = x.double(), torch.zeros((), dtype=torch.float64, device=x.device)
        if centred:
            mean = kept(value.mean(-1, keepdim=True))
            value = value - mean
        variance = kept((value * value).mean(-1, keepdim=True))
        if self.placement == PADDED:  # each of them holds 0 - mean
            width = x.shape[-1]
            variance = variance + ((1 << (width - 1).bit_length()) / width - 1) * mean * mean
        return value * kept((variance + eps).rsqrt())

    def norm(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        value = super().norm(x, *rest, **named)
        return value.to(x.dtype).double() if self.placement == NORMALISED else value

    def midway(self, value: Tensor, dtype: torch.dtype, mode: str) -> Tensor:
        del dtype, mode
        return value

    def handed_on(self, total: Tensor, residual_out: Tensor) -> Tensor:
        return total if self.placement == RESIDUAL else residual_out

    def part(self, value: Tensor, columns: slice) -> Tensor:
        return value[..., columns]

    def rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        nearest = value.to(dtype)
        if self.placement != TRUNCATED:
            return nearest
        # A 16-bit float's bits are its sign, then its magnitude: subtracting 1 is one step towards zero.
        return (nearest.view(torch.int16) - (nearest.double().abs() > value.abs()).to(torch.int16)).view(dtype)


def replay(op: str, arguments: Mapping[str, Any], placement: str) -> tuple[Tensor, ...]:
    """The outputs of an op under one placement; its dtypes must have 16 bits."""
    named = {name: value for name, value in arguments.items() if name not in ("casting_mode", "inplace")}
    if placement == EAGER:
        result = reference_op(op)(**named, casting_mode=INPUT)
    else:
        result = getattr(_Placed(placement), op)(**named)
    return result if isinstance(result, tuple) else (result,)
