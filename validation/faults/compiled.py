"""Faults that the interpreter cannot show: it has no vector accesses, no threads and no approximate instructions."""

from typing import ClassVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from validation.faults.fault import NOT_INTERPRETED, fault
from validation.faults.right import RightOps
from validation.verdict import Status

COMPILED = frozenset({"compiled"})


@triton.jit
def _copy(
    source,
    out,
    width,
    row_stride,
    column_stride,
    out_stride,
    MULTIPLE: tl.constexpr,
    CONSTANT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    first = row * row_stride
    if MULTIPLE:
        first = tl.multiple_of(first, [8])
    mask = column < width
    if CONSTANT:
        mask = tl.max_constancy(mask, [8])
    value = tl.load(source + first + column * column_stride, mask=mask, other=0.0)
    tl.store(out + row * out_stride + column, value, mask=mask)


@triton.jit
def _turned_and_back(out, width, BARRIER: tl.constexpr, BLOCK: tl.constexpr):
    # BLOCK is twice the threads of a CTA: the neighbour 32 columns away is another warp's.
    row = out + tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, BLOCK)
    other = column ^ 32
    for _ in tl.static_range(2):
        value = tl.load(row + other, mask=(column < width) & (other < width), other=0.0)
        if BARRIER:
            tl.debug_barrier()
        tl.store(row + column, value, mask=(column < width) & (other < width))
        if BARRIER:
            tl.debug_barrier()


@triton.jit
def _shifted_up(out, rows, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    above = tl.load(out + (row + 1) * width + column, mask=(column < width) & (row + 1 < rows), other=0.0)
    own = tl.load(out + row * width + column, mask=column < width, other=0.0)
    # The row above decides between equal numbers: the compiler must not leave its load out.
    tl.store(out + row * width + column, tl.where(above == above, own, own + 0.0), mask=column < width)


@triton.jit
def _inverse_root(mean_square, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(mean_square + at, mask=at < count, other=1.0)
    # 2^-126 is the smallest normal float32.
    tl.store(out + at, tl.rsqrt(value * 2.0**-126) * 2.0**-63, mask=at < count)


class CopiedRows(RightOps):
    """Takes activations by way of a copy that a kernel makes, one row a program; right as it stands."""

    claims: ClassVar[dict[str, bool]] = {"MULTIPLE": False, "CONSTANT": False}

    def taken(self, t: Tensor, mode: str) -> Tensor:
        """As `Arithmetic` says, of a copy."""
        if not t.dim() or not t.numel():
            return super().taken(t, mode)
        rows = t.reshape(-1, t.shape[-1])
        out = self.memory(rows)
        block = triton.next_power_of_2(t.shape[-1])
        # With fewer than 8 columns a thread, Triton's compiler ends in an assertion on a constancy of 8.
        claims = self.claims if block >= 1024 else CopiedRows.claims
        _copy[(len(rows),)](rows, out, t.shape[-1], *rows.stride(), out.stride(0), **claims, BLOCK=block)
        self.rewritten(out)
        return super().taken(out.reshape(t.shape), mode)

    def memory(self, rows: Tensor) -> Tensor:
        """Memory for the copy."""
        return torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)

    def rewritten(self, rows: Tensor) -> None:
        """What becomes of the copy ``[rows, D]``."""


@fault(
    "false multiple_of",
    "scale_shift",
    "the kernel claims that rows begin at multiples of 8 elements, whatever their stride",
    Status.MISALIGNED,
    on=NOT_INTERPRETED,
)
class FalseMultipleOf(CopiedRows):
    claims: ClassVar[dict[str, bool]] = {**CopiedRows.claims, "MULTIPLE": True}


@fault(
    "false max_constancy",
    "scale_shift",
    "the kernel claims that its mask changes at multiples of 8 columns alone: it writes into the padding of rows",
    Status.OUT_OF_BOUNDS_WRITE,
    Status.OUT_OF_BOUNDS_READ,
    Status.MISALIGNED,
    on=NOT_INTERPRETED,
)
class FalseMaxConstancy(CopiedRows):
    claims: ClassVar[dict[str, bool]] = {**CopiedRows.claims, "CONSTANT": True}

    def memory(self, rows: Tensor) -> Tensor:
        height, width = rows.shape
        padded = torch.empty(height, -(-width // 16) * 16, dtype=rows.dtype, device=rows.device)
        return padded[:, :width]


# On a GPU the two races show if the threads happen to run so: `--compiled` knows.
@fault(
    "exchange without a barrier",
    "scale_shift",
    "threads exchange columns through global memory, and no barrier makes them wait for one another",
    Status.RACE,
    on=COMPILED,
)
class ExchangeWithoutABarrier(CopiedRows):
    barrier: ClassVar[bool] = False

    def rewritten(self, rows: Tensor) -> None:
        block = triton.next_power_of_2(rows.shape[-1])
        _turned_and_back[(len(rows),)](rows, rows.shape[-1], BARRIER=self.barrier, BLOCK=block)


class RightExchange(ExchangeWithoutABarrier):
    """With the barriers; the suite's own tests hold it to ``lossless``."""

    barrier: ClassVar[bool] = True


@fault(
    "in place between programs",
    "scale_shift",
    "each program reads the row that the next program overwrites",
    Status.RACE,
    on=COMPILED,
)
class InPlaceBetweenPrograms(CopiedRows):
    def rewritten(self, rows: Tensor) -> None:
        block = triton.next_power_of_2(rows.shape[-1])
        _shifted_up[(len(rows),)](rows, len(rows), rows.shape[-1], BLOCK=block)


@fault(
    "rsqrt of a subnormal",
    "rms_norm",
    "the mean square is scaled by 2^-126 against overflow, and tl.rsqrt flushes it to 0 where it is below 1 "
    "(rsqrt.approx.ftz)",
    Status.INCORRECT_NONFINITE,
    Status.INCORRECT_NUMERICAL,
    on=NOT_INTERPRETED,
)
class RsqrtOfASubnormal(RightOps):
    def inverse_root(self, mean_square: Tensor, eps: float) -> Tensor:
        value = (mean_square + eps).contiguous()
        if not value.numel():
            return super().inverse_root(mean_square, eps)
        out = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        _inverse_root[(triton.cdiv(value.numel(), 256),)](value, out, value.numel(), BLOCK=256)
        return out
