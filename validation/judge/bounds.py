"""The forward error bound of each op, written as the op's own chain over `Running` numbers.

Each function takes the case's arguments and returns one `Running` for each output; the final rounding, to
the output's dtype, is left out: the budget adds it as half an ulp. ``"float32"`` mode rounds nowhere else.
``"input"`` mode rounds the normalised value to ``x.dtype`` and then each intermediate to what PyTorch's
promotion gives, as `reference_ops` does; the rotations, which have no mode, do the latter too.

An op that hands on a rounded residual (``scale_residual_X``) is judged in two parts: ``residual_out``
against the gated sum, and y as ``X`` of the residual_out that the candidate itself returned. So there is no
bound for its y here: norm(residual_out) is what the caller sees, and a norm of the unrounded sum shows.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from reference_ops.contract import expand_modulation
from validation.judge.running_error import Running

Bound = Callable[[Mapping[str, Any]], tuple[Running, ...]]


class _Chain:
    """Arguments of an op as `Running` numbers, and the roundings that its casting mode asks for."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.arguments = arguments
        self.input_mode = arguments.get("casting_mode", "float32") == "input"
        self.eps = float(arguments.get("eps", 1e-6))

    def number(self, t: Tensor) -> Running:
        running = Running.exact(t)
        return running if self.input_mode else running.wide()

    def modulation(self, name: str) -> Running | None:
        m = self.arguments.get(name)
        return None if m is None else self.number(expand_modulation(m, self.arguments["x"]))

    def step(self, value: Running) -> Running:
        return value.rounded() if self.input_mode else value

    def normalise(self, x: Tensor, *, centred: bool) -> Running:
        deviation, rstd = Running.exact(x).wide().rstd(self.eps, centred=centred)
        return deviation * rstd

    def affine_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, centred: bool) -> Running:
        """Norm, weight, bias; each rounded but the last, whose rounding is the caller's."""
        value = self.normalise(x, centred=centred)
        pending = x.dtype
        for name, row in (("weight", weight), ("bias", bias)):
            if row is not None:
                value = value.rounded(pending) if self.input_mode else value
                value = value * self.number(row) if name == "weight" else value + self.number(row)
                pending = value.dtype
        return dataclasses.replace(value, dtype=pending)

    def modulate(self, value: Running, constant: float) -> Running:
        scale, shift = self.modulation("scale"), self.modulation("shift")
        assert scale is not None
        assert shift is not None
        return self.step(value * self.step(scale + constant)) + shift


def _norm(arguments: Mapping[str, Any], *, centred: bool) -> tuple[Running, ...]:
    chain = _Chain(arguments)
    return (chain.affine_norm(arguments["x"], arguments.get("weight"), arguments.get("bias"), centred=centred),)


def _modulated_norm(arguments: Mapping[str, Any], *, centred: bool) -> tuple[Running, ...]:
    chain = _Chain(arguments)
    normalised = chain.affine_norm(arguments["x"], arguments.get("weight"), arguments.get("bias"), centred=centred)
    return (chain.modulate(chain.step(normalised), 1.0),)


def _scale_shift(arguments: Mapping[str, Any]) -> tuple[Running, ...]:
    chain = _Chain(arguments)
    return (chain.modulate(chain.number(arguments["x"]), float(arguments.get("scale_constant", 1.0))),)


def _residual_gate_add(arguments: Mapping[str, Any]) -> tuple[Running, ...]:
    chain = _Chain(arguments)
    x, gate = chain.number(arguments["x"]), chain.modulation("gate")
    return (chain.number(arguments["residual"]) + (x if gate is None else chain.step(x * gate)),)


def _qk_norm(arguments: Mapping[str, Any]) -> tuple[Running, ...]:
    chain = _Chain(arguments)
    return tuple(chain.affine_norm(arguments[n], arguments.get(f"{n}_weight"), None, centred=False) for n in ("q", "k"))


