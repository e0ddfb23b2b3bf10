"""Error statistics: how far candidate, baseline and ideal are from the truth, and how far they may be."""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from validation.chains.running import K, Running
from validation.chains.ulp import ulp
from validation.compiled.ptx import executing

# Allows for the second-order terms that first-order propagation omits: the product of two bfloat16 roundings is 2^-8
# of one rounding, and a chain has at most four.
SECOND_ORDER = 1.0 + 2.0**-6


def may_flush(device: str) -> bool:
    """Whether kernels may flush float32 subnormals, as CUDA's instructions do: also where PTX runs on the CPU."""
    return device == "cuda" or executing.target() is not None


@dataclasses.dataclass(frozen=True)
class Budget:
    """The error allowed to each element of an output.

    ``allowed = 1/2 ulp(|y| + A + H) + H + k A``: the final rounding; H, the declared roundings; A, the
    float32 noise. On CUDA float32 subnormals may flush, which adds the smallest normal number.

    Attributes:
        allowed: float64, the output's shape.
        declared: float64, likewise: the part of it that is no arithmetic, ``1/2 ulp(...) + H``.
        unit: float64: one ulp of the output's dtype at |y| or, where terms cancel, at the terms' size
            (A / 64u, the noise over what a chain of 64 roundings makes).
    """

    allowed: Tensor
    declared: Tensor
    unit: Tensor

    @classmethod
    def of(cls, running: Running, shape: torch.Size, dtype: torch.dtype, *, flush: bool) -> "Budget":
        """The budget of an output of this shape and dtype."""
        size = running.value.abs()
        declared = 0.5 * ulp(size + running.noise + running.declared, dtype) + SECOND_ORDER * running.declared
        allowed = declared + K * running.noise
        # Without a bound there is no slack: a NaN here would pass any finite truth.
        allowed = torch.where(allowed.isnan(), 0.5 * ulp(size, dtype), allowed)
        if flush:
            allowed = allowed + torch.finfo(torch.float32).tiny
        unit = ulp(torch.maximum(size, running.noise * 2.0**18), dtype)
        return cls(allowed.expand(shape), declared.expand(shape), unit.expand(shape))


@dataclasses.dataclass(frozen=True)
class Errors:
    """Errors of one tensor against the truth, over the elements that are finite in both.

    Attributes:
        max_abs, rms_abs, bias_abs: in value: the largest, the root mean square, the mean signed error.
        max_ulp, rms_ulp: the same in `Budget.unit`.
        bias_ulp: the mean signed error in that unit; positive means too large.
        magnitude_bias_ulp: the mean of the error times the truth's sign; truncation gives -0.5.
        count: the number of those elements.
    """

    max_abs: float
    rms_abs: float
    bias_abs: float
    max_ulp: float
    rms_ulp: float
    bias_ulp: float
    magnitude_bias_ulp: float
    count: int

    @classmethod
    def of(cls, error: Tensor, truth: Tensor, unit: Tensor, finite: Tensor) -> "Errors":
        """Reduce the signed error, float64 in value, over the `finite` elements."""
        count = int(finite.sum())
        if count == 0:
            return cls(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)
        zero = torch.zeros((), dtype=torch.float64, device=error.device)
        e = torch.where(finite, error, zero)
        ulps = torch.where(finite, error / unit, zero)
        return cls(
            float(e.abs().max()),
            math.sqrt(float((e * e).sum()) / count),
            float(e.sum()) / count,
            float(ulps.abs().max()),
            math.sqrt(float((ulps * ulps).sum()) / count),
            float(ulps.sum()) / count,
            float((ulps * torch.where(finite, truth, zero).sign()).sum()) / count,
            count,
        )

    def numbers(self, prefix: str) -> dict[str, float]:
        """All but the count, by name, as records keep them."""
        named = {f"{prefix}{name}": value for name, value in dataclasses.asdict(self).items()}
        del named[f"{prefix}count"]
        return named


# A correct float32 chain's own bias, as a share of its RMS error. For arguments within 2 % of each other, torch's
# float32 sqrt on the CPU (MKL; 22 to 31 % of its results are not the nearest) is 0.104 ulp too large on average, with
# an RMS error of 0.406: a share of 0.26. In x / sqrt(...) the share is 0.10; in torch's mean, square, mean and rsqrt,
# 0.04.
SYSTEMATIC = 0.35
# In a 16-bit output, float32 arithmetic error is negligible.
SYSTEMATIC_16_BITS = 0.08


def bias_threshold(errors: Errors, samples: int, dtype: torch.dtype) -> float:
    """The largest mean signed error, in ulp, that a correct op may show.

    The largest of three: six standard errors of the mean of `samples` independent errors of that RMS (a chance of
    2e-9); more than the bias seen in correct float32 arithmetic (`SYSTEMATIC`); 0.02 ulp, below which a bias costs
    nothing. Truncation has a bias of 0.87 of its RMS error.
    """
    systematic = SYSTEMATIC if dtype is torch.float32 else SYSTEMATIC_16_BITS
    return max(6.0 * errors.rms_ulp / math.sqrt(max(samples, 1)), systematic * errors.rms_ulp, 0.02)


def independent_samples(truth: Tensor, finite: Tensor, dtype: torch.dtype, operands: Sequence[Tensor]) -> int:
    """How many errors of an output can be treated as independent.

    Equal values are rounded equally, so distinct values count, not elements. In float32 the error of a
    row's mean and rstd is as large as the rounding and shared by the row, so distinct rows count. Where the
    casting mode rounds intermediates, equal operands are rounded equally there, whatever follows, so the
    count is at most that of the operand with the fewest distinct values. (A product rounded to bfloat16 lies
    on a grid; one scalar shift then gives every sum of a binade the same error. And at a mean of 30 sigma a
    bfloat16 row has few distinct values. Both raised false alarms.)

    Args:
        truth: float64 ``[..., D]``.
        finite: bool, the elements that count.
        dtype: the output's dtype.
        operands: the activation, whose equal values count once a row, and the parameters, whose equal values
            count once; empty if no intermediate is rounded.
    """
    if dtype is torch.float32:
        rows = truth.reshape(-1, truth.shape[-1])[finite.reshape(-1, truth.shape[-1]).all(-1)]
        return len(torch.unique(rows, dim=0)) if rows.numel() else 0
    # Truths that differ by less are rounded equally: in rows of equal numbers, where the deviations are rounding errors
    # of float64, 431 different truths raised a false alarm about a float64 implementation.
    unit = ulp(truth[finite], dtype) / 16
    counts = [len(torch.unique((truth[finite] / unit).round() * unit))]
    if operands and counts[0]:
        ordered = operands[0].float().sort(-1).values
        counts.append(int((ordered.diff(dim=-1) != 0).sum()) + ordered[..., 0].numel())
        counts += [len(torch.unique(operand)) for operand in operands[1:]]
    return min(counts)
