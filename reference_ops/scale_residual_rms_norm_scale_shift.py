"""The gated residual, then RMSNorm, then modulation."""

from torch import Tensor

from reference_ops.contract import Modulation, check_modulated_norm
from reference_ops.residual_gate_add import gated_sum
from reference_ops.rms_norm_scale_shift import modulated_rms_norm


def scale_residual_rms_norm_scale_shift(
    residual: Tensor,
    x: Tensor,
    gate: Modulation | None,
    shift: Modulation,
    scale: Modulation,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "float32",
) -> tuple[Tensor, Tensor]:
    """``residual_out = residual + x * gate``, then ``rms_norm(residual_out) * (1 + scale) + shift``.

    The chains of `residual_gate_add` and `rms_norm_scale_shift`, one after the other.

    Args:
        residual, x: ``[B, L, D]``, of one dtype: float32, float16, bfloat16 (or float64: the truth).
        gate, shift, scale: any form of `modulation_strides`, any of those dtypes; a gate of None means 1.
        weight: ``[D]`` or None; applied before the modulation.
        eps: added to the mean square, inside the square root.
        casting_mode: as in those two ops. In both modes ``residual_out`` is rounded to its dtype and the
            norm reads the rounded value.

    Returns:
        (y, residual_out), each ``[B, L, D]`` in ``x.dtype``.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    check_modulated_norm(
        "scale_residual_rms_norm_scale_shift",
        x,
        {"gate": gate, "shift": shift, "scale": scale},
        {"weight": weight},
        eps,
        casting_mode,
        float64=True,
        like_x={"residual": residual},
    )
    residual_out = gated_sum(residual, x, gate, casting_mode)
    return modulated_rms_norm(residual_out, shift, scale, weight, eps, casting_mode), residual_out
