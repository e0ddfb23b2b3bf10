"""Wrong use of memory, and wrong values in rarely checked rows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from validation.faults.fault import fault
from validation.faults.right import RightOps
from validation.verdict import Status

NUMERICAL, NONFINITE = Status.INCORRECT_NUMERICAL, Status.INCORRECT_NONFINITE


@fault(
    "one buffer for all results",
    "layer_norm",
    "the output is allocated once a shape: the second call overwrites what the first returned",
    Status.NOT_REPRODUCIBLE,
)
class OneBufferForAllResults(RightOps):
    def __init__(self) -> None:
        self.buffers: dict[Any, Tensor] = {}

    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        y = self.buffers.setdefault((x.shape, x.dtype), torch.empty(x.shape, dtype=x.dtype, device=x.device))
        return y.copy_(self.rounded(value, x.dtype))


@fault(
    "casting mode kept with the shape",
    "rms_norm",
    "a launch like an earlier one, by the shape and dtype of x, has the casting mode of that one",
    Status.INCORRECT_NUMERICAL,
    NUMERICAL,
    NONFINITE,
    Status.BELOW_REQUIRED_TIER,
)
class CastingModeKeptWithTheShape(RightOps):
    def __init__(self) -> None:
        self.kept: dict[Any, str] = {}

    def norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mode: str, *, centred: bool
    ) -> Tensor:
        mode = self.kept.setdefault((x.shape, x.dtype), mode)
        return super().norm(x, weight, bias, eps, mode, centred=centred)


@fault(
    "past the end of zeros",
    "scale_shift",
    "the output comes from torch.zeros, and one row is written past its end",
    Status.OUT_OF_BOUNDS_WRITE,
)
class PastTheEndOfZeros(RightOps):
    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        y = torch.zeros(x.shape, dtype=x.dtype, device=x.device).copy_(self.rounded(value, x.dtype))
        y.as_strided(x.shape[-1:], (1,), y.storage_offset() + y.numel()).zero_()
        return y


@torch.library.custom_op("validation_faults::past_its_end", mutates_args=())
def _past_its_end(value: Tensor) -> Tensor:
    y = torch.empty(value.shape, dtype=value.dtype, device=value.device).copy_(value)
    y.as_strided((1,), (1,), y.storage_offset() + y.numel()).zero_()
    return y


@fault(
    "registered op past its end",
    "residual_gate_add",
    "an op of torch.library writes one element past what it allocates inside",
    Status.OUT_OF_BOUNDS_WRITE,
)
class RegisteredOpPastItsEnd(RightOps):
    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        y: Tensor = _past_its_end(self.rounded(value, x.dtype))
        return y


@fault(
    "counter never set to 0",
    "rms_norm_scale_shift",
    "the programs that have added their part are counted from what torch.empty found in memory",
    NUMERICAL,
    NONFINITE,
)
class CounterNeverSetToZero(RightOps):
    def mean_square(self, deviation: Tensor) -> Tensor:
        arrived = torch.empty(1, dtype=torch.int32, device=deviation.device)
        return super().mean_square(deviation) / arrived.add_(1)


@fault(
    "q.data replaced",
    "qk_norm",
    "in place, q and k are given new memory: views of the packed tensor keep the old values",
    Status.INPUT_MODIFIED,
)
class QDataReplaced(RightOps):
    def returned(self, targets: tuple[Tensor, ...], results: Sequence[Tensor], *, inplace: bool) -> tuple[Tensor, ...]:
        if not inplace:
            return super().returned(targets, results, inplace=False)
        for target, result in zip(targets, results, strict=True):
            target.data = result
        return targets


@fault(
    "in place returns views",
    "rotary_embedding",
    "x is written, and a view of it comes back",
    Status.OUTPUT_ALIASES_INPUT,
)
class InPlaceReturnsViews(RightOps):
    def returned(self, targets: tuple[Tensor, ...], results: Sequence[Tensor], *, inplace: bool) -> tuple[Tensor, ...]:
        returned = super().returned(targets, results, inplace=inplace)
        return tuple(t.view_as(t) for t in returned) if inplace else returned


@fault(
    "gate.unsqueeze_()",
    "residual_gate_add",
    "the caller's gate [B, D] gets a dimension more",
    Status.INPUT_MODIFIED,
)
class GateUnsqueezed(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        if isinstance(m, Tensor) and m.dim() == 2:
            return m.unsqueeze_(1)
        return super().rows(name, m, x)


@fault(
    "NaN beside an inf",
    "rms_norm",
    "of a row with an inf all elements are NaN, where x * 0 is due",
    NONFINITE,
)
class NaNBesideAnInf(RightOps):
    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        return super().stored(torch.where(x.isinf().any(-1, keepdim=True), torch.nan, value), x)


@fault(
    "anything beside an inf",
    "qk_norm_rope",
    "finite elements of a head with an inf are left as they were",
    NUMERICAL,
    NONFINITE,  # if a weight is inf too: 0 * inf is NaN
)
class AnythingBesideAnInf(RightOps):
    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        hit = x.isinf().any(-1, keepdim=True) & ~x.isnan().any(-1, keepdim=True) & x.isfinite()
        return torch.where(hit, x.float(), super().normalised(x, eps, centred=centred))
