"""Every op, right, in small steps: a planted fault is this with one step replaced.

Float32 inside like a fused kernel, rounded where the casting mode says, outputs in fresh memory. Held to
``lossless`` by the suite's own tests: what a fault shows is then its bug and nothing else.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reference_ops.contract import (
    check_casting_mode,
    check_inplace,
    check_modulated,
    check_modulated_norm,
    check_norm,
    check_number,
    check_qk,
    check_qk_rope,
    check_rotary,
    check_split_rotary,
    expand_modulation,
)


class RightOps:
    """The ops as methods; the arguments are those of the reference ops."""

    # Steps of a norm.

    def mean(self, x: Tensor) -> Tensor:
        """The mean of float32 rows, corrected once, so that of a constant row it is exact."""
        mean = x.mean(-1, keepdim=True)
        return mean + (x - mean).mean(-1, keepdim=True)

    def mean_square(self, deviation: Tensor) -> Tensor:
        """The mean square of float32 rows: the variance, where they are deviations from the mean."""
        return (deviation * deviation).mean(-1, keepdim=True)

    def inverse_root(self, mean_square: Tensor, eps: float) -> Tensor:
        """``1 / sqrt(mean_square + eps)``."""
        return torch.rsqrt(mean_square + eps)

    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        """Rows normalised, in float32; centred for LayerNorm, as they are for RMSNorm.

        Contiguous first: the order in which ``torch.mean`` adds a strided row up depends on where the row lies.
        """
        x = x.float().contiguous()
        deviation = x - self.mean(x) if centred else x
        return deviation * self.inverse_root(self.mean_square(deviation), eps)

    def norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mode: str, *, centred: bool
    ) -> Tensor:
        """Norm, weight and bias, the last of them not yet rounded."""
        value = self.normalised(x, eps, centred=centred)
        return self.affine(value if mode == "float32" else value.to(x.dtype), weight, bias, mode)

    def affine(self, value: Tensor, weight: Tensor | None, bias: Tensor | None, mode: str) -> Tensor:
        """``value * weight + bias``."""
        if weight is not None:
            value = value * self.taken(weight, mode)
        return value if bias is None else value + self.taken(bias, mode)

    # Steps of the modulation.

    def taken(self, t: Tensor, mode: str) -> Tensor:
        """An argument as the arithmetic takes it: in float32, or in its own dtype and PyTorch's promotion."""
        return t.float() if mode == "float32" else t

    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        """The argument called name (shift, scale or gate), to be broadcast against x."""
        del name
        return expand_modulation(m, x)

    def modulate(self, value: Tensor, shift: Any, scale: Any, x: Tensor, mode: str, constant: float = 1.0) -> Tensor:
        """``value * (constant + scale) + shift``."""
        scale, shift = self.rows("scale", scale, x), self.rows("shift", shift, x)
        return self.product(value, self.taken(scale, mode) + constant, x) + self.taken(shift, mode)

    def product(self, value: Tensor, factor: Tensor, x: Tensor) -> Tensor:
        """A value times its scale or gate."""
        del x
        return value * factor

    def gated(self, residual: Tensor, x: Tensor, gate: Any, mode: str) -> Tensor:
        """``residual + x * gate``."""
        if gate is not None:
            rows = self.taken(self.rows("gate", gate, x), mode)
            return self.taken(residual, mode) + self.product(self.taken(x, mode), rows, x)
        return self.taken(residual, mode) + self.taken(x, mode)

    # Steps of a rotation.

    def pairs(self, count: int, head_dim: int, *, interleaved: bool) -> tuple[slice, slice]:
        """The first and the second channels of count pairs."""
        del head_dim
        if interleaved:
            return slice(0, 2 * count, 2), slice(1, 2 * count, 2)
        return slice(0, count), slice(count, 2 * count)

    def rotated_pair(self, a: Tensor, b: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """``(a * cos - b * sin, a * sin + b * cos)``; in float32 each sum is contracted with its second product."""
        if a.dtype is not torch.float32:
            return a * cos - b * sin, a * sin + b * cos
        return torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(a * sin, b, cos)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        """Rotate x ``[B, S, H, head_dim]`` into out, of that shape; cos and sin broadcast against its pairs."""
        count = cos.shape[-1]
        firsts, seconds = self.pairs(count, x.shape[-1], interleaved=interleaved)
        first, second = self.rotated_pair(x[..., firsts], x[..., seconds], cos, sin)
        out[..., firsts], out[..., seconds] = first, second
        out[..., 2 * count :] = x[..., 2 * count :]
        return out

    def angles(self, cos: Tensor, x: Tensor, mode: str) -> Tensor:
        """cos or sin (``[S, Dr/2]`` or ``[B, S, Dr/2]``) to be broadcast against the pairs of x."""
        del x
        return self.taken(cos, mode).unsqueeze(-2)

    # Steps that all ops end with.

    def rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """The last rounding."""
        return value.to(dtype)

    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        """The result, rounded, in memory of its own."""
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        return y.copy_(self.rounded(value, x.dtype))

    def returned(self, targets: tuple[Tensor, ...], results: Sequence[Tensor], *, inplace: bool) -> tuple[Tensor, ...]:
        """The results of an op that may work in place."""
        if not inplace:
            return tuple(results)
        return tuple(target.copy_(result) for target, result in zip(targets, results, strict=True))

    # The ops.

    def layer_norm(
        self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6
    ) -> Tensor:
        """See `reference_ops.layer_norm`."""
        check_norm("layer_norm", x, {"weight": weight, "bias": bias}, eps, float64=False)
        return self.stored(self.norm(x, weight, bias, eps, "float32", centred=True), x)

    def rms_norm(
        self, x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, *, casting_mode: str = "float32"
    ) -> Tensor:
        """See `reference_ops.rms_norm`."""
        check_norm("rms_norm", x, {"weight": weight}, eps, float64=False)
        check_casting_mode("rms_norm", casting_mode)
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
        casting_mode: str = "float32",
    ) -> Tensor:
        """See `reference_ops.layer_norm_scale_shift`."""
        self._check_modulated_norm(
            "layer_norm_scale_shift", x, shift, scale, eps, casting_mode, weight=weight, bias=bias
        )
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
        casting_mode: str = "float32",
    ) -> Tensor:
        """See `reference_ops.rms_norm_scale_shift`."""
        self._check_modulated_norm("rms_norm_scale_shift", x, shift, scale, eps, casting_mode, weight=weight)
        value = self.norm(x, weight, None, eps, casting_mode, centred=False)
        return self.stored(self.modulate(value, shift, scale, x, casting_mode), x)

    def _check_modulated_norm(
        self, op: str, x: Tensor, shift: Any, scale: Any, eps: float, mode: str, **rows: Tensor | None
    ) -> None:
        check_modulated_norm(op, x, {"shift": shift, "scale": scale}, rows, eps, mode, float64=False)

    def scale_shift(
        self, x: Tensor, shift: Any, scale: Any, scale_constant: float = 1.0, *, casting_mode: str = "float32"
    ) -> Tensor:
        """See `reference_ops.scale_shift`."""
        check_modulated("scale_shift", x, {"shift": shift, "scale": scale}, casting_mode, float64=False)
        check_number("scale_shift", "scale_constant", scale_constant)
        value = self.modulate(self.taken(x, casting_mode), shift, scale, x, casting_mode, scale_constant)
        return self.stored(value, x)

    def residual_gate_add(self, residual: Tensor, x: Tensor, gate: Any, *, casting_mode: str = "float32") -> Tensor:
        """See `reference_ops.residual_gate_add`."""
        like_x = {"residual": residual}
        check_modulated("residual_gate_add", x, {"gate": gate}, casting_mode, float64=False, like_x=like_x)
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
        casting_mode: str = "float32",
    ) -> tuple[Tensor, ...]:
        """See `reference_ops.scale_residual_layer_norm_scale_shift`."""
        op, rows = "scale_residual_layer_norm_scale_shift", {"weight": weight, "bias": bias}
        return self._scale_residual(op, residual, x, gate, shift, scale, rows, eps, casting_mode, centred=True)

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
        casting_mode: str = "float32",
    ) -> tuple[Tensor, ...]:
        """See `reference_ops.scale_residual_rms_norm_scale_shift`."""
        op, rows = "scale_residual_rms_norm_scale_shift", {"weight": weight}
        return self._scale_residual(op, residual, x, gate, shift, scale, rows, eps, casting_mode, centred=False)

    def _scale_residual(
        self,
        op: str,
        residual: Tensor,
        x: Tensor,
        gate: Any,
        shift: Any,
        scale: Any,
        rows: dict[str, Tensor | None],
        eps: float,
        mode: str,
        *,
        centred: bool,
    ) -> tuple[Tensor, ...]:
        modulation = {"gate": gate, "shift": shift, "scale": scale}
        check_modulated_norm(op, x, modulation, rows, eps, mode, float64=False, like_x={"residual": residual})
        total = self.gated(residual, x, gate, mode)
        residual_out = self.stored(total, x)
        value = self.norm(
            self.handed_on(total, residual_out), rows["weight"], rows.get("bias"), eps, mode, centred=centred
        )
        return self.stored(self.modulate(value, shift, scale, x, mode), x), residual_out

    def handed_on(self, total: Tensor, residual_out: Tensor) -> Tensor:
        """What the norm reads of the gated sum: the rounded residual, as the caller sees it."""
        del total
        return residual_out

    def qk_norm(
        self,
        q: Tensor,
        k: Tensor,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        eps: float = 1e-6,
        *,
        casting_mode: str = "float32",
        inplace: bool = False,
    ) -> tuple[Tensor, ...]:
        """See `reference_ops.qk_norm`."""
        check_qk("qk_norm", q, k, q_weight, k_weight, eps, casting_mode, inplace, rank=None, float64=False)
        if inplace:
            check_inplace("qk_norm", {"q": q, "k": k}, {"q_weight": q_weight, "k_weight": k_weight})
        results = [
            self.stored(self.norm(t, weight, None, eps, casting_mode, centred=False), t)
            for t, weight in ((q, q_weight), (k, k_weight))
        ]
        return self.returned((q, k), results, inplace=inplace)

    def rotary_embedding(
        self, x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = True, inplace: bool = False
    ) -> Tensor:
        """See `reference_ops.rotary_embedding`."""
        check_rotary(x, cos, sin, interleaved, inplace, float64=False)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        cos, sin = self.angles(cos, x, "input"), self.angles(sin, x, "input")
        self.rotate(x, cos, sin, y, interleaved=interleaved)
        return self.returned((x,), [y], inplace=inplace)[0]

    def split_rotary_embedding(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """See `reference_ops.split_rotary_embedding`."""
        check_split_rotary(x, cos, sin, float64=False)
        batch, heads, tokens, count = cos.shape
        shape = (batch, tokens, heads, 2 * count)
        y = torch.empty(shape, dtype=x.dtype, device=x.device)
        cos, sin = self.angles_by_head(cos), self.angles_by_head(sin)
        return self.rotate(x.reshape(shape).float(), cos, sin, y, interleaved=False).view(x.shape)

    def angles_by_head(self, cos: Tensor) -> Tensor:
        """cos or sin ``[B, H, S, Dh/2]`` to be broadcast against the pairs of ``[B, S, H, Dh]``."""
        return cos.float().transpose(1, 2)

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
        casting_mode: str = "float32",
        inplace: bool = False,
    ) -> tuple[Tensor, ...]:
        """See `reference_ops.qk_norm_rope`."""
        check_qk_rope(q, k, q_weight, k_weight, cos, sin, eps, interleaved, casting_mode, inplace, float64=False)
        results = []
        for name, t, weight in (("q", q, q_weight), ("k", k, k_weight)):
            y = torch.empty(t.shape, dtype=t.dtype, device=t.device)
            value = self.head(name, t, weight, cos, eps, casting_mode)
            angles = self.angles(cos, t, casting_mode), self.angles(sin, t, casting_mode)
            results.append(self.rotate(value, *angles, y, interleaved=interleaved))
        return self.returned((q, k), results, inplace=inplace)

    def head(self, name: str, t: Tensor, weight: Tensor | None, cos: Tensor, eps: float, mode: str) -> Tensor:
        """The normalised heads of q or k, as the rotation takes them."""
        del name, cos
        value = self.norm(t, weight, None, eps, mode, centred=False)
        return value if mode == "float32" else value.to(t.dtype)
