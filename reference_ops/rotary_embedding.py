"""Rotary position embedding."""

import torch
from torch import Tensor

from reference_ops.contract import check_rotary


def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = True, inplace: bool = False) -> Tensor:
    """Rotate pairs of channels: ``(a, b) -> (a * cos - b * sin, a * sin + b * cos)``.

    The arithmetic of diffusers' ``apply_rotary_emb_transposed`` (Helios q and k, whose cos and sin are
    float32): products and their sum follow PyTorch's promotion of x with cos and sin, then one cast to
    ``x.dtype``. So a float32 ``cos`` makes the chain float32 with a single rounding; with all three in
    bfloat16 each product and the sum are rounded to bfloat16.

    Args:
        x: ``[B, S, H, head_dim]``, float32, float16, bfloat16 (or float64: the truth).
        cos, sin: ``[S, Dr/2]`` or ``[B, S, Dr/2]``, 2 <= Dr <= head_dim, any of those dtypes; one row
            serves all heads. Channels from Dr on pass through.
        interleaved: pair channels 2i and 2i+1 (Helios); False: channels i and i + Dr/2.
        inplace: write the result into x, whatever its strides, and return x.

    Returns:
        y ``[B, S, H, head_dim]`` in ``x.dtype``; x itself if inplace.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    check_rotary(x, cos, sin, interleaved, inplace, float64=True)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rotate_heads(x, cos, sin, interleaved, y)
    return x.copy_(y) if inplace else y


def rotate_heads(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, out: Tensor) -> None:
    """The chain itself, for checked arguments; rounds once into out ``[B, S, H, head_dim]``."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    pairs = cos.shape[-1]
    firsts, seconds = (
        (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)) if interleaved else (slice(0, pairs), slice(pairs, 2 * pairs))
    )
    a, b = x[..., firsts], x[..., seconds]
    out[..., firsts] = a * cos - b * sin
    out[..., seconds] = a * sin + b * cos
    out[..., 2 * pairs :] = x[..., 2 * pairs :]
