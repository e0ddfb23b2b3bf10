"""Rotary position embedding in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_ops._launch import angle_rows, contiguous_rows, empty, head_rows, launch, require_device, tile_for
from fused_ops._rotation import rotate_rows
from reference_ops.contract import check_no_grad, check_rotary


@triton.jit(do_not_specialize=["rows"])
def _rotary_embedding_kernel(
    x,
    cos,
    sin,
    y,
    rows,
    pairs,
    width,
    INTERLEAVED: tl.constexpr,
    PASS_THROUGH: tl.constexpr,
    INPLACE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    rotate_rows(
        tl.program_id(0),
        x,
        cos,
        sin,
        y,
        rows,
        pairs,
        width,
        BLOCK_R,
        BLOCK_D,
        ONE_BLOCK,
        WIDE,
        INTERLEAVED,
        PASS_THROUGH,
        INPLACE,
    )


def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = True, inplace: bool = False) -> Tensor:
    """Rotate pairs of channels: ``(a, b) -> (a * cos - b * sin, a * sin + b * cos)``; one launch.

    Products and sum are float32 whatever the dtypes, rounded once, to ``x.dtype``.

    Args:
        x: ``[B, S, H, head_dim]``, float32, float16 or bfloat16, any strides.
        cos, sin: ``[S, Dr/2]`` or ``[B, S, Dr/2]``, 2 <= Dr <= head_dim, any of those dtypes; one row
            serves all heads. Channels from Dr on pass through.
        interleaved: pair channels 2i and 2i+1; False: channels i and i + Dr/2.
        inplace: write the result into x, whatever its strides, and return x.

    Returns:
        y ``[B, S, H, head_dim]`` in ``x.dtype``, contiguous; x itself if inplace.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected; nothing was launched.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    if torch.compiler.is_compiling():
        check_no_grad("rotary_embedding", x=x, cos=cos, sin=sin)
        if inplace:
            _registered_inplace(x, cos, sin, interleaved)
            return x
        return _registered(x, cos, sin, interleaved)
    check_rotary(x, cos, sin, interleaved, inplace, float64=False)
    require_device("rotary_embedding", "x", x)
    x_rows = head_rows(x)
    y = x if inplace else empty(x)
    pairs, width = cos.shape[-1], x.shape[-1]
    launch(
        _rotary_embedding_kernel,
        x,
        tile_for(2 * pairs if interleaved else pairs),
        (x_rows, angle_rows(cos, x), angle_rows(sin, x), x_rows if inplace else contiguous_rows(y)),
        (x.numel() // width,),
        (pairs, width),
        INTERLEAVED=interleaved,
        PASS_THROUGH=2 * pairs < width,
        INPLACE=inplace,
    )
    return y


@torch.library.custom_op("fused_ops::rotary_embedding", mutates_args=())
def _registered(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    return rotary_embedding(x, cos, sin, interleaved=interleaved)


@_registered.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return empty(x)


@torch.library.custom_op("fused_ops::rotary_embedding_", mutates_args=("x",))
def _registered_inplace(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> None:
    rotary_embedding(x, cos, sin, interleaved=interleaved, inplace=True)


@_registered_inplace.register_fake
def _(*_: object) -> None:
    return None
