"""Code that the kernels and their launchers share: tiles, addresses, roundings.

Tiles. A program takes ``BLOCK_R`` rows of ``BLOCK_D`` columns. Both depend only on the width, never
on the number of rows, so that a row is summed in the same order whatever its batch:

    width            BLOCK_D             BLOCK_R                     columns
    1 .. 8192        next power of two   TILE // BLOCK_D, at least 1   one block
    beyond 8192      8192                1                             a loop over blocks

TILE is 2048 elements: with 4 warps, two 16-byte loads of bfloat16 a thread (one if a warp has 64
threads); blocks of 8192 have 8 warps. Twice that makes the kernels for unaligned memory spill on sm_90
(measured: up to 136 bytes a thread). Under the interpreter, where a program costs the same 2 ms whatever
its tile, TILE is 8192. The grid has one axis, which takes 2^31 - 1 programs.

Addresses. Tensors are passed to the kernels as tuples with their strides: `Rows` for ``[..., D]``,
`ModulationRows` for a modulation argument, `Vector` for a weight or bias. Strides are plain integers, so
that Triton specialises on 1 and on divisibility by 16 and can use 16-byte loads. Row offsets are 64-bit:
one multiplication a row costs nothing, and B * L * D passes 2^31 in real use. Row numbers and column
offsets are 32-bit unless the launcher finds that they do not fit (``WIDE``).
"""

from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from reference_ops.contract import IndexedRows, Modulation, ModulationStrides

# Triton reads TRITON_INTERPRET when a kernel is decorated: after that the answer is fixed.
INTERPRETED = bool(triton.knobs.runtime.interpret)

TILE = 8192 if INTERPRETED else 2048
MAX_BLOCK_D = 8192


