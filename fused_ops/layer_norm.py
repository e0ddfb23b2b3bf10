"""LayerNorm over the last dimension in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_ops._launch import contiguous_rows, empty, launch, require_device, rows_of, tile_for, vector
from fused_ops._norm import norm_rows
from reference_ops.contract import check_no_grad, check_norm


@triton.jit(do_not_specialize=["rows"])
def _layer_norm_kernel(
    x,
    weight,
    bias,
    y,
    rows,
    width,
    eps,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    norm_rows(
        tl.program_id(0), x, y, rows, width, eps, BLOCK_R, BLOCK_D, ONE_BLOCK, WIDE, True, weight=weight, bias=bias
    )


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """LayerNorm over the last dimension, in float32, rounded once; one launch.

    Args:
        x: ``[..., D]``, float32, float16 or bfloat16, any strides.
        weight, bias: ``[D]`` each or None, independently, of any of those dtypes.
        eps: added to the biased variance, inside the square root.

    Returns:
        y, of x's shape and dtype, contiguous.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected; nothing was launched.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    if torch.compiler.is_compiling():
        check_no_grad("layer_norm", x=x, weight=weight, bias=bias)
        return _registered(x, weight, bias, eps)
    check_norm("layer_norm", x, {"weight": weight, "bias": bias}, eps, float64=False)
    require_device("layer_norm", "x", x)
    y = empty(x)
    width = x.shape[-1]
    tensors = (rows_of(x), vector(weight), vector(bias), contiguous_rows(y))
    launch(_layer_norm_kernel, x, tile_for(width), tensors, (x.numel() // width,), (width,), eps=float(eps))
    return y


@torch.library.custom_op("fused_ops::layer_norm", mutates_args=())
def _registered(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return layer_norm(x, weight, bias, eps)


@_registered.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return empty(x)
