"""Right except for rare layouts and sizes."""

from typing import Any

import torch
from torch import Tensor

from validation.faults.fault import fault
from validation.faults.right import RightOps
from validation.verdict import Status

NUMERICAL, NONFINITE, BELOW_TIER = Status.INCORRECT_NUMERICAL, Status.INCORRECT_NONFINITE, Status.BELOW_REQUIRED_TIER
NOT_WRITTEN = Status.NOT_WRITTEN

LN, LNSS, RNSS = "layer_norm", "layer_norm_scale_shift", "rms_norm_scale_shift"
SS, RGA, SRLN = "scale_shift", "residual_gate_add", "scale_residual_layer_norm_scale_shift"
QKN, QKR, ROTARY, SPLIT = "qk_norm", "qk_norm_rope", "rotary_embedding", "split_rotary_embedding"

# A kernel's columns in a block and tokens in a tile.
BLOCK, TILE = 8192, 96


# Layouts.


class _OtherStridesOfTheTable(RightOps):
    """An `IndexedRows.table` is read with strides of its shape's own making."""

    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        if not isinstance(m, Tensor) and m.table.numel():
            m = type(m)(m.table.as_strided(m.table.shape, self.strides(m.table)), m.index)
        return super().rows(name, m, x)

    def strides(self, table: Tensor) -> tuple[int, ...]:
        raise NotImplementedError


@fault(
    "table's column stride is one", LNSS, "channels of an IndexedRows.table are read side by side", NUMERICAL, NONFINITE
)
class TablesColumnStrideIsOne(_OtherStridesOfTheTable):
    def strides(self, table: Tensor) -> tuple[int, ...]:
        return (*table.stride()[:-1], 1)


@fault("tables end to end", RNSS, "the table [B, n, D] of the next item is looked for n rows on", NUMERICAL, NONFINITE)
class TablesEndToEnd(_OtherStridesOfTheTable):
    def strides(self, table: Tensor) -> tuple[int, ...]:
        return (table.shape[1] * table.stride(1), *table.stride()[1:]) if table.dim() == 3 else table.stride()


@fault("items end to end", RNSS, "the next item of x[:, n:] is looked for L tokens on", NUMERICAL, NONFINITE)
class ItemsEndToEnd(RightOps):
    def norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mode: str, *, centred: bool
    ) -> Tensor:
        # Only if one item's memory follows the other's, not if dimensions are swapped.
        if x.numel() and x.stride(-1) == 1 and x.stride(0) > x.shape[1] * x.stride(1):
            x = x.as_strided(x.shape, (x.shape[1] * x.stride(1), *x.stride()[1:]))
        return super().norm(x, weight, bias, eps, mode, centred=centred)


@fault(
    "dense items taken for contiguous",
    ROTARY,
    "an x whose items are dense is read as if contiguous: not so where heads lie outside of tokens",
    NUMERICAL,
    NONFINITE,
)
class DenseItemsTakenForContiguous(RightOps):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        _, tokens, heads, width = x.shape
        if x.numel() and x.stride(-1) == 1 and x.stride(0) == tokens * heads * width:
            x = x.as_strided(x.shape, (x.stride(0), heads * width, width, 1))
        return super().rotate(x, cos, sin, out, interleaved=interleaved)


