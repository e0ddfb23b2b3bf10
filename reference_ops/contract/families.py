"""Checks of all arguments of an op, by family: norm, modulated, rotary, query and key."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from reference_ops.contract.arguments import (
    check_activation,
    check_casting_mode,
    check_device,
    check_eps,
    check_flag,
    check_float,
    check_row,
    check_same,
    require_tensor,
    shape_text,
)
from reference_ops.contract.forms import Modulation, ModulationStrides, modulation_strides
from reference_ops.contract.memory import check_inplace


def check_no_grad(op: str, **arguments: Modulation | None) -> None:
    """Raise a NotImplementedError if grad mode is on and an argument requires grad: these are inference ops."""
    if not torch.is_grad_enabled():
        return
    for name, t in arguments.items():
        if t is not None and not isinstance(t, Tensor):
            t = t.table
        if t is not None and t.requires_grad:
            raise NotImplementedError(
                f"{op}: {name} requires grad, expected no grad: this is an inference op "
                "(call it under torch.no_grad() or detach the argument)"
            )


def check_norm(
    op: str,
    x: Tensor,
    rows: Mapping[str, Tensor | None],
    eps: float,
    *,
    float64: bool,
) -> None:
    """Check the arguments of a norm without modulation: ``x [..., D]``; rows: weight, bias by name."""
    check_activation(op, "x", x, rank=None, float64=float64)
    for name, row in rows.items():
        check_row(op, name, row, x, float64=float64)
    check_eps(op, eps)
    check_no_grad(op, x=x, **rows)


def check_modulated(
    op: str,
    x: Tensor,
    modulation: Mapping[str, Modulation | None],
    casting_mode: str,
    *,
    float64: bool,
    like_x: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, ModulationStrides | None]:
    """Check the arguments of an op that modulates ``x [B, L, D]``.

    modulation: shift, scale, gate by name; a gate may be None, which means 1. like_x: tensors that must have
    x's shape, dtype and device, by name. Returns the strides of each modulation argument, None for a None.
    """
    check_activation(op, "x", x, rank=3, float64=float64)
    for name, t in like_x.items():
        check_same(op, name, t, x)
    strides: dict[str, ModulationStrides | None] = {}
    for name, m in modulation.items():
        if m is None and name != "gate":
            raise TypeError(f"{op}: {name} is None, expected a torch.Tensor or an IndexedRows")
        strides[name] = None if m is None else modulation_strides(op, name, m, x, float64=float64)
    check_casting_mode(op, casting_mode)
    check_no_grad(op, x=x, **like_x, **modulation)
    return strides


def check_modulated_norm(
    op: str,
    x: Tensor,
    modulation: Mapping[str, Modulation | None],
    rows: Mapping[str, Tensor | None],
    eps: float,
    casting_mode: str,
    *,
    float64: bool,
    like_x: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, ModulationStrides | None]:
    """`check_modulated`, then check the norm's own arguments; rows: weight, bias by name."""
    strides = check_modulated(op, x, modulation, casting_mode, float64=float64, like_x=like_x)
    for name, row in rows.items():
        check_row(op, name, row, x, float64=float64)
    check_eps(op, eps)
    check_no_grad(op, **rows)
    return strides


def check_angles(op: str, x: Tensor, cos: Tensor, sin: Tensor, *, float64: bool, x_name: str = "x") -> None:
    """Check the ``cos`` and ``sin`` of a rotation of ``x [B, S, H, head_dim]``.

    Each is ``[S, Dr/2]`` or ``[B, S, Dr/2]``, independently, with the same 2 <= Dr <= head_dim.
    """
    B, S, _, head_dim = x.shape
    for name, t in (("cos", cos), ("sin", sin)):
        require_tensor(op, name, t)
        check_float(op, name, t, float64)
        if t.dim() not in (2, 3) or t.shape[-2] != S or (t.dim() == 3 and t.shape[0] != B):
            raise ValueError(
                f"{op}: {name} has shape {shape_text(t)}, expected [S={S}, Dr/2] or [B={B}, S={S}, Dr/2], "
                f"of {x_name} [B, S, H, head_dim]"
            )
        if not 2 <= 2 * t.shape[-1] <= head_dim:
            raise ValueError(
                f"{op}: {name} has shape {shape_text(t)}, that is Dr = {2 * t.shape[-1]} rotated channels, "
                f"expected 2 <= Dr <= head_dim = {head_dim}"
            )
        check_device(op, name, t, x, x_name)
    if sin.shape[-1] != cos.shape[-1]:
        raise ValueError(
            f"{op}: sin has shape {shape_text(sin)}, expected Dr/2 = {cos.shape[-1]} in the last dimension, that of cos"
        )


