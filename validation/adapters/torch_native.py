"""The ops composed of torch's own functions, without any kernel of ours.

They use ``F.layer_norm``, ``F.rms_norm``, ``addcmul`` and complex multiplication: on the inputs as they are if
torch computes in float32 inside and rounds once, else on float32 copies. In ``casting_mode="input"`` the normalised
value is rounded to ``x.dtype`` and each ``addcmul`` rounds its product and sum together, once: less often than
declared, which is allowed.

Expresses all twelve ops with every argument.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from reference_ops.contract import expand_modulation


def _float(row: Tensor | None) -> Tensor | None:
    return None if row is None else row.float()


def _norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, centred: bool) -> Tensor:
    """torch's norm, in x's dtype if the parameters share it, else in float32.

    x is made contiguous: the order of torch's sums follows the strides, and a slice of a batch must give the same
    bits as the batch.
    """
    x = x.contiguous()
    parameters = [t for t in (weight, bias) if t is not None]
    if any(t.dtype is not x.dtype for t in parameters):
        x, weight, bias = x.float(), _float(weight), _float(bias)
    if centred:
        return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return functional.rms_norm(x, x.shape[-1:], weight, eps)


def _multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a * b + c``, by addcmul unless b or c is 0-d.

    addcmul rounds 0-d operands to the dtype of the others, ``*`` and ``+`` use them as they are (CPU, torch
    2.13): with a float32 scale of 0.5736 on bfloat16 this causes an error of -0.2 % in every element, which the
    eager chain does not have (bias -0.35 ulp).
    """
    return a * b + c if 0 in (b.dim(), c.dim()) else torch.addcmul(c, a, b)


def _modulated(value: Tensor, x: Tensor, shift: Any, scale: Any, casting_mode: str, constant: float = 1.0) -> Tensor:
    shift, scale = expand_modulation(shift, x), expand_modulation(scale, x)
    if casting_mode == "float32":
        value, shift, scale = value.float(), shift.float(), scale.float()
    return _multiply_add(value, scale + constant, shift).to(x.dtype)


def _modulated_norm(
    x: Tensor, shift: Any, scale: Any, weight: Any, bias: Any, eps: float, casting_mode: str, *, centred: bool
) -> Tensor:
    if casting_mode == "float32":
        value = _norm(x.float(), _float(weight), _float(bias), eps, centred=centred)
    else:
        value = _norm(x, None, None, eps, centred=centred)
        if weight is not None and bias is not None:
            value = _multiply_add(value, weight, bias)
        elif weight is not None:
            value = value * weight
        elif bias is not None:
            value = value + bias
    return _modulated(value, x, shift, scale, casting_mode)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """See `reference_ops.layer_norm`."""
    return _norm(x, weight, bias, eps, centred=True).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, *, casting_mode: str = "float32") -> Tensor:
    """See `reference_ops.rms_norm`."""
    if casting_mode == "float32" or weight is None:
        return _norm(x, weight, None, eps, centred=False).to(x.dtype)
    return (_norm(x, None, None, eps, centred=False) * weight).to(x.dtype)


def layer_norm_scale_shift(
    x: Tensor,
    shift: Any,
    scale: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "float32",
) -> Tensor:
    """See `reference_ops.layer_norm_scale_shift`."""
    return _modulated_norm(x, shift, scale, weight, bias, eps, casting_mode, centred=True)


def rms_norm_scale_shift(
    x: Tensor,
    shift: Any,
    scale: Any,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "float32",
) -> Tensor:
    """See `reference_ops.rms_norm_scale_shift`."""
    return _modulated_norm(x, shift, scale, weight, None, eps, casting_mode, centred=False)


