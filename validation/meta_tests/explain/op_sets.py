"""Op sets whose kernels differ from the plain ones in one thing each: ``meta_tests.explain.op_sets:NAME``."""

import dataclasses
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from validation.ops import OpSet


@triton.jit
def _rms(
    x, weight, y, width, eps, BLOCK: tl.constexpr, CHUNKS: tl.constexpr, EARLY: tl.constexpr, APPROX: tl.constexpr
):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    if CHUNKS == 1:
        v = tl.load(x + row * width + column, mask=column < width, other=0.0).to(tl.float32)
        total = tl.sum(v * v)
    else:
        total = 0.0
        for n in range(CHUNKS):
            at = n * (BLOCK // CHUNKS) + tl.arange(0, BLOCK // CHUNKS)
            part = tl.load(x + row * width + at, mask=at < width, other=0.0).to(tl.float32)
            total += tl.sum(part * part)
        v = tl.load(x + row * width + column, mask=column < width, other=0.0).to(tl.float32)
    if APPROX:  # noqa: SIM108
        rstd = tl.rsqrt(total / width + eps)
    else:
        rstd = tl.div_rn(1.0, tl.sqrt_rn(total / width + eps))
    z = v * rstd
    if EARLY:
        z = z.to(y.dtype.element_ty).to(tl.float32)
    w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    tl.store(y + row * width + column, (z * w).to(y.dtype.element_ty), mask=column < width)


@triton.jit
def _layer(x, weight, bias, y, width, eps, BLOCK: tl.constexpr, ONE_PASS: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    v = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(v) / width
    if ONE_PASS:
        variance = tl.sum(v * v) / width - mean * mean
    else:
        centred = tl.where(inside, v - mean, 0.0)
        variance = tl.sum(centred * centred) / width
    z = (v - mean) * tl.div_rn(1.0, tl.sqrt_rn(variance + eps))
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * width + column, (z * w + b).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _squares(x, partial, width, BLOCK: tl.constexpr):
    row, part = tl.program_id(0), tl.program_id(1)
    column = part * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + row * width + column, mask=column < width, other=0.0).to(tl.float32)
    tl.store(partial + row * tl.num_programs(1) + part, tl.sum(v * v))


@triton.jit
def _scaled(x, weight, partial, y, width, eps, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    v = tl.load(x + row * width + column, mask=column < width, other=0.0).to(tl.float32)
    total = tl.sum(tl.load(partial + row * PARTS + tl.arange(0, PARTS)))
    w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    z = v * tl.div_rn(1.0, tl.sqrt_rn(total / width + eps))
    tl.store(y + row * width + column, (z * w).to(y.dtype.element_ty), mask=column < width)


@dataclasses.dataclass(frozen=True)
class Variant:
    """Kernels.

    Attributes:
        warps: of a CTA. fused: whether products and sums may become fma.
        chunks: in which the row is summed. early: whether z is rounded before the weight. approx: rsqrt.approx.
        one_pass: the variance as the mean of squares less the square of the mean.
        split: the sum of squares by a kernel of its own, in so many CTAs; 0: none.
        after: PyTorch's own multiplication after the kernel.
    """

    warps: int = 4
    fused: bool = False
    chunks: int = 1
    early: bool = False
    approx: bool = False
    one_pass: bool = False
    split: int = 0
    after: bool = False

    def rms_norm(self, x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, **_: Any) -> Tensor:
        """RMSNorm of rows."""
        rows, width = x.contiguous().reshape(-1, x.shape[-1]), x.shape[-1]
        weight = torch.ones(width, dtype=x.dtype) if weight is None else weight.contiguous()
        y, block = torch.empty_like(rows), triton.next_power_of_2(width)
        how: dict[str, Any] = {"num_warps": self.warps, "enable_fp_fusion": self.fused}
        if self.split:
            partial = torch.empty(len(rows), self.split, dtype=torch.float32)
            _squares[len(rows), self.split](rows, partial, width, block // self.split, **how)
            _scaled[(len(rows),)](rows, weight, partial, y, width, eps, block, self.split, **how)
        else:
            _rms[(len(rows),)](rows, weight, y, width, eps, block, self.chunks, self.early, self.approx, **how)
        return y.reshape(x.shape) * 1.5 if self.after else y.reshape(x.shape)

    def layer_norm(
        self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6
    ) -> Tensor:
        """LayerNorm of rows."""
        rows, width = x.contiguous().reshape(-1, x.shape[-1]), x.shape[-1]
        weight = torch.ones(width, dtype=x.dtype) if weight is None else weight.contiguous()
        bias = torch.zeros(width, dtype=x.dtype) if bias is None else bias.contiguous()
        y = torch.empty_like(rows)
        block = triton.next_power_of_2(width)
        how: dict[str, Any] = {"num_warps": self.warps, "enable_fp_fusion": self.fused}
        _layer[(len(rows),)](rows, weight, bias, y, width, eps, block, self.one_pass, **how)
        return y.reshape(x.shape)


VARIANTS = {
    "plain": Variant(),
    "warps8": Variant(warps=8),
    "chunks": Variant(chunks=2),
    "fused": Variant(fused=True),
    "early": Variant(early=True),
    "approx": Variant(approx=True),
    "one_pass": Variant(one_pass=True),
    "split": Variant(split=4),
    "after": Variant(after=True),
}


def op_set(name: str) -> OpSet:
    """The op set of a variant."""
    one = VARIANTS[name]
    return OpSet(name, {"rms_norm": one.rms_norm, "layer_norm": one.layer_norm}, f"{__name__}:{name}")
