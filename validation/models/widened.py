"""A model's own code in float64, where it says float32."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# How far two float64 computations of one function may be apart, over the largest number of the result.
SAME = 2.0**-45


class Widened(TorchFunctionMode):
    """While active, ``.float()`` and ``torch.float32`` mean float64.

    Models write ``x.float()`` where they leave the working dtype: with this their own modules compute in float64
    throughout, which is what the ops' truth must equal.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function with float64 for float32."""
        del types

        def wide(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        func = Tensor.double if func is Tensor.float else func
        return func(*map(wide, args), **{name: wide(value) for name, value in (kwargs or {}).items()})


def apart(came: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest number of ``expected``; NaN where either is NaN."""
    return float((came - expected).abs().max() / expected.abs().max())
