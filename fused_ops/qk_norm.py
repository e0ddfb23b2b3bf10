"""RMSNorm of the queries and the keys in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_ops._launch import contiguous_rows, empty, launch, require_device, rows_of, tile_for, vector
from fused_ops._norm import norm_rows
from reference_ops.contract import check_inplace, check_no_grad, check_qk


@triton.jit(do_not_specialize=["q_rows", "k_rows"])
def _qk_norm_kernel(
    q,
    k,
    q_weight,
    k_weight,
    q_out,
    k_out,
    q_rows,
    k_rows,
    width,
    eps,
    INPUT_CASTING: tl.constexpr,
    INPLACE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    # The first programs take the rows of q, the others those of k.
    program = tl.program_id(0)
    q_programs = tl.cdiv(q_rows, BLOCK_R)
    if program < q_programs:
        norm_rows(
            program,
            q,
            q_out,
            q_rows,
            width,
            eps,
            BLOCK_R,
            BLOCK_D,
            ONE_BLOCK,
            WIDE,
            False,
            INPUT_CASTING,
            INPLACE,
            weight=q_weight,
        )
    else:
        norm_rows(
            program - q_programs,
            k,
            k_out,
            k_rows,
            width,
            eps,
            BLOCK_R,
            BLOCK_D,
            ONE_BLOCK,
            WIDE,
            False,
            INPUT_CASTING,
            INPLACE,
            weight=k_weight,
        )


def qk_norm(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "float32",
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """`rms_norm` of q and of k, each over its last dimension; one launch for both.

    Args:
        q, k: ``[..., head_dim]``, float32, float16 or bfloat16, any strides; the leading shapes and the
            dtypes of the two may differ.
        q_weight, k_weight: ``[head_dim]`` of any of those dtypes, or None.
        eps: added to the mean square, inside the square root.
        casting_mode: as in `rms_norm`.
        inplace: write the results into q and k, whatever their strides, and return those tensors. Views of
            one packed buffer are fine if they interleave without sharing an element (the exact rule:
            `reference_ops.contract.may_overlap`); q and k that overlap are refused.

    Returns:
        (q, k) normalised, each of its input's shape and dtype; contiguous unless inplace.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected; nothing was launched.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    op = "qk_norm"
    if torch.compiler.is_compiling():
        check_no_grad(op, q=q, k=k, q_weight=q_weight, k_weight=k_weight)
        if inplace:
            _registered_inplace(q, k, q_weight, k_weight, eps, casting_mode)
            return q, k
        return _registered(q, k, q_weight, k_weight, eps, casting_mode)
    check_qk(op, q, k, q_weight, k_weight, eps, casting_mode, inplace, rank=None, float64=False)
    require_device(op, "q", q)
    if inplace:
        check_inplace(op, {"q": q, "k": k}, {"q_weight": q_weight, "k_weight": k_weight})
        q_out, k_out = q, k
    else:
        q_out, k_out = empty(q), empty(k)
    q_rows, k_rows = rows_of(q), rows_of(k)
    width = q.shape[-1]
    tensors = (
        q_rows,
        k_rows,
        vector(q_weight),
        vector(k_weight),
        q_rows if inplace else contiguous_rows(q_out),
        k_rows if inplace else contiguous_rows(k_out),
    )
    launch(
        _qk_norm_kernel,
        q,
        tile_for(width),
        tensors,
        (q.numel() // width, k.numel() // width),
        (width,),
        eps=float(eps),
        INPUT_CASTING=casting_mode == "input",
        INPLACE=inplace,
    )
    return q_out, k_out


@torch.library.custom_op("fused_ops::qk_norm", mutates_args=())
def _registered(
    q: Tensor, k: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, eps: float, casting_mode: str
) -> tuple[Tensor, Tensor]:
    return qk_norm(q, k, q_weight, k_weight, eps, casting_mode=casting_mode)


@_registered.register_fake
def _(q: Tensor, k: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return empty(q), empty(k)


@torch.library.custom_op("fused_ops::qk_norm_", mutates_args=("q", "k"))
def _registered_inplace(
    q: Tensor, k: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, eps: float, casting_mode: str
) -> None:
    qk_norm(q, k, q_weight, k_weight, eps, casting_mode=casting_mode, inplace=True)


@_registered_inplace.register_fake
def _(*_: object) -> None:
    return None
