"""Wrong versions of ``layer_norm_scale_shift``, float32 inside like a fused kernel."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reference_ops._contract import expand_modulation
from validation.faults.fault import fault
from validation.record import Status

OP = "layer_norm_scale_shift"


def _normalised(x: Tensor, eps: float, *, ddof: int = 0) -> Tensor:
    x = x.float()
    deviation = x - x.mean(-1, keepdim=True)
    width = max(x.shape[-1] - ddof, 1)
    variance = (deviation * deviation).sum(-1, keepdim=True) / width
    return deviation * torch.rsqrt(variance + eps)


def _affine(value: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        value = value * weight.float()
    return value if bias is None else value + bias.float()


def _chain(
    x: Tensor,
    shift: Any,
    scale: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    ddof: int = 0,
    one: float = 1.0,
) -> Tensor:
    """The right chain in float32, not yet rounded to x's dtype."""
    value = _affine(_normalised(x, eps, ddof=ddof), weight, bias)
    return value * (one + expand_modulation(scale, x).float()) + expand_modulation(shift, x).float()


@fault("scale and shift swapped", OP, "scale is used as shift and shift as scale", Status.INCORRECT_NUMERICAL)
def scale_and_shift_swapped(
    x: Tensor, shift: Any, scale: Any, *rest: Any, casting_mode: str = "float32", **kwargs: Any
) -> Tensor:
    del casting_mode
    return _chain(x, scale, shift, *rest, **kwargs).to(x.dtype)


@fault("one plus dropped", OP, "the factor is scale instead of 1 + scale", Status.INCORRECT_NUMERICAL)
def one_plus_dropped(
    x: Tensor, shift: Any, scale: Any, *rest: Any, casting_mode: str = "float32", **kwargs: Any
) -> Tensor:
    del casting_mode
    return _chain(x, shift, scale, *rest, one=0.0, **kwargs).to(x.dtype)


@fault(
    "variance over N-1",
    OP,
    "the sample variance instead of the biased one",
    Status.INCORRECT_NUMERICAL,
    Status.BIASED,  # "input" mode at wide rows: within the declared roundings, but all of it towards zero
)
def variance_over_n_minus_1(
    x: Tensor, shift: Any, scale: Any, *rest: Any, casting_mode: str = "float32", **kwargs: Any
) -> Tensor:
    del casting_mode
    return _chain(x, shift, scale, *rest, ddof=1, **kwargs).to(x.dtype)


@fault("batch row 0 for all", OP, "every batch item reads the modulation of the first", Status.INCORRECT_NUMERICAL)
def batch_row_0_for_all(
    x: Tensor, shift: Any, scale: Any, *rest: Any, casting_mode: str = "float32", **kwargs: Any
) -> Tensor:
    del casting_mode

    def first(m: Any) -> Tensor:
        m = expand_modulation(m, x)
        return m[:1] if m.dim() == 3 and m.shape[0] > 0 else m

    return _chain(x, first(shift), first(scale), *rest, **kwargs).to(x.dtype)


@fault("column tail not written", OP, "columns past the last multiple of 8 are left out", Status.NOT_WRITTEN)
def column_tail_not_written(
    x: Tensor, shift: Any, scale: Any, *rest: Any, casting_mode: str = "float32", **kwargs: Any
) -> Tensor:
    del casting_mode
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    whole = x.shape[-1] // 8 * 8
    y[..., :whole] = _chain(x, shift, scale, *rest, **kwargs)[..., :whole].to(x.dtype)
    return y


@triton.jit
def _rows_unmasked_kernel(source, target, rows, width, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    column = tl.arange(0, BLOCK_D)[None, :]
    values = tl.load(source + row * width + column, mask=(row < rows) & (column < width), other=0.0)
    tl.store(target + row * width + column, values, mask=column < width)


@fault(
    "write past the end",
    OP,
    "the store has no row mask, so the last tile writes rows past the end (as FastVideo's RMSNorm did)",
    Status.OUT_OF_BOUNDS_WRITE,
)
def write_past_the_end(
    x: Tensor, shift: Any, scale: Any, *rest: Any, casting_mode: str = "float32", **kwargs: Any
) -> Tensor:
    del casting_mode
    right = _chain(x, shift, scale, *rest, **kwargs).to(x.dtype).contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, width = x.shape[0] * x.shape[1], x.shape[2]
    if rows and width <= 1024:
        grid = (triton.cdiv(rows, 32),)
        _rows_unmasked_kernel[grid](right, y, rows, width, BLOCK_R=32, BLOCK_D=triton.next_power_of_2(width))
        return y
    return right


@fault(
    "truncated instead of rounded",
    OP,
    "the result is cut off to x's dtype, not rounded to nearest",
    Status.INCORRECT_NUMERICAL,
    Status.BIASED,
)
def truncated_instead_of_rounded(
    x: Tensor, shift: Any, scale: Any, *rest: Any, casting_mode: str = "float32", **kwargs: Any
) -> Tensor:
    del casting_mode
    value = _chain(x, shift, scale, *rest, **kwargs)
    if x.dtype is torch.float32:
        return value
    dropped = 16 if x.dtype is torch.bfloat16 else 13
    bits = value.contiguous().view(torch.int32)
    return (bits >> dropped << dropped).view(torch.float32).to(x.dtype)


@fault("float32 output", OP, "the output has the modulation's dtype, not x's", Status.INCORRECT_DTYPE)
def float32_output(
    x: Tensor, shift: Any, scale: Any, *rest: Any, casting_mode: str = "float32", **kwargs: Any
) -> Tensor:
    del casting_mode
    return _chain(x, shift, scale, *rest, **kwargs)
