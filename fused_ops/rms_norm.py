"""RMSNorm over the last dimension in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_ops._launch import contiguous_rows, empty, launch, require_device, rows_of, tile_for, vector
from fused_ops._norm import norm_rows
from reference_ops.contract import check_casting_mode, check_no_grad, check_norm


@triton.jit(do_not_specialize=["rows"])
def _rms_norm_kernel(
    x,
    weight,
    y,
    rows,
    width,
    eps,
    INPUT_CASTING: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    norm_rows(
        tl.program_id(0), x, y, rows, width, eps, BLOCK_R, BLOCK_D, ONE_BLOCK, WIDE, False, INPUT_CASTING, weight=weight
    )


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, *, casting_mode: str = "float32") -> Tensor:
    """RMSNorm over the last dimension: ``x / sqrt(mean(x^2) + eps) * weight``; one launch.

    Args:
        x: ``[..., D]``, float32, float16 or bfloat16, any strides.
        weight: ``[D]`` of any of those dtypes, or None.
        eps: added to the mean square, inside the square root.
        casting_mode: ``"float32"``: float32 throughout, rounded once, at the end. ``"input"``: rounded
            where the eager chain in ``x.dtype`` rounds (see the reference op).

    Returns:
        y, of x's shape and dtype, contiguous.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected; nothing was launched.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    if torch.compiler.is_compiling():
        check_no_grad("rms_norm", x=x, weight=weight)
        return _registered(x, weight, eps, casting_mode)
    check_norm("rms_norm", x, {"weight": weight}, eps, float64=False)
    check_casting_mode("rms_norm", casting_mode)
    require_device("rms_norm", "x", x)
    y = empty(x)
    width = x.shape[-1]
    launch(
        _rms_norm_kernel,
        x,
        tile_for(width),
        (rows_of(x), vector(weight), contiguous_rows(y)),
        (x.numel() // width,),
        (width,),
        eps=float(eps),
        INPUT_CASTING=casting_mode == "input",
    )
    return y


@torch.library.custom_op("fused_ops::rms_norm", mutates_args=())
def _registered(x: Tensor, weight: Tensor | None, eps: float, casting_mode: str) -> Tensor:
    return rms_norm(x, weight, eps, casting_mode=casting_mode)


@_registered.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return empty(x)
