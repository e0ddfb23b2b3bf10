"""LayerNorm and its modulation: ``layer_norm(x) * (1 + scale) + shift``."""

import torch.nn.functional as F
from torch import Tensor

from reference_ops._contract import Modulation, check_modulated_norm, compute_dtype, expand_modulation


def layer_norm_scale_shift(
    x: Tensor,
    shift: Modulation,
    scale: Modulation,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "float32",
) -> Tensor:
    """LayerNorm over the last dimension, then ``* (1 + scale) + shift``.

    Args:
        x: ``[B, L, D]``, float32, float16, bfloat16 (or float64: the truth).
        shift, scale: any form of `modulation_strides`, any of those dtypes.
        weight, bias: ``[D]`` each or None, independently; applied before the modulation.
        eps: added to the biased variance, inside the square root.
        casting_mode: ``"float32"``: every step in float32 and one rounding at the end, as in Helios'
            ``(norm(x.float()) * (1 + scale) + shift).type_as(x)`` (diffusers,
            ``HeliosTransformerBlock.forward``: norm1, norm3; ``HeliosOutputNorm``).
            ``"input"``: ``nn.LayerNorm(x) * (1 + scale) + shift`` in the working dtype, as in FLUX and
            Hunyuan3D-2 (img/txt norm1, pre_norm, norm_final): the normalised value is rounded to
            ``x.dtype``; weight, bias, ``1 + scale``, product and sum then follow PyTorch's promotion.

    Returns:
        y ``[B, L, D]`` in ``x.dtype``.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    check_modulated_norm(
        "layer_norm_scale_shift",
        x,
        {"shift": shift, "scale": scale},
        {"weight": weight, "bias": bias},
        eps,
        casting_mode,
        float64=True,
    )
    shift, scale = expand_modulation(shift, x), expand_modulation(scale, x)
    if casting_mode == "float32":
        wide = compute_dtype(x)
        normalised = F.layer_norm(
            x.to(wide),
            x.shape[-1:],
            None if weight is None else weight.to(wide),
            None if bias is None else bias.to(wide),
            eps,
        )
        return (normalised * (1 + scale.to(wide)) + shift.to(wide)).to(x.dtype)
    normalised = F.layer_norm(x, x.shape[-1:], eps=eps)
    if weight is not None:
        normalised = normalised * weight
    if bias is not None:
        normalised = normalised + bias
    return (normalised * (1 + scale) + shift).to(x.dtype)
