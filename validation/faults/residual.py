"""Wrong gated residuals with a norm behind them: what the norm reads, what comes back."""

from typing import Any

import torch
from torch import Tensor

from validation.faults.fault import fault
from validation.faults.right import RightOps
from validation.verdict import Status

NUMERICAL, NONFINITE, BELOW_TIER = Status.INCORRECT_NUMERICAL, Status.INCORRECT_NONFINITE, Status.BELOW_REQUIRED_TIER
MODIFIED, ALIAS = Status.INPUT_MODIFIED, Status.OUTPUT_ALIASES_INPUT

SRLN, SRRN = "scale_residual_layer_norm_scale_shift", "scale_residual_rms_norm_scale_shift"


@fault(
    "norm of the unrounded residual",
    SRLN,
    "the norm reads the float32 sum, not the rounded residual_out that the caller sees",
    NUMERICAL,
    BELOW_TIER,
    NONFINITE,
)
class NormOfTheUnroundedResidual(RightOps):
    def handed_on(self, total: Tensor, residual_out: Tensor) -> Tensor:
        del residual_out
        return total


@fault("norm of x", SRRN, "the norm reads x instead of the gated sum", NUMERICAL, NONFINITE)
class NormOfX(RightOps):
    def gated(self, residual: Tensor, x: Tensor, gate: Any, mode: str) -> Tensor:
        self.x = x
        return super().gated(residual, x, gate, mode)

    def handed_on(self, total: Tensor, residual_out: Tensor) -> Tensor:
        del total, residual_out
        return self.x


@fault("gate dropped from residual_out", SRRN, "residual_out is residual + x, y is right", NUMERICAL, NONFINITE)
class GateDroppedFromResidualOut(RightOps):
    def _scale_residual(self, residual: Tensor, x: Tensor, gate: Any, *rest: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        y, residual_out = super()._scale_residual(residual, x, gate, *rest, **kwargs)
        return y, residual_out.copy_(self.gated(residual, x, None, "float32"))


@fault("outputs swapped", SRLN, "(residual_out, y) instead of (y, residual_out)", NUMERICAL, NONFINITE)
class OutputsSwapped(RightOps):
    def scale_residual_layer_norm_scale_shift(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return super().scale_residual_layer_norm_scale_shift(*args, **kwargs)[::-1]


@fault("residual_out left out", SRRN, "y alone is returned", Status.INCORRECT_STRUCTURE)
class ResidualOutLeftOut(RightOps):
    def scale_residual_rms_norm_scale_shift(self, *args: Any, **kwargs: Any) -> Any:
        return super().scale_residual_rms_norm_scale_shift(*args, **kwargs)[0]


@fault("residual_out is the residual", SRLN, "residual is updated in place and returned", MODIFIED, ALIAS)
class ResidualOutIsTheResidual(RightOps):
    def _scale_residual(self, residual: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        y, residual_out = super()._scale_residual(residual, *args, **kwargs)
        return y, residual.copy_(residual_out)


@fault("residual_out in float32", SRRN, "residual_out keeps the dtype of the sum", Status.INCORRECT_DTYPE)
class ResidualOutInFloat32(RightOps):
    def scale_residual_rms_norm_scale_shift(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        y, residual_out = super().scale_residual_rms_norm_scale_shift(*args, **kwargs)
        return y, residual_out.float()


@fault("shift of batch item 0", SRLN, "every batch item reads the first one's shift", NUMERICAL)
class ShiftOfBatchItem0(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        rows = super().rows(name, m, x)
        return rows[:1] if name == "shift" and rows.dim() == 3 and rows.shape[0] else rows


@fault("eps ten times too big, chained", SRRN, "eps is multiplied by ten behind the residual", NUMERICAL)
class EpsTenTimesTooBigChained(RightOps):
    def inverse_root(self, mean_square: Tensor, eps: float) -> Tensor:
        return super().inverse_root(mean_square, 10.0 * eps)


@fault(
    "statistics of an earlier call",
    SRLN,
    "1/sigma is kept and used again by the next call with as many rows",
    NUMERICAL,
    NONFINITE,
    Status.NOT_REPRODUCIBLE,
)
class StatisticsOfAnEarlierCall(RightOps):
    def __init__(self) -> None:
        self.kept: dict[torch.Size, Tensor] = {}

    def inverse_root(self, mean_square: Tensor, eps: float) -> Tensor:
        right = super().inverse_root(mean_square, eps)
        return self.kept.setdefault(right.shape, right)


@fault(
    "sums not cleared",
    SRRN,
    "the second call adds its sum of squares to the first one's, left in a workspace",
    NUMERICAL,
    NONFINITE,
    Status.NOT_REPRODUCIBLE,
)
class SumsNotCleared(RightOps):
    def __init__(self) -> None:
        self.kept: dict[torch.Size, Tensor] = {}

    def mean_square(self, deviation: Tensor) -> Tensor:
        right = super().mean_square(deviation)
        left = self.kept.pop(right.shape, None)
        if left is None:
            self.kept[right.shape] = right
            return right
        return right + left
