"""Wrong calls: signatures, parameters that require grad, return values and side effects."""

from typing import Any

import torch
from torch import Tensor

from validation.faults.fault import fault
from validation.faults.right import RightOps
from validation.verdict import Status

NUMERICAL = Status.INCORRECT_NUMERICAL


@fault("default eps of 1e-5", "layer_norm", "eps is 1e-5 where the caller leaves it out", NUMERICAL)
class DefaultEps(RightOps):
    def layer_norm(
        self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor:
        return super().layer_norm(x, weight, bias, eps)


@fault(
    "default casting mode of input",
    "rms_norm_scale_shift",
    "casting_mode is 'input' where the caller leaves it out",
    NUMERICAL,
)
class DefaultCastingMode(RightOps):
    def rms_norm_scale_shift(
        self,
        x: Tensor,
        shift: Any,
        scale: Any,
        weight: Tensor | None = None,
        eps: float = 1e-6,
        *,
        casting_mode: str = "input",
    ) -> Tensor:
        return super().rms_norm_scale_shift(x, shift, scale, weight, eps, casting_mode=casting_mode)


@fault("halves by default", "rotary_embedding", "interleaved is False where the caller leaves it out", NUMERICAL)
class HalvesByDefault(RightOps):
    def rotary_embedding(
        self, x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False, inplace: bool = False
    ) -> Tensor:
        return super().rotary_embedding(x, cos, sin, interleaved=interleaved, inplace=inplace)


@fault("in place by default", "qk_norm", "inplace is True where the caller leaves it out", Status.INPUT_MODIFIED)
class InPlaceByDefault(RightOps):
    def qk_norm(
        self,
        q: Tensor,
        k: Tensor,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        eps: float = 1e-6,
        *,
        casting_mode: str = "float32",
        inplace: bool = True,
    ) -> tuple[Tensor, ...]:
        return super().qk_norm(q, k, q_weight, k_weight, eps, casting_mode=casting_mode, inplace=inplace)


@fault("scale before shift", "scale_shift", "the second parameter is scale, the third shift", NUMERICAL)
class ScaleBeforeShift(RightOps):
    def scale_shift(  # type: ignore[override]
        self, x: Tensor, scale: Any, shift: Any, scale_constant: float = 1.0, *, casting_mode: str = "float32"
    ) -> Tensor:
        return super().scale_shift(x, shift, scale, scale_constant, casting_mode=casting_mode)


@fault("keywords alone", "residual_gate_add", "no argument can be passed by position", Status.RUNTIME_ERROR)
class KeywordsAlone(RightOps):
    def residual_gate_add(  # type: ignore[override]
        self, *, residual: Tensor, x: Tensor, gate: Any, casting_mode: str = "float32"
    ) -> Tensor:
        return super().residual_gate_add(residual, x, gate, casting_mode=casting_mode)


@fault(
    "parameters refused without grad mode",
    "rms_norm",
    "what requires grad is refused under torch.no_grad() too, and a model's weights do",
    Status.RUNTIME_ERROR,
)
class ParametersRefused(RightOps):
    def rms_norm(
        self, x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, *, casting_mode: str = "float32"
    ) -> Tensor:
        if isinstance(weight, Tensor) and weight.requires_grad:
            raise NotImplementedError("weight requires grad")
        return super().rms_norm(x, weight, eps, casting_mode=casting_mode)


# Return values and side effects.


@fault("a tuple of one", "scale_shift", "(y,) comes back where the reference returns y", Status.INCORRECT_STRUCTURE)
class ATupleOfOne(RightOps):
    def scale_shift(self, *args: Any, **kwargs: Any) -> Any:
        return (super().scale_shift(*args, **kwargs),)


@fault(
    "denormals flushed from then on",
    "residual_gate_add",
    "torch.set_flush_denormal(True) for its own sums, and never taken back: of the whole process",
    Status.STATE_CHANGED,
)
class DenormalsFlushed(RightOps):
    def residual_gate_add(self, *args: Any, **kwargs: Any) -> Any:
        torch.set_flush_denormal(True)
        return super().residual_gate_add(*args, **kwargs)


@fault(
    "default dtype left behind",
    "layer_norm",
    "torch's default dtype is x's for its own torch.empty, and stays so",
    Status.STATE_CHANGED,
)
class DefaultDtypeLeftBehind(RightOps):
    def layer_norm(self, x: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        y = super().layer_norm(x, *rest, **kwargs)
        torch.set_default_dtype(x.dtype)
        return y
