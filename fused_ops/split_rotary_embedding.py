"""Rotary position embedding of heads that lie side by side in the last dimension, in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_ops._launch import Rows, empty, launch, require_device, tile_for
from fused_ops._rotation import rotate_rows
from reference_ops.contract import check_no_grad, check_split_rotary


@triton.jit(do_not_specialize=["rows"])
def _split_rotary_embedding_kernel(
    x,
    cos,
    sin,
    y,
    rows,
    pairs,
    width,
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
        INTERLEAVED=False,
        PASS_THROUGH=False,
        INPLACE=False,
    )


def split_rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head: ``(a, b) -> (a * cos - b * sin, b * cos + a * sin)``; one launch.

    Float32 throughout, rounded once, at the end.

    Args:
        x: ``[B, S, H*Dh]``, float32, float16 or bfloat16, any strides.
        cos, sin: ``[B, H, S, Dh/2]``, any of those dtypes.

    Returns:
        y ``[B, S, H*Dh]`` in ``x.dtype``, contiguous.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected; nothing was launched.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    if torch.compiler.is_compiling():
        check_no_grad("split_rotary_embedding", x=x, cos=cos, sin=sin)
        return _registered(x, cos, sin)
    check_split_rotary(x, cos, sin, float64=False)
    require_device("split_rotary_embedding", "x", x)
    y = empty(x)
    B, H, S, pairs = cos.shape
    head_dim = 2 * pairs
    batch, token, column = x.stride()
    # A row of the launch is one head of one token.
    sizes = (H, S)
    x_rows = Rows(x, column, sizes, (head_dim * column, token, batch))
    y_rows = Rows(y, 1, (), (head_dim,))
    cos_rows, sin_rows = (Rows(t, t.stride(3), sizes, (t.stride(1), t.stride(2), t.stride(0))) for t in (cos, sin))
    launch(
        _split_rotary_embedding_kernel,
        x,
        tile_for(pairs),
        (x_rows, cos_rows, sin_rows, y_rows),
        (B * S * H,),
        (pairs, head_dim),
    )
    return y


@torch.library.custom_op("fused_ops::split_rotary_embedding", mutates_args=())
def _registered(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return split_rotary_embedding(x, cos, sin)


@_registered.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return empty(x)
