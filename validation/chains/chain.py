"""The ops, each written once as a chain of steps; signatures and meaning are those of `reference_ops`.

Calls must be legal: arguments are not checked again. For an op without a chain see `perturbed`.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from validation.chains.steps import FLOAT32, INPUT, Steps, Value


class Chain(Steps[Value]):
    """The ops over the steps of a subclass. Its public methods are the ops and nothing else."""

    def layer_norm(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6) -> Any:
        """See `reference_ops.layer_norm`."""
        return self.stored(self.norm(x, weight, bias, eps, FLOAT32, centred=True), x)

    def rms_norm(
        self, x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, *, casting_mode: str = FLOAT32
    ) -> Any:
        """See `reference_ops.rms_norm`."""
        return self.stored(self.norm(x, weight, None, eps, casting_mode, centred=False), x)

    def layer_norm_scale_shift(
        self,
        x: Tensor,
        shift: Any,
        scale: Any,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-6,
        *,
        casting_mode: str = FLOAT32,
    ) -> Any:
        """See `reference_ops.layer_norm_scale_shift`."""
        value = self.norm(x, weight, bias, eps, casting_mode, centred=True)
        return self.stored(self.modulate(value, shift, scale, x, casting_mode), x)

    def rms_norm_scale_shift(
        self,
        x: Tensor,
        shift: Any,
        scale: Any,
        weight: Tensor | None = None,
        eps: float = 1e-6,
        *,
        casting_mode: str = FLOAT32,
    ) -> Any:
        """See `reference_ops.rms_norm_scale_shift`."""
        value = self.norm(x, weight, None, eps, casting_mode, centred=False)
        return self.stored(self.modulate(value, shift, scale, x, casting_mode), x)

    def scale_shift(
        self, x: Tensor, shift: Any, scale: Any, scale_constant: float = 1.0, *, casting_mode: str = FLOAT32
    ) -> Any:
        """See `reference_ops.scale_shift`."""
        value = self.taken(x, casting_mode)
        return self.stored(self.modulate(value, shift, scale, x, casting_mode, scale_constant), x)

    def residual_gate_add(self, residual: Tensor, x: Tensor, gate: Any, *, casting_mode: str = FLOAT32) -> Any:
        """See `reference_ops.residual_gate_add`."""
        return self.stored(self.gated(residual, x, gate, casting_mode), x)

    def scale_residual_layer_norm_scale_shift(
        self,
        residual: Tensor,
        x: Tensor,
        gate: Any,
        shift: Any,
        scale: Any,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-6,
        *,
        casting_mode: str = FLOAT32,
    ) -> tuple[Any, ...]:
        """See `reference_ops.scale_residual_layer_norm_scale_shift`."""
        return self._scale_residual(residual, x, gate, shift, scale, weight, bias, eps, casting_mode, centred=True)

    def scale_residual_rms_norm_scale_shift(
        self,
        residual: Tensor,
        x: Tensor,
        gate: Any,
        shift: Any,
        scale: Any,
        weight: Tensor | None = None,
        eps: float = 1e-6,
        *,
        casting_mode: str = FLOAT32,
    ) -> tuple[Any, ...]:
        """See `reference_ops.scale_residual_rms_norm_scale_shift`."""
        return self._scale_residual(residual, x, gate, shift, scale, weight, None, eps, casting_mode, centred=False)

    def _scale_residual(
        self,
        residual: Tensor,
        x: Tensor,
        gate: Any,
        shift: Any,
        scale: Any,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        mode: str,
        *,
        centred: bool,
    ) -> tuple[Any, ...]:
        total = self.gated(residual, x, gate, mode)
        residual_out = self.stored(total, x)
        value = self.norm(self.handed_on(total, residual_out), weight, bias, eps, mode, centred=centred)
        return self.stored(self.modulate(value, shift, scale, x, mode), x), residual_out

    def qk_norm(
        self,
        q: Tensor,
        k: Tensor,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        eps: float = 1e-6,
        *,
        casting_mode: str = FLOAT32,
        inplace: bool = False,
    ) -> tuple[Any, ...]:
        """See `reference_ops.qk_norm`."""
        results = [
            self.stored(self.norm(t, weight, None, eps, casting_mode, centred=False), t)
            for t, weight in ((q, q_weight), (k, k_weight))
        ]
        return self.returned((q, k), results, inplace=inplace)

    def rotary_embedding(
        self, x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = True, inplace: bool = False
    ) -> Any:
        """See `reference_ops.rotary_embedding`."""
        angles = self.angles(cos, x, INPUT), self.angles(sin, x, INPUT)
        y = self.rotate(self.taken(x, INPUT), *angles, self.room(x.shape, x), interleaved=interleaved)
        return self.returned((x,), [y], inplace=inplace)[0]

    def split_rotary_embedding(self, x: Tensor, cos: Tensor, sin: Tensor) -> Any:
        """See `reference_ops.split_rotary_embedding`."""
        batch, heads, tokens, count = cos.shape
        shape = (batch, tokens, heads, 2 * count)
        angles = self.angles_by_head(cos), self.angles_by_head(sin)
        value = self.taken(x.reshape(shape), FLOAT32)
        return self.rotate(value, *angles, self.room(shape, x), interleaved=False).view(x.shape)

    def qk_norm_rope(
        self,
        q: Tensor,
        k: Tensor,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        eps: float = 1e-6,
        *,
        interleaved: bool = True,
        casting_mode: str = FLOAT32,
        inplace: bool = False,
    ) -> tuple[Any, ...]:
        """See `reference_ops.qk_norm_rope`."""
        results = []
        for name, t, weight in (("q", q, q_weight), ("k", k, k_weight)):
            value = self.head(name, t, weight, cos, eps, casting_mode)
            angles = self.angles(cos, t, casting_mode), self.angles(sin, t, casting_mode)
            results.append(self.rotate(value, *angles, self.room(t.shape, t), interleaved=interleaved))
        return self.returned((q, k), results, inplace=inplace)


OPS = tuple(sorted(name for name in vars(Chain) if not name.startswith("_")))


def functions(chain: Chain[Any]) -> dict[str, Callable[..., Any]]:
    """The ops of an interpreter by name, in alphabetical order."""
    return {op: getattr(chain, op) for op in OPS}
