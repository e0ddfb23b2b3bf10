"""Wrong only for values that ordinary inputs do not have: shortcuts, and float16 on the way."""

from typing import Any

import torch
from torch import Tensor

from validation.faults.fault import fault
from validation.faults.right import RightOps
from validation.verdict import Status

NUMERICAL, NONFINITE, BIASED = Status.INCORRECT_NUMERICAL, Status.INCORRECT_NONFINITE, Status.BIASED

LN, RN, LNSS, RNSS = "layer_norm", "rms_norm", "layer_norm_scale_shift", "rms_norm_scale_shift"
SS, RGA, ROTARY, QKN = "scale_shift", "residual_gate_add", "rotary_embedding", "qk_norm"
SRLN, SRRN = "scale_residual_layer_norm_scale_shift", "scale_residual_rms_norm_scale_shift"


# Float16 on the way.


def _through_float16(value: Tensor, *, scaled: float = 1.0) -> Tensor:
    """What exceeds float16's largest number becomes infinite; the rest stays as it is, rounded or not.

    What float16 does to small numbers shows in every sweep; what it does to large ones is the question here.
    """
    return torch.where(value.abs() > 65504.0 / scaled, value * torch.inf, value)


@fault("an eighth in float16", SS, "a bfloat16 x is brought to float16 as an eighth of itself", NONFINITE, NUMERICAL)
class AnEighthInFloat16(RightOps):
    def modulate(self, value: Tensor, shift: Any, scale: Any, x: Tensor, mode: str, constant: float = 1.0) -> Tensor:
        value = _through_float16(value, scaled=0.125) if x.dtype is torch.bfloat16 else value
        return super().modulate(value, shift, scale, x, mode, constant)


@fault("rows kept as float16", LN, "a float32 row is kept in shared memory as float16", NONFINITE, NUMERICAL)
class RowsKeptAsFloat16(RightOps):
    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        x = _through_float16(x) if x.dtype is torch.float32 else x
        return super().normalised(x, eps, centred=centred)


@fault("heads kept as float16", QKN, "a bfloat16 head is kept in shared memory as float16", NONFINITE, NUMERICAL)
class HeadsKeptAsFloat16(RightOps):
    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        x = _through_float16(x) if x.dtype is torch.bfloat16 else x
        return super().normalised(x, eps, centred=centred)


@fault("rotated in float16", ROTARY, "pairs of float32 are rotated by a float16 matrix product", NONFINITE, NUMERICAL)
class RotatedInFloat16(RightOps):
    def rotated_pair(self, a: Tensor, b: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        if a.dtype is torch.float32:
            a, b = _through_float16(a), _through_float16(b)
        return super().rotated_pair(a, b, cos, sin)


# One look at a modulation's beginning.


def _zero(rows: Tensor) -> bool:
    return bool(rows.numel()) and not bool(rows.any())


def _alike(rows: Tensor, dim: int) -> bool:
    """Whether there are several rows along a dimension, with numbers, and all are equal."""
    return rows.shape[dim] > 1 and bool(rows.numel()) and bool((rows == rows.narrow(dim, 0, 1)).all())


@fault("first item not modulated", LNSS, "where shift and scale of item 0 are zero, no item is modulated", NUMERICAL)
class FirstItemNotModulated(RightOps):
    def modulate(self, value: Tensor, shift: Any, scale: Any, x: Tensor, mode: str, constant: float = 1.0) -> Tensor:
        if all(isinstance(m, Tensor) and m.dim() > 1 and m.numel() and _zero(m[0]) for m in (shift, scale)):
            shift, scale = torch.zeros_like(shift), torch.zeros_like(scale)
        return super().modulate(value, shift, scale, x, mode, constant)


@fault("gate of a zero first frame", RGA, "where each item's first frame has a gate of zero, so have all", NUMERICAL)
class GateOfAZeroFirstFrame(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        if isinstance(m, Tensor) and m.dim() == 4 and m.numel() and _zero(m[:, 0]):
            m = torch.zeros_like(m)
        return super().rows(name, m, x)


@fault("items of a zero first token", SS, "an item whose first token has a scale of zero has no scale", NUMERICAL)
class ItemsOfAZeroFirstToken(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        rows = super().rows(name, m, x)
        if name == "scale" and isinstance(m, Tensor) and m.dim() == 3 and m.shape[1] > 1:
            rows = torch.where((rows[:, :1] == 0).all(-1, keepdim=True), torch.zeros_like(rows), rows)
        return rows


@fault(
    "a chained gate of zero",
    SRRN,
    "where the gate of item 0 is zero, the residual alone is normalised",
    NUMERICAL,
    NONFINITE,
)
class AChainedGateOfZero(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        if name == "gate" and isinstance(m, Tensor) and m.dim() == 3 and m.numel() and _zero(m[0]):
            m = torch.zeros_like(m)
        return super().rows(name, m, x)


@fault("one row an item", RNSS, "where the tokens of item 0 share a scale, those of each item do", NUMERICAL)
class OneRowAnItem(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        rows = super().rows(name, m, x)
        tokens = isinstance(m, Tensor) and m.dim() == 3 and m.shape[0] > 0
        return rows[:, :1] if name == "scale" and tokens and _alike(m[:1], 1) else rows


@fault("one row for two alike", SS, "where the shift of item 1 is that of item 0, all items have it", NUMERICAL)
class OneRowForTwoAlike(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        rows = super().rows(name, m, x)
        by_item = isinstance(m, Tensor) and m.dim() == 3 and m.shape[1] == 1
        return rows[:1] if name == "shift" and by_item and _alike(m[:2], 0) else rows


@fault("one frame for all", SRLN, "where the frames of item 0 share a scale, those of each item do", NUMERICAL)
class OneFrameForAll(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        if name == "scale" and isinstance(m, Tensor) and m.dim() == 4 and m.shape[0] and _alike(m[:1], 1):
            m = m[:, :1].expand(m.shape)
        return super().rows(name, m, x)


# Columns of padding.


@fault(
    "padding taken out by a rounded mean",
    LN,
    "columns of padding are taken out of the variance as their count times the square of the mean, the mean in "
    "bfloat16; of rows whose mean is past 2 sigma it is subtracted first",
    NUMERICAL,
    BIASED,
)
class PaddingTakenOutByARoundedMean(RightOps):
    def padded(self, width: int) -> bool:
        """Whether a row is padded."""
        return width > 2048

    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        width = x.shape[-1]
        if not self.padded(width) or not x.numel():
            return super().normalised(x, eps, centred=centred)
        x = x.float().contiguous()
        mean = self.mean(x)
        square = self.mean_square(x - mean)
        padding = (1 << (width - 1).bit_length()) - width
        left = (mean * mean - mean.bfloat16().float() ** 2) * (padding / width)
        square = square + torch.where(mean.abs() < 2.0 * square.sqrt(), left, torch.zeros_like(left))
        return (x - mean) * self.inverse_root(square, eps)


@fault(
    "padding of rows without 16-byte loads",
    LNSS,
    "the same, only where a row is no multiple of eight columns",
    NUMERICAL,
    BIASED,
)
class PaddingOfRowsWithout16ByteLoads(PaddingTakenOutByARoundedMean):
    def padded(self, width: int) -> bool:
        return super().padded(width) and width % 8 != 0
