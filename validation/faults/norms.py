"""Wrong norms: statistics, eps, weight and bias, roundings, NaN and infinity."""

from typing import Any

import torch
from torch import Tensor

from validation.faults.fault import fault
from validation.faults.right import RightOps
from validation.verdict import Status

NUMERICAL, BIASED, NONFINITE = Status.INCORRECT_NUMERICAL, Status.BIASED, Status.INCORRECT_NONFINITE
BELOW_TIER, NOT_WRITTEN = Status.BELOW_REQUIRED_TIER, Status.NOT_WRITTEN


# Statistics.


@fault("variance over N-1", "layer_norm", "the sample variance instead of the biased one", NUMERICAL, BIASED)
class VarianceOverNMinus1(RightOps):
    def mean_square(self, deviation: Tensor) -> Tensor:
        width = deviation.shape[-1]
        return super().mean_square(deviation) * (width / max(width - 1, 1))


@fault("variance over N-1, modulated", "layer_norm_scale_shift", "the same, behind a modulation", NUMERICAL, BIASED)
class VarianceOverNMinus1Modulated(VarianceOverNMinus1):
    pass


@fault("one-pass variance", "layer_norm", "E[x^2] - E[x]^2 in float32, which cancels at a large mean", NUMERICAL)
class OnePassVariance(RightOps):
    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        x = x.float()
        mean = self.mean(x)
        variance = (self.mean_square(x) - mean * mean).clamp(min=0.0)
        return (x - mean) * self.inverse_root(variance, eps) if centred else super().normalised(x, eps, centred=False)


@fault("statistics in bfloat16", "layer_norm", "mean and 1/sigma are kept in bfloat16", NUMERICAL)
class StatisticsInBfloat16(RightOps):
    def mean(self, x: Tensor) -> Tensor:
        return super().mean(x).bfloat16().float()

    def inverse_root(self, mean_square: Tensor, eps: float) -> Tensor:
        return super().inverse_root(mean_square, eps).bfloat16().float()


@fault("mean of the RMS norm", "rms_norm", "the mean is subtracted, as LayerNorm does", NUMERICAL)
class MeanOfTheRMSNorm(RightOps):
    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        del centred
        return super().normalised(x, eps, centred=True)


