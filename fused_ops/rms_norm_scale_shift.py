"""RMSNorm and its modulation in one launch: ``rms_norm(x) * (1 + scale) + shift``."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_ops._launch import (
    contiguous_rows,
    empty,
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
def _rms_norm_scale_shift_kernel(
    x,
    shift,
    scale,
    weight,
    y,
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
    )


def rms_norm_scale_shift(
    x: Tensor,
    shift: Modulation,
    scale: Modulation,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "float32",
) -> Tensor:
    """RMSNorm over the last dimension, then ``* (1 + scale) + shift``; one launch.

    Args:
        x: ``[B, L, D]``, float32, float16 or bfloat16, any strides.
        shift, scale: any form of `reference_ops.contract.forms.modulation_strides`, read where they lie.
        weight: ``[D]`` or None; applied before the modulation.
        eps: added to the mean square, inside the square root.
        casting_mode: ``"float32"``: float32 throughout, rounded once, at the end. ``"input"``: rounded
            where the eager chain in ``x.dtype`` rounds (see the reference op).

    Returns:
        y ``[B, L, D]`` in ``x.dtype``, contiguous.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected; nothing was launched.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    op = "rms_norm_scale_shift"
    if torch.compiler.is_compiling():
        check_no_grad(op, x=x, shift=shift, scale=scale, weight=weight)
        return _registered(x, *table_and_index(shift), *table_and_index(scale), weight, eps, casting_mode)
    strides = check_modulated_norm(
        op,
        x,
        {"shift": shift, "scale": scale},
        {"weight": weight},
        eps,
        casting_mode,
        float64=False,
    )
    require_device(op, "x", x)
    y = empty(x)
    batch, tokens, width = x.shape
    tensors = (
        token_rows(x),
        modulation_rows(shift, strides["shift"]),
        modulation_rows(scale, strides["scale"]),
        vector(weight),
        contiguous_rows(y),
    )
    launch(
        _rms_norm_scale_shift_kernel,
        x,
        tile_for(width),
        tensors,
        (batch * tokens,),
        (width,),
        tokens=tokens,
        eps=float(eps),
        INPUT_CASTING=casting_mode == "input",
    )
    return y


@torch.library.custom_op("fused_ops::rms_norm_scale_shift", mutates_args=())
def _registered(
    x: Tensor,
    shift: Tensor,
    shift_index: Tensor | None,
    scale: Tensor,
    scale_index: Tensor | None,
    weight: Tensor | None,
    eps: float,
    casting_mode: str,
) -> Tensor:
    shift_rows, scale_rows = modulation(shift, shift_index), modulation(scale, scale_index)
    return rms_norm_scale_shift(x, shift_rows, scale_rows, weight, eps, casting_mode=casting_mode)


@_registered.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return empty(x)
