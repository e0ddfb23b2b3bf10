"""What the kernels and their launchers share: tiles, addresses, roundings.

Tiles. A program takes ``BLOCK_R`` rows of ``BLOCK_D`` columns. Both depend on the width alone, never
on the number of rows, so that a row is added up in the same order whatever batch it comes in:

    width            BLOCK_D             BLOCK_R                     columns
    1 .. 8192        next power of two   TILE // BLOCK_D, at least 1   one block
    beyond 8192      8192                1                             a loop over blocks

TILE is 2048 elements: 16 elements a thread at 4 warps, two 16-byte loads of bfloat16. Under the
interpreter, where a program costs the same 2 ms whatever its tile, it is 8192.

Addresses. Row offsets are 64-bit: one multiplication a row costs nothing, and B * L * D passes 2^31 in
real use. Row numbers and column offsets are 32-bit unless the launcher finds that they do not fit
(``ROWS64``, ``COLS64``). Widths, counts and strides are plain integer arguments, so that Triton
specialises on 1 and on divisibility by 16 and can use 16-byte loads.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from reference_ops._contract import Modulation, ModulationStrides

# TRITON_INTERPRET is read by triton when a kernel is decorated: after that the answer is fixed.
INTERPRETED = bool(triton.knobs.runtime.interpret)

TILE = 8192 if INTERPRETED else 2048
MAX_BLOCK_D = 8192

TL_DTYPE = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


class Tile(NamedTuple):
    """How a launch cuts ``rows`` x ``width`` into programs."""

    block_r: int
    block_d: int
    num_warps: int
    grid: tuple[int]


def tile_for(rows: int, width: int) -> Tile:
    """The tile of the rule above, for a launch over ``rows`` rows of ``width`` columns."""
    block_d = min(triton.next_power_of_2(width), MAX_BLOCK_D)
    block_r = max(1, TILE // block_d)
    elements = block_r * block_d
    num_warps = 8 if elements > 4096 else 4
    return Tile(block_r, block_d, num_warps, (triton.cdiv(rows, block_r),))


def require_device(op: str, x: Tensor) -> None:
    """ValueError unless x lies where a kernel can reach it."""
    if x.is_cuda or (INTERPRETED and x.device.type == "cpu"):
        return
    raise ValueError(
        f"{op}: x is on {x.device}, expected a GPU tensor "
        "(or, with TRITON_INTERPRET=1 set before fused_ops is imported, a CPU tensor)"
    )


def columns_need_int64(width: int, *column_strides: int) -> bool:
    """True if ``column * stride`` passes 2^31 for one of the strides."""
    return any((width - 1) * stride >= 2**31 for stride in column_strides)


def promoted(*operands: Tensor | torch.dtype) -> torch.dtype:
    """The dtype PyTorch gives an elementwise result of these operands, left to right.

    A tensor of no dimensions counts as a scalar: a float32 0-d tensor leaves bfloat16 as it is.
    """
    result: torch.dtype | None = None
    for operand in operands:
        if isinstance(operand, torch.dtype):
            result = operand if result is None else torch.promote_types(result, operand)
        elif result is None:
            result = operand.dtype
        elif operand.dim():
            result = torch.promote_types(result, operand.dtype)
    assert result is not None
    return result


def same_device(x: Tensor) -> AbstractContextManager[object]:
    """Make x's GPU the current one for a launch; Triton launches on the current device."""
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()


class ModulationArguments(NamedTuple):
    """A modulation argument as the kernels take it.

    values: the tensor (for `IndexedRows`, the table). index: the row of each token, or None.
    strides: batch, token, column, tokens_per_row of values. index_strides: batch, token of index.
    """

    values: Tensor
    index: Tensor | None
    strides: tuple[int, int, int, int]
    index_strides: tuple[int, int]


def modulation_arguments(m: Modulation, strides: ModulationStrides) -> ModulationArguments:
    """Take apart a checked modulation argument."""
    if isinstance(m, Tensor):
        return ModulationArguments(m, None, tuple(strides), (0, 0))
    return ModulationArguments(m.table, m.index, tuple(strides), (m.index.stride(0), m.index.stride(1)))


@triton.jit
def rounded(value, DTYPE: tl.constexpr):
    """A float32 value rounded once to DTYPE and widened again."""
    if DTYPE == tl.float32:
        return value
    else:
        return value.to(DTYPE).to(tl.float32)


@triton.jit
def modulation_row(b, l, batch_stride, token_stride, tokens_per_row, index, index_b, index_l, row_mask):
    """Offset of the modulation row of token l of batch item b (64-bit, one a row of the tile)."""
    if index is None:
        row = (l // tokens_per_row).to(tl.int64)
    else:
        at = index + b.to(tl.int64) * index_b + l.to(tl.int64) * index_l
        row = tl.load(at, mask=row_mask, other=0).to(tl.int64)
    return b.to(tl.int64) * batch_stride + row * token_stride


@triton.jit
def tile_rows(rows, BLOCK_R: tl.constexpr, ROWS64: tl.constexpr):
    """Row numbers of this program's tile, ``[BLOCK_R, 1]``, and which of them exist."""
    pid = tl.program_id(0)
    if ROWS64:
        pid = pid.to(tl.int64)
    row = pid * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    return row, row < rows


@triton.jit
def tile_columns(start, BLOCK_D: tl.constexpr, COLS64: tl.constexpr):
    """Column numbers of a block, ``[1, BLOCK_D]``."""
    column = start + tl.arange(0, BLOCK_D)[None, :]
    if COLS64:
        column = column.to(tl.int64)
    return column