class Tile(NamedTuple):
    """The tile with which a launch splits rows of one width into programs.

    one_block: a row fits in one block.
    """

    block_r: int
    block_d: int
    one_block: bool
    num_warps: int

    def programs(self, rows: int) -> int:
        """The number of programs for ``rows`` rows."""
        return -(-rows // self.block_r)


@cache
def tile_for(width: int) -> Tile:
    """The tile for rows of a width, by the rule in the module's docstring."""
    block_d = min(triton.next_power_of_2(width), MAX_BLOCK_D)
    block_r = max(1, TILE // block_d)
    return Tile(block_r, block_d, width <= block_d, 8 if block_d > 4096 else 4)


class Vector(NamedTuple):
    """A ``[D]`` tensor in the form that kernels take."""

    data: Tensor
    column: int


_YES, _NO = tl.constexpr(True), tl.constexpr(False)


class Rows(NamedTuple):
    """The rows of a ``[..., D]`` tensor in the form that kernels take.

    sizes and strides: of the row dimensions, innermost first; the outermost has no size, since it is the rest of the
    row number. LAST carries no information: Triton 3.6 determines a tuple's type before it knows the constants in an
    inner tuple, such as a size of 1, and again at each constant of the outer one; a value that an ``if`` returns with
    a type determined too early has None for the 1.
    """

    data: Tensor
    column: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    LAST: tl.constexpr = _YES


class ModulationRows(NamedTuple):
    """A modulation argument in the form that kernels take.

    data: the tensor (for `IndexedRows`, the table). row_index: the row of each token if INDEXED; else
    data again, unread (Triton 3.6 cannot pass a tuple with a None on to a device function). batch, token,
    column, tokens_per_row: as in `ModulationStrides`. index_batch, index_token: strides of row_index.
    PROMOTES: False for a 0-d tensor, which PyTorch's type promotion treats as a scalar.
    """

    data: Tensor
    row_index: Tensor
    batch: int
    token: int
    column: int
    tokens_per_row: int
    index_batch: int
    index_token: int
    INDEXED: tl.constexpr
    PROMOTES: tl.constexpr


def vector(t: Tensor | None) -> Vector | None:
    """Convert a weight or bias for a kernel; None stays None."""
    return None if t is None else Vector(t, t.stride(0))


def rows_of(t: Tensor) -> Rows:
    """The rows of a tensor, in as few dimensions as its strides allow.

    A single row keeps its stride, though nothing is multiplied by it: Triton lays a tile out by the strides, and a row
    of transposed activations must be summed in the same order whether it is alone or not.
    """
    sizes: list[int] = []
    strides: list[int] = []
    for size, stride in zip(t.shape[-2::-1], t.stride()[-2::-1], strict=True):
        if size == 1:
            continue
        if sizes and stride == strides[-1] * sizes[-1]:
            sizes[-1] *= size
        else:
            sizes.append(size)
            strides.append(stride)
    return Rows(t, t.stride(-1), tuple(sizes[:-1]), tuple(strides) or t.stride()[-2:-1] or (0,))


def contiguous_rows(t: Tensor) -> Rows:
    """The rows of a contiguous tensor."""
    return Rows(t, 1, (), (t.shape[-1],))


def token_rows(x: Tensor) -> Rows:
    """The rows of ``x [B, L, D]``, uncollapsed: kernels that modulate always need b and l."""
    batch, token, column = x.stride()
    return Rows(x, column, (x.shape[1],), (token, batch))


def head_rows(t: Tensor) -> Rows:
    """The rows of ``t [B, S, H, D]``, uncollapsed."""
    batch, token, head, column = t.stride()
    return Rows(t, column, (t.shape[2], t.shape[1]), (head, token, batch))


def angle_rows(t: Tensor, x: Tensor) -> Rows:
    """The row of ``cos`` or ``sin`` (``[S, Dr/2]`` or ``[B, S, Dr/2]``) for each row of `head_rows` of x."""
    batch = t.stride(0) if t.dim() == 3 else 0
    return Rows(t, t.stride(-1), (x.shape[2], x.shape[1]), (0, t.stride(-2), batch))


def modulation_rows(m: Modulation | None, strides: ModulationStrides | None) -> ModulationRows | None:
    """Convert a checked modulation argument for a kernel; None stays None."""
    if m is None or strides is None:
        return None
    if isinstance(m, Tensor):
        return ModulationRows(m, m, *strides, 0, 0, _NO, _YES if m.dim() else _NO)
    index_batch, index_token = m.index.stride()
    return ModulationRows(m.table, m.index, *strides, index_batch, index_token, _YES, _YES)


def table_and_index(m: Modulation | None) -> tuple[Tensor | None, Tensor | None]:
    """Split a modulation argument as registered ops take it; `modulation` joins it again."""
    return (m, None) if m is None or isinstance(m, Tensor) else (m.table, m.index)


def modulation(table: Tensor, index: Tensor | None) -> Modulation:
    """Undo `table_and_index` for a shift or a scale."""
    return table if index is None else IndexedRows(table, index)


def gate_modulation(table: Tensor | None, index: Tensor | None) -> Modulation | None:
    """Undo `table_and_index` for a gate."""
    return None if table is None else modulation(table, index)


def device_types() -> tuple[str, ...]:
    """Types of the devices whose memory a kernel can reach: where it is not interpreted, Triton's driver knows."""
    if INTERPRETED:
        return "cuda", "cpu"
    try:
        return "cuda", triton.runtime.driver.active.get_active_torch_device().type
    except RuntimeError:  # no driver is active: there is no GPU
        return ("cuda",)


def require_device(op: str, name: str, x: Tensor) -> None:
    """Raise a ValueError unless x is on a device that a kernel can reach."""
    if x.device.type not in device_types():
        raise ValueError(
            f"{op}: {name} is on {x.device}, expected a GPU tensor "
            "(or, with TRITON_INTERPRET=1 set before fused_ops is imported, a CPU tensor)"
        )


def empty(x: Tensor) -> Tensor:
    """An uninitialised contiguous tensor of x's shape, dtype and device, for an output."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


class Launch(NamedTuple):
    """A launch that has been made.

    kernel: as Triton compiled it. programs: how many. arguments: all of the kernel's, in its order.
    """

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]


# Records the launches of an op while it runs for a new plan (`fused_ops._plan`).
launches: ContextVar[list[Launch] | None] = ContextVar("launches", default=None)


def launch(
    kernel: Any,
    x: Tensor,
    tile: Tile,
    tensors: tuple[Rows | ModulationRows | Vector | None, ...],
    rows: tuple[int, ...],
    widths: tuple[int, ...],
    **options: Any,
) -> None:
    """Launch ``kernel`` on the GPU of x, one program for each tile of each of the row counts.

    The kernel takes ``tensors``, then each row count, then each width, then by name BLOCK_R, BLOCK_D,
    ONE_BLOCK, WIDE (32 bits do not hold the row numbers or the column offsets) and ``options``. Launches
    nothing where there is no row.

    The compiler contracts no product and sum. Of a sum of two products it would contract one or the other, by where in
    the tile they lie: then rows in another order have other bits (`rotary_embedding`, sm_90). And of 16 bits, one
    fma.rn.bf16x2 would skip the rounding of the product that ``casting_mode="input"`` declares. Where a kernel wants a
    fused multiply-add it says ``tl.fma``.
    """
    programs = sum(tile.programs(n) for n in rows)
    if programs == 0:
        return
    reach = (max(widths) + tile.block_d) * max(t.column for t in tensors if t is not None)
    in_order = (*tensors, *rows, *widths)
    by_name = options | {
        "BLOCK_R": tile.block_r,
        "BLOCK_D": tile.block_d,
        "ONE_BLOCK": tile.one_block,
        "WIDE": max(rows) + tile.block_r >= 2**31 or reach >= 2**31,
    }
    with current_device(x):
        compiled = kernel[(programs,)](*in_order, **by_name, num_warps=tile.num_warps, enable_fp_fusion=False)
    noted = launches.get()
    # Not loaded: it was not launched by Triton, but on a CPU, where the next launch may be for another target.
    if noted is not None and getattr(compiled, "function", None) is not None:
        rest = [by_name[name] for name in kernel.arg_names[len(in_order) :]]
        noted.append(Launch(compiled, programs, (*in_order, *rest)))


def current_device(x: Tensor) -> AbstractContextManager[object]:
    """Make x's GPU the current one: Triton launches on the current device."""
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()


@triton.constexpr_function
def promoted(dtype, operand, counts=True):
    """The dtype in which PyTorch multiplies or adds two of float32, float16 and bfloat16."""
    return dtype if dtype == operand or not counts else tl.float32


@triton.jit
def rounded(value, DTYPE: tl.constexpr):
    """A float32 value rounded once to DTYPE and widened again."""
    return value if tl.float32 == DTYPE else value.to(DTYPE).to(tl.float32)


@triton.jit
def tile_rows(program, rows, BLOCK_R: tl.constexpr, WIDE: tl.constexpr):
    """Row numbers of a program's tile, ``[BLOCK_R]``, and which of them exist, ``[BLOCK_R, 1]``."""
    if WIDE:
        program = program.to(tl.int64)
    row = program * BLOCK_R + tl.arange(0, BLOCK_R)
    return row, (row < rows)[:, None]


@triton.jit
def block_columns(start, BLOCK_D: tl.constexpr, WIDE: tl.constexpr):
    """Column numbers of a block, ``[1, BLOCK_D]``."""
    column = start + tl.arange(0, BLOCK_D)[None, :]
    if WIDE:
        column = column.to(tl.int64)
    return column


@triton.jit
def row_pointers(t, row):
    """The first element of each row of a `Rows`, ``[BLOCK_R, 1]``."""
    offset = tl.zeros_like(row).to(tl.int64)
    for i in tl.static_range(len(t.sizes)):
        offset += (row % t.sizes[i]).to(tl.int64) * t.strides[i]
        row = row // t.sizes[i]
    return t.data + (offset + row.to(tl.int64) * t.strides[len(t.sizes)])[:, None]


@triton.jit
def modulation_pointers(m, row, rows, tokens):
    """The first element of each row's row of a `ModulationRows`, ``[BLOCK_R, 1]``."""
    b = (row // tokens).to(tl.int64)
    l = row % tokens
    if m.INDEXED:
        index = m.row_index + b * m.index_batch + l.to(tl.int64) * m.index_token
        at = tl.load(index, mask=row < rows, other=0).to(tl.int64)
    else:
        at = (l // m.tokens_per_row).to(tl.int64)
    return m.data + (b * m.batch + at * m.token)[:, None]


@triton.jit
def vector_pointers(t, row):
    """The first element of a `Vector`, once for each row: so that each thread loads what it needs itself.

    A ``[1, BLOCK_D]`` load would be spread over all threads and then exchanged through shared memory.
    """
    return t.data + tl.zeros_like(row)[:, None]


@triton.jit
def load(pointers, t, column, mask):
    """A block of a `Rows`, `ModulationRows` or `Vector` in float32, 0 where masked."""
    return tl.load(pointers + column * t.column, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_operand(pointers, t, column, mask, DTYPE: tl.constexpr):
    """`load` of an operand of activations of DTYPE.

    A bfloat16 beside float16 is widened by a shift of its bits. From a conversion the compiler knows that the float32
    has no more bits than a float16, and makes a float16 product of the one that is rounded to float16; but a float16
    has not the range of a bfloat16: a weight of 65536 became inf, and 2^-26 became 0 (PTX of Triton 3.7.1).
    """
    if tl.float16 == DTYPE and t.data.dtype.element_ty == tl.bfloat16:
        bits = tl.load(pointers + column * t.column, mask=mask, other=0.0).to(tl.uint16, bitcast=True)
        return (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return load(pointers, t, column, mask)


@triton.jit
def store(pointers, t, column, value, mask):
    """Round a float32 block to t's dtype, to nearest even, and store it."""
    tl.store(pointers + column * t.column, value.to(t.data.dtype.element_ty), mask=mask)
