"""Wrong q/k norms and rotations: pairs, angles, heads, and writing in place."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from validation.faults.fault import fault
from validation.faults.right import RightOps
from validation.verdict import Status

NUMERICAL, NONFINITE, BELOW_TIER = Status.INCORRECT_NUMERICAL, Status.INCORRECT_NONFINITE, Status.BELOW_REQUIRED_TIER
MODIFIED, ALIAS, OUTSIDE = Status.INPUT_MODIFIED, Status.OUTPUT_ALIASES_INPUT, Status.OUT_OF_BOUNDS_WRITE
BAD_INPUT, NOT_WRITTEN = Status.BAD_INPUT_ACCEPTED, Status.NOT_WRITTEN

QKN, QKR, ROTARY, SPLIT = "qk_norm", "qk_norm_rope", "rotary_embedding", "split_rotary_embedding"


# qk_norm.


@fault("q weight for both", QKN, "k is multiplied by q_weight", NUMERICAL)
class QWeightForBoth(RightOps):
    def qk_norm(
        self, q: Tensor, k: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, *rest: Any, **kwargs: Any
    ) -> tuple[Tensor, ...]:
        super().qk_norm(q, k, q_weight, k_weight, *rest, **{**kwargs, "inplace": False})  # checks k_weight
        return super().qk_norm(q, k, q_weight, k_weight if q_weight is None else q_weight, *rest, **kwargs)


@fault(
    "in place through .contiguous(), L == 1",
    QKN,
    "of a packed qkv with one token .contiguous() is the view itself, so an out-of-place call writes into it",
    MODIFIED,
    ALIAS,  # where the result has the input's bits: zeros
)
class InPlaceThroughContiguous(RightOps):
    def qk_norm(self, q: Tensor, k: Tensor, *rest: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        results = super().qk_norm(q, k, *rest, **kwargs)
        if kwargs.get("inplace"):
            return results
        return tuple(self.copied(t).copy_(result) for t, result in zip((q, k), results, strict=True))

    def copied(self, t: Tensor) -> Tensor:
        # Cloned but for one token, so that nothing else shows.
        return t.contiguous() if t.dim() == 4 and t.shape[1] == 1 else t.clone()


@fault(
    "in place into a copy",
    QKN,
    "of strided q and k, .contiguous() copies are written and q and k keep their values",
    NUMERICAL,
    NONFINITE,
)
class InPlaceIntoACopy(RightOps):
    def returned(self, targets: tuple[Tensor, ...], results: Sequence[Tensor], *, inplace: bool) -> tuple[Tensor, ...]:
        if not inplace:
            return super().returned(targets, results, inplace=False)
        for target, result in zip(targets, results, strict=True):
            target.contiguous().copy_(result)
        return targets


@fault("in place returns copies", QKN, "inplace=True is ignored: new tensors come back", ALIAS)
class InPlaceReturnsCopies(RightOps):
    def returned(self, targets: tuple[Tensor, ...], results: Sequence[Tensor], *, inplace: bool) -> tuple[Tensor, ...]:
        del inplace
        return super().returned(targets, results, inplace=False)


@fault(
    "the same tensor normalised twice",
    QKN,
    "where q and k are one tensor, k is normalised from q's result",
    NUMERICAL,
    BELOW_TIER,
)
class TheSameTensorNormalisedTwice(RightOps):
    def qk_norm(
        self, q: Tensor, k: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, *rest: Any, **kwargs: Any
    ) -> tuple[Tensor, ...]:
        first, second = super().qk_norm(q, k, q_weight, k_weight, *rest, **kwargs)
        if q.data_ptr() == k.data_ptr() and q.numel() and not kwargs.get("inplace"):
            second = super().qk_norm(first, first, q_weight, k_weight, *rest, **kwargs)[1]
        return first, second


@fault("q and k that overlap", QKN, "are normalised in place, one after the other, without a word", BAD_INPUT)
class QAndKThatOverlap(RightOps):
    def qk_norm(self, q: Tensor, k: Tensor, *rest: Any, inplace: bool = False, **kwargs: Any) -> tuple[Tensor, ...]:
        results = super().qk_norm(q, k, *rest, **kwargs)
        return self.returned((q, k), results, inplace=inplace)


@fault("requires_grad detached", QKN, "an argument that requires grad gets a result without a graph", BAD_INPUT)
class RequiresGradDetached(RightOps):
    def qk_norm(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return super().qk_norm(*args, **kwargs)


@fault("k has q's length", QKN, "rows of a k that is longer than q stay unwritten", NOT_WRITTEN)
class KHasQsLength(RightOps):
    def qk_norm(self, q: Tensor, k: Tensor, *rest: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        q_out, k_out = super().qk_norm(q, k, *rest, **kwargs)
        if kwargs.get("inplace") or k.dim() != 4 or q.dim() != 4:
            return q_out, k_out
        partly = torch.empty(k.shape, dtype=k.dtype, device=k.device)
        partly[:, : q.shape[1]] = k_out[:, : q.shape[1]]
        return q_out, partly


@fault("writes into v", QKN, "of a packed qkv, one head past k's last is written: the first of v", OUTSIDE, MODIFIED)
class WritesIntoV(RightOps):
    def returned(self, targets: tuple[Tensor, ...], results: Sequence[Tensor], *, inplace: bool) -> tuple[Tensor, ...]:
        returned = super().returned(targets, results, inplace=inplace)
        k = targets[1]
        if inplace and k.dim() == 4 and k.numel() and k.shape[2] > 1:
            heads, width = k.shape[2:]
            if k.stride()[1:] == (3 * heads * width, width, 1):
                past = k.as_strided(k[:, :, 0].shape, k[:, :, 0].stride(), k.storage_offset() + heads * width)
                past.zero_()
        return returned


@fault("holes zeroed", ROTARY, "in place, the gaps between rows apart are written as well", OUTSIDE)
class HolesZeroed(RightOps):
    def returned(self, targets: tuple[Tensor, ...], results: Sequence[Tensor], *, inplace: bool) -> tuple[Tensor, ...]:
        returned = super().returned(targets, results, inplace=inplace)
        x = targets[0]
        if inplace and x.numel() and x.stride(-1) == 1 and x.stride(-2) > x.shape[-1]:
            x.as_strided(x.shape[:-1], x.stride()[:-1], x.storage_offset() + x.shape[-1]).zero_()
        return returned


# rotary_embedding.


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
            # The first heads, whole, with the angles repeated.
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
            if start + x[0].numel() <= room:  # as much of it as PyTorch lets a view reach
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


# qk_norm_rope.


@fault("weight after the rotation", QKR, "the learned weight multiplies the rotated heads", NUMERICAL, NONFINITE)
class WeightAfterTheRotation(RightOps):
    def head(self, name: str, t: Tensor, weight: Tensor | None, cos: Tensor, eps: float, mode: str) -> Tensor:
        self.weight = weight
        return super().head(name, t, None, cos, eps, mode)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        super().rotate(x, cos, sin, out, interleaved=interleaved)
        return out if self.weight is None else out.mul_(self.weight)


@fault(
    "rounded before the rotation",
    QKR,
    "the norm is rounded to x's dtype before the rotation, where float32 was declared",
    NUMERICAL,
    BELOW_TIER,
)
class RoundedBeforeTheRotation(RightOps):
    def head(self, name: str, t: Tensor, weight: Tensor | None, cos: Tensor, eps: float, mode: str) -> Tensor:
        value = super().head(name, t, weight, cos, eps, mode)
        return value.to(t.dtype).to(value.dtype)


@fault(
    "norm over the rotated channels",
    QKR,
    "the mean square runs over Dr channels instead of head_dim",
    NUMERICAL,
    NONFINITE,
)
class NormOverTheRotatedChannels(RightOps):
    def head(self, name: str, t: Tensor, weight: Tensor | None, cos: Tensor, eps: float, mode: str) -> Tensor:
        self.channels = 2 * cos.shape[-1]
        return super().head(name, t, weight, cos, eps, mode)

    def mean_square(self, deviation: Tensor) -> Tensor:
        return super().mean_square(deviation[..., : self.channels])


@fault(
    "channels past Dr not normalised",
    QKR,
    "channels that are not rotated are passed on as they are",
    NUMERICAL,
    NONFINITE,
)
class ChannelsPastDrNotNormalised(RightOps):
    def head(self, name: str, t: Tensor, weight: Tensor | None, cos: Tensor, eps: float, mode: str) -> Tensor:
        value = super().head(name, t, weight, cos, eps, mode)
        return torch.cat((value[..., : 2 * cos.shape[-1]], t[..., 2 * cos.shape[-1] :].to(value.dtype)), -1)


@fault("k not rotated", QKR, "k is normalised only", NUMERICAL, NONFINITE)
class KNotRotated(RightOps):
    def head(self, name: str, t: Tensor, weight: Tensor | None, cos: Tensor, eps: float, mode: str) -> Tensor:
        self.name = name
        return super().head(name, t, weight, cos, eps, mode)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        return out.copy_(x) if self.name == "k" else super().rotate(x, cos, sin, out, interleaved=interleaved)


@fault("k has q's heads", QKR, "heads of k that q does not have stay unwritten", NOT_WRITTEN, NUMERICAL, NONFINITE)
class KHasQsHeads(RightOps):
    def qk_norm_rope(self, q: Tensor, k: Tensor, *rest: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        self.heads = getattr(q, "shape", (0, 0, 0))[2:3]
        return super().qk_norm_rope(q, k, *rest, **kwargs)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        heads = int(self.heads[0])
        super().rotate(x[..., :heads, :], cos, sin, out[..., :heads, :], interleaved=interleaved)
        return out


@fault("casting mode ignored", QKR, "the chain is always rounded as in casting_mode='input'", NUMERICAL, BELOW_TIER)
class CastingModeIgnored(RightOps):
    def qk_norm_rope(self, *args: Any, casting_mode: str = "float32", **kwargs: Any) -> tuple[Tensor, ...]:
        mode = "input" if casting_mode == "float32" else casting_mode
        return super().qk_norm_rope(*args, casting_mode=mode, **kwargs)
