"""Modulation: ``x * (scale_constant + scale) + shift``."""

from torch import Tensor

from reference_ops.contract import Modulation, check_modulated, check_number, compute_dtype, expand_modulation


def scale_shift(
    x: Tensor, shift: Modulation, scale: Modulation, scale_constant: float = 1.0, *, casting_mode: str = "float32"
) -> Tensor:
    """``x * (scale_constant + scale) + shift``.

    The eager form of sglang's ``fuse_scale_shift_kernel``.

    Args:
        x: ``[B, L, D]``, float32, float16, bfloat16 (or float64: the truth).
        shift, scale: any form of `modulation_strides`, any of those dtypes.
        scale_constant: added to the scale; 0 makes the scale a plain factor.
        casting_mode: ``"float32"``: every step in float32, one rounding at the end. ``"input"``: sum,
            product and sum each follow PyTorch's promotion and rounding.

    Returns:
        y ``[B, L, D]`` in ``x.dtype``.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    check_modulated("scale_shift", x, {"shift": shift, "scale": scale}, casting_mode, float64=True)
    check_number("scale_shift", "scale_constant", scale_constant)
    values = x.to(compute_dtype(x)) if casting_mode == "float32" else x
    return modulate(values, shift, scale, casting_mode, scale_constant).to(x.dtype)


def modulate(x: Tensor, shift: Modulation, scale: Modulation, casting_mode: str, scale_constant: float = 1.0) -> Tensor:
    """The modulation before its last rounding, for checked arguments.

    Scalars stand on the right: on the CPU ``scalar + tensor`` first rounds the scalar to a 16-bit tensor's
    dtype for most elements, ``tensor + scalar`` does not (torch 2.13).
    """
    shift, scale = expand_modulation(shift, x), expand_modulation(scale, x)
    if casting_mode == "float32":
        shift, scale = shift.to(compute_dtype(x)), scale.to(compute_dtype(x))
    return x * (scale + scale_constant) + shift
