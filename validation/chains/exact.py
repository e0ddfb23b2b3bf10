"""Inputs whose results are exact: how far a right kernel may be from the truth where no sum and no product rounds.

`Exact` numbers prove for each element that every step is exact, whatever the order of the operations, contracted or
not: sums of a row and of its squares are integers below 2^24 in the row's own unit, results have no more bits than
their dtype. For an op without a norm a right kernel then gives the truth's bits.

Behind a norm it gives them too, except for what a right kernel may do to statistics:

* ``1 / sqrt(4^k)`` is a power of two by IEEE square root and division, but approximate ones promise less (PTX: a
  relative 2^-22.9 for rsqrt.approx, 2 ulp for div.full), and a division by D may be a product with a rounded ``1 / D``
  (off by an ulp for 13 % of the widths up to 25,000): `ROOT_NOISE`.
* Welford's update, as in torch's own kernels, divides by 1, 2, 3, ... and so rounds where two passes do not: centred
  norms have `welford_noise` more.

A rounding of that to 16 bits leaves nothing, unless it is at a tie: there both neighbours are right.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from validation.chains.bounds import bound
from validation.chains.running import Running, U
from validation.chains.ulp import ulp

# Relative: four ulp.
ROOT_NOISE = 2.0**-21
# Float32 numbers hold the integers up to here.
INTEGERS = 2.0**24


class Exact(Running):
    """A number whose ``noise`` is 0 where it is exact, small behind a norm, and inf where nothing is certain."""

    def _arithmetic(self, other: Running, value: Tensor, noise: Tensor, declared: Tensor) -> Running:
        made = super()._arithmetic(other, value, noise, declared)
        # A step on exact numbers is exact if its result needs no rounding, which `rounded` sees. A product with an
        # uncertain number, a 0 too, is uncertain.
        noise = torch.where(noise == 0, noise, made.noise).nan_to_num(nan=torch.inf, posinf=torch.inf)
        return dataclasses.replace(made, noise=noise)

    def rounded(self, dtype: torch.dtype) -> Running:
        """Rounded once to dtype: what 16 bits hold has no noise afterwards, what they do not hold is uncertain."""
        held = self.value == self.value.to(dtype).double()
        noise = self.noise
        if dtype is not torch.float32:
            noise = torch.where(noise < 0.25 * ulp(self.value, dtype), 0.0, torch.inf)
        noise = torch.where(held, noise, torch.inf)
        return dataclasses.replace(self, noise=noise, dtype=dtype, pending=False)

    def rstd(self, eps: float, *, centred: bool) -> tuple[Running, Running]:
        """See `Running.rstd`; rows for which not every sum is exact are uncertain."""
        x = self.value
        mean = x.mean(-1, keepdim=True) if centred else torch.zeros_like(x[..., :1])
        deviation = x - mean
        square = (deviation * deviation).mean(-1, keepdim=True)
        inverse = (square + eps).rsqrt()
        width = x.shape[-1]
        certain = _sums_exactly(x) & _sums_exactly(deviation)
        certain &= (square.float() == square) & (inverse.log2() == inverse.log2().round())
        # A mean that a product with a rounded 1 / D does not miss.
        certain &= (mean == 0) | (width & (width - 1) == 0)
        zero = torch.zeros_like(mean)
        welford = welford_noise(width) if centred else 0.0
        mean_noise = torch.where(certain, welford * (deviation.abs().amax(-1, keepdim=True) + mean.abs()), torch.inf)
        root_noise = torch.where(certain, (ROOT_NOISE + welford) * inverse, torch.inf)
        false = zero.bool()
        return (
            Exact(deviation, mean_noise.expand(x.shape), zero, false, torch.float32),
            Exact(inverse, root_noise, zero, false, torch.float32),
        )


def welford_noise(width: int) -> float:
    """What Welford's update costs, relative to 1/sigma, and in the mean relative to the largest deviation.

    Measured on rows of 17 to 24,576 columns in 8 to 128 lanes: at most 0.33 of `slack`; 0.87 in 8 lanes of 65,536
    columns. One lane alone is as bad as a sum in one chain, and is flagged from 1024 columns on.
    """
    return 4.0 * U * math.sqrt(1.0 + width / 8192)


def _sums_exactly(rows: Tensor) -> Tensor:
    """Whether any order of adding a row's elements, or their squares, is exact in float32: bool ``[..., 1]``."""
    # Each element is an odd number of its own lowest bits; the least of those is the row's unit.
    significand, exponent = torch.frexp(rows)
    digits = (significand * 2.0**53).long()
    lowest = (digits & -digits).double() * torch.exp2(exponent.double() - 53)
    unit = torch.where(rows == 0, torch.inf, lowest).amin(-1, keepdim=True)
    unit = torch.where(unit.isinf(), 1.0, unit)
    units = rows / unit
    return (units.abs().sum(-1, keepdim=True) < INTEGERS) & ((units * units).sum(-1, keepdim=True) < INTEGERS)


def slack(op: str, arguments: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """How far a right kernel may be from the truth of each output before its last rounding.

    Args:
        op: one of `bounds.BOUNDS`.
        arguments: by name, in their own dtypes.

    Returns:
        float64: 0 where a right kernel has the truth's bits, inf where nothing is certain.
    """
    return tuple(
        torch.where(number.value == number.value.float().double(), number.noise, torch.inf)
        for number in bound(op, arguments, Exact)
    )
