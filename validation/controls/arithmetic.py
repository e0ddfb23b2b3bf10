"""The twelve ops over a few steps of arithmetic, each of which a control may do another correct way.

`Arithmetic` itself does the plain thing: one ``sum``, one ``rsqrt``, products and sums one after the other.
A subclass changes one step; all twelve ops follow. Arguments are those of a legal call: nothing is checked.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reference_ops.contract import expand_modulation
from validation.composed import ComposedOps


class Arithmetic(ComposedOps):
    """float32 inside, rounded to the output's dtype at the end and where ``casting_mode="input"`` says so.

    Attributes:
        wide: the dtype of the arithmetic between roundings.
        rounds_midway: False leaves out the roundings that ``"input"`` mode and the rotations declare.
            Rounding less often than declared is allowed.
    """

    wide = torch.float32
    rounds_midway = True

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the last dimension, which stays, of size 1."""
        return x.sum(-1, keepdim=True)

    def moments(self, x: Tensor, *, centred: bool) -> tuple[Tensor, Tensor]:
        """The deviation from the mean (x itself if not centred), and the mean of its square ``[..., 1]``."""
        deviation = x - self.sum(x) / x.shape[-1] if centred else x
        return deviation, self.sum(deviation * deviation) / x.shape[-1]

    def over_root(self, value: Tensor, square: Tensor) -> Tensor:
        """``value / sqrt(square)``."""
        return value * torch.rsqrt(square)

    def multiply_add(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """``a * b + c`` in the dtype that the three promote to."""
        return a * b + c

    def _operand(self, t: Tensor, *, rounds: bool) -> Tensor:
        return t if rounds and self.rounds_midway else t.to(self.wide)

    def _norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, centred: bool, rounds: bool = False
    ) -> Tensor:
        # Contiguous: the order of torch's sums follows the strides, and a slice of a batch must give the same bits.
        deviation, square = self.moments(x.to(self.wide).contiguous(), centred=centred)
        value = self.over_root(deviation, square + eps)
        if rounds and self.rounds_midway:
            value = value.to(x.dtype)
        if weight is not None and bias is not None:
            return self.multiply_add(value, self._operand(weight, rounds=rounds), self._operand(bias, rounds=rounds))
        if weight is not None:
            return value * self._operand(weight, rounds=rounds)
        return value if bias is None else value + self._operand(bias, rounds=rounds)

    def _modulate(self, value: Tensor, x: Tensor, modulation: Mapping[str, Any], mode: str, constant: float) -> Tensor:
        shift, scale = (
            self._operand(expand_modulation(modulation[name], x), rounds=mode == "input") for name in ("shift", "scale")
        )
        return self.multiply_add(value, scale + constant, shift)

    def _modulated_norm(
        self, x: Tensor, shift: Any, scale: Any, weight: Any, bias: Any, eps: float, mode: str, *, centred: bool
    ) -> Tensor:
        value = self._norm(x, weight, bias, eps, centred=centred, rounds=mode == "input")
        return self._modulate(value, x, {"shift": shift, "scale": scale}, mode, 1.0).to(x.dtype)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
        """x ``[..., head_dim]``, cos and sin broadcast against ``[..., Dr/2]``; not yet rounded to x's dtype."""
        pairs = cos.shape[-1]
        rotated, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
        shape = (*rotated.shape[:-1], pairs, 2) if interleaved else (*rotated.shape[:-1], 2, pairs)
        axis = -1 if interleaved else -2
        a, b = rotated.reshape(shape).unbind(axis)
        turned = (self.multiply_add(a, cos, -(b * sin)), self.multiply_add(a, sin, b * cos))
        return torch.cat((torch.stack(turned, axis).reshape(rotated.shape), rest), -1)

    def _layer_norm(self, x: Tensor, weight: Any = None, bias: Any = None, eps: float = 1e-6) -> Tensor:
        return self._norm(x, weight, bias, eps, centred=True).to(x.dtype)

    def _rms_norm(self, x: Tensor, weight: Any = None, eps: float = 1e-6, *, casting_mode: str = "float32") -> Tensor:
        return self._norm(x, weight, None, eps, centred=False, rounds=casting_mode == "input").to(x.dtype)

    def _layer_norm_scale_shift(
        self,
        x: Tensor,
        shift: Any,
        scale: Any,
        weight: Any = None,
        bias: Any = None,
        eps: float = 1e-6,
        *,
        casting_mode: str = "float32",
    ) -> Tensor:
        return self._modulated_norm(x, shift, scale, weight, bias, eps, casting_mode, centred=True)

    def _rms_norm_scale_shift(
        self, x: Tensor, shift: Any, scale: Any, weight: Any = None, eps: float = 1e-6, *, casting_mode: str = "float32"
    ) -> Tensor:
        return self._modulated_norm(x, shift, scale, weight, None, eps, casting_mode, centred=False)

    def _scale_shift(
        self, x: Tensor, shift: Any, scale: Any, scale_constant: float = 1.0, *, casting_mode: str = "float32"
    ) -> Tensor:
        value = self._operand(x, rounds=casting_mode == "input")
        return self._modulate(value, x, {"shift": shift, "scale": scale}, casting_mode, scale_constant).to(x.dtype)

    def _residual_gate_add(self, residual: Tensor, x: Tensor, gate: Any, *, casting_mode: str = "float32") -> Tensor:
        rounds = casting_mode == "input"
        a, b = self._operand(residual, rounds=rounds), self._operand(x, rounds=rounds)
        if gate is None:
            return (a + b).to(x.dtype)
        return self.multiply_add(b, self._operand(expand_modulation(gate, x), rounds=rounds), a).to(x.dtype)

    def _rotary_embedding(
        self, x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = True, inplace: bool = False
    ) -> Tensor:
        operands = (self._operand(t, rounds=True) for t in (x, cos.unsqueeze(-2), sin.unsqueeze(-2)))
        y = self._rotate(*operands, interleaved=interleaved).to(x.dtype)
        return x.copy_(y) if inplace else y

    def _split_rotary_embedding(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads, pairs = cos.shape[1], cos.shape[3]
        angles = (t.transpose(1, 2).to(self.wide) for t in (cos, sin))
        values = x.reshape(*x.shape[:2], heads, 2 * pairs).to(self.wide)
        return self._rotate(values, *angles, interleaved=False).reshape(x.shape).to(x.dtype)

    def _rms_norm_rope(
        self, x: Tensor, weight: Any, cos: Tensor, sin: Tensor, eps: float, mode: str, *, interleaved: bool
    ) -> Tensor:
        rounds = mode == "input"
        value = self._norm(x, weight, None, eps, centred=False, rounds=rounds)
        if rounds and self.rounds_midway:
            value = value.to(x.dtype)
        angles = [self._operand(t.unsqueeze(-2), rounds=rounds) for t in (cos, sin)]
        return self._rotate(value, *angles, interleaved=interleaved).to(x.dtype)
