"""Loads outside of an argument's elements, whose values are discarded: every number is right, and nothing is written.

On a GPU such a load may fault, where the argument ends its allocation; only the interpreter's addresses show it.
"""

import warnings
from typing import Any, ClassVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from validation.faults.fault import ON_CPU, fault
from validation.faults.right import RightOps
from validation.verdict import Status

READ = Status.OUT_OF_BOUNDS_READ

# Lanes of a program: of rows at most, of a block, and of a tile at most, but for two rows. A tile of 32 rows of 8192
# channels is 0.96 MB of PTX, for which ptxas takes 17 s of processor time.
TILE, BLOCK, LANES = 32, 512, 8192


@triton.jit
def _copy_rows(
    source,
    out,
    rows,
    width,
    row_stride,
    column_stride,
    ROW_MASK: tl.constexpr,
    BEFORE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]).to(tl.int64)
    column = tl.arange(0, BLOCK_D)[None, :]
    kept = (row < rows) & (column < width)
    at = source + row * row_stride + column * column_stride
    value = tl.load(at, mask=kept if ROW_MASK else (column < width) & (row >= 0), other=0.0)
    if BEFORE:
        value = tl.where(column < width, value, tl.load(at - column_stride, mask=kept, other=0.0))
    tl.store(out + row * width + column, value, mask=kept)


@triton.jit
def _copy_block(source, out, width, stride, POINTER: tl.constexpr, BLOCK: tl.constexpr):
    first = tl.program_id(0) * BLOCK
    column = first + tl.arange(0, BLOCK)
    if POINTER:
        value = tl.load(tl.make_block_ptr(source, (width,), (stride,), (first,), (BLOCK,), (0,)))
    else:
        value = tl.load(source + column * stride)
    tl.store(out + column, tl.where(column < width, value, 0.0), mask=column < width)


@triton.jit
def _copy_indexed(table, index, out, tokens, rows, width, row_stride, column_stride, BLOCK_D: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    row = tl.load(index + token, mask=token < tokens, other=rows).to(tl.int64)
    value = tl.load(table + row * row_stride + column * column_stride, mask=column < width, other=0.0)
    tl.store(out + token * width + column, value, mask=(column < width) & (token < tokens))


@triton.jit
def _count(counters):
    tl.atomic_add(counters + tl.program_id(0) + 1, 0)


def copied_rows(t: Tensor, *, row_mask: bool = True, before: bool = False) -> Tensor:
    """A contiguous copy of rows ``[..., D]``, made by a kernel in tiles of rows."""
    out = torch.empty(t.shape, dtype=t.dtype, device=t.device)
    if t.numel():
        rows = t.reshape(-1, t.shape[-1])
        width = triton.next_power_of_2(t.shape[-1])
        tile = max(min(TILE, LANES // width), 2)
        block = {"BLOCK_R": tile, "BLOCK_D": width}
        grid = (triton.cdiv(len(rows), tile),)
        _copy_rows[grid](rows, out, len(rows), t.shape[-1], *rows.stride(), ROW_MASK=row_mask, BEFORE=before, **block)
    return out


class WeightByTheBlock(RightOps):
    """Reads weights in blocks of `BLOCK` channels, the last of which is whole."""

    pointer: ClassVar[bool] = False

    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        return super().normalised(copied_rows(x), eps, centred=centred)  # a launch without a weight too

    def affine(self, value: Tensor, weight: Tensor | None, bias: Tensor | None, mode: str) -> Tensor:
        if weight is not None and weight.numel():
            copy = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
            grid = (triton.cdiv(len(weight), BLOCK),)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # Triton's newer releases call block pointers deprecated
                _copy_block[grid](weight, copy, len(weight), weight.stride(0), POINTER=self.pointer, BLOCK=BLOCK)
            weight = copy
        return super().affine(value, weight, bias, mode)


@fault(
    "weight read by whole blocks",
    "rms_norm",
    "the last block of the weight is loaded without a mask, and what lies past its end is discarded",
    READ,
    on=ON_CPU,
)
class WeightReadByWholeBlocks(WeightByTheBlock):
    pass


@fault(
    "block pointer without boundary_check",
    "rms_norm_scale_shift",
    "the weight's block pointer knows its shape, and no boundary is checked",
    READ,
    on=ON_CPU,
)
class BlockPointerWithoutBoundaryCheck(WeightByTheBlock):
    pointer = True


@fault(
    "neighbour of the first channel",
    "layer_norm",
    "each channel's left neighbour is loaded, before the first row's first channel too, and not used",
    READ,
    on=ON_CPU,
)
class NeighbourOfTheFirstChannel(RightOps):
    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        return super().normalised(copied_rows(x, before=True), eps, centred=centred)


@fault(
    "rows read without a mask",
    "scale_shift",
    "the last tile of rows is loaded whole, and the store alone is masked",
    READ,
    on=ON_CPU,
)
class RowsReadWithoutAMask(RightOps):
    def taken(self, t: Tensor, mode: str) -> Tensor:
        return super().taken(copied_rows(t, row_mask=False) if t.dim() == 3 else t, mode)


@fault(
    "angles read without a mask",
    "rotary_embedding",
    "cos and sin are loaded by tiles of tokens, the last one past the end",
    READ,
    on=ON_CPU,
)
class AnglesReadWithoutAMask(RightOps):
    def angles(self, cos: Tensor, x: Tensor, mode: str) -> Tensor:
        return super().angles(copied_rows(cos, row_mask=False), x, mode)


@fault(
    "index of no token",
    "layer_norm_scale_shift",
    "the program past the last token has the index past the table, whose row it loads and does not use",
    READ,
    on=ON_CPU,
)
class IndexOfNoToken(RightOps):
    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        return super().normalised(copied_rows(x), eps, centred=centred)  # a launch without a table too

    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        if isinstance(m, Tensor) or m.table.dim() != 2 or not x.numel():
            return super().rows(name, m, x)
        out = torch.empty(x.shape, dtype=m.table.dtype, device=x.device)
        index, tokens, width = m.index.reshape(-1).contiguous(), m.index.numel(), x.shape[-1]
        block = triton.next_power_of_2(width)
        _copy_indexed[(tokens + 1,)](m.table, index, out, tokens, len(m.table), width, *m.table.stride(), BLOCK_D=block)
        return out


@fault(
    "atomic past its counters",
    "residual_gate_add",
    "each program adds 0 to the counter after its own: of the last one, past their end",
    READ,
    Status.OUT_OF_BOUNDS_WRITE,  # as compiled
    on=ON_CPU,
)
class AtomicPastItsCounters(RightOps):
    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        counters = torch.zeros(2, dtype=torch.int32, device=x.device)
        _count[(2,)](counters)
        return super().stored(value, x)
