"""The gated residual: ``residual + x * gate``."""

from torch import Tensor

from reference_ops.contract import Modulation, check_modulated, compute_dtype, expand_modulation


def residual_gate_add(residual: Tensor, x: Tensor, gate: Modulation | None, *, casting_mode: str = "float32") -> Tensor:
    """``residual + x * gate``.

    Args:
        residual, x: ``[B, L, D]``, of one dtype: float32, float16, bfloat16 (or float64: the truth).
        gate: any form of `modulation_strides`, any of those dtypes; None means 1.
        casting_mode: ``"float32"``: every step in float32, one rounding at the end, as in Helios'
            ``(residual.float() + x.float() * gate).type_as(residual)`` (diffusers,
            ``HeliosTransformerBlock.forward``, whose gate is float32). ``"input"``: ``residual + gate * x``
            in the working dtype, as in FLUX and Hunyuan3D-2: product and sum follow PyTorch's promotion.

    Returns:
        y ``[B, L, D]`` in ``x.dtype``.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    check_modulated("residual_gate_add", x, {"gate": gate}, casting_mode, float64=True, like_x={"residual": residual})
    return gated_sum(residual, x, gate, casting_mode)


def gated_sum(residual: Tensor, x: Tensor, gate: Modulation | None, casting_mode: str) -> Tensor:
    """The chain itself, rounded to x's dtype, for checked arguments."""
    dtype = x.dtype
    factor = None if gate is None else expand_modulation(gate, x)
    if casting_mode == "float32":
        wide = compute_dtype(x)
        residual, x, factor = residual.to(wide), x.to(wide), None if factor is None else factor.to(wide)
    return (residual + (x if factor is None else x * factor)).to(dtype)
