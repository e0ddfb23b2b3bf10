"""Rotary position embedding of heads that lie side by side in the last dimension."""

from torch import Tensor

from reference_ops.contract import check_split_rotary, compute_dtype


def split_rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head: ``(a, b) -> (a * cos - b * sin, b * cos + a * sin)``.

    The chain of diffusers' ``apply_split_rotary_emb`` (LTX-2), ``addcmul_`` included: every step in
    float32, one rounding at the end.

    Args:
        x: ``[B, S, H*Dh]``, float32, float16, bfloat16 (or float64: the truth).
        cos, sin: ``[B, H, S, Dh/2]``, any of those dtypes.

    Returns:
        y ``[B, S, H*Dh]`` in ``x.dtype``.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    check_split_rotary(x, cos, sin, float64=True)
    B, S, _ = x.shape
    H, pairs = cos.shape[1], cos.shape[3]
    wide = compute_dtype(x)
    cos, sin = cos.to(wide), sin.to(wide)
    heads = x.reshape(B, S, H, 2, pairs).permute(3, 0, 2, 1, 4).to(wide)
    out = heads * cos
    out[0].addcmul_(-sin, heads[1])
    out[1].addcmul_(sin, heads[0])
    return out.permute(1, 3, 2, 0, 4).reshape(x.shape).to(x.dtype)