def check_qk(
    op: str,
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    casting_mode: str,
    inplace: bool,
    *,
    rank: int | None,
    float64: bool,
) -> None:
    """Check the arguments that `qk_norm` and `qk_norm_rope` share."""
    check_activation(op, "q", q, rank=rank, float64=float64)
    check_activation(op, "k", k, rank=rank, float64=float64)
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"{op}: k has shape {shape_text(k)}, expected head_dim = {q.shape[-1]} in the last dimension, that of q"
        )
    check_device(op, "k", k, q, "q")
    check_row(op, "q_weight", q_weight, q, float64=float64, x_name="q")
    check_row(op, "k_weight", k_weight, k, float64=float64, x_name="k")
    check_eps(op, eps)
    check_casting_mode(op, casting_mode)
    check_flag(op, "inplace", inplace)
    check_no_grad(op, q=q, k=k, q_weight=q_weight, k_weight=k_weight)


def check_rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, inplace: bool, *, float64: bool) -> None:
    """Check the arguments of `rotary_embedding`."""
    op = "rotary_embedding"
    check_activation(op, "x", x, rank=4, float64=float64)
    check_angles(op, x, cos, sin, float64=float64)
    check_flag(op, "interleaved", interleaved)
    check_flag(op, "inplace", inplace)
    check_no_grad(op, x=x, cos=cos, sin=sin)
    if inplace:
        check_inplace(op, {"x": x}, {"cos": cos, "sin": sin})


def check_split_rotary(x: Tensor, cos: Tensor, sin: Tensor, *, float64: bool) -> None:
    """Check the arguments of `split_rotary_embedding`."""
    op = "split_rotary_embedding"
    for name, t in (("x", x), ("cos", cos), ("sin", sin)):
        require_tensor(op, name, t)
        check_float(op, name, t, float64)
    if x.dim() != 3:
        raise ValueError(f"{op}: x has shape {shape_text(x)}, expected [B, S, H*Dh]")
    B, S, width = x.shape
    for name, t in (("cos", cos), ("sin", sin)):
        if t.dim() != 4 or t.shape[0] != B or t.shape[2] != S:
            raise ValueError(f"{op}: {name} has shape {shape_text(t)}, expected [B={B}, H, S={S}, Dh/2]")
        if t.shape[3] == 0:
            raise ValueError(f"{op}: {name} has shape {shape_text(t)}, expected Dh/2 >= 1 in the last dimension")
        check_device(op, name, t, x)
    if width != 2 * cos.shape[1] * cos.shape[3]:
        raise ValueError(
            f"{op}: x has shape {shape_text(x)}, expected H*Dh = {2 * cos.shape[1] * cos.shape[3]} in the last "
            f"dimension, of cos {shape_text(cos)}"
        )
    if sin.shape != cos.shape:
        raise ValueError(f"{op}: sin has shape {shape_text(sin)}, expected {shape_text(cos)}, that of cos")
    check_no_grad(op, x=x, cos=cos, sin=sin)


def check_qk_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    interleaved: bool,
    casting_mode: str,
    inplace: bool,
    *,
    float64: bool,
) -> None:
    """Check the arguments of `qk_norm_rope`."""
    op = "qk_norm_rope"
    check_qk(op, q, k, q_weight, k_weight, eps, casting_mode, inplace, rank=4, float64=float64)
    check_angles(op, q, cos, sin, float64=float64, x_name="q")
    check_angles(op, k, cos, sin, float64=float64, x_name="k")
    check_flag(op, "interleaved", interleaved)
    check_no_grad(op, cos=cos, sin=sin)
    if inplace:
        inputs = {"q_weight": q_weight, "k_weight": k_weight, "cos": cos, "sin": sin}
        check_inplace(op, {"q": q, "k": k}, inputs)
