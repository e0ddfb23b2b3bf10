"""The forward error bound of each op: its chain over `Running` numbers.

One `Running` for each output, without the final rounding to the output's dtype: the budget adds it as half an
ulp. ``"float32"`` mode rounds nowhere else. ``"input"`` mode rounds the normalised value to ``x.dtype`` and then each
intermediate to the dtype of PyTorch's promotion, as `reference_ops` does; the rotations, which have no mode, do the
latter too.

An op that returns a rounded residual (``scale_residual_X``) is judged in two parts: ``residual_out``
against the gated sum, and y as ``X`` of the residual_out that the candidate itself returned. So there is no
bound for its y here: the caller sees norm(residual_out), and a norm of the unrounded sum is detected.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from validation.chains.chain import OPS, Chain
from validation.chains.running import Running
from validation.chains.steps import INPUT

BOUNDS = frozenset(op for op in OPS if not op.startswith("scale_residual_"))


class _Bounds(Chain[Running]):
    """Results are numbers of a class of `Running`, not yet rounded."""

    def __init__(self, number: type[Running]) -> None:
        self.number = number

    def taken(self, t: Tensor, mode: str) -> Running:
        running = self.number.exact(t)
        return running if mode == INPUT else running.wide()

    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Running:
        deviation, rstd = self.number.exact(x).wide().rstd(eps, centred=centred)
        return deviation * rstd

    def midway(self, value: Running, dtype: torch.dtype, mode: str) -> Running:
        return value.cast(dtype) if mode == INPUT else value

    def part(self, value: Running, columns: slice) -> Running:
        return value.part(columns)

    def rounded(self, value: Running, dtype: torch.dtype) -> Tensor:
        raise NotImplementedError("the last rounding is the budget's")

    def room(self, shape: Sequence[int], x: Tensor) -> Running:
        value, noise, declared = torch.empty(3, *shape, dtype=torch.float64, device=x.device)
        return self.number(value, noise, declared, torch.empty(shape, dtype=torch.bool, device=x.device), x.dtype)

    def put(self, out: Running, columns: slice, value: Running) -> None:
        out.put(columns, value)

    def stored(self, value: Running, x: Tensor) -> Running:
        del x
        return value


def bound(op: str, arguments: Mapping[str, Any], number: type[Running] = Running) -> tuple[Running, ...]:
    """The bound of each output of an op for these arguments, in their own dtypes.

    Args:
        op: one of `BOUNDS`.
        arguments: by name.
        number: the class of the numbers that carry the bound.
    """
    named = {name: value for name, value in arguments.items() if name != "inplace"}
    with torch.no_grad():
        result = getattr(_Bounds(number), op)(**named)
    return result if isinstance(result, tuple) else (result,)
