"""Modulation in one launch: ``x * (scale_constant + scale) + shift``."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_ops._launch import (
    block_columns,
    contiguous_rows,
    empty,
    launch,
    load,
    modulation,
    modulation_pointers,
    modulation_rows,
    require_device,
    row_pointers,
    store,
    table_and_index,
    tile_for,
    tile_rows,
    token_rows,
)
from fused_ops._norm import modulated
from reference_ops.contract import Modulation, check_modulated, check_no_grad, check_number


@triton.jit(do_not_specialize=["rows", "tokens"])
def _scale_shift_kernel(
    x,
    shift,
    scale,
    y,
    rows,
    width,
    tokens,
    scale_constant,
    INPUT_CASTING: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    row, row_mask = tile_rows(tl.program_id(0), rows, BLOCK_R, WIDE)
    x_at = row_pointers(x, row)
    y_at = row_pointers(y, row)
    shift_at = modulation_pointers(shift, row, rows, tokens)
    scale_at = modulation_pointers(scale, row, rows, tokens)
    DTYPE: tl.constexpr = x.data.dtype.element_ty
    stop = BLOCK_D if ONE_BLOCK else width
    for start in range(0, stop, BLOCK_D):
        column = block_columns(start, BLOCK_D, WIDE)
        mask = row_mask & (column < width)
        value = load(x_at, x, column, mask)
        value = modulated(
            value, DTYPE, shift_at, shift, scale_at, scale, scale_constant, column, mask, INPUT_CASTING, DTYPE
        )
        store(y_at, y, column, value, mask)


def scale_shift(
    x: Tensor, shift: Modulation, scale: Modulation, scale_constant: float = 1.0, *, casting_mode: str = "float32"
) -> Tensor:
    """``x * (scale_constant + scale) + shift``; one launch.

    Args:
        x: ``[B, L, D]``, float32, float16 or bfloat16, any strides.
        shift, scale: any form of `reference_ops.contract.forms.modulation_strides`, read where they lie.
        scale_constant: added to the scale, as a float32; 0 makes the scale a plain factor.
        casting_mode: ``"float32"``: float32 throughout, rounded once, at the end. ``"input"``: rounded
            where the eager chain in ``x.dtype`` rounds (see the reference op).

    Returns:
        y ``[B, L, D]`` in ``x.dtype``, contiguous.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected; nothing was launched.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    op = "scale_shift"
    if torch.compiler.is_compiling():
        check_no_grad(op, x=x, shift=shift, scale=scale)
        return _registered(x, *table_and_index(shift), *table_and_index(scale), scale_constant, casting_mode)
    strides = check_modulated(op, x, {"shift": shift, "scale": scale}, casting_mode, float64=False)
    check_number(op, "scale_constant", scale_constant)
    require_device(op, "x", x)
    y = empty(x)
    batch, tokens, width = x.shape
    tensors = (
        token_rows(x),
        modulation_rows(shift, strides["shift"]),
        modulation_rows(scale, strides["scale"]),
        contiguous_rows(y),
    )
    launch(
        _scale_shift_kernel,
        x,
        tile_for(width),
        tensors,
        (batch * tokens,),
        (width,),
        tokens=tokens,
        scale_constant=float(scale_constant),
        INPUT_CASTING=casting_mode == "input",
    )
    return y


@torch.library.custom_op("fused_ops::scale_shift", mutates_args=())
def _registered(
    x: Tensor,
    shift: Tensor,
    shift_index: Tensor | None,
    scale: Tensor,
    scale_index: Tensor | None,
    scale_constant: float,
    casting_mode: str,
) -> Tensor:
    shift_rows, scale_rows = modulation(shift, shift_index), modulation(scale, scale_index)
    return scale_shift(x, shift_rows, scale_rows, scale_constant, casting_mode=casting_mode)


@_registered.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return empty(x)
