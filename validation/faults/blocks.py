"""Wrong only for one count of blocks of columns, or for more rows than one round of a persistent loop takes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from validation.faults.fault import fault
from validation.faults.right import RightOps
from validation.verdict import Status

NUMERICAL, NONFINITE, BIASED = Status.INCORRECT_NUMERICAL, Status.INCORRECT_NONFINITE, Status.BIASED
NOT_WRITTEN = Status.NOT_WRITTEN

LN, RN, LNSS, RNSS = "layer_norm", "rms_norm", "layer_norm_scale_shift", "rms_norm_scale_shift"
SS, RGA = "scale_shift", "residual_gate_add"
SRLN, SRRN = "scale_residual_layer_norm_scale_shift", "scale_residual_rms_norm_scale_shift"

# Programs of a persistent loop, one an SM of an H200; the rows that four rounds of it take.
PROGRAMS = 132
ROUNDS = 4 * PROGRAMS


class _DropsABlock(RightOps):
    """The sum of squares of rows of some counts of blocks leaves one block out."""

    block = 1024
    # Whether a count of blocks is summed wrongly, and the number of the block that is lost.
    wrong: Callable[[int], bool]
    lost = -1

    def mean_square(self, deviation: Tensor) -> Tensor:
        width = deviation.shape[-1]
        blocks = list(deviation.split(self.block, -1))
        if type(self).wrong(len(blocks)):
            del blocks[self.lost]
        return super().mean_square(torch.cat(blocks, -1)) * (sum(b.shape[-1] for b in blocks) / width)


@fault("six blocks of 1024", LN, "of six blocks of columns the third is not in the variance", NUMERICAL, BIASED)
class SixBlocksOf1024(_DropsABlock):
    wrong, lost = staticmethod(lambda count: count == 6), 2


@fault("seven blocks of 1024", RN, "of seven blocks of columns the seventh is not in the sum", NUMERICAL, BIASED)
class SevenBlocksOf1024(_DropsABlock):
    wrong = staticmethod(lambda count: count == 7)


@fault("seven blocks of 512", RNSS, "of seven blocks of columns, three pairs are in the sum", NUMERICAL, BIASED)
class SevenBlocksOf512(SevenBlocksOf1024):
    block = 512


@fault("six blocks of 2048", SRLN, "of six blocks of columns the fifth is not in the variance", NUMERICAL, BIASED)
class SixBlocksOf2048(SixBlocksOf1024):
    block, lost = 2048, 4


@fault("seven blocks of 2048", SRRN, "of seven blocks of columns the seventh is not in the sum", NUMERICAL, BIASED)
class SevenBlocksOf2048(SevenBlocksOf1024):
    block = 2048


@fault("ten blocks of 1024", LNSS, "of ten blocks of columns the ninth is not in the variance", NUMERICAL, BIASED)
class TenBlocksOf1024(_DropsABlock):
    wrong, lost = staticmethod(lambda count: count == 10), 8


@fault("18 blocks of 256", RNSS, "of 18 blocks of columns, 16 and one more are in the sum", NUMERICAL, BIASED)
class EighteenBlocksOf256(_DropsABlock):
    block, wrong = 256, staticmethod(lambda count: count == 18)


@fault(
    "an odd count of blocks past eight",
    LNSS,
    "past 16384 columns two blocks of 2048 are added at a time, and the last of an odd count is lost",
    NUMERICAL,
    BIASED,
)
class AnOddCountOfBlocksPastEight(_DropsABlock):
    block, wrong = 2048, staticmethod(lambda count: count > 8 and count % 2 == 1)


@fault("columns past 16384", RGA, "a grid of eight blocks of 2048 columns: those past them are left out", NOT_WRITTEN)
class ColumnsPast16384(RightOps):
    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        if x.shape[-1] <= 16384:
            return super().stored(value, x)
        y = self.room(x.shape, x)
        self.put(y, slice(0, 16384), value[..., :16384])
        return y


@fault("the third of three blocks of 2048", SS, "is taken for a tail of 1024 columns", NOT_WRITTEN)
class TheThirdOfThreeBlocks(RightOps):
    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        width = x.shape[-1]
        if -(-width // 2048) != 3 or width <= 5120:
            return super().stored(value, x)
        y = self.room(x.shape, x)
        self.put(y, slice(0, 5120), value[..., :5120])
        return y


# Rows and width.


def _tall(x: Tensor) -> bool:
    return x.shape[-1] >= 1024 and x[..., 0].numel() > ROUNDS


@fault("a fifth round of rows", LN, "each of 132 programs takes at most four rows of 1024 columns or more", NOT_WRITTEN)
class AFifthRoundOfRows(RightOps):
    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        if not _tall(x):
            return super().stored(value, x)
        y = self.room(x.shape, x)
        rows, made = y.view(-1, x.shape[-1]), value.reshape(-1, x.shape[-1])
        rows[:ROUNDS] = self.rounded(made[:ROUNDS], x.dtype)
        return y


@fault(
    "the prefetched rows of a long loop",
    RN,
    "wide rows past four rounds of 132 programs are fetched ahead, D elements after the one before",
    NUMERICAL,
    NONFINITE,
)
class ThePrefetchedRowsOfALongLoop(RightOps):
    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        if x.dim() == 3 and x.stride(-1) == 1 and _tall(x):
            packed = x.as_strided(x.shape, (x.stride(0), x.shape[-1], 1))
            past = torch.arange(x[..., 0].numel(), device=x.device).view(*x.shape[:-1], 1) >= ROUNDS
            x = torch.where(past, packed, x)
        return super().normalised(x, eps, centred=centred)


@fault(
    "the gate of a round before",
    RGA,
    "past four rounds of 132 programs each wide row has its first row's gate",
    NUMERICAL,
)
class TheGateOfARoundBefore(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        rows = super().rows(name, m, x)
        if not _tall(x):
            return rows
        flat = rows.expand(x.shape).reshape(-1, x.shape[-1])
        number = torch.arange(len(flat), device=x.device)
        return flat[torch.where(number < ROUNDS, number, number % PROGRAMS)].view(x.shape)


@fault(
    "scale and shift of a full pipeline",
    SRLN,
    "past 512 wide rows, of the pipeline's two buffers the older is read: the modulation of the row before",
    NUMERICAL,
    NONFINITE,
)
class ScaleAndShiftOfAFullPipeline(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        rows = super().rows(name, m, x)
        if name == "gate" or not _tall(x):
            return rows
        flat = rows.expand(x.shape).reshape(-1, x.shape[-1])
        number = torch.arange(len(flat), device=x.device)
        return flat[number - (number >= 512).long()].view(x.shape)