@fault(
    "inner row dimensions taken as one",
    LN,
    "of x [A, B, C, D] the rows of B and C are looked for stride(-2) apart",
    NUMERICAL,
    NONFINITE,
)
class InnerRowDimensionsTakenAsOne(RightOps):
    def layer_norm(self, x: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        # Only if they are not part of a longer dimension, so that only x's own memory is read.
        four = isinstance(x, Tensor) and x.dim() == 4 and x.numel() > 0
        if four and x.stride(0) == x[0].numel() and x.stride(-1) == 1:
            x = x.as_strided(x.shape, (x.stride(0), x.shape[2] * x.shape[3], x.shape[3], 1))
        return super().layer_norm(x, *rest, **kwargs)


@fault(
    "angles [B, S, H] told by their memory",
    SPLIT,
    "cos and sin whose items are dense are read as if contiguous: not so of a transposed [B, S, H, Dh/2]",
    NUMERICAL,
    NONFINITE,
)
class AnglesToldByTheirMemory(RightOps):
    def angles_by_head(self, cos: Tensor) -> Tensor:
        if cos.numel() and cos.stride(-1) == 1 and cos.stride(0) == cos[0].numel() and 0 not in cos.stride():
            cos = cos.as_strided(cos.shape, (cos.stride(0), cos.shape[2] * cos.shape[3], cos.shape[3], 1))
        return super().angles_by_head(cos)


@fault(
    "output with x's strides",
    RGA,
    "the output is allocated with the strides of x, so that items of an expanded x are stored one over another",
    NUMERICAL,
    NONFINITE,
)
class OutputWithXsStrides(RightOps):
    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        y = super().stored(value, x)
        expanded = y.numel() and any(n > 1 and stride == 0 for n, stride in zip(x.shape, x.stride(), strict=True))
        last = tuple(slice(-1, None) if stride == 0 else slice(None) for stride in x.stride())
        return y.copy_(y[last].expand(y.shape).clone()) if expanded else y


@fault(
    "eight where four are aligned",
    SS,
    "rows that begin at a multiple of four elements are read from one of eight, which is 16 bytes of float16",
    NUMERICAL,
    NONFINITE,
)
class EightWhereFourAreAligned(RightOps):
    def scale_shift(self, x: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        narrow = isinstance(x, Tensor) and x.dim() == 3 and x.element_size() == 2 and x.numel() > 0
        rows_of_four = narrow and x.stride(-1) == 1 and x.stride(1) % 8 == 4 and x.stride(0) % 4 == 0
        if rows_of_four and x.shape[-1] % 8 == 0 and x.shape[1] > 1:
            odd = x.as_strided(x.shape, x.stride(), max(x.storage_offset() - 4, 0))[:, 1::2]
            x = x.clone(memory_format=torch.contiguous_format)
            x[:, 1::2] = odd
        return super().scale_shift(x, *rest, **kwargs)


# Heads and angles.


@fault("sin in cos's dtype", ROTARY, "one dtype is asked for, cos's, and sin is rounded to it", NUMERICAL, BELOW_TIER)
class SinInCossDtype(RightOps):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        return super().rotate(x, cos, sin.to(cos.dtype).to(sin.dtype), out, interleaved=interleaved)


@fault(
    "q's heads by twos",
    QKR,
    "where k has fewer heads than q, its last is left unwritten",
    NOT_WRITTEN,
    NUMERICAL,
    NONFINITE,
)
class QsHeadsByTwos(RightOps):
    def qk_norm_rope(self, q: Tensor, k: Tensor, *rest: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        self.most = getattr(q, "shape", (0, 0, 0))[2:3]
        return super().qk_norm_rope(q, k, *rest, **kwargs)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        heads = x.shape[2] - (x.shape[2] < self.most[0])
        super().rotate(x[:, :, :heads], cos, sin, out[:, :, :heads], interleaved=interleaved)
        return out


@fault("k in q's dtype", QKN, "both results have q's dtype", Status.INCORRECT_DTYPE)
class KInQsDtype(RightOps):
    def returned(self, targets: tuple[Tensor, ...], results: Any, *, inplace: bool) -> tuple[Tensor, ...]:
        if not inplace:
            results = [result.to(targets[0].dtype) for result in results]
        return super().returned(targets, results, inplace=inplace)


@fault("eight heads", SPLIT, "heads past the eighth take the eighth's angles", NUMERICAL, NONFINITE)
class EightHeads(RightOps):
    def angles_by_head(self, cos: Tensor) -> Tensor:
        angles = super().angles_by_head(cos)
        return angles[:, :, torch.arange(angles.shape[2], device=cos.device).clamp(max=7)]


@fault("a tile of heads", QKR, "of more than 16 heads, those past the last whole 16 are left unwritten", NOT_WRITTEN)
class ATileOfHeads(RightOps):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        heads = x.shape[2] // 16 * 16 or x.shape[2]
        super().rotate(x[:, :, :heads], cos, sin, out[:, :, :heads], interleaved=interleaved)
        return out


@fault("a few rotary dims", ROTARY, "channels past the fourth Dr are left unwritten", NOT_WRITTEN, NONFINITE)
class AFewRotaryDims(RightOps):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        near = min(8 * cos.shape[-1], x.shape[-1])
        super().rotate(x[..., :near], cos, sin, out[..., :near], interleaved=interleaved)
        return out


@fault("odd head_dim", ROTARY, "the last channel of an odd head_dim is left unwritten", NOT_WRITTEN, NONFINITE)
class OddHeadDim(RightOps):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        even = x.shape[-1] // 2 * 2
        super().rotate(x[..., :even], cos, sin, out[..., :even], interleaved=interleaved)
        return out


@fault(
    "q of rank 4 alone", QKN, "q's shape is unpacked into B, S, H and head_dim, or N and head_dim", Status.RUNTIME_ERROR
)
class QOfRank4Alone(RightOps):
    def qk_norm(self, q: Tensor, k: Tensor, *rest: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        results = super().qk_norm(q, k, *rest, **kwargs)
        if q.dim() != 2:
            _batch, _tokens, _heads, _head_dim = q.shape
        return results


# Sizes.


class _WrongRow(RightOps):
    """Some items or tokens take the modulation of others."""

    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        rows = super().rows(name, m, x)
        return self.wrong(rows, x) if rows.dim() == 3 and rows.numel() else rows

    def wrong(self, rows: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


@fault("eight items", RGA, "items past the eighth take the gate of the eighth", NUMERICAL, NONFINITE)
class EightItems(_WrongRow):
    def wrong(self, rows: Tensor, x: Tensor) -> Tensor:
        return rows[torch.arange(rows.shape[0], device=x.device).clamp(max=7)]


@fault(
    "a tile of tokens",
    LNSS,
    "each tile of tokens takes the rows of the first, where rows are wide",
    NUMERICAL,
    NONFINITE,
)
class ATileOfTokens(_WrongRow):
    def wrong(self, rows: Tensor, x: Tensor) -> Tensor:
        wide = x.shape[-1] > 8
        return rows[:, torch.arange(rows.shape[1], device=x.device) % TILE] if wide else rows


@fault("16-bit item numbers", RGA, "an item's number in the batch wraps at 65536", NUMERICAL, NONFINITE)
class SixteenBitItemNumbers(_WrongRow):
    def wrong(self, rows: Tensor, x: Tensor) -> Tensor:
        return rows[torch.arange(rows.shape[0], device=x.device) % 65536]


@fault("eight frames", SRLN, "frames past the eighth take the row of the eighth", NUMERICAL, NONFINITE)
class EightFrames(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        if isinstance(m, Tensor) and m.dim() == 4:
            m = m[:, torch.arange(m.shape[1], device=m.device).clamp(max=7)]
        return super().rows(name, m, x)


def _first_of_tile(tokens: int, x: Tensor) -> Tensor:
    """By token, the first of the tile that it is in."""
    token = torch.arange(tokens, device=x.device)
    return token - token % TILE


@fault(
    "one frame a tile",
    LNSS,
    "where a frame fills a tile of tokens, all of a tile take the frame of the first",
    NUMERICAL,
    NONFINITE,
)
class OneFrameATile(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        rows = super().rows(name, m, x)
        long = isinstance(m, Tensor) and m.dim() == 4 and x.shape[1] >= TILE * m.shape[1]
        return rows[:, _first_of_tile(x.shape[1], x)] if long else rows


@fault("one frame a tile, gate", RGA, "the same of a gate alone", NUMERICAL, NONFINITE)
class OneFrameATileOfAGate(OneFrameATile):
    pass


@fault(
    "one index a tile",
    RGA,
    "where an item has tiles of tokens, all of a tile take the index of the first",
    NUMERICAL,
    NONFINITE,
)
class OneIndexATile(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        rows = super().rows(name, m, x)
        return rows if isinstance(m, Tensor) or x.shape[1] <= TILE else rows[:, _first_of_tile(x.shape[1], x)]


@fault("an index of a byte", RNSS, "IndexedRows.index is kept in a byte", NUMERICAL, NONFINITE)
class AnIndexOfAByte(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        return super().rows(name, m if isinstance(m, Tensor) else type(m)(m.table, m.index % 256), x)


@fault("16-bit token numbers", RGA, "a token's number in its item wraps at 65536", NUMERICAL, NONFINITE)
class SixteenBitTokenNumbers(_WrongRow):
    def wrong(self, rows: Tensor, x: Tensor) -> Tensor:
        return rows[:, torch.arange(rows.shape[1], device=x.device) % 65536]
