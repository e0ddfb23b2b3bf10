"""Op sets to mount on models: a correct one in another arrangement, and planted faults."""

import torch
from torch import Tensor

import reference_ops
from validation.ops import Op, OpSet, op_set_from


def reference(**replaced: Op) -> OpSet:
    """``reference_ops`` with some ops replaced."""
    functions = {name: getattr(reference_ops, name) for name in reference_ops.OP_NAMES}
    return op_set_from(functions | replaced, "reference_ops" if not replaced else "planted", "reference_ops")


def other_arrangement() -> OpSet:
    """The ops that Helios calls, made of other torch functions: float32 inside, rounded once, other bits."""

    def normalise(x: Tensor, eps: float) -> Tensor:
        variance, mean = torch.var_mean(x.float(), dim=-1, correction=0, keepdim=True)
        normalised: Tensor = (x.float() - mean) * torch.rsqrt(variance + eps)
        return normalised

    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
        return torch.addcmul(bias.float(), normalise(x, eps), weight.float()).to(x.dtype)

    def layer_norm_scale_shift(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
        normalised = normalise(x, eps)
        return (normalised + torch.addcmul(shift, normalised, scale)).to(x.dtype)

    def residual_gate_add(residual: Tensor, x: Tensor, gate: Tensor) -> Tensor:
        return torch.addcmul(residual.float(), x.float(), gate.float()).to(residual.dtype)

    def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
        root: Tensor = (torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True).square() / x.shape[-1] + eps).sqrt()
        scaled: Tensor = x.float() * (weight.float() / root)
        return scaled.to(x.dtype)

    def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turn = torch.complex(cos, sin).unsqueeze(-2)
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())  # type: ignore[no-untyped-call]
        return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)

    functions: dict[str, Op] = {
        "layer_norm": layer_norm,
        "layer_norm_scale_shift": layer_norm_scale_shift,
        "residual_gate_add": residual_gate_add,
        "rms_norm": rms_norm,
        "rotary_embedding": rotary_embedding,
    }
    return op_set_from(functions, "other_arrangement", "other_arrangement")


def swapped_scale_shift() -> OpSet:
    """Scale and shift taken for each other."""

    def layer_norm_scale_shift(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
        return torch.as_tensor(reference()["layer_norm_scale_shift"](x, scale, shift, eps=eps))

    return reference(layer_norm_scale_shift=layer_norm_scale_shift)


def dropped_one_plus() -> OpSet:
    """``norm * scale + shift`` without the 1."""

    def layer_norm_scale_shift(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
        return (torch.nn.functional.layer_norm(x.float(), x.shape[-1:], eps=eps) * scale + shift).to(x.dtype)

    return reference(layer_norm_scale_shift=layer_norm_scale_shift)


def dropped_gate() -> OpSet:
    """``residual + x`` without the gate."""

    def residual_gate_add(residual: Tensor, x: Tensor, _gate: Tensor) -> Tensor:
        return (residual.float() + x.float()).to(residual.dtype)

    return reference(residual_gate_add=residual_gate_add)


FAULTS = (swapped_scale_shift, dropped_one_plus, dropped_gate)
