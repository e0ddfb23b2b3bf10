"""The abstract arithmetic: the steps that the ops' chains are made of.

An interpreter defines what a number is (`Value`: a tensor, or an object that carries more), how an argument is taken,
rows are normalised, an intermediate cast is made and a result is rounded. The other steps follow from these; an
interpreter, or a planted fault, may replace any of them.

``mode`` is the op's ``casting_mode``; a rotation, which has none, is a chain of mode `INPUT`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from reference_ops.contract import expand_modulation

FLOAT32, INPUT = "float32", "input"


class Number(Protocol):
    """An operand of the steps. The dtype of a sum or product follows PyTorch's promotion."""

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor."""

    def __mul__(self, other: Any, /) -> Self: ...
    def __add__(self, other: Any, /) -> Self: ...
    def __neg__(self) -> Self: ...


Value = TypeVar("Value", bound=Number)


class Steps(ABC, Generic[Value]):
    """Steps of a norm, a modulation, a rotation, and of storing the result.

    Results are tensors; an interpreter with other results replaces all the steps that store.
    """

    # Defined by the interpreter.

    @abstractmethod
    def taken(self, t: Tensor, mode: str) -> Value:
        """Take an argument: in float32, or in mode `INPUT` in its own dtype."""

    @abstractmethod
    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Value:
        """``d / sqrt(mean(d^2) + eps)`` over the last dimension, in float32; d is x, minus its mean if centred."""

    @abstractmethod
    def midway(self, value: Value, dtype: torch.dtype, mode: str) -> Value:
        """Make an intermediate cast of the chain, only in mode `INPUT`."""

    @abstractmethod
    def part(self, value: Value, columns: slice) -> Value:
        """The columns of a slice."""

    @abstractmethod
    def rounded(self, value: Value, dtype: torch.dtype) -> Tensor:
        """Make the last rounding."""

    # Norm.

    def norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mode: str, *, centred: bool
    ) -> Value:
        """Norm, weight and bias; the last operation's result is not yet rounded."""
        value = self.midway(self.normalised(x, eps, centred=centred), x.dtype, mode)
        return self.affine(value, weight, bias, mode)

    def affine(self, value: Value, weight: Tensor | None, bias: Tensor | None, mode: str) -> Value:
        """``value * weight + bias``."""
        if weight is not None and bias is not None:
            return self.multiply_add(value, self.taken(weight, mode), self.taken(bias, mode))
        if weight is not None:
            return value * self.taken(weight, mode)
        return value if bias is None else value + self.taken(bias, mode)

    def multiply_add(self, a: Value, b: Value, c: Value) -> Value:
        """``a * b + c`` in the dtype that the three promote to."""
        return a * b + c

    # Modulation.

    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        """The argument called name (shift, scale or gate), to be broadcast against x."""
        del name
        return expand_modulation(m, x)

    def modulation(self, name: str, m: Any, x: Tensor, mode: str) -> Value:
        """The same argument as `rows`, as a number."""
        return self.taken(self.rows(name, m, x), mode)

    def scaled(self, value: Value, factor: Value, added: Value, x: Tensor) -> Value:
        """``value * factor + added``; the factor is a gate or follows from the scale."""
        del x
        return self.multiply_add(value, factor, added)

    def modulate(self, value: Value, shift: Any, scale: Any, x: Tensor, mode: str, constant: float = 1.0) -> Value:
        """``value * (constant + scale) + shift``."""
        factor, added = (self.modulation(name, m, x, mode) for name, m in (("scale", scale), ("shift", shift)))
        return self.scaled(value, factor + constant, added, x)

    def gated(self, residual: Tensor, x: Tensor, gate: Any, mode: str) -> Value:
        """``residual + x * gate``."""
        if gate is None:
            return self.taken(residual, mode) + self.taken(x, mode)
        factor = self.modulation("gate", gate, x, mode)
        return self.scaled(self.taken(x, mode), factor, self.taken(residual, mode), x)

    def handed_on(self, total: Value, residual_out: Any) -> Any:
        """The norm's input: the rounded residual, as the caller sees it."""
        del total
        return residual_out

    # Rotation.

    def pairs(self, count: int, head_dim: int, *, interleaved: bool) -> tuple[slice, slice]:
        """Slices of the first and of the second channels of ``count`` pairs."""
        del head_dim
        if interleaved:
            return slice(0, 2 * count, 2), slice(1, 2 * count, 2)
        return slice(0, count), slice(count, 2 * count)

    def rotated_pair(self, a: Value, b: Value, cos: Value, sin: Value) -> tuple[Value, Value]:
        """``(a * cos - b * sin, a * sin + b * cos)``."""
        return self.multiply_add(a, cos, -(b * sin)), self.multiply_add(a, sin, b * cos)

    def rotate(self, value: Value, cos: Value, sin: Value, out: Any, *, interleaved: bool) -> Any:
        """Rotate ``[B, S, H, head_dim]`` into out, of that shape; cos and sin broadcast against its pairs.

        Channels past the pairs pass through.
        """
        count = cos.shape[-1]
        firsts, seconds = self.pairs(count, value.shape[-1], interleaved=interleaved)
        first, second = self.rotated_pair(self.part(value, firsts), self.part(value, seconds), cos, sin)
        rest = slice(2 * count, None)
        for columns, turned in ((firsts, first), (seconds, second), (rest, self.part(value, rest))):
            self.put(out, columns, turned)
        return out

    def angles(self, cos: Tensor, x: Tensor, mode: str) -> Value:
        """cos or sin (``[S, Dr/2]`` or ``[B, S, Dr/2]``), to be broadcast against the pairs of x."""
        del x
        return self.taken(cos.unsqueeze(-2), mode)

    def angles_by_head(self, cos: Tensor) -> Value:
        """cos or sin ``[B, H, S, Dh/2]``, to be broadcast against the pairs of ``[B, S, H, Dh]``."""
        return self.taken(cos.transpose(1, 2), FLOAT32)

    def head(self, name: str, t: Tensor, weight: Tensor | None, cos: Tensor, eps: float, mode: str) -> Value:
        """The normalised heads of q or k, as the rotation takes them."""
        del name, cos
        return self.midway(self.norm(t, weight, None, eps, mode, centred=False), t.dtype, mode)

    # Storing.

    def room(self, shape: Sequence[int], x: Tensor) -> Any:
        """Allocate memory for a result of that shape, in x's dtype."""
        return torch.empty(shape, dtype=x.dtype, device=x.device)

    def put(self, out: Any, columns: slice, value: Value) -> None:
        """Round and write the columns of a slice of a result."""
        out[..., columns] = self.rounded(value, out.dtype)

    def stored(self, value: Value, x: Tensor) -> Any:
        """Round the result into memory of its own."""
        return self.room(x.shape, x).copy_(self.rounded(value, x.dtype))

    def returned(self, targets: tuple[Tensor, ...], results: Sequence[Any], *, inplace: bool) -> tuple[Any, ...]:
        """Return an op's results; if ``inplace``, after writing them over the targets."""
        if not inplace:
            return tuple(results)
        return tuple(target.copy_(result) for target, result in zip(targets, results, strict=True))
