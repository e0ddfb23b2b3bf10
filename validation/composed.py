"""The ops that are made of other ops, written once for those who compute the twelve step by step."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

import reference_ops
from validation.ops import Op


class ComposedOps(ABC):
    """Ops as methods, ``_layer_norm`` and so on; of legal calls, whose arguments are not checked again.

    A residual that is scaled and normalised is a gated residual, and the norm of it as it was stored; what is done to
    q and k is done to one, and then to the other.
    """

    def functions(self) -> dict[str, Op]:
        """All twelve, by name."""
        return {op: getattr(self, f"_{op}") for op in reference_ops.OP_NAMES}

    @abstractmethod
    def _rms_norm(self, x: Tensor, weight: Any = None, eps: float = 1e-6, *, casting_mode: str = "float32") -> Tensor:
        """See `reference_ops.rms_norm`."""

    @abstractmethod
    def _layer_norm_scale_shift(self, x: Tensor, shift: Any, scale: Any, *rest: Any, **options: Any) -> Tensor:
        """See `reference_ops.layer_norm_scale_shift`."""

    @abstractmethod
    def _rms_norm_scale_shift(self, x: Tensor, shift: Any, scale: Any, *rest: Any, **options: Any) -> Tensor:
        """See `reference_ops.rms_norm_scale_shift`."""

    @abstractmethod
    def _residual_gate_add(self, residual: Tensor, x: Tensor, gate: Any, *, casting_mode: str = "float32") -> Tensor:
        """See `reference_ops.residual_gate_add`."""

    @abstractmethod
    def _rms_norm_rope(
        self, x: Tensor, weight: Any, cos: Tensor, sin: Tensor, eps: float, mode: str, *, interleaved: bool
    ) -> Tensor:
        """q or k of `reference_ops.qk_norm_rope`."""

    def _scale_residual_layer_norm_scale_shift(
        self, residual: Tensor, x: Tensor, gate: Any, *rest: Any, casting_mode: str = "float32", **options: Any
    ) -> tuple[Tensor, Tensor]:
        total = self._residual_gate_add(residual, x, gate, casting_mode=casting_mode)
        return self._layer_norm_scale_shift(total, *rest, casting_mode=casting_mode, **options), total

    def _scale_residual_rms_norm_scale_shift(
        self, residual: Tensor, x: Tensor, gate: Any, *rest: Any, casting_mode: str = "float32", **options: Any
    ) -> tuple[Tensor, Tensor]:
        total = self._residual_gate_add(residual, x, gate, casting_mode=casting_mode)
        return self._rms_norm_scale_shift(total, *rest, casting_mode=casting_mode, **options), total

    def _qk_norm(
        self,
        q: Tensor,
        k: Tensor,
        q_weight: Any,
        k_weight: Any,
        eps: float = 1e-6,
        *,
        casting_mode: str = "float32",
        inplace: bool = False,
    ) -> tuple[Tensor, Tensor]:
        q_out, k_out = (
            self._rms_norm(x, weight, eps, casting_mode=casting_mode) for x, weight in ((q, q_weight), (k, k_weight))
        )
        return (q.copy_(q_out), k.copy_(k_out)) if inplace else (q_out, k_out)

    def _qk_norm_rope(
        self,
        q: Tensor,
        k: Tensor,
        q_weight: Any,
        k_weight: Any,
        cos: Tensor,
        sin: Tensor,
        eps: float = 1e-6,
        *,
        interleaved: bool = True,
        casting_mode: str = "float32",
        inplace: bool = False,
    ) -> tuple[Tensor, Tensor]:
        q_out, k_out = (
            self._rms_norm_rope(x, weight, cos, sin, eps, casting_mode, interleaved=interleaved)
            for x, weight in ((q, q_weight), (k, k_weight))
        )
        return (q.copy_(q_out), k.copy_(k_out)) if inplace else (q_out, k_out)
