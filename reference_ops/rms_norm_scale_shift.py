"""RMSNorm and its modulation: ``rms_norm(x) * (1 + scale) + shift``."""

from torch import Tensor

from reference_ops.contract import Modulation, check_modulated_norm
from reference_ops.rms_norm import float32_rms_norm, input_rms_norm
from reference_ops.scale_shift import modulate


def rms_norm_scale_shift(
    x: Tensor,
    shift: Modulation,
    scale: Modulation,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "float32",
) -> Tensor:
    """RMSNorm over the last dimension, then ``* (1 + scale) + shift``.

    Args:
        x: ``[B, L, D]``, float32, float16, bfloat16 (or float64: the truth).
        shift, scale: any form of `modulation_strides`, any of those dtypes.
        weight: ``[D]`` or None; applied before the modulation.
        eps: added to the mean square, inside the square root.
        casting_mode: ``"float32"``: ``(rms_norm(x.float()) * (1 + scale) + shift).type_as(x)``: every step
            in float32 and one rounding at the end. ``"input"``: the chain in the working dtype, with the
            RMSNorm of FLUX and Hunyuan3D-2: the normalised value is rounded to ``x.dtype``; weight,
            ``1 + scale``, product and sum then follow PyTorch's promotion.

    Returns:
        y ``[B, L, D]`` in ``x.dtype``.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    check_modulated_norm(
        "rms_norm_scale_shift",
        x,
        {"shift": shift, "scale": scale},
        {"weight": weight},
        eps,
        casting_mode,
        float64=True,
    )
    return modulated_rms_norm(x, shift, scale, weight, eps, casting_mode)


def modulated_rms_norm(
    x: Tensor, shift: Modulation, scale: Modulation, weight: Tensor | None, eps: float, casting_mode: str
) -> Tensor:
    """The chain itself, for checked arguments."""
    norm = float32_rms_norm if casting_mode == "float32" else input_rms_norm
    return modulate(norm(x, weight, eps), shift, scale, casting_mode).to(x.dtype)
