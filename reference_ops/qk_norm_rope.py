"""RMSNorm of the queries and the keys, and their rotary embedding."""

import torch
from torch import Tensor

from reference_ops.contract import check_qk_rope, compute_dtype
from reference_ops.rms_norm import float32_rms_norm, input_rms_norm
from reference_ops.rotary_embedding import rotate_heads


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
    """`rms_norm` of q and of k over head_dim, then `rotary_embedding` of each.

    Args:
        q, k: ``[B, S, H, head_dim]``, float32, float16, bfloat16 (or float64: the truth); the head counts
            and the dtypes of the two may differ.
        q_weight, k_weight: ``[head_dim]`` of any of those dtypes, or None.
        cos, sin: ``[S, Dr/2]`` or ``[B, S, Dr/2]``, 2 <= Dr <= head_dim. Channels from Dr on are normalised
            but not rotated.
        eps: added to the mean square, inside the square root.
        interleaved: pair channels 2i and 2i+1; False: channels i and i + Dr/2.
        casting_mode: ``"float32"``: norm and rotation in float32 and one rounding at the end. ``"input"``:
            the chain of the two ops: the normalised value is rounded to ``x.dtype``, its product with the
            weight follows PyTorch's promotion and is cast to ``x.dtype``; then the rotation follows
            PyTorch's promotion, as in `rotary_embedding`.
        inplace: write the results into q and k and return those tensors; see `qk_norm`.

    Returns:
        (q, k) normalised and rotated, each of its input's shape and dtype.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    check_qk_rope(q, k, q_weight, k_weight, cos, sin, eps, interleaved, casting_mode, inplace, float64=True)
    results = []
    for x, weight in ((q, q_weight), (k, k_weight)):
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if casting_mode == "float32":
            wide = compute_dtype(x)
            rotate_heads(float32_rms_norm(x, weight, eps), cos.to(wide), sin.to(wide), interleaved, y)
        else:
            rotate_heads(input_rms_norm(x, weight, eps).to(x.dtype), cos, sin, interleaved, y)
        results.append(y)
    return (q.copy_(results[0]), k.copy_(results[1])) if inplace else (results[0], results[1])
