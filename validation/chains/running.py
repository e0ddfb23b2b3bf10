"""Numbers that carry a bound on their own rounding error.

`Running` is a float64 value with two bounds beside it, propagated to first order through each operation
(running error analysis: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, section
3.3):

* ``noise``: the error of float32 arithmetic, a unit roundoff u = 2^-24 of each intermediate result, for
  any order of the reduction. It is an estimate of scale, and the budget multiplies it by k.
* ``declared``: the error of the casting mode's own rounding points, half an ulp of each value that the
  contract rounds. It is a hard bound, and the budget takes it unchanged.

Like a tensor in PyTorch, a result has a dtype. The next step that reads the result rounds it to that dtype (a
rounding to float32 is noise); the caller makes the last rounding of a chain.
"""

import dataclasses
import math
from typing import Self

import torch
from torch import Tensor

from validation.chains.ulp import SMALLEST, UNIT_ROUNDOFF

# Factor on the noise bound. Measured (six value regimes, bf16 and fp32): 4 raises no alarm on six correct
# variants and rejects N-1 variance, a mid-way bf16 rounding, rstd off by 1e-4 and truncation.
K = 4.0

U = UNIT_ROUNDOFF[torch.float32]
TINY = SMALLEST[torch.float32]
FIELDS = ("value", "noise", "declared", "overflow")


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
        pending: the result of a step, not yet rounded to dtype.
    """

    value: Tensor
    noise: Tensor
    declared: Tensor
    overflow: Tensor
    dtype: torch.dtype
    scalar: bool = False
    pending: bool = False

    @property
    def shape(self) -> torch.Size:
        """Shape of the value."""
        return self.value.shape

    @classmethod
    def exact(cls, t: Tensor) -> Self:
        """An input without error; t is in its own dtype."""
        value = t.double()
        zero = torch.zeros((), dtype=torch.float64, device=t.device)
        return cls(value, zero, zero, zero.bool(), t.dtype, t.dim() == 0)

    def __add__(self, other: "Running | float") -> "Running":
        a, b = self._paired(other)
        value = a.value + b.value
        return a._arithmetic(b, value, a.noise + b.noise, a.declared + b.declared)

    def __neg__(self) -> "Running":
        return dataclasses.replace(self, value=-self.value)

    def __mul__(self, other: "Running | float") -> "Running":
        a, b = self._paired(other)
        size_a, size_b = a.value.abs(), b.value.abs()
        noise = size_a * b.noise + size_b * a.noise
        declared = size_a * b.declared + size_b * a.declared + a.declared * b.declared
        product = a._arithmetic(b, a.value * b.value, noise, declared)
        if bool(product.value.isfinite().all()):
            sure = torch.zeros(product.value.shape, dtype=torch.bool, device=product.value.device)
            return dataclasses.replace(product, overflow=product.overflow | sure)
        # A product of an infinity and a possible 0 may be NaN, or an infinity of either sign.
        unsure = (size_b.isinf() & a._may_be_zero()) | (size_a.isinf() & b._may_be_zero())
        return dataclasses.replace(product, overflow=product.overflow | unsure)

    def _may_be_zero(self) -> Tensor:
        return self.value.abs() <= self.declared + K * self.noise

    def _paired(self, other: "Running | float") -> "tuple[Running, Running]":
        a = self.settled()
        if not isinstance(other, Running):
            zero = torch.zeros((), dtype=torch.float64, device=a.value.device)
            return a, type(self)(zero + other, zero, zero, zero.bool(), a.dtype, scalar=True)
        b = other.settled()
        # PyTorch rounds a 0-d operand to the dtype of the other before it computes (float32 0-d scale with
        # bfloat16 x: measured 1.4x a budget without it).
        if a.scalar and not b.scalar and a.dtype is not b.dtype:
            return a.rounded(b.dtype), b
        if b.scalar and not a.scalar and a.dtype is not b.dtype:
            return a, b.rounded(a.dtype)
        return a, b

    def _arithmetic(self, other: "Running", value: Tensor, noise: Tensor, declared: Tensor) -> "Running":
        if self.scalar == other.scalar:
            dtype = torch.promote_types(self.dtype, other.dtype)
        else:
            dtype = other.dtype if self.scalar else self.dtype
        # A float32 operation: half an ulp of its result, or of the smallest subnormal.
        noise = noise + U * value.abs() + TINY
        overflow = self.overflow | other.overflow
        return type(self)(value, noise, declared, overflow, dtype, self.scalar and other.scalar, pending=True)

    def settled(self) -> "Running":
        """Rounded to its dtype, unless it already is."""
        return self.rounded(self.dtype) if self.pending else self

    def cast(self, dtype: torch.dtype) -> "Running":
        """The result of ``.to(dtype)``."""
        held = self.settled()
        return held if held.dtype is dtype else dataclasses.replace(held, dtype=dtype, pending=True)

    def rounded(self, dtype: torch.dtype) -> "Running":
        """Rounded once to dtype."""
        if dtype is torch.float32:
            return dataclasses.replace(self, dtype=dtype, pending=False)
        size = self.value.abs() + self.noise + self.declared
        half_ulp = size * UNIT_ROUNDOFF[dtype] + SMALLEST[dtype] / 2
        # Doubled, to include values that round up to infinity; an overflow here is rare and large.
        overflow = self.overflow | (size + 2 * half_ulp > torch.finfo(dtype).max)
        declared = self.declared + half_ulp
        return dataclasses.replace(self, declared=declared, overflow=overflow, dtype=dtype, pending=False)

    def wide(self) -> "Running":
        """Converted to float32 without error, as ``.float()`` does to an input."""
        return dataclasses.replace(self, dtype=torch.float32, scalar=False)

    def rstd(self, eps: float, *, centred: bool) -> tuple["Running", "Running"]:
        """The deviation from the row's mean (or the value itself) and 1 / sqrt(mean square + eps).

        The number itself must be an input, without error of its own.

        The reductions run over the last dimension of D elements. Each adds u * (log2(D) + 2) of the mean
        size of its terms: the error of pairwise or blocked summation (Higham, section 4.2), and more than
        that of naive summation with rounding errors of random sign at D = 65536. The error of the mean enters
        the variance in the second order only, because deviations sum to zero, so it counts squared.

        Args:
            eps: added to the mean square.
            centred: True for LayerNorm, False for RMSNorm.
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
        # d(v^-1/2) = -1/2 v^-3/2 dv; sum with eps, root and quotient round once each. For a row with an inf, rstd is
        # 0 without error, and the row's finite elements are multiplied by it.
        zero = torch.zeros((), dtype=torch.float64, device=value.device)
        inverse_noise = torch.where(inverse == 0, zero, inverse * (0.5 * (square_noise / under_root) + 3 * U))
        return (
            Running(value, own + mean_noise, zero, zero.bool(), torch.float32),
            Running(inverse, inverse_noise, zero, zero.bool(), torch.float32),
        )

    def expanded(self, shape: torch.Size) -> "Running":
        """Every field expanded to this shape."""
        return dataclasses.replace(self, **{name: getattr(self, name).expand(shape) for name in FIELDS})

    def part(self, columns: slice) -> "Running":
        """The columns of a slice."""
        held = self.settled().expanded(self.shape)
        return dataclasses.replace(held, **{name: getattr(held, name)[..., columns] for name in FIELDS})

    def put(self, columns: slice, other: "Running") -> None:
        """Write another's values and bounds into the columns of a slice."""
        for name in FIELDS:
            getattr(self, name)[..., columns] = getattr(other, name)

    def view(self, shape: torch.Size) -> "Running":
        """Every field viewed in another shape."""
        return dataclasses.replace(self, **{name: getattr(self, name).view(shape) for name in FIELDS})
