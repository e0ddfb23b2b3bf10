"""Numbers that carry a bound on their own rounding error.

`Running` is a float64 value with two bounds beside it, propagated to first order through each operation
(running error analysis: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, section
3.3):

* ``noise``: what float32 arithmetic may add, a unit roundoff u = 2^-24 of each intermediate result, in
  whatever order the reduction runs. It is an estimate of scale, and the budget multiplies it by k.
* ``declared``: what the casting mode's own rounding points may add, half an ulp of each value that the
  contract rounds. It is a hard bound, and the budget takes it as it is.

A chain of these reads like the op itself; see `bounds`.
"""

import dataclasses
import math
from typing import Self

import torch
from torch import Tensor

from validation.judge.ulp import SMALLEST, UNIT_ROUNDOFF

# Factor on the noise bound. Measured (six value regimes, bf16 and fp32): 4 raises no alarm on six correct
# variants and rejects N-1 variance, a mid-way bf16 rounding, rstd off by 1e-4 and truncation.
K = 4.0

U = UNIT_ROUNDOFF[torch.float32]
TINY = SMALLEST[torch.float32]


@dataclasses.dataclass(frozen=True)
class Running:
    """A value with its error bounds.

    Attributes:
        value: float64, as exact as float64 is.
        noise: float64, same shape or broadcastable: scale of the float32 arithmetic's error.
        declared: float64, likewise: bound on the error from declared roundings.
        overflow: bool, likewise: a declared rounding may have overflowed its dtype on the way here.
        dtype: what PyTorch's promotion makes of the chain so far.
        scalar: a 0-d tensor, which leaves the other operand's dtype as it is.
    """

    value: Tensor
    noise: Tensor
    declared: Tensor
    overflow: Tensor
    dtype: torch.dtype
    scalar: bool = False

    @classmethod
    def exact(cls, t: Tensor) -> Self:
        """An input: no error; t is in its own dtype."""
        value = t.double()
        zero = torch.zeros((), dtype=torch.float64, device=t.device)
        return cls(value, zero, zero, zero.bool(), t.dtype, t.dim() == 0)

    def __add__(self, other: "Running | float") -> "Running":
        a, b = self._paired(other)
        value = a.value + b.value
        return a._arithmetic(b, value, a.noise + b.noise, a.declared + b.declared)

    def __sub__(self, other: "Running") -> "Running":
        return self + (-other)

    def __neg__(self) -> "Running":
        return dataclasses.replace(self, value=-self.value)

    def __mul__(self, other: "Running | float") -> "Running":
        a, b = self._paired(other)
        size_a, size_b = a.value.abs(), b.value.abs()
        noise = size_a * b.noise + size_b * a.noise
        declared = size_a * b.declared + size_b * a.declared + a.declared * b.declared
        product = a._arithmetic(b, a.value * b.value, noise, declared)
        # What may be 0 times an infinity may be NaN, or an infinity of either sign.
        unsure = (size_b.isinf() & a._may_be_zero()) | (size_a.isinf() & b._may_be_zero())
        return dataclasses.replace(product, overflow=product.overflow | unsure)

    def _may_be_zero(self) -> Tensor:
        return self.value.abs() <= self.declared + K * self.noise

    def _paired(self, other: "Running | float") -> "tuple[Running, Running]":
        if not isinstance(other, Running):
            zero = torch.zeros((), dtype=torch.float64, device=self.value.device)
            return self, Running(zero + other, zero, zero, zero.bool(), self.dtype, scalar=True)
        # PyTorch rounds a 0-d operand to the dtype of the other before it computes (float32 0-d scale with
        # bfloat16 x: measured 1.4x a budget without it).
        if self.scalar and not other.scalar and self.dtype is not other.dtype:
            return self.rounded(other.dtype), other
        if other.scalar and not self.scalar and self.dtype is not other.dtype:
            return self, other.rounded(self.dtype)
        return self, other

    def _arithmetic(self, other: "Running", value: Tensor, noise: Tensor, declared: Tensor) -> "Running":
        if self.scalar == other.scalar:
            dtype = torch.promote_types(self.dtype, other.dtype)
        else:
            dtype = other.dtype if self.scalar else self.dtype
        # A float32 operation: half an ulp of its result, or of the smallest subnormal.
        noise = noise + U * value.abs() + TINY
        return Running(value, noise, declared, self.overflow | other.overflow, dtype, self.scalar and other.scalar)

    def rounded(self, dtype: torch.dtype | None = None) -> "Running":
        """Rounded once to dtype (by default to the promoted dtype of the chain so far)."""
        dtype = dtype or self.dtype
        if dtype is torch.float32:
            return dataclasses.replace(self, dtype=dtype)
        size = self.value.abs() + self.noise + self.declared
        half_ulp = size * UNIT_ROUNDOFF[dtype] + SMALLEST[dtype] / 2
        # Doubled, so that what rounds up to infinity is in it; an overflow here is rare and large.
        overflow = self.overflow | (size + 2 * half_ulp > torch.finfo(dtype).max)
        return dataclasses.replace(self, declared=self.declared + half_ulp, overflow=overflow, dtype=dtype)

    def wide(self) -> "Running":
        """Taken into float32 without error: what ``.float()`` does to an input."""
        return dataclasses.replace(self, dtype=torch.float32, scalar=False)

    def rstd(self, eps: float, *, centred: bool) -> tuple["Running", "Running"]:
        """The deviation from the row's mean (or the value itself) and 1 / sqrt(mean square + eps).

        The reductions run over the last dimension of D elements. Each adds u * (log2(D) + 2) of the mean
        size of its terms: what pairwise or blocked summation makes (Higham, section 4.2), and more than
        naive summation of rounding errors of random sign makes at D = 65536. The error of the mean enters
        the variance in the second order only, because deviations sum to zero, so it counts squared.

        Args:
            eps: added to the mean square.
            centred: True for LayerNorm, False for RMSNorm.

        The number itself must be an input, without error of its own.
        """
        width = self.value.shape[-1]
        steps = U * (math.log2(width) + 2)
        value = self.value
        mean_noise = torch.zeros_like(value[..., :1])
        if centred:
            mean_noise = steps * value.abs().mean(-1, keepdim=True)
            value = value - value.mean(-1, keepdim=True)
        own = U * value.abs() + TINY
        square = (value * value).mean(-1, keepdim=True)
        square_noise = 2 * (value.abs() * own).mean(-1, keepdim=True) + mean_noise * mean_noise + steps * square + TINY
        under_root = square + eps
        inverse = under_root.rsqrt()
        # d(v^-1/2) = -1/2 v^-3/2 dv; sum with eps, root and quotient round once each. Of a row with an inf it is 0
        # without error, by which its finite elements are multiplied.
        zero = torch.zeros((), dtype=torch.float64, device=value.device)
        inverse_noise = torch.where(inverse == 0, zero, inverse * (0.5 * (square_noise / under_root) + 3 * U))
        return (
            Running(value, own + mean_noise, zero, zero.bool(), torch.float32),
            Running(inverse, inverse_noise, zero, zero.bool(), torch.float32),
        )

    def expanded(self, shape: torch.Size) -> "Running":
        """With every field of this shape."""
        fields = {name: getattr(self, name).expand(shape) for name in ("value", "noise", "declared", "overflow")}
        return dataclasses.replace(self, **fields)
