"""Faults of masks, tiles, offsets and grids in a real Triton kernel: a small correct one with a switch for each."""

from typing import Any, ClassVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from validation.faults.fault import NOT_INTERPRETED, fault
from validation.faults.right import RightOps
from validation.verdict import Status

NUMERICAL, NONFINITE = Status.INCORRECT_NUMERICAL, Status.INCORRECT_NONFINITE

OP = "rms_norm"


@triton.jit
def _rms_norm_kernel(
    x,
    weight,
    y,
    rows,
    width,
    row_stride,
    column_stride,
    weight_stride,
    eps,
    WEIGHT: tl.constexpr,
    INPUT_CASTING: tl.constexpr,
    LOAD_MASK: tl.constexpr,
    ROW_MASK: tl.constexpr,
    WIDE_OFFSETS: tl.constexpr,
    GRID_AXIS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(GRID_AXIS) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    column = tl.arange(0, BLOCK_D)[None, :]
    mask = (row < rows) & (column < width)
    offset = row.to(tl.int64) * row_stride if WIDE_OFFSETS else row * row_stride
    value = tl.load(x + offset + column * column_stride, mask=mask if LOAD_MASK else row < rows, other=0.0)
    value = value.to(tl.float32)
    normalised = value * tl.rsqrt(tl.sum(value * value, 1, keep_dims=True) / width + eps)
    if INPUT_CASTING:
        normalised = normalised.to(x.dtype.element_ty).to(tl.float32)
    if WEIGHT:
        normalised *= tl.load(weight + column * weight_stride, mask=column < width, other=0.0).to(tl.float32)
    tl.store(y + row.to(tl.int64) * width + column, normalised, mask=mask if ROW_MASK else column < width)


class RightKernel(RightOps):
    """`rms_norm` in one launch; right as it stands."""

    switches: ClassVar[dict[str, Any]] = {"LOAD_MASK": True, "ROW_MASK": True, "WIDE_OFFSETS": True, "GRID_AXIS": 0}
    # FastVideo's RMSNorm, which writes past the end, takes 32 rows per program. Narrow rows are taken in larger
    # blocks: one program costs the interpreter 2 ms, whatever its width.
    block_r, tile = 32, 4096

    def rms_norm(
        self, x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, *, casting_mode: str = "float32"
    ) -> Tensor:
        # Called for its checks and the result's shape; the result itself is not used.
        super().rms_norm(x[:0] if isinstance(x, Tensor) and x.dim() > 1 else x, weight, eps, casting_mode=casting_mode)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if not x.numel():
            return y
        rows = self.rows_of(x)
        block_d = triton.next_power_of_2(x.shape[-1])
        block_r = min(max(self.block_r, self.tile // block_d), max(1, 32768 // block_d))
        grid = [1, 1]
        grid[self.switches["GRID_AXIS"]] = self.programs(len(rows), block_r)
        _rms_norm_kernel[tuple(grid)](
            rows,
            weight,
            y,
            len(rows),
            x.shape[-1],
            *rows.stride(),
            0 if weight is None else weight.stride(0),
            eps,
            WEIGHT=weight is not None,
            INPUT_CASTING=casting_mode == "input",
            BLOCK_R=block_r,
            BLOCK_D=block_d,
            # As 4 warps, four rows of 8192 lanes are 86 KB of PTX, as 16 they are 36, for which ptxas takes an eighth
            # of the processor time.
            num_warps=max(4, min(block_r * block_d // 1024, 16)),
            **self.switches,
        )
        return y

    def rows_of(self, x: Tensor) -> Tensor:
        """x as ``[rows, D]``, a view where its strides allow."""
        return x.reshape(-1, x.shape[-1])

    def programs(self, rows: int, block_r: int) -> int:
        """How many programs the grid has."""
        return triton.cdiv(rows, block_r)


@fault(
    "row mask missing",
    OP,
    "the store has no row mask, so the last tile writes rows past the end (as FastVideo's RMSNorm did)",
    Status.OUT_OF_BOUNDS_WRITE,
)
class RowMaskMissing(RightKernel):
    switches: ClassVar[dict[str, Any]] = {**RightKernel.switches, "ROW_MASK": False}


@fault(
    "column mask missing on the load",
    OP,
    "columns past D enter the sum: what lies behind the row, or the next row",
    NUMERICAL,
    NONFINITE,
    Status.OUT_OF_BOUNDS_READ,
)
class ColumnMaskMissing(RightKernel):
    switches: ClassVar[dict[str, Any]] = {**RightKernel.switches, "LOAD_MASK": False}


@fault("last ragged tile left out", OP, "rows // BLOCK_R programs instead of cdiv(rows, BLOCK_R)", Status.NOT_WRITTEN)
class LastRaggedTileLeftOut(RightKernel):
    def programs(self, rows: int, block_r: int) -> int:
        return max(rows // block_r, 1)


@fault(
    "grid for 65536 rows",
    OP,
    "the grid is capped where it holds 65536 rows: those past it stay unwritten",
    Status.NOT_WRITTEN,
)
class GridFor65536Rows(RightKernel):
    def programs(self, rows: int, block_r: int) -> int:
        return super().programs(min(rows, 65536), block_r)


@fault(
    "strides hard-coded",
    OP,
    "x is read as if it were contiguous",
    NUMERICAL,
    NONFINITE,
    Status.OUT_OF_BOUNDS_READ,  # where x has one stride for all its dimensions
)
class StridesHardCoded(RightKernel):
    def rows_of(self, x: Tensor) -> Tensor:
        return x.as_strided((x.numel() // x.shape[-1], x.shape[-1]), (x.shape[-1], 1))


@fault(
    "silent fallback",
    OP,
    "wide rows and strided columns are handed to PyTorch's own ops, without a word and without a launch",
    Status.SILENT_FALLBACK,
)
class SilentFallback(RightKernel):
    def rms_norm(
        self, x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, *, casting_mode: str = "float32"
    ) -> Tensor:
        if isinstance(x, Tensor) and x.dim() and (x.stride(-1) != 1 or x.shape[-1] > 1024):
            return RightOps.rms_norm(self, x, weight, eps, casting_mode=casting_mode)
        return super().rms_norm(x, weight, eps, casting_mode=casting_mode)


@fault(
    "32-bit row offsets",
    OP,
    "row * row_stride is 32 bits wide: past 2^31 elements it reads from before the tensor",
    NUMERICAL,
    NONFINITE,
    Status.RUNTIME_ERROR,
    Status.OUT_OF_BOUNDS_READ,
)
class ThirtyTwoBitRowOffsets(RightKernel):
    switches: ClassVar[dict[str, Any]] = {**RightKernel.switches, "WIDE_OFFSETS": False}


# The interpreter's grid has no limits.
@fault(
    "grid axis above 65535",
    OP,
    "rows run along the grid's second axis, which takes 65535 programs",
    Status.RUNTIME_ERROR,
    on=NOT_INTERPRETED,
)
class GridAxisAbove65535(RightKernel):
    switches: ClassVar[dict[str, Any]] = {**RightKernel.switches, "GRID_AXIS": 1}
    block_r, tile = 1, 1


# Order of summation. Every single call is right: only a comparison of two calls shows the fault.


@fault(
    "order of the sum by batch",
    "layer_norm",
    "the reduction is split by the number of rows: a row's bits depend on how many others there are",
    Status.NOT_REPRODUCIBLE,
)
class OrderOfTheSumByBatch(RightOps):
    def mean_square(self, deviation: Tensor) -> Tensor:
        width = deviation.shape[-1]
        rows = deviation.numel() // width
        # Wide rows in no more than some 1000 parts: one by one, 65,536 columns took most of a sweep's time.
        parts = (deviation * deviation).split((1 + rows % 7) * max(width // 512, 1), -1)
        return sum((part.sum(-1, keepdim=True) for part in parts), start=torch.zeros(())) / width


@fault(
    "order of the sum at random",
    "rms_norm_scale_shift",
    "the columns are added in another order each time, as atomics do",
    Status.NOT_REPRODUCIBLE,
)
class OrderOfTheSumAtRandom(RightOps):
    def mean_square(self, deviation: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        generator = torch.Generator().manual_seed(self.calls)
        order = torch.randperm(deviation.shape[-1], generator=generator).to(deviation.device)
        return super().mean_square(deviation[..., order])


@fault(
    "order of the sum by row",
    "rms_norm",
    "the reduction begins at a column that depends on the row's number",
    Status.NOT_REPRODUCIBLE,
)
class OrderOfTheSumByRow(RightOps):
    def mean_square(self, deviation: Tensor) -> Tensor:
        width, rows = deviation.shape[-1], deviation.numel() // deviation.shape[-1]
        start = torch.arange(rows, device=deviation.device)[:, None]
        column = (torch.arange(width, device=deviation.device) + 5 * start) % width
        turned = deviation.reshape(rows, width).gather(1, column)
        return super().mean_square(turned).view(*deviation.shape[:-1], 1)
