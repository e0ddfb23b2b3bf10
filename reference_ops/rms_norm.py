"""RMSNorm over the last dimension."""

import torch
from torch import Tensor
from torch.nn import functional

from reference_ops.contract import check_casting_mode, check_norm, compute_dtype


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, *, casting_mode: str = "float32") -> Tensor:
    """RMSNorm over the last dimension: ``x / sqrt(mean(x^2) + eps) * weight``.

    Args:
        x: ``[..., D]``, float32, float16, bfloat16 (or float64: the truth).
        weight: ``[D]`` of any of those dtypes, or None.
        eps: added to the mean square, inside the square root.
        casting_mode: ``"float32"``: every step in float32 and one rounding at the end, as in
            ``torch.nn.RMSNorm`` (Helios' norm_q and norm_k over the full width).
            ``"input"``: FLUX' and Hunyuan3D-2's own RMSNorm: the normalised value is computed in float32
            and rounded to ``x.dtype``; the product with the weight follows PyTorch's promotion.

    Returns:
        y, of x's shape and dtype.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    check_norm("rms_norm", x, {"weight": weight}, eps, float64=True)
    check_casting_mode("rms_norm", casting_mode)
    if casting_mode == "float32":
        return float32_rms_norm(x, weight, eps).to(x.dtype)
    return input_rms_norm(x, weight, eps).to(x.dtype)


def float32_rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The norm of ``casting_mode="float32"`` before its rounding: float32, or float64 for a float64 x."""
    wide = compute_dtype(x)
    return functional.rms_norm(x.to(wide), x.shape[-1:], None if weight is None else weight.to(wide), eps)


def input_rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The norm of ``casting_mode="input"``, in the dtype that x and weight promote to."""
    values = x.to(compute_dtype(x))
    rstd = torch.rsqrt(torch.mean(values**2, dim=-1, keepdim=True) + eps)
    normalised = (values * rstd).to(x.dtype)
    return normalised if weight is None else normalised * weight