def _rotated(x: Running, cos: Running, sin: Running, firsts: slice, seconds: slice) -> Running:
    """x ``[..., head_dim]`` with the pairs (firsts, seconds) rotated, other channels passed through.

    Products are rounded to what promotion makes of them, which in float32 is no rounding.
    """
    whole = x.expanded(x.value.shape)
    fields = {name: getattr(whole, name).clone() for name in ("value", "noise", "declared", "overflow")}

    def part(pick: slice) -> Running:
        return dataclasses.replace(whole, **{name: getattr(whole, name)[..., pick] for name in fields})

    a, b = part(firsts), part(seconds)
    for pick, rotated in (
        (firsts, (a * cos).rounded() - (b * sin).rounded()),
        (seconds, (a * sin).rounded() + (b * cos).rounded()),
    ):
        for name, field in fields.items():
            field[..., pick] = getattr(rotated, name)
    return dataclasses.replace(whole, **fields)


def _pairs(count: int, interleaved: bool) -> tuple[slice, slice]:
    if interleaved:
        return slice(0, 2 * count, 2), slice(1, 2 * count, 2)
    return slice(0, count), slice(count, 2 * count)


def _rotary_embedding(arguments: Mapping[str, Any]) -> tuple[Running, ...]:
    cos, sin = (Running.exact(arguments[name].unsqueeze(-2)) for name in ("cos", "sin"))
    firsts, seconds = _pairs(arguments["cos"].shape[-1], bool(arguments.get("interleaved", True)))
    return (_rotated(Running.exact(arguments["x"]), cos, sin, firsts, seconds),)


def _qk_norm_rope(arguments: Mapping[str, Any]) -> tuple[Running, ...]:
    chain = _Chain(arguments)
    cos, sin = (chain.number(arguments[name].unsqueeze(-2)) for name in ("cos", "sin"))
    firsts, seconds = _pairs(arguments["cos"].shape[-1], bool(arguments.get("interleaved", True)))
    results = []
    for x, normed in zip((arguments["q"], arguments["k"]), _qk_norm(arguments), strict=True):
        if chain.input_mode:
            # The product with the weight in its promoted dtype, then the cast to x.dtype.
            normed = normed.rounded()
            normed = normed if normed.dtype is x.dtype else normed.rounded(x.dtype)
        results.append(_rotated(normed, cos, sin, firsts, seconds))
    return tuple(results)


def _split_rotary_embedding(arguments: Mapping[str, Any]) -> tuple[Running, ...]:
    x = arguments["x"]
    cos, sin = (Running.exact(arguments[name].transpose(1, 2)).wide() for name in ("cos", "sin"))
    pairs = cos.value.shape[-1]
    heads = Running.exact(x.reshape(*x.shape[:2], cos.value.shape[2], 2 * pairs)).wide()
    rotated = _rotated(heads, cos, sin, *_pairs(pairs, interleaved=False))
    fields = ("value", "noise", "declared", "overflow")
    return (dataclasses.replace(rotated, **{name: getattr(rotated, name).reshape(x.shape) for name in fields}),)


BOUNDS: dict[str, Bound] = {
    "layer_norm": lambda arguments: _norm(arguments, centred=True),
    "rms_norm": lambda arguments: _norm(arguments, centred=False),
    "layer_norm_scale_shift": lambda arguments: _modulated_norm(arguments, centred=True),
    "rms_norm_scale_shift": lambda arguments: _modulated_norm(arguments, centred=False),
    "scale_shift": _scale_shift,
    "residual_gate_add": _residual_gate_add,
    "qk_norm": _qk_norm,
    "rotary_embedding": _rotary_embedding,
    "split_rotary_embedding": _split_rotary_embedding,
    "qk_norm_rope": _qk_norm_rope,
}


def bound(op: str, arguments: Mapping[str, Any]) -> tuple[Running, ...]:
    """The bound of an op's outputs for these arguments (as the op is called, in their own dtypes).

    Raises:
        KeyError: there is no hand-made bound for the op.
    """
    with torch.no_grad():
        return BOUNDS[op](arguments)
