"""LayerNorm and its modulation in one launch: ``layer_norm(x) * (1 + scale) + shift``."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_ops._launch import (
    TL_DTYPE,
    ModulationArguments,
    columns_need_int64,
    modulation_arguments,
    modulation_row,
    promoted,
    require_device,
    rounded,
    same_device,
    tile_columns,
    tile_for,
    tile_rows,
)
from reference_ops._contract import Modulation, check_modulated_norm


@triton.jit
def _layer_norm_scale_shift_kernel(
    x,
    shift,
    scale,
    weight,
    bias,
    y,
    rows,
    tokens,
    width,
    eps,
    x_b,
    x_l,
    x_d,
    shift_b,
    shift_t,
    shift_d,
    shift_tokens,
    shift_index,
    shift_index_b,
    shift_index_l,
    scale_b,
    scale_t,
    scale_d,
    scale_tokens,
    scale_index,
    scale_index_b,
    scale_index_l,
    weight_d,
    bias_d,
    NORM_DTYPE: tl.constexpr,
    WEIGHT_DTYPE: tl.constexpr,
    BIAS_DTYPE: tl.constexpr,
    SCALE_DTYPE: tl.constexpr,
    PRODUCT_DTYPE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    ROWS64: tl.constexpr,
    COLS64: tl.constexpr,
):
    row, row_mask = tile_rows(rows, BLOCK_R, ROWS64)
    b = row // tokens
    l = row - b * tokens
    x_row = x + b.to(tl.int64) * x_b + l.to(tl.int64) * x_l
    y_row = y + row.to(tl.int64) * width
    shift_row = shift + modulation_row(
        b, l, shift_b, shift_t, shift_tokens, shift_index, shift_index_b, shift_index_l, row_mask
    )
    scale_row = scale + modulation_row(
        b, l, scale_b, scale_t, scale_tokens, scale_index, scale_index_b, scale_index_l, row_mask
    )

    # Two passes: the mean first, then the squares of the deviations. One pass (E[x^2] - mean^2) cancels
    # at a mean offset of 30 sigma.
    if ONE_BLOCK:
        column = tile_columns(0, BLOCK_D, COLS64)
        mask = row_mask & (column < width)
        values = tl.load(x_row + column * x_d, mask=mask, other=0.0).to(tl.float32)
        mean = tl.sum(values, axis=1, keep_dims=True) / width
        deviation = tl.where(mask, values - mean, 0.0)
        variance = tl.sum(deviation * deviation, axis=1, keep_dims=True) / width
    else:
        total = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
        for start in range(0, width, BLOCK_D):
            column = tile_columns(start, BLOCK_D, COLS64)
            mask = row_mask & (column < width)
            total += tl.load(x_row + column * x_d, mask=mask, other=0.0).to(tl.float32)
        mean = tl.sum(total, axis=1, keep_dims=True) / width
        squares = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
        for start in range(0, width, BLOCK_D):
            column = tile_columns(start, BLOCK_D, COLS64)
            mask = row_mask & (column < width)
            values = tl.load(x_row + column * x_d, mask=mask, other=0.0).to(tl.float32)
            deviation = tl.where(mask, values - mean, 0.0)
            squares += deviation * deviation
        variance = tl.sum(squares, axis=1, keep_dims=True) / width
    # Correctly rounded root and quotient, once a row: rsqrt.approx alone may be 2 ulp off.
    rstd = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))

    for start in range(0, width, BLOCK_D):
        if not ONE_BLOCK:
            column = tile_columns(start, BLOCK_D, COLS64)
            mask = row_mask & (column < width)
            deviation = tl.load(x_row + column * x_d, mask=mask, other=0.0).to(tl.float32) - mean
        value = rounded(deviation * rstd, NORM_DTYPE)
        if weight is not None:
            w = tl.load(weight + column * weight_d, mask=column < width, other=0.0).to(tl.float32)
            value = rounded(value * w, WEIGHT_DTYPE)
        if bias is not None:
            c = tl.load(bias + column * bias_d, mask=column < width, other=0.0).to(tl.float32)
            value = rounded(value + c, BIAS_DTYPE)
        factor = 1.0 + tl.load(scale_row + column * scale_d, mask=mask, other=0.0).to(tl.float32)
        value = rounded(value * rounded(factor, SCALE_DTYPE), PRODUCT_DTYPE)
        value += tl.load(shift_row + column * shift_d, mask=mask, other=0.0).to(tl.float32)
        tl.store(y_row + column, value.to(y.dtype.element_ty), mask=mask)


def _launch(
    x: Tensor,
    shift: ModulationArguments,
    scale: ModulationArguments,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    casting_mode: str,
) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    batch, tokens, width = x.shape
    rows = batch * tokens
    tile = tile_for(rows, width)

    norm = weighted = biased = one_plus_scale = product = torch.float32
    if casting_mode == "input":
        norm = x.dtype
        weighted = norm if weight is None else promoted(norm, weight)
        biased = weighted if bias is None else promoted(weighted, bias)
        one_plus_scale = scale.values.dtype
        product = promoted(biased, scale.values)

    weight_d = 0 if weight is None else weight.stride(0)
    bias_d = 0 if bias is None else bias.stride(0)
    with same_device(x):
        _layer_norm_scale_shift_kernel[tile.grid](
            x,
            shift.values,
            scale.values,
            weight,
            bias,
            y,
            rows,
            tokens,
            width,
            float(eps),
            *x.stride(),
            *shift.strides,
            shift.index,
            *shift.index_strides,
            *scale.strides,
            scale.index,
            *scale.index_strides,
            weight_d,
            bias_d,
            NORM_DTYPE=TL_DTYPE[norm],
            WEIGHT_DTYPE=TL_DTYPE[weighted],
            BIAS_DTYPE=TL_DTYPE[biased],
            SCALE_DTYPE=TL_DTYPE[one_plus_scale],
            PRODUCT_DTYPE=TL_DTYPE[product],
            BLOCK_R=tile.block_r,
            BLOCK_D=tile.block_d,
            ONE_BLOCK=width <= tile.block_d,
            ROWS64=rows + tile.block_r >= 2**31,
            COLS64=columns_need_int64(width, x.stride(2), shift.strides[2], scale.strides[2], weight_d, bias_d),
            num_warps=tile.num_warps,
        )
    return y


def layer_norm_scale_shift(
    x: Tensor,
    shift: Modulation,
    scale: Modulation,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "float32",
) -> Tensor:
    """LayerNorm over the last dimension, then ``* (1 + scale) + shift``, in one launch.

    Args:
        x: ``[B, L, D]``, float32, float16 or bfloat16, any strides.
        shift, scale: any form of `reference_ops._contract.modulation_strides`, read where they lie.
        weight, bias: ``[D]`` each or None, independently; applied before the modulation.
        eps: added to the biased variance, inside the square root.
        casting_mode: ``"float32"``: float32 throughout, rounded once, at the end. ``"input"``: rounded
            where the eager chain in ``x.dtype`` rounds (see the reference op).

    Returns:
        y ``[B, L, D]`` in ``x.dtype``, contiguous.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected; nothing was launched.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    strides = check_modulated_norm(
        "layer_norm_scale_shift",
        x,
        {"shift": shift, "scale": scale},
        {"weight": weight, "bias": bias},
        eps,
        casting_mode,
        float64=False,
    )
    require_device("layer_norm_scale_shift", x)
    return _launch(
        x,
        modulation_arguments(shift, strides["shift"]),
        modulation_arguments(scale, strides["scale"]),
        weight,
        bias,
        eps,
        casting_mode,
    )
