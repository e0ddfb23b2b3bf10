"""LayerNorm over the last dimension."""

from torch import Tensor
from torch.nn import functional

from reference_ops.contract import check_norm, compute_dtype


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """LayerNorm over the last dimension, in float32, rounded once.

    The chain of Helios' norm2 (``self_attn_residual_norm``): diffusers' ``FP32LayerNorm``, that is
    ``F.layer_norm(x.float(), [D], weight.float(), bias.float(), eps).to(x.dtype)``.

    Args:
        x: ``[..., D]``, float32, float16, bfloat16 (or float64: the truth).
        weight, bias: ``[D]`` each or None, independently, of any of those dtypes.
        eps: added to the biased variance, inside the square root.

    Returns:
        y, of x's shape and dtype.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    check_norm("layer_norm", x, {"weight": weight, "bias": bias}, eps, float64=True)
    return float32_layer_norm(x, weight, bias, eps).to(x.dtype)


def float32_layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """The norm before its rounding: float32, or float64 for a float64 x."""
    wide = compute_dtype(x)
    return functional.layer_norm(
        x.to(wide),
        x.shape[-1:],
        None if weight is None else weight.to(wide),
        None if bias is None else bias.to(wide),
        eps,
    )
