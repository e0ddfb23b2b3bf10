"""The gated residual in one launch: ``residual + x * gate``."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_ops._launch import (
    block_columns,
    contiguous_rows,
    empty,
    gate_modulation,
    launch,
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
from fused_ops._norm import gated_sum
from reference_ops.contract import Modulation, check_modulated, check_no_grad


@triton.jit(do_not_specialize=["rows", "tokens"])
def _residual_gate_add_kernel(
    residual,
    x,
    gate,
    y,
    rows,
    width,
    tokens,
    INPUT_CASTING: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    row, row_mask = tile_rows(tl.program_id(0), rows, BLOCK_R, WIDE)
    residual_at = row_pointers(residual, row)
    x_at = row_pointers(x, row)
    y_at = row_pointers(y, row)
    gate_at = None
    if gate is not None:
        gate_at = modulation_pointers(gate, row, rows, tokens)
    stop = BLOCK_D if ONE_BLOCK else width
    for start in range(0, stop, BLOCK_D):
        column = block_columns(start, BLOCK_D, WIDE)
        mask = row_mask & (column < width)
        value = gated_sum(residual_at, residual, x_at, x, gate_at, gate, column, mask, INPUT_CASTING)
        store(y_at, y, column, value, mask)


def residual_gate_add(residual: Tensor, x: Tensor, gate: Modulation | None, *, casting_mode: str = "float32") -> Tensor:
    """``residual + x * gate``; one launch.

    Args:
        residual, x: ``[B, L, D]``, of one dtype: float32, float16 or bfloat16, any strides.
        gate: any form of `reference_ops.contract.forms.modulation_strides`, read where it lies; None means 1.
        casting_mode: ``"float32"``: float32 throughout, rounded once, at the end. ``"input"``: rounded
            where the eager chain in ``x.dtype`` rounds (see the reference op).

    Returns:
        y ``[B, L, D]`` in ``x.dtype``, contiguous.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected; nothing was launched.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    op = "residual_gate_add"
    if torch.compiler.is_compiling():
        check_no_grad(op, residual=residual, x=x, gate=gate)
        return _registered(residual, x, *table_and_index(gate), casting_mode)
    strides = check_modulated(op, x, {"gate": gate}, casting_mode, float64=False, like_x={"residual": residual})
    require_device(op, "x", x)
    y = empty(x)
    batch, tokens, width = x.shape
    launch(
        _residual_gate_add_kernel,
        x,
        tile_for(width),
        (token_rows(residual), token_rows(x), modulation_rows(gate, strides["gate"]), contiguous_rows(y)),
        (batch * tokens,),
        (width,),
        tokens=tokens,
        INPUT_CASTING=casting_mode == "input",
    )
    return y


@torch.library.custom_op("fused_ops::residual_gate_add", mutates_args=())
def _registered(
    residual: Tensor, x: Tensor, gate: Tensor | None, gate_index: Tensor | None, casting_mode: str
) -> Tensor:
    return residual_gate_add(residual, x, gate_modulation(gate, gate_index), casting_mode=casting_mode)


@_registered.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return empty(x)
