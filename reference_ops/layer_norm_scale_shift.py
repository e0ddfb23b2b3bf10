"""LayerNorm and its modulation: ``layer_norm(x) * (1 + scale) + shift``."""

from torch import Tensor
from torch.nn import functional

from reference_ops.contract import Modulation, check_modulated_norm
from reference_ops.layer_norm import float32_layer_norm
from reference_ops.scale_shift import modulate


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
        TypeError, ValueError: the message names the argument, its value and what is expected.
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
    return modulated_layer_norm(x, shift, scale, weight, bias, eps, casting_mode)


def modulated_layer_norm(
    x: Tensor,
    shift: Modulation,
    scale: Modulation,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    casting_mode: str,
) -> Tensor:
    """The chain itself, for checked arguments."""
    if casting_mode == "float32":
        return modulate(float32_layer_norm(x, weight, bias, eps), shift, scale, casting_mode).to(x.dtype)
    normalised = functional.layer_norm(x, x.shape[-1:], eps=eps)
    if weight is not None:
        normalised = normalised * weight
    if bias is not None:
        normalised = normalised + bias
    return modulate(normalised, shift, scale, casting_mode).to(x.dtype)
