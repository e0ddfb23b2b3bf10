"""The roundings of float32 arithmetic in a legal replay, drawn at random.

A step rounds its exact result to nearest. Which way that error goes is chance as far as a model is concerned: another
legal kernel, one rounding earlier or later, gets one of the same size and any sign. So a replay keeps the size, which
depends on the numbers (0 where float32 holds the result, half an ulp where it is a tie: of ``1 + scale`` with a scale
of [0.5, 1) each is one half of the time), and draws the sign (random errors of the right size: Hull and Swenson,
Communications of the ACM 9, 1966). Sums are summed for real, since their error depends on the terms: over a row with a
mean of 30 sigma it is 20 to 60 times the rounding of the mean, and 0 if float32 holds all partial sums.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# Columns whose sum is added to those before as one number, as in a kernel that loops over blocks of a row.
BLOCK = 64


class Rounding:
    """Draws roundings from one generator a device."""

    def __init__(self, generator: Callable[[torch.device], torch.Generator]) -> None:
        self._generator = generator

    def rounded(self, exact: Tensor) -> Tensor:
        """Move float64 numbers by their own error of rounding to float32, with a random sign.

        A number that float32 holds stays. Of 16-bit sums many do, and many of these lie halfway between two 16-bit
        neighbours (6 % of a bfloat16 gated sum): every kernel rounds these to even.
        """
        nearest = exact.float().double()
        up = torch.randint(
            0, 2, exact.shape, dtype=torch.bool, device=exact.device, generator=self._generator(exact.device)
        )
        mirrored = (exact - nearest).add_(exact)  # beyond the largest number: that of float32, infinite
        return torch.where(up & nearest.isfinite(), mirrored, nearest)

    def order(self, count: int, device: torch.device) -> Tensor:
        """A random order of ``count`` elements, as indices."""
        return torch.randperm(count, device=device, generator=self._generator(device))

    def sum(self, t: Tensor) -> Tensor:
        """Sum float32 values over the last dimension, kept with size 1: in a random order, in blocks of `BLOCK`."""
        width = t.shape[-1]
        mixed = t.index_select(-1, self.order(width, t.device))
        blocks = functional.pad(mixed, (0, -width % BLOCK)).unflatten(-1, (-1, BLOCK)).sum(-1)
        total = torch.zeros_like(blocks[..., :1])
        for block in blocks.split(1, -1):
            total = total + block
        return total
