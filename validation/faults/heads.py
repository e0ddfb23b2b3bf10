"""Wrong q/k norms: weights, heads, the rotation behind the norm, and writing in place."""

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

QKN, QKR = "qk_norm", "qk_norm_rope"


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
        # Cloned except for one token, so that nothing else shows.
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
