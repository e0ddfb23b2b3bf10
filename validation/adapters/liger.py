"""Liger-Kernel's forward kernels (``pip install liger-kernel``; written against 0.8.5).

Expresses ``layer_norm``, ``rms_norm``, ``rms_norm_scale_shift``, ``qk_norm`` and ``rotary_embedding``. A
missing weight or bias of a LayerNorm is passed as ones or zeros; ``casting_mode="float32"`` is Liger's
``gemma``, ``"input"`` its ``llama``; modulation is spread over more rows if Liger does not have its form.

Cannot express: neighbouring pairs (``interleaved=True``), a norm in place, a rotation in place of a tensor
that is not contiguous. Under Triton's interpreter, whose bfloat16 arithmetic is wrong, it also cannot express what
Liger computes in bfloat16: ``1 + scale`` of a bfloat16 scale, and a rotation by bfloat16 angles; nor more than
16,384 rows of a kernel that takes one row per program.
"""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from reference_ops.contract import expand_modulation
from validation.adapters import CannotExpress, interpreted, one_program_each, qk_norm_of, required
from validation.device.private import triton_module

liger_ops = required("liger_kernel.ops", "liger-kernel")

INTERPRETED = interpreted()
CASTING_MODES = {"float32": "gemma", "input": "llama"}


class _Scalar(float):
    """A float argument that the interpreter can cast to a 0-d tensor, as a compiled kernel does."""

    def to(self, dtype: Any) -> Any:
        """Cast to a 0-d tensor, like ``tl.tensor.to``."""
        return triton_module("triton.runtime.interpreter").interpreter_semantic.scalar_constant(float(self), dtype)


def _rsqrt(x: Any) -> Any:
    # Looked up at each call: the interpreter installs its own while a kernel runs.
    return tl.math.rsqrt(x)


if INTERPRETED:
    # The kernels take rsqrt from libdevice, a library of GPU code.
    for _module in ("rms_norm", "layer_norm", "modulated_rms_norm"):
        vars(required(f"liger_kernel.ops.{_module}", "liger-kernel"))["rsqrt"] = _rsqrt


def _scalar(value: float) -> float:
    return _Scalar(value) if INTERPRETED else value


def _no_bfloat16_arithmetic(what: str, t: Tensor) -> None:
    if INTERPRETED and t.dtype is torch.bfloat16:
        raise CannotExpress(f"{what} is computed in bfloat16, which the interpreter does wrongly")


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """LigerLayerNormFunction."""
    one_program_each(x.numel() // x.shape[-1])
    weight = x.new_ones(x.shape[-1]) if weight is None else weight
    bias = x.new_zeros(x.shape[-1]) if bias is None else bias
    y: Tensor = liger_ops.LigerLayerNormFunction.apply(x, weight, bias, _scalar(eps))
    return y


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, *, casting_mode: str = "float32") -> Tensor:
    """LigerRMSNormFunction."""
    mode = CASTING_MODES[casting_mode]
    y: Tensor = liger_ops.LigerRMSNormFunction.apply(x, weight, _scalar(eps), _scalar(0.0), mode, False, None)
    return y


def _rows(m: Any, x: Tensor) -> Tensor:
    """A modulation as ``[R, D]``, one row for each N / R consecutive tokens of x; R as small as its form allows."""
    B, _, D = x.shape
    if isinstance(m, Tensor):
        if m.dim() < 2:
            return m.expand(1, D)
        if m.dim() in (2, 4) or (m.dim() == 3 and m.shape[1] == 1):
            return m.reshape(-1, D)
        if m.dim() == 3 and m.shape[0] == B:
            return m.reshape(-1, D)
    return expand_modulation(m, x).expand(x.shape).reshape(-1, D)


def rms_norm_scale_shift(
    x: Tensor,
    shift: Any,
    scale: Any,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "float32",
) -> Tensor:
    """LigerModulatedRMSNormFunction."""
    one_program_each(x.numel() // x.shape[-1])
    rows = {"scale": _rows(scale, x), "shift": _rows(shift, x)}
    _no_bfloat16_arithmetic("1 + scale", rows["scale"])
    count = max(len(row) for row in rows.values())
    if x.numel() and len(rows["scale"]) != len(rows["shift"]):
        rows = {name: row.repeat_interleave(count // len(row), 0) for name, row in rows.items()}
    y: Tensor = liger_ops.LigerModulatedRMSNormFunction.apply(
        x, weight, rows["scale"], rows["shift"], _scalar(eps), _scalar(0.0), CASTING_MODES[casting_mode], False
    )
    return y


qk_norm = qk_norm_of(rms_norm, "LigerRMSNormFunction writes its forward result to new memory")


def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = True, inplace: bool = False) -> Tensor:
    """LigerRopeFunction, with x as q and a k of one head."""
    if interleaved:
        raise CannotExpress("interleaved=True: LigerRopeFunction rotates the two halves of a head")
    if inplace and not x.is_contiguous():
        raise CannotExpress("inplace=True: LigerRopeFunction writes to a copy of a q that is not contiguous")
    for angles in (cos, sin):
        _no_bfloat16_arithmetic("the rotation", angles)
    B, S, _, Dh = x.shape
    one_program_each(B * S)
    if cos.shape != sin.shape:  # of both Liger's kernel takes the form of cos
        cos, sin = (angles.expand(B, -1, -1).contiguous() for angles in (cos, sin))
    q = x if inplace else x.clone(memory_format=torch.contiguous_format)
    k = x.new_zeros(B, 1, S, Dh)
    y = liger_ops.LigerRopeFunction.apply(q.transpose(1, 2), k, cos, sin, None, 1, 2 * cos.shape[-1])[0]
    return x if inplace else y.transpose(1, 2)
