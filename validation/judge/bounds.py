"""The forward error bound of each op, written as the op's own chain over `Running` numbers.

Each function takes the case's arguments and returns one `Running` for each output; the final rounding, to
the output's dtype, is left out: the budget adds it as half an ulp. ``"float32"`` mode rounds nowhere else
(but for ``residual_out``, which the norm reads as it is stored); ``"input"`` mode rounds the normalised
value to ``x.dtype`` and then each intermediate to what PyTorch's promotion gives, as OPS.md declares.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from reference_ops._contract import expand_modulation
from validation.judge.running_error import Running

Bound = Callable[[Mapping[str, Any]], tuple[Running, ...]]


class _Chain:
    """The arguments of a modulated op as `Running` numbers, and the rounding its casting mode asks for."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.arguments = arguments
        self.x: Tensor = arguments["x"]
        self.input_mode = arguments.get("casting_mode", "float32") == "input"

    def activation(self, name: str) -> Running:
        return Running.exact(self.arguments[name]).wide()

    def row(self, name: str) -> Running | None:
        t = self.arguments.get(name)
        return None if t is None else self.parameter(t)

    def modulation(self, name: str) -> Running | None:
        m = self.arguments.get(name)
        return None if m is None else self.parameter(expand_modulation(m, self.x))

    def parameter(self, t: Tensor) -> Running:
        running = Running.exact(t)
        return running if self.input_mode else running.wide()

    def step(self, value: Running) -> Running:
        return value.rounded() if self.input_mode else value

    def normalise(self, value: Running, *, centred: bool) -> Running:
        deviation, rstd = value.rstd(float(self.arguments.get("eps", 1e-6)), centred=centred)
        normalised = deviation * rstd
        return normalised.rounded(self.x.dtype) if self.input_mode else normalised

    def affine(self, value: Running) -> Running:
        if (weight := self.row("weight")) is not None:
            value = self.step(value * weight)
        if (bias := self.row("bias")) is not None:
            value = self.step(value + bias)
        return value

    def modulate(self, value: Running) -> Running:
        scale, shift = self.modulation("scale"), self.modulation("shift")
        assert scale is not None
        assert shift is not None
        return self.step(value * self.step(scale + 1.0)) + shift


def _layer_norm_scale_shift(arguments: Mapping[str, Any]) -> tuple[Running, ...]:
    chain = _Chain(arguments)
    return (chain.modulate(chain.affine(chain.normalise(chain.activation("x"), centred=True))),)


BOUNDS: dict[str, Bound] = {
    "layer_norm_scale_shift": _layer_norm_scale_shift,
}


def bound(op: str, arguments: Mapping[str, Any]) -> tuple[Running, ...]:
    """The bound of an op's outputs for these arguments (as the op is called, in their own dtypes).

    Raises:
        KeyError: there is no hand-made bound for the op.
    """
    with torch.no_grad():
        return BOUNDS[op](arguments)