@fault(
    "mean over the padded width",
    "rms_norm",
    "the mean square is divided by the next multiple of 16: wrong only where D is none",
    NUMERICAL,
)
class MeanOverThePaddedWidth(RightOps):
    def mean_square(self, deviation: Tensor) -> Tensor:
        width = deviation.shape[-1]
        return super().mean_square(deviation) * (width / (-(-width // 16) * 16))


@fault("first 8192 columns", "layer_norm", "the variance sees the first block of columns only", NUMERICAL)
class First8192Columns(RightOps):
    def mean_square(self, deviation: Tensor) -> Tensor:
        return super().mean_square(deviation[..., :8192])


@fault("rstd off by 1e-4", "rms_norm", "1/sigma is 1e-4 too large, as from a coarse approximation", NUMERICAL, BIASED)
class RstdOffBy1e4(RightOps):
    def inverse_root(self, mean_square: Tensor, eps: float) -> Tensor:
        return super().inverse_root(mean_square, eps) * (1.0 + 1e-4)


@fault(
    "rsqrt after two Newton steps",
    "rms_norm",
    "the bit trick and two steps: 5e-6, seen in float32 alone",
    NUMERICAL,
    BIASED,
    BELOW_TIER,
)
class RsqrtAfterTwoNewtonSteps(RightOps):
    def inverse_root(self, mean_square: Tensor, eps: float) -> Tensor:
        value = mean_square + eps
        guess = (0x5F3759DF - (value.view(torch.int32) >> 1)).view(torch.float32)
        for _ in range(2):
            guess = guess * (1.5 - 0.5 * value * guess * guess)
        # The trick works for finite numbers only.
        return torch.where(value.isfinite(), guess, super().inverse_root(mean_square, eps))


@fault(
    "coarse in the last channel",
    "rms_norm",
    "the remainder of a wide row is scaled by an approximate 1/sigma, 5e-7 off: one channel in hundreds, in float32",
    BELOW_TIER,
)
class CoarseInTheLastChannel(RightOps):
    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        value = super().normalised(x, eps, centred=centred)
        if x.shape[-1] > 256:
            value[..., -1] *= 1.0 + 2.0**-21
        return value


# eps.


@fault("eps ten times too big", "layer_norm", "eps is multiplied by ten", NUMERICAL)
class EpsTenTimesTooBig(RightOps):
    def inverse_root(self, mean_square: Tensor, eps: float) -> Tensor:
        return super().inverse_root(mean_square, 10.0 * eps)


@fault(
    "eps outside the root", "layer_norm", "1 / (sigma + eps) instead of 1 / sqrt(sigma^2 + eps)", NUMERICAL, NONFINITE
)
class EpsOutsideTheRoot(RightOps):
    def inverse_root(self, mean_square: Tensor, eps: float) -> Tensor:
        return 1.0 / (mean_square.sqrt() + eps)


@fault("eps left out", "rms_norm", "1 / sigma: a row of zeros gives NaN", NONFINITE, NUMERICAL)
class EpsLeftOut(RightOps):
    def inverse_root(self, mean_square: Tensor, eps: float) -> Tensor:
        del eps
        return super().inverse_root(mean_square, 0.0)


@fault("eps always 1e-6", "rms_norm_scale_shift", "the argument eps is ignored", NUMERICAL)
class EpsAlways1e6(RightOps):
    def inverse_root(self, mean_square: Tensor, eps: float) -> Tensor:
        del eps
        return super().inverse_root(mean_square, 1e-6)


@fault("quiet rows are zero", "rms_norm", "rows whose mean square is below eps are taken for empty", NUMERICAL)
class QuietRowsAreZero(RightOps):
    def inverse_root(self, mean_square: Tensor, eps: float) -> Tensor:
        rstd = super().inverse_root(mean_square, eps)
        return torch.where(mean_square < 0.5 * eps, torch.zeros_like(rstd), rstd)


# Weight and bias.


@fault("weight without bias dropped", "layer_norm", "the affine part is left out where bias is None", NUMERICAL)
class WeightWithoutBiasDropped(RightOps):
    def affine(self, value: Tensor, weight: Tensor | None, bias: Tensor | None, mode: str) -> Tensor:
        return value if bias is None else super().affine(value, weight, bias, mode)


@fault("bias without weight dropped", "layer_norm", "the affine part is left out where weight is None", NUMERICAL)
class BiasWithoutWeightDropped(RightOps):
    def affine(self, value: Tensor, weight: Tensor | None, bias: Tensor | None, mode: str) -> Tensor:
        return value if weight is None else super().affine(value, weight, bias, mode)


@fault(
    "bias dropped before a modulation",
    "layer_norm_scale_shift",
    "bias without weight is left out",
    NUMERICAL,
)
class BiasDroppedBeforeAModulation(BiasWithoutWeightDropped):
    pass


@fault("bias before weight", "layer_norm", "(value + bias) * weight", NUMERICAL)
class BiasBeforeWeight(RightOps):
    def affine(self, value: Tensor, weight: Tensor | None, bias: Tensor | None, mode: str) -> Tensor:
        return super().affine(super().affine(value, None, bias, mode), weight, None, mode)


@fault("weight is 1 + weight", "rms_norm", "the weight is taken as an offset from one", NUMERICAL)
class WeightIs1PlusWeight(RightOps):
    def affine(self, value: Tensor, weight: Tensor | None, bias: Tensor | None, mode: str) -> Tensor:
        return super().affine(value, None if weight is None else 1.0 + weight, bias, mode)


@fault("bias in the input dtype", "layer_norm", "a float32 bias is rounded to x's dtype first", NUMERICAL, BELOW_TIER)
class BiasInTheInputDtype(RightOps):
    def norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mode: str, *, centred: bool
    ) -> Tensor:
        return super().norm(x, weight, None if bias is None else bias.to(x.dtype), eps, mode, centred=centred)


# Roundings.


class _Rounded(RightOps):
    """Rounds float32 to a 16-bit dtype in a way of its own."""

    def rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        if dtype is torch.float32 or value.dtype is not torch.float32:
            return super().rounded(value, dtype)
        return self.narrowed(value, dtype)

    def narrowed(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        raise NotImplementedError

    def neighbours(self, value: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The nearest number of dtype, and the one on the other side of the value (or the same, if exact)."""
        nearest = value.to(dtype)
        up, down = torch.tensor(torch.inf, dtype=dtype), torch.tensor(-torch.inf, dtype=dtype)
        ends = torch.where(nearest.float() < value, up.to(value.device), down.to(value.device))
        exact = (nearest.float() == value) | ~value.isfinite() | ~nearest.isfinite()
        return nearest, torch.where(exact, nearest, torch.nextafter(nearest, ends))


@fault("truncated", "layer_norm_scale_shift", "the result is cut off to x's dtype, not rounded", NUMERICAL, BIASED)
class Truncated(_Rounded):
    def narrowed(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        nearest, other = self.neighbours(value, dtype)
        return torch.where(nearest.float().abs() > value.abs(), other, nearest)


@fault("rounded up", "layer_norm", "rounded towards +infinity: one ulp of bias, half of the time", NUMERICAL, BIASED)
class RoundedUp(_Rounded):
    def narrowed(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        nearest, other = self.neighbours(value, dtype)
        return torch.where(nearest.float() < value, other, nearest)


@fault(
    "one ulp up",
    "rms_norm_scale_shift",
    "every eighth result is one ulp of its dtype too large",
    NUMERICAL,
    BIASED,
    BELOW_TIER,
)
class OneUlpUp(RightOps):
    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        y = super().stored(value, x)
        eighth = y[..., ::8]
        y[..., ::8] = torch.where(
            eighth.isfinite(), torch.nextafter(eighth, torch.full_like(eighth, torch.inf)), eighth
        )
        return y


@fault(
    "normalised value rounded",
    "rms_norm",
    "rounded to x's dtype before the weight, where float32 was declared (as sglang #24059's kernel does)",
    NUMERICAL,
    BELOW_TIER,
)
class NormalisedValueRounded(RightOps):
    def norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mode: str, *, centred: bool
    ) -> Tensor:
        value = self.normalised(x, eps, centred=centred).to(x.dtype)
        return self.affine(value.float() if mode == "float32" else value, weight, bias, mode)


@fault(
    "normalised value rounded before a modulation",
    "layer_norm_scale_shift",
    "rounded to x's dtype before scale and shift, where float32 was declared",
    NUMERICAL,
    BELOW_TIER,
)
class NormalisedValueRoundedBeforeAModulation(RightOps):
    def modulate(self, value: Tensor, shift: Any, scale: Any, x: Tensor, mode: str, constant: float = 1.0) -> Tensor:
        value = value.to(x.dtype).to(value.dtype) if mode == "float32" else value
        return super().modulate(value, shift, scale, x, mode, constant)


# NaN, infinity, overflow, subnormals.


@fault(
    "squares in the input dtype", "rms_norm", "x * x overflows in float16: the row becomes zero", NUMERICAL, NONFINITE
)
class SquaresInTheInputDtype(RightOps):
    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        if x.dtype is not torch.float16:
            return super().normalised(x, eps, centred=centred)
        return x.float() * self.inverse_root((x * x).float().mean(-1, keepdim=True), eps)


@fault("NaN swallowed", "layer_norm", "NaN in the result becomes zero", NONFINITE)
class NaNSwallowed(RightOps):
    def rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        return super().rounded(torch.where(value.isnan(), torch.zeros_like(value), value), dtype)


@fault("infinity clamped", "rms_norm", "the input is clamped to the largest float16", NONFINITE, NUMERICAL)
class InfinityClamped(RightOps):
    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        return super().normalised(x.float().clamp(-65504.0, 65504.0), eps, centred=centred)


@fault(
    "NaN moved to other rows",
    "rms_norm",
    "row sums of a tile of four rows come from a product with a selection matrix, and 0 * NaN is NaN",
    NONFINITE,
)
class NaNMovedToOtherRows(RightOps):
    def mean_square(self, deviation: Tensor) -> Tensor:
        right = super().mean_square(deviation)
        flat = (right * 0.0).flatten()
        tiles = torch.nn.functional.pad(flat, (0, -len(flat) % 4)).view(-1, 4)
        return right + tiles.sum(-1).repeat_interleave(4)[: len(flat)].view(right.shape)


@fault(
    "subnormals flushed", "rms_norm", "inputs below the smallest normal number of x's dtype count as zero", NUMERICAL
)
class SubnormalsFlushed(RightOps):
    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        small = x.abs() < torch.finfo(x.dtype).tiny
        return super().normalised(torch.where(small, torch.zeros_like(x), x), eps, centred=centred)


# Rows and columns.


@fault("16-bit row numbers", "rms_norm", "row 65536 takes the statistics of row 0", NUMERICAL, NONFINITE)
class SixteenBitRowNumbers(RightOps):
    def mean_square(self, deviation: Tensor) -> Tensor:
        right = super().mean_square(deviation)
        rows = right.flatten()
        return rows[torch.arange(len(rows), device=rows.device) % 65536].view(right.shape)


@fault("column tail not written", "layer_norm", "columns past the last multiple of 8 are left out", NOT_WRITTEN)
class ColumnTailNotWritten(RightOps):
    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        whole = x.shape[-1] // 8 * 8
        y[..., :whole] = self.rounded(value[..., :whole], x.dtype)
        return y


@fault(
    "column tail stale",
    "layer_norm",
    "columns past the last multiple of 8 hold what an earlier call left in a buffer that is kept",
    NUMERICAL,
    NONFINITE,
    Status.NOT_REPRODUCIBLE,
)
class ColumnTailStale(RightOps):
    def __init__(self) -> None:
        self.kept: dict[torch.dtype, Tensor] = {}

    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        if x.dtype not in self.kept or len(self.kept[x.dtype]) < x.numel():
            self.kept[x.dtype] = torch.zeros(2 * x.numel(), dtype=x.dtype, device=x.device)
        y = self.kept[x.dtype][: x.numel()].view(x.shape)
        whole = x.shape[-1] // 8 * 8
        y[..., :whole] = self.rounded(value[..., :whole], x.dtype)
        return y.clone()


@fault("nothing for no rows", "layer_norm", "empty input raises a division by zero", Status.RUNTIME_ERROR)
class NothingForNoRows(RightOps):
    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        tile = 1024 // (x.numel() // x.shape[-1])
        return super().stored(value, x) if tile >= 0 else value


@fault("output of another rank", "rms_norm", "a single row comes back as [1, D]", Status.INCORRECT_SHAPE)
class OutputOfAnotherRank(RightOps):
    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        y = super().stored(value, x)
        return y.view(1, -1) if y.dim() == 1 else y
