"""The chains in float32, and the controls: each replaces one step by another correct one that a kernel may take."""

import torch
from torch import Tensor
from torch.nn import functional

from validation.chains.chain import Chain
from validation.chains.steps import INPUT


class Arithmetic(Chain[Tensor]):
    """float32 inside, rounded to the output's dtype at the end and where ``casting_mode="input"`` requires it.

    The plain form: one ``sum``, one ``rsqrt``, products and sums one after the other.

    Attributes:
        wide: the dtype of the arithmetic between roundings.
        rounds_midway: False leaves out the roundings that ``"input"`` mode and the rotations declare.
            Rounding less often than declared is allowed.
    """

    wide = torch.float32
    rounds_midway = True

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the last dimension, kept with size 1."""
        return x.sum(-1, keepdim=True)

    def moments(self, x: Tensor, *, centred: bool) -> tuple[Tensor, Tensor]:
        """The deviation from the mean (x itself if not centred), and the mean of its square ``[..., 1]``."""
        deviation = x - self.sum(x) / x.shape[-1] if centred else x
        return deviation, self.sum(deviation * deviation) / x.shape[-1]

    def over_root(self, value: Tensor, square: Tensor) -> Tensor:
        """``value / sqrt(square)``."""
        return value * torch.rsqrt(square)

    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        """See `Steps`. The order of torch's sums follows the strides; a slice of a batch must give the same bits."""
        deviation, square = self.moments(x.to(self.wide).contiguous(), centred=centred)
        return self.over_root(deviation, square + eps)

    def taken(self, t: Tensor, mode: str) -> Tensor:
        """See `Steps`."""
        return t if mode == INPUT and self.rounds_midway else t.to(self.wide)

    def midway(self, value: Tensor, dtype: torch.dtype, mode: str) -> Tensor:
        """See `Steps`."""
        return value.to(dtype) if mode == INPUT and self.rounds_midway else value

    def part(self, value: Tensor, columns: slice) -> Tensor:
        """See `Steps`."""
        return value[..., columns]

    def rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """See `Steps`."""
        return value.to(dtype)


class Chunked(Arithmetic):
    """Sums of 64 columns, then the sum of those: a kernel that loops over blocks of columns."""

    def sum(self, x: Tensor) -> Tensor:
        """Add the chunks' sums one after the other."""
        total = torch.zeros_like(x[..., :1])
        for chunk in torch.split(x, 64, -1):
            total = total + chunk.sum(-1, keepdim=True)
        return total


class Pairwise(Arithmetic):
    """Halves added to halves until one is left: a tree reduction within a program."""

    def sum(self, x: Tensor) -> Tensor:
        """Sum in a tree, padded with zeros where a level is odd."""
        while x.shape[-1] > 1:
            half = (x.shape[-1] + 1) // 2
            x = x[..., :half] + functional.pad(x[..., half:], (0, 2 * half - x.shape[-1]))
        return x


class Reversed(Arithmetic):
    """Sums from the last column to the first."""

    def sum(self, x: Tensor) -> Tensor:
        """torch's own sum of the columns in reverse."""
        return x.flip(-1).sum(-1, keepdim=True)


class Welford(Arithmetic):
    """Mean and variance in one pass by Welford's update, as in torch's own kernels."""

    def moments(self, x: Tensor, *, centred: bool) -> tuple[Tensor, Tensor]:
        """torch.var_mean for a centred norm; a plain mean square has no update of its own."""
        if not centred or x.numel() == 0:  # var_mean warns of empty input
            return super().moments(x, centred=centred)
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        return x - mean, variance


class Division(Arithmetic):
    """Divides by the square root instead of multiplying by its reciprocal."""

    def over_root(self, value: Tensor, square: Tensor) -> Tensor:
        """``value / sqrt(square)``, literally."""
        return value / torch.sqrt(square)


class FMA(Arithmetic):
    """Adds products unrounded, as GPU compilers contract a product and a sum."""

    def multiply_add(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Compute in float64, where the product of two float32 numbers is exact; round to the promoted dtype."""
        dtype = torch.promote_types(torch.result_type(a, b), torch.result_type(b, c))
        return (a.double() * b.double() + c.double()).to(dtype)


class Float64Inside(Arithmetic):
    """Everything in float64, rounded once, at the end: the declared midway roundings are left out."""

    wide = torch.float64
    rounds_midway = False


ARITHMETIC: dict[str, type[Arithmetic]] = {
    "chunked": Chunked,
    "pairwise": Pairwise,
    "reversed": Reversed,
    "welford": Welford,
    "division": Division,
    "fma": FMA,
    "float64_inside": Float64Inside,
}
