"""Every op with a chain, correct, in small steps: a planted fault replaces one step.

Computes in float32 like a fused kernel, rounds where the casting mode says, writes outputs to fresh memory. The
suite's own tests hold it to ``lossless``, so that a fault shows its bug and nothing else.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from validation.chains.arithmetic import Arithmetic
from validation.chains.chain import OPS
from validation.chains.contract import checked_arguments


class RightOps(Arithmetic):
    """The ops, behind the contract's checks."""

    def mean(self, x: Tensor) -> Tensor:
        """The mean of float32 rows, corrected once, so that of a constant row it is exact."""
        mean = x.mean(-1, keepdim=True)
        return mean + (x - mean).mean(-1, keepdim=True)

    def mean_square(self, deviation: Tensor) -> Tensor:
        """The mean square of float32 rows: the variance, where they are deviations from the mean."""
        return (deviation * deviation).mean(-1, keepdim=True)

    def inverse_root(self, mean_square: Tensor, eps: float) -> Tensor:
        """``1 / sqrt(mean_square + eps)``."""
        return torch.rsqrt(mean_square + eps)

    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        """Rows normalised, in float32; centred for LayerNorm, as they are for RMSNorm.

        Contiguous first: the order in which ``torch.mean`` adds a strided row up depends on where the row lies.
        """
        x = x.float().contiguous()
        deviation = x - self.mean(x) if centred else x
        return deviation * self.inverse_root(self.mean_square(deviation), eps)

    def scaled(self, value: Tensor, factor: Tensor, added: Tensor, x: Tensor) -> Tensor:
        """``value * factor + added``."""
        return self.product(value, factor, x) + added

    def product(self, value: Tensor, factor: Tensor, x: Tensor) -> Tensor:
        """A value times its scale or gate."""
        del x
        return value * factor

    def rotated_pair(self, a: Tensor, b: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """``(a * cos - b * sin, a * sin + b * cos)``; in float32 each sum is contracted with its second product."""
        if a.dtype is not torch.float32:
            return super().rotated_pair(a, b, cos, sin)
        return torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(a * sin, b, cos)


def _behind_checks(op: str) -> Callable[..., Any]:
    function = getattr(Arithmetic, op)

    @functools.wraps(function)
    def call(self: RightOps, *args: Any, **kwargs: Any) -> Any:
        return function(self, **checked_arguments(op, args, kwargs, float64=False))

    return call


for _op in OPS:
    setattr(RightOps, _op, _behind_checks(_op))
