"""The roundings of float32 arithmetic in a legal replay, drawn at random.

A step rounds its exact result to nearest. To which side is chance as far as a model is concerned: another legal kernel,
one rounding earlier or later, makes an error of the same size to either side. So a replay keeps the size, which depends
on the numbers (0 where float32 holds the result, half an ulp where it is a tie: of ``1 + scale`` with a scale of
[0.5, 1) each is one half of the time), and draws the side. Sums are summed for real, since their error depends on the
terms: over a row with a mean of 30 sigma it is 20 to 60 times the rounding of the mean, and 0 if float32 holds all
partial sums.
"""

import torch
from torch import Tensor
from torch.nn import functional

# A replay's roundings between two operations are this much larger than a kernel's: the margin within which a candidate
# is lossless. In a float32 model, whose errors add up, eight replays lay within 2 % of each other; without the margin
# four right norms of eight were 1 to 3 % further than all of them (p = 5.3e-5 to 7.5e-6), with it none.
SLACK = 1.25

_ODD = 0x9E3779B97F4A7C15 - 2**64  # 2^64 over the golden ratio

# Columns whose sum is added to those before as one number, as in a kernel that loops over blocks of a row.
BLOCK = 64


class Rounding:
    """The roundings of one replay: a function of the numbers, as a kernel's are.

    Equal numbers are rounded alike in every call, and rows of one width are summed in one order: the errors of a kernel
    are alike from step to step where its inputs are, and add up.
    """

    def __init__(self, seed: int) -> None:
        """Round as the replay of this seed (64 bits, signed) does."""
        self.seed = seed
        self._orders: dict[tuple[int, torch.device], Tensor] = {}

    def rounded(self, exact: Tensor, slack: float = SLACK) -> Tensor:
        """Move float64 numbers by their own error of rounding to float32, times ``slack``, to either side.

        A number that float32 holds stays. Of 16-bit sums many do, and many of these lie halfway between two 16-bit
        neighbours (6 % of a bfloat16 gated sum): every kernel rounds these to even.
        """
        error = exact.float().double().sub_(exact)
        # The sign bit of a product with an odd number depends on all bits of the other factor.
        side = (exact.contiguous().view(torch.int64) ^ self.seed) * _ODD
        # The error of a number beyond float32's largest is infinite and has one direction.
        return exact + slack * torch.where((side < 0) & error.isfinite(), -error, error)

    def order(self, count: int, device: torch.device) -> Tensor:
        """A random order of ``count`` elements, as indices."""
        key = count, device
        if key not in self._orders:
            generator = torch.Generator().manual_seed((self.seed ^ count) & (2**63 - 1))
            self._orders[key] = torch.randperm(count, generator=generator).to(device)
        return self._orders[key]

    def sum(self, t: Tensor) -> Tensor:
        """Sum float32 values over the last dimension, kept with size 1: in a random order, in blocks of `BLOCK`."""
        width = t.shape[-1]
        mixed = t.index_select(-1, self.order(width, t.device))
        blocks = functional.pad(mixed, (0, -width % BLOCK)).unflatten(-1, (-1, BLOCK)).sum(-1)
        total = torch.zeros_like(blocks[..., :1])
        for block in blocks.split(1, -1):
            total = total + block
        return total
