"""The gated residual, then RMSNorm, then modulation, in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_ops._launch import (
    contiguous_rows,
    empty,
    gate_modulation,
    launch,
    modulation,
    modulation_rows,
    require_device,
    table_and_index,
    tile_for,
    token_rows,
    vector,
)
from fused_ops._norm import norm_rows
from reference_ops.contract import Modulation, check_modulated_norm, check_no_grad


@triton.jit(do_not_specialize=["rows", "tokens"])
def _scale_residual_rms_norm_scale_shift_kernel(
    residual,
    x,
    gate,
    shift,
    scale,
    weight,
    y,
    residual_out,
    rows,
    width,
    tokens,
    eps,
    INPUT_CASTING: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    norm_rows(
        tl.program_id(0),
        x,
        y,
        rows,
        width,
        eps,
        BLOCK_R,
        BLOCK_D,
        ONE_BLOCK,
        WIDE,
        False,
        INPUT_CASTING,
        weight=weight,
        tokens=tokens,
        shift=shift,
        scale=scale,
        residual=residual,
        gate=gate,
        residual_out=residual_out,
    )


def scale_residual_rms_norm_scale_shift(
    residual: Tensor,
    x: Tensor,
    gate: Modulation | None,
    shift: Modulation,
    scale: Modulation,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "float32",
) -> tuple[Tensor, Tensor]:
    """``residual_out = residual + x * gate``, then ``rms_norm(residual_out) * (1 + scale) + shift``; one launch.

    Args:
        residual, x: ``[B, L, D]``, of one dtype: float32, float16 or bfloat16, any strides.
        gate, shift, scale: any form of `reference_ops.contract.forms.modulation_strides`, read where they lie; a
            gate of None means 1.
        weight: ``[D]`` or None; applied before the modulation.
        eps: added to the mean square, inside the square root.
        casting_mode: ``"float32"``: float32 throughout, rounded once for each result. ``"input"``: rounded
            where the eager chain in ``x.dtype`` rounds (see the reference op). In both modes the norm reads
            the rounded ``residual_out``.

    Returns:
        (y, residual_out), each ``[B, L, D]`` in ``x.dtype``, contiguous.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected; nothing was launched.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    op = "scale_residual_rms_norm_scale_shift"
    if torch.compiler.is_compiling():
        check_no_grad(op, residual=residual, x=x, gate=gate, shift=shift, scale=scale, weight=weight)
        tables = (*table_and_index(gate), *table_and_index(shift), *table_and_index(scale))
        return _registered(residual, x, *tables, weight, eps, casting_mode)
    strides = check_modulated_norm(
        op,
        x,
        {"gate": gate, "shift": shift, "scale": scale},
        {"weight": weight},
        eps,
        casting_mode,
        float64=False,
        like_x={"residual": residual},
    )
    require_device(op, "x", x)
    y, residual_out = empty(x), empty(x)
    batch, tokens, width = x.shape
    tensors = (
        token_rows(residual),
        token_rows(x),
        modulation_rows(gate, strides["gate"]),
        modulation_rows(shift, strides["shift"]),
        modulation_rows(scale, strides["scale"]),
        vector(weight),
        contiguous_rows(y),
        contiguous_rows(residual_out),
    )
    launch(
        _scale_residual_rms_norm_scale_shift_kernel,
        x,
        tile_for(width),
        tensors,
        (batch * tokens,),
        (width,),
        tokens=tokens,
        eps=float(eps),
        INPUT_CASTING=casting_mode == "input",
    )
    return y, residual_out


@torch.library.custom_op("fused_ops::scale_residual_rms_norm_scale_shift", mutates_args=())
def _registered(
    residual: Tensor,
    x: Tensor,
    gate: Tensor | None,
    gate_index: Tensor | None,
    shift: Tensor,
    shift_index: Tensor | None,
    scale: Tensor,
    scale_index: Tensor | None,
    weight: Tensor | None,
    eps: float,
    casting_mode: str,
) -> tuple[Tensor, Tensor]:
    return scale_residual_rms_norm_scale_shift(
        residual,
        x,
        gate_modulation(gate, gate_index),
        modulation(shift, shift_index),
        modulation(scale, scale_index),
        weight,
        eps,
        casting_mode=casting_mode,
    )


@_registered.register_fake
def _(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return empty(x), empty(x)
