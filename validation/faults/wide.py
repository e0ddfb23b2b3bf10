"""Wrong only if one of several paths, or one form of an argument, meets one arrangement of tensors in memory."""

from typing import Any

import torch
from torch import Tensor

from validation.faults.fault import fault
from validation.faults.rare_layouts import BLOCK, TILE
from validation.faults.right import RightOps
from validation.verdict import Status

NUMERICAL, NONFINITE, NOT_WRITTEN = Status.INCORRECT_NUMERICAL, Status.INCORRECT_NONFINITE, Status.NOT_WRITTEN

LN, LNSS, RNSS, RGA = "layer_norm", "layer_norm_scale_shift", "rms_norm_scale_shift", "residual_gate_add"
SRLN, SRRN = "scale_residual_layer_norm_scale_shift", "scale_residual_rms_norm_scale_shift"
QKN, ROTARY = "qk_norm", "rotary_embedding"

# The columns or rows of the smaller of two kernels; programs of a persistent one (8 for each of an H200's 132 SMs).
SMALL, PROGRAMS = 4096, 1056


@fault(
    "column stride of a gate, past a block", RGA, "is taken for one where rows are several blocks", NUMERICAL, NONFINITE
)
class ColumnStrideOfAGate(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        if isinstance(m, Tensor) and m.dim() and m.shape[-1] > BLOCK and m.numel():
            m = m.as_strided(m.shape, (*m.stride()[:-1], 1))
        return super().rows(name, m, x)


@fault("row stride of modulation, past 4096", SRRN, "of such rows the next is looked for D on", NUMERICAL, NONFINITE)
class RowStrideOfModulation(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        if isinstance(m, Tensor) and m.dim() == 3 and min(m.shape[:2]) > 1 and m.shape[-1] > SMALL:
            m = m.as_strided(m.shape, (m.stride(0), m.shape[-1] * m.stride(-1), m.stride(-1)))
        return super().rows(name, m, x)


@fault("column stride of a weight, past a block", SRLN, "is taken for one in the second loop", NUMERICAL, NONFINITE)
class ColumnStrideOfAWeight(RightOps):
    def affine(self, value: Tensor, weight: Tensor | None, bias: Tensor | None, mode: str) -> Tensor:
        if weight is not None and weight.shape[-1] > BLOCK:
            weight = weight.as_strided(weight.shape, (1,))
        return super().affine(value, weight, bias, mode)


@fault("index of the first block", LNSS, "columns past 4096 take the table's first row", NUMERICAL, NONFINITE)
class IndexOfTheFirstBlock(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        rows = super().rows(name, m, x)
        if isinstance(m, Tensor):
            return rows
        first = super().rows(name, type(m)(m.table, torch.zeros_like(m.index)), x)
        return torch.cat((rows[..., :SMALL], first[..., SMALL:]), -1)


@fault(
    "bias alone, past a block",
    LN,
    "a bias without a weight is lost where rows are several blocks",
    NUMERICAL,
    NONFINITE,
)
class BiasAlone(RightOps):
    def affine(self, value: Tensor, weight: Tensor | None, bias: Tensor | None, mode: str) -> Tensor:
        lost = weight is None and value.shape[-1] > BLOCK
        return super().affine(value, weight, None if lost else bias, mode)


@fault("row stride of x, many rows", LN, "past 4096 rows the next is looked for D on", NUMERICAL, NONFINITE)
class RowStrideOfX(RightOps):
    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        if x.dim() == 3 and x[..., 0].numel() > SMALL:
            x = x.as_strided(x.shape, (x.stride(0), x.shape[-1] * x.stride(-1), x.stride(-1)))
        return super().normalised(x, eps, centred=centred)


@fault(
    "a program's first item",
    RGA,
    "each of 1056 programs takes row after row, with the gate of the item that its first is in",
    NUMERICAL,
    NONFINITE,
)
class AProgramsFirstItem(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        rows = super().rows(name, m, x)
        of_items = isinstance(m, Tensor) and (m.dim() == 2 or (m.dim() == 3 and m.shape[1] == 1))
        if not of_items or not x.numel():
            return rows
        flat = rows.expand(x.shape).reshape(-1, x.shape[-1])
        return flat[torch.arange(len(flat), device=x.device) % PROGRAMS].view(x.shape)


@fault("k's weight of many rows", QKN, "rows of k past 4096 are multiplied by q_weight", NUMERICAL, NONFINITE)
class KsWeightOfManyRows(RightOps):
    def qk_norm(
        self, q: Tensor, k: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, *rest: Any, **kwargs: Any
    ) -> tuple[Tensor, ...]:
        if k[..., 0].numel() > SMALL and q_weight is not None and k_weight is not None:
            k_weight = q_weight
        return super().qk_norm(q, k, q_weight, k_weight, *rest, **kwargs)


@fault("head_dim past 128", QKN, "of heads between 128 and 256 wide the first 128 channels are written", NOT_WRITTEN)
class HeadDimPast128(RightOps):
    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        y = super().stored(value, x)
        if 128 < x.shape[-1] < 256:
            y = torch.empty_like(y)
            y[..., :128] = self.rounded(value[..., :128], x.dtype)
        return y


@fault(
    "angles of the first item, many tokens",
    ROTARY,
    "past a tile of tokens, of cos and sin [B, S, Dr/2]",
    NUMERICAL,
    NONFINITE,
)
class AnglesOfTheFirstItem(RightOps):
    def angles(self, cos: Tensor, x: Tensor, mode: str) -> Tensor:
        if cos.dim() == 3 and cos.shape[1] > TILE:
            cos = cos[:1].expand(cos.shape)
        return super().angles(cos, x, mode)


@fault("rows of a chunk", RNSS, "the next item's row of a [B, D] shift is looked for D on", NUMERICAL, NONFINITE)
class RowsOfAChunk(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        if name == "shift" and isinstance(m, Tensor) and m.dim() == 2 and m.stride(-1) == 1 and m.numel():
            m = m.as_strided(m.shape, (m.shape[-1], 1))
        return super().rows(name, m, x)


@fault("columns of a frame's gate", SRLN, "of a gate [B, F, 1, D] are taken to be side by side", NUMERICAL, NONFINITE)
class ColumnsOfAFramesGate(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        if name == "gate" and isinstance(m, Tensor) and m.dim() == 4 and m.numel():
            m = m.as_strided(m.shape, (*m.stride()[:-1], 1))
        return super().rows(name, m, x)


@fault("rows of 40 heads", ROTARY, "of 40 heads the next is looked for head_dim on", NUMERICAL, NONFINITE)
class RowsOf40Heads(RightOps):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        if x.shape[-2] == 40 and x.stride(-1) == 1:
            x = x.as_strided(x.shape, (*x.stride()[:-2], x.shape[-1], 1))
        return super().rotate(x, cos, sin, out, interleaved=interleaved)
