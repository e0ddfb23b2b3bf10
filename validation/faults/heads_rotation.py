"""Wrong rotations: pairs, angles, and writing in place."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from validation.faults.fault import fault
from validation.faults.right import RightOps
from validation.verdict import Status

NUMERICAL, NONFINITE, BELOW_TIER = Status.INCORRECT_NUMERICAL, Status.INCORRECT_NONFINITE, Status.BELOW_REQUIRED_TIER
OUTSIDE, NOT_WRITTEN = Status.OUT_OF_BOUNDS_WRITE, Status.NOT_WRITTEN

ROTARY, SPLIT = "rotary_embedding", "split_rotary_embedding"


# rotary_embedding.


@fault("holes zeroed", ROTARY, "in place, the gaps between rows apart are written as well", OUTSIDE)
class HolesZeroed(RightOps):
    def returned(self, targets: tuple[Tensor, ...], results: Sequence[Tensor], *, inplace: bool) -> tuple[Tensor, ...]:
        returned = super().returned(targets, results, inplace=inplace)
        x = targets[0]
        if inplace and x.numel() and x.stride(-1) == 1 and x.stride(-2) > x.shape[-1]:
            x.as_strided(x.shape[:-1], x.stride()[:-1], x.storage_offset() + x.shape[-1]).zero_()
        return returned


@fault("interleaved=False ignored", ROTARY, "pairs are 2i and 2i+1 whatever interleaved says", NUMERICAL, NONFINITE)
class InterleavedFalseIgnored(RightOps):
    def pairs(self, count: int, head_dim: int, *, interleaved: bool) -> tuple[slice, slice]:
        del interleaved
        return super().pairs(count, head_dim, interleaved=True)


@fault(
    "halves of head_dim",
    ROTARY,
    "halves lie head_dim / 2 apart instead of Dr / 2: channels past Dr are rotated, others are not",
    NUMERICAL,
    NONFINITE,
    NOT_WRITTEN,
)
class HalvesOfHeadDim(RightOps):
    def pairs(self, count: int, head_dim: int, *, interleaved: bool) -> tuple[slice, slice]:
        if interleaved:
            return super().pairs(count, head_dim, interleaved=True)
        return slice(0, count), slice(head_dim // 2, head_dim // 2 + count)


@fault(
    "rotary dims over the next head",
    ROTARY,
    "where Dr < head_dim the pairs run on over the heads: channels of one head are rotated with another's angles",
    NUMERICAL,
    NONFINITE,
)
class RotaryDimsOverTheNextHead(RightOps):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        count, (heads, width) = cos.shape[-1], x.shape[-2:]
        super().rotate(x, cos, sin, out, interleaved=interleaved)
        rotated = heads * 2 * count // width
        if 2 * count < width and rotated:
            # Rotates the first heads over their whole width, with the angles repeated.
            wide = torch.arange(width // 2, device=x.device) % count
            super().rotate(
                x[..., :rotated, : width // 2 * 2],
                cos[..., wide],
                sin[..., wide],
                out[..., :rotated, :],
                interleaved=True,
            )
        return out


@fault("channels past Dr zeroed", ROTARY, "channels that should pass through come out as zero", NUMERICAL, NONFINITE)
class ChannelsPastDrZeroed(RightOps):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        super().rotate(x, cos, sin, out, interleaved=interleaved)
        out[..., 2 * cos.shape[-1] :] = 0.0
        return out


@fault("rotated backwards", ROTARY, "the sign of sin is wrong", NUMERICAL, NONFINITE)
class RotatedBackwards(RightOps):
    def rotated_pair(self, a: Tensor, b: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return super().rotated_pair(a, b, cos, -sin)


@fault(
    "second half from the first",
    ROTARY,
    "in place, b * cos + a * sin reads the a already rotated",
    NUMERICAL,
    NONFINITE,
)
class SecondHalfFromTheFirst(RightOps):
    def rotary_embedding(self, x: Tensor, cos: Tensor, sin: Tensor, **kwargs: Any) -> Tensor:
        self.inplace = kwargs.get("inplace", False)
        return super().rotary_embedding(x, cos, sin, **kwargs)

    def rotated_pair(self, a: Tensor, b: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        first, second = super().rotated_pair(a, b, cos, sin)
        return (first, first.to(a.dtype) * sin + b * cos) if self.inplace else (first, second)


@fault(
    "the stride of one token",
    ROTARY,
    "in place, the rows of a contiguous x lie x.stride(1) apart: with L == 1 that stride may be anything",
    OUTSIDE,
)
class TheStrideOfOneToken(RightOps):
    def rotary_embedding(self, x: Tensor, cos: Tensor, sin: Tensor, **kwargs: Any) -> Tensor:
        if not (kwargs.get("inplace") and isinstance(x, Tensor) and x.is_contiguous() and x.shape[1:2] == (1,)):
            return super().rotary_embedding(x, cos, sin, **kwargs)
        room = x.untyped_storage().nbytes() // x.element_size()
        for item in range(x.shape[0]):
            start = x.storage_offset() + item * x.stride(1)
            if start + x[0].numel() <= room:  # as far as PyTorch lets a view reach
                row = x.as_strided(x[:1].shape, x[:1].stride(), start)
                angles = (t[item : item + 1] if t.dim() == 3 else t for t in (cos, sin))
                super().rotary_embedding(row, *angles, **kwargs)
        return x


@fault(
    "angles of batch item 0", ROTARY, "cos and sin [B, S, Dr/2] are read without the batch offset", NUMERICAL, NONFINITE
)
class AnglesOfBatchItem0(RightOps):
    def angles(self, cos: Tensor, x: Tensor, mode: str) -> Tensor:
        return super().angles(cos[0] if cos.dim() == 3 and cos.shape[0] else cos, x, mode)


@fault("angle by row number", ROTARY, "the token is taken as (row % S), with S * H rows an item", NUMERICAL, NONFINITE)
class AngleByRowNumber(RightOps):
    def angles(self, cos: Tensor, x: Tensor, mode: str) -> Tensor:
        tokens, heads = x.shape[1:3]
        row = torch.arange(tokens * heads, device=x.device).view(tokens, heads) % max(tokens, 1)
        return self.taken(cos, mode)[..., row, :]


@fault("angles in the input dtype", ROTARY, "float32 cos and sin are rounded to x's dtype first", NUMERICAL, BELOW_TIER)
class AnglesInTheInputDtype(RightOps):
    def angles(self, cos: Tensor, x: Tensor, mode: str) -> Tensor:
        return super().angles(cos.to(x.dtype), x, mode)


@fault(
    "strides of dense angles",
    ROTARY,
    "cos is read as if it were contiguous: wrong for stride 0, for gaps",
    NUMERICAL,
    NONFINITE,
)
class StridesOfDenseAngles(RightOps):
    def rotary_embedding(self, x: Tensor, cos: Tensor, sin: Tensor, **kwargs: Any) -> Tensor:
        if isinstance(cos, Tensor) and cos.device == getattr(x, "device", None) and not cos.requires_grad:
            room = cos.untyped_storage().nbytes() // cos.element_size() - cos.storage_offset()
            if room >= cos.numel() > 0:
                cos = cos.as_strided(cos.shape, torch.empty(cos.shape, device="meta").stride())
        return super().rotary_embedding(x, cos, sin, **kwargs)


# split_rotary_embedding.


@fault("pairs interleaved", SPLIT, "pairs are 2i and 2i+1 instead of the two halves", NUMERICAL, NONFINITE)
class PairsInterleaved(RightOps):
    def pairs(self, count: int, head_dim: int, *, interleaved: bool) -> tuple[slice, slice]:
        del interleaved
        return super().pairs(count, head_dim, interleaved=True)


@fault("angles of head 0", SPLIT, "every head takes the first one's angles", NUMERICAL, NONFINITE)
class AnglesOfHead0(RightOps):
    def angles_by_head(self, cos: Tensor) -> Tensor:
        return super().angles_by_head(cos)[:, :, :1]


@fault("angles [B, S, H]", SPLIT, "cos and sin are read as [B, S, H, Dh/2]", NUMERICAL, NONFINITE)
class AnglesByToken(RightOps):
    def angles_by_head(self, cos: Tensor) -> Tensor:
        batch, heads, tokens, count = cos.shape
        return cos.float().reshape(batch, tokens, heads, count)


@fault(
    "products rounded",
    SPLIT,
    "each product is rounded to x's dtype before the sum",
    NUMERICAL,
    BELOW_TIER,
)
class ProductsRounded(RightOps):
    def split_rotary_embedding(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        self.dtype = getattr(x, "dtype", torch.float32)
        return super().split_rotary_embedding(x, cos, sin)

    def rotated_pair(self, a: Tensor, b: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        def product(x: Tensor, y: Tensor) -> Tensor:
            return (x * y).to(self.dtype).float()

        return product(a, cos) - product(b, sin), product(a, sin) + product(b, cos)


@fault("pairs past the last 8", SPLIT, "pairs past the last multiple of 8 are not rotated", NUMERICAL, NONFINITE)
class PairsPastTheLast8(RightOps):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        count = cos.shape[-1]
        whole = torch.arange(count, device=x.device) < count // 8 * 8
        return super().rotate(
            x, torch.where(whole, cos, 1.0), torch.where(whole, sin, 0.0), out, interleaved=interleaved
        )
