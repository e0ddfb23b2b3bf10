"""RMSNorm of the queries and the keys, and their rotary embedding, in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_ops._launch import angle_rows, contiguous_rows, empty, head_rows, launch, require_device, tile_for, vector
from fused_ops._rotation import rotate_rows
from reference_ops.contract import check_no_grad, check_qk_rope


@triton.jit(do_not_specialize=["q_rows", "k_rows"])
def _qk_norm_rope_kernel(
    q,
    k,
    q_weight,
    k_weight,
    cos,
    sin,
    k_cos,
    k_sin,
    q_out,
    k_out,
    q_rows,
    k_rows,
    pairs,
    width,
    eps,
    INTERLEAVED: tl.constexpr,
    PASS_THROUGH: tl.constexpr,
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
        rotate_rows(
            program,
            q,
            cos,
            sin,
            q_out,
            q_rows,
            pairs,
            width,
            BLOCK_R,
            BLOCK_D,
            ONE_BLOCK,
            WIDE,
            INTERLEAVED,
            PASS_THROUGH,
            INPLACE,
            True,
            INPUT_CASTING,
            q_weight,
            eps,
        )
    else:
        rotate_rows(
            program - q_programs,
            k,
            k_cos,
            k_sin,
            k_out,
            k_rows,
            pairs,
            width,
            BLOCK_R,
            BLOCK_D,
            ONE_BLOCK,
            WIDE,
            INTERLEAVED,
            PASS_THROUGH,
            INPLACE,
            True,
            INPUT_CASTING,
            k_weight,
            eps,
        )


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float = 1e-6,
    *,
    interleaved: bool = True,
    casting_mode: str = "float32",
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """`rms_norm` of q and of k over head_dim, then `rotary_embedding` of each; one launch for both.

    Args:
        q, k: ``[B, S, H, head_dim]``, float32, float16 or bfloat16, any strides; the head counts and the
            dtypes of the two may differ.
        q_weight, k_weight: ``[head_dim]`` of any of those dtypes, or None.
        cos, sin: ``[S, Dr/2]`` or ``[B, S, Dr/2]``, 2 <= Dr <= head_dim. Channels from Dr on are normalised
            but not rotated.
        eps: added to the mean square, inside the square root.
        interleaved: pair channels 2i and 2i+1; False: channels i and i + Dr/2.
        casting_mode: ``"float32"``: float32 throughout, rounded once, at the end. ``"input"``: the
            normalised value and its product with the weight are rounded to ``x.dtype`` as in `rms_norm`;
            the rotation is float32, rounded once, as in `rotary_embedding`.
        inplace: write the results into q and k and return those tensors; see `qk_norm`.

    Returns:
        (q, k) normalised and rotated, each of its input's shape and dtype; contiguous unless inplace.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected; nothing was launched.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    if torch.compiler.is_compiling():
        check_no_grad("qk_norm_rope", q=q, k=k, q_weight=q_weight, k_weight=k_weight, cos=cos, sin=sin)
        if inplace:
            _registered_inplace(q, k, q_weight, k_weight, cos, sin, eps, interleaved, casting_mode)
            return q, k
        return _registered(q, k, q_weight, k_weight, cos, sin, eps, interleaved, casting_mode)
    check_qk_rope(q, k, q_weight, k_weight, cos, sin, eps, interleaved, casting_mode, inplace, float64=False)
    require_device("qk_norm_rope", "q", q)
    q_rows, k_rows = head_rows(q), head_rows(k)
    q_out, k_out = (q, k) if inplace else (empty(q), empty(k))
    pairs, width = cos.shape[-1], q.shape[-1]
    tensors = (
        q_rows,
        k_rows,
        vector(q_weight),
        vector(k_weight),
        angle_rows(cos, q),
        angle_rows(sin, q),
        angle_rows(cos, k),
        angle_rows(sin, k),
        q_rows if inplace else contiguous_rows(q_out),
        k_rows if inplace else contiguous_rows(k_out),
    )
    launch(
        _qk_norm_rope_kernel,
        q,
        tile_for(2 * pairs if interleaved else pairs),
        tensors,
        (q.numel() // width, k.numel() // width),
        (pairs, width),
        eps=float(eps),
        INTERLEAVED=interleaved,
        PASS_THROUGH=2 * pairs < width,
        INPUT_CASTING=casting_mode == "input",
        INPLACE=inplace,
    )
    return q_out, k_out


@torch.library.custom_op("fused_ops::qk_norm_rope", mutates_args=())
def _registered(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    interleaved: bool,
    casting_mode: str,
) -> tuple[Tensor, Tensor]:
    return qk_norm_rope(q, k, q_weight, k_weight, cos, sin, eps, interleaved=interleaved, casting_mode=casting_mode)


@_registered.register_fake
def _(q: Tensor, k: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return empty(q), empty(k)


@torch.library.custom_op("fused_ops::qk_norm_rope_", mutates_args=("q", "k"))
def _registered_inplace(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    interleaved: bool,
    casting_mode: str,
) -> None:
    qk_norm_rope(
        q, k, q_weight, k_weight, cos, sin, eps, interleaved=interleaved, casting_mode=casting_mode, inplace=True
    )


@_registered_inplace.register_fake
def _(*_: object) -> None:
    return None