def scale_residual_layer_norm_scale_shift(
    residual: Tensor,
    x: Tensor,
    gate: Any,
    shift: Any,
    scale: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "float32",
) -> tuple[Tensor, Tensor]:
    """See `reference_ops.scale_residual_layer_norm_scale_shift`."""
    out = residual_gate_add(residual, x, gate, casting_mode=casting_mode)
    return _modulated_norm(out, shift, scale, weight, bias, eps, casting_mode, centred=True), out


def scale_residual_rms_norm_scale_shift(
    residual: Tensor,
    x: Tensor,
    gate: Any,
    shift: Any,
    scale: Any,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "float32",
) -> tuple[Tensor, Tensor]:
    """See `reference_ops.scale_residual_rms_norm_scale_shift`."""
    out = residual_gate_add(residual, x, gate, casting_mode=casting_mode)
    return _modulated_norm(out, shift, scale, weight, None, eps, casting_mode, centred=False), out


def scale_shift(
    x: Tensor, shift: Any, scale: Any, scale_constant: float = 1.0, *, casting_mode: str = "float32"
) -> Tensor:
    """See `reference_ops.scale_shift`."""
    return _modulated(x, x, shift, scale, casting_mode, scale_constant)


def residual_gate_add(residual: Tensor, x: Tensor, gate: Any, *, casting_mode: str = "float32") -> Tensor:
    """See `reference_ops.residual_gate_add`."""
    if gate is None:
        return residual + x
    factor = expand_modulation(gate, x)
    if casting_mode == "float32":
        return _multiply_add(x.float(), factor.float(), residual.float()).to(x.dtype)
    return _multiply_add(x, factor, residual).to(x.dtype)


def qk_norm(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "float32",
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `reference_ops.qk_norm`."""
    q_out = rms_norm(q, q_weight, eps, casting_mode=casting_mode)
    k_out = rms_norm(k, k_weight, eps, casting_mode=casting_mode)
    return (q.copy_(q_out), k.copy_(k_out)) if inplace else (q_out, k_out)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate float32 x ``[..., head_dim]`` by float32 cos and sin, broadcast against ``[..., Dr/2]``.

    Neighbours are rotated as complex numbers; halves as in diffusers and transformers, by adding sin times the
    swapped halves, the first one negated.
    """
    pairs = cos.shape[-1]
    turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    if interleaved:
        # view_as_complex needs the numbers of a pair next to each other and aligned to 8 bytes.
        numbers = torch.view_as_complex(
            turned.reshape(*turned.shape[:-1], pairs, 2).clone(memory_format=torch.contiguous_format)
        )
        product = torch.view_as_real(numbers * torch.complex(cos, sin)).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
        product = torch.addcmul(turned * cos, torch.cat((-b, a), -1), sin)
    return torch.cat((product, rest), -1)


def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = True, inplace: bool = False) -> Tensor:
    """See `reference_ops.rotary_embedding`."""
    y = _rotated(x.float(), cos.float().unsqueeze(-2), sin.float().unsqueeze(-2), interleaved).to(x.dtype)
    if inplace:
        return x.copy_(y)
    return y


def split_rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `reference_ops.split_rotary_embedding`."""
    heads = x.float().reshape(*x.shape[:2], cos.shape[1], 2 * cos.shape[3])
    cos, sin = cos.float().transpose(1, 2), sin.float().transpose(1, 2)
    return _rotated(heads, cos, sin, False).flatten(-2).to(x.dtype)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float = 1e-6,
    *,
    interleaved: bool = True,
    casting_mode: str = "float32",
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `reference_ops.qk_norm_rope`."""
    results = []
    for x, weight in ((q, q_weight), (k, k_weight)):
        # In float32 mode the norm must not round to 16 bits before the rotation.
        value = x.float() if casting_mode == "float32" else x
        normed = rms_norm(value, weight, eps, casting_mode=casting_mode)
        results.append(rotary_embedding(normed.float(), cos, sin, interleaved=interleaved).to(x.dtype))
    return (q.copy_(results[0]), k.copy_(results[1])) if inplace else (results[0], results[1])
