"""The truth and its legal replays, as op sets: what every correct kernel's roundings may do to a model.

*Truth*: the reference op in float64 on the exact inputs, rounded once to the output's dtype. An op that
returns (y, residual_out) rounds residual_out first, and y is the norm of that rounded value.

*Legal replays* compute the same chain in float64 and round as a correct kernel may:

``lossless``  the normalised value is moved by a few float32 roundings (relative 2^-22) and the result too
              (2^-23), each element at random and uniformly, then the result is rounded to nearest: all that
              a correct kernel with float32 inside can do.
``close``     the float64 result is rounded stochastically to one of its two neighbours (up with the
              probability of its distance from the lower one): one rounding in either direction, at the size
              of one rounding more than declared (variance 1/6 ulp^2 against 1/12).

``casting_mode="input"``, and a rotation of 16-bit values by 16-bit angles, declare roundings on the way.
Replays make these as the eager chain does, to nearest, on steps computed in float64; freedom remains in the
normalised value before its rounding and in the last one. That is why replays of such a chain lie further from
the truth than those of a float32 chain, as the baseline itself does.

Where the random numbers come from decides a replay: a generator seeded with (kind, seed) is drawn from call by
call, so equal calls in equal order repeat it to the bit on one device.
"""

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

import reference_ops
from reference_ops.contract import expand_modulation
from validation.composed import ComposedOps
from validation.ops import Op, OpSet

Kind = Literal["lossless", "close"]
KINDS: tuple[Kind, ...] = ("lossless", "close")

NORMALISED_NOISE = 2.0**-22
RESULT_NOISE = 2.0**-23

_RESIDUAL_NORMS = {
    "scale_residual_layer_norm_scale_shift": "layer_norm_scale_shift",
    "scale_residual_rms_norm_scale_shift": "rms_norm_scale_shift",
}
_DIGITS = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def truth() -> OpSet:
    """All ops, as the truth."""

    def make(op: str) -> Op:
        def call(*given: Any, **named: Any) -> Any:
            arguments, options = bound(op, given, named)
            exact = exact_outputs(op, *arguments, **options)
            outputs = tuple(y.to(dtype) for y, dtype in zip(exact, output_dtypes(op, arguments), strict=True))
            return delivered(outputs, arguments, options)

        return call

    return OpSet("truth", {op: make(op) for op in reference_ops.OP_NAMES}, "truth")


def bound(op: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments as the reference op names them: by position what may be, by name what must."""
    given = _signature(op).bind(*arguments, **options)
    return given.args, given.kwargs


@functools.cache
def _signature(op: str) -> inspect.Signature:
    return inspect.signature(getattr(reference_ops, op))


def exact_outputs(op: str, *arguments: Any, **options: Any) -> tuple[Tensor, ...]:
    """The outputs of a call, as `bound` has it, in float64, unrounded; y is the norm of the rounded residual_out."""
    kept = {name: value for name, value in options.items() if name != "inplace"}
    if op in _RESIDUAL_NORMS:
        residual, x, gate, *rest = arguments
        mode = {name: kept[name] for name in ("casting_mode",) if name in kept}
        total = reference_ops.residual_gate_add(*_wide((residual, x, gate)), **mode)
        rounded = total.to(x.dtype)
        y = getattr(reference_ops, _RESIDUAL_NORMS[op])(rounded.double(), *_wide(rest), **_wide_options(kept))
        return y, total
    y = getattr(reference_ops, op)(*_wide(arguments), **_wide_options(kept))
    return y if isinstance(y, tuple) else (y,)


def delivered(outputs: tuple[Tensor, ...], arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """Outputs as the op hands them back: written over its first arguments where it works in place."""
    if options.get("inplace"):
        outputs = tuple(x.copy_(y) for x, y in zip(arguments, outputs, strict=False))
    return outputs if len(outputs) > 1 else outputs[0]


def output_dtypes(op: str, arguments: Sequence[Any]) -> tuple[torch.dtype, ...]:
    """The dtype of each output: those of q and k, of x and residual_out, or of x."""
    return tuple(t.dtype for t in arguments[: 2 if op.startswith(("qk_norm", "scale_residual")) else 1])


def _wide(arguments: Any) -> list[Any]:
    return [_double(value) for value in arguments]


def _wide_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _double(value) for name, value in options.items()}


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double()
    if hasattr(value, "table"):
        return reference_ops.IndexedRows(value.table.double(), value.index)
    return value


@dataclasses.dataclass(frozen=True)
class _Value:
    """A step's float64 result, and the dtype in which the eager chain would hold it; not yet rounded to it."""

    exact: Tensor
    dtype: torch.dtype

    def settled(self) -> Tensor:
        """Rounded, where the chain declares a rounding: to 16 bits. One to float32 is noise of the result."""
        return self.exact if self.dtype is torch.float32 else self.exact.to(self.dtype).double()

    def __add__(self, other: "_Value") -> "_Value":
        return _Value(self.settled() + other.settled(), torch.promote_types(self.dtype, other.dtype))

    def __sub__(self, other: "_Value") -> "_Value":
        return _Value(self.settled() - other.settled(), torch.promote_types(self.dtype, other.dtype))

    def __mul__(self, other: "_Value") -> "_Value":
        return _Value(self.settled() * other.settled(), torch.promote_types(self.dtype, other.dtype))


class Replay(ComposedOps):
    """One legal replay: the twelve ops of `op_set`, drawing from one generator.

    Attributes:
        kind: of the roundings.
        seed: names the replay; another seed is another replay.
    """

    def __init__(self, kind: Kind, seed: str) -> None:
        self.kind, self.seed = kind, seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def op_set(self) -> OpSet:
        """The ops; for arguments that the reference ops accept, which are not checked again."""
        return OpSet(f"{self.kind} replay {self.seed}", self.functions(), "replay")

    # Noise and roundings.

    def _random(self, like: Tensor) -> Tensor:
        """Uniform in [0, 1), of a tensor's shape, float64."""
        generator = self._generators.get(like.device)
        if generator is None:
            key = hashlib.sha256(f"{self.kind} {self.seed}".encode()).digest()
            generator = torch.Generator(like.device).manual_seed(int.from_bytes(key[:8], "big") >> 1)
            self._generators[like.device] = generator
        return torch.rand(like.shape, dtype=torch.float64, device=like.device, generator=generator)

    def _disturbed(self, value: Tensor, relative: float) -> Tensor:
        if self.kind == "close":
            return value
        return value * (1 + relative * (2 * self._random(value) - 1))

    def _rounded(self, value: _Value, dtype: torch.dtype) -> Tensor:
        if self.kind == "close":
            return stochastically_rounded(value.exact, dtype, self._random(value.exact))
        # A result that float32 holds needed no rounding to get there. Sums of 16-bit values are such, and often
        # lie halfway between two neighbours (6 % of a bfloat16 gated sum): every kernel rounds these to even.
        held = value.exact.float().double() == value.exact
        return torch.where(held, value.exact, self._disturbed(value.exact, RESULT_NOISE)).to(dtype)

    # Steps.

    def _normalised(self, x: Tensor, eps: float, mode: str, *, centred: bool) -> _Value:
        wide = x.double()
        if centred:
            wide = wide - wide.mean(-1, keepdim=True)
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return _Value(self._disturbed(wide, NORMALISED_NOISE), _held(x, mode))

    def _norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mode: str, *, centred: bool
    ) -> _Value:
        value = self._normalised(x, eps, mode, centred=centred)
        if weight is not None:
            value = value * _taken(weight, mode, x)
        return value if bias is None else value + _taken(bias, mode, x)

    def _modulated(self, value: _Value, x: Tensor, shift: Any, scale: Any, mode: str, constant: float = 1.0) -> Tensor:
        rows = _taken(expand_modulation(scale, x), mode, x)
        factor = _Value(rows.exact + constant, rows.dtype)
        return self._rounded(value * factor + _taken(expand_modulation(shift, x), mode, x), x.dtype)

    def _rotated(
        self, value: _Value, angles: tuple[_Value, _Value], dtype: torch.dtype, *, interleaved: bool
    ) -> Tensor:
        """Rotate ``[..., head_dim]``; cos and sin broadcast against its pairs; other channels are rounded only."""
        cos, sin = angles
        pairs, wide = cos.exact.shape[-1], value.settled()
        if interleaved:
            firsts, seconds = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
        else:
            firsts, seconds = slice(0, pairs), slice(pairs, 2 * pairs)
        a, b = _Value(wide[..., firsts], value.dtype), _Value(wide[..., seconds], value.dtype)
        out = torch.empty(wide.shape, dtype=dtype, device=wide.device)
        out[..., firsts] = self._rounded(a * cos - b * sin, dtype)
        out[..., seconds] = self._rounded(a * sin + b * cos, dtype)
        out[..., 2 * pairs :] = self._rounded(_Value(wide[..., 2 * pairs :], value.dtype), dtype)
        return out

    # The ops.

    def _layer_norm(self, x: Tensor, weight: Any = None, bias: Any = None, eps: float = 1e-6) -> Tensor:
        return self._rounded(self._norm(x, weight, bias, eps, "float32", centred=True), x.dtype)

    def _rms_norm(self, x: Tensor, weight: Any = None, eps: float = 1e-6, *, casting_mode: str = "float32") -> Tensor:
        return self._rounded(self._norm(x, weight, None, eps, casting_mode, centred=False), x.dtype)

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
        value = self._norm(x, weight, bias, eps, casting_mode, centred=True)
        return self._modulated(value, x, shift, scale, casting_mode)

    def _rms_norm_scale_shift(
        self, x: Tensor, shift: Any, scale: Any, weight: Any = None, eps: float = 1e-6, *, casting_mode: str = "float32"
    ) -> Tensor:
        value = self._norm(x, weight, None, eps, casting_mode, centred=False)
        return self._modulated(value, x, shift, scale, casting_mode)

    def _scale_shift(
        self, x: Tensor, shift: Any, scale: Any, scale_constant: float = 1.0, *, casting_mode: str = "float32"
    ) -> Tensor:
        return self._modulated(_taken(x, casting_mode, x), x, shift, scale, casting_mode, scale_constant)

    def _residual_gate_add(self, residual: Tensor, x: Tensor, gate: Any, *, casting_mode: str = "float32") -> Tensor:
        added = _taken(x, casting_mode, x)
        if gate is not None:
            added = added * _taken(expand_modulation(gate, x), casting_mode, x)
        return self._rounded(_taken(residual, casting_mode, x) + added, x.dtype)

    def _rotary_embedding(
        self, x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = True, inplace: bool = False
    ) -> Any:
        angles = _angles(cos.unsqueeze(-2), sin.unsqueeze(-2), "input", x)
        y = self._rotated(_taken(x, "input", x), angles, x.dtype, interleaved=interleaved)
        y[..., 2 * cos.shape[-1] :] = x[..., 2 * cos.shape[-1] :]  # passed through: no step, no noise
        return delivered((y,), (x,), {"inplace": inplace})

    def _split_rotary_embedding(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = x.reshape(*x.shape[:2], cos.shape[1], 2 * cos.shape[3])
        angles = _angles(cos.transpose(1, 2), sin.transpose(1, 2), "float32", x)
        return self._rotated(_taken(heads, "float32", x), angles, x.dtype, interleaved=False).reshape(x.shape)

    def _rms_norm_rope(
        self, x: Tensor, weight: Any, cos: Tensor, sin: Tensor, eps: float, mode: str, *, interleaved: bool
    ) -> Tensor:
        value = self._norm(x, weight, None, eps, mode, centred=False)
        if mode == "input":  # the norm's result is cast to x's dtype, whatever the weight's was
            value = _Value(_Value(value.settled(), x.dtype).settled(), x.dtype)
        angles = _angles(cos.unsqueeze(-2), sin.unsqueeze(-2), mode, x)
        return self._rotated(value, angles, x.dtype, interleaved=interleaved)


def _held(x: Tensor, mode: str) -> torch.dtype:
    """The dtype in which the chain holds the values that it makes of x."""
    return torch.float32 if mode == "float32" else x.dtype


def _taken(t: Tensor, mode: str, x: Tensor) -> _Value:
    """An argument as the chain takes it; a 0-d one is rounded to x's dtype first, as PyTorch's promotion has it."""
    if mode == "input" and t.dim() == 0:
        t = t.to(x.dtype)
    return _Value(t.double(), _held(t, mode))


def _angles(cos: Tensor, sin: Tensor, mode: str, x: Tensor) -> tuple[_Value, _Value]:
    return _taken(cos, mode, x), _taken(sin, mode, x)


def stochastically_rounded(value: Tensor, dtype: torch.dtype, uniform: Tensor) -> Tensor:
    """Round float64 values to one of their two neighbours in dtype.

    A value representable in dtype stays; one a share p of the way from the lower neighbour to the upper one
    goes up with probability p. NaN and what rounds to infinity follow rounding to nearest.

    Args:
        value: float64.
        dtype: float32, float16 or bfloat16.
        uniform: float64 in [0, 1), of the same shape: p is compared with it.
    """
    nearest = value.to(dtype)
    smallest = torch.finfo(dtype).smallest_normal
    exponent = torch.frexp(value.abs().clamp(min=smallest))[1]  # 2^(e-1) <= |value| < 2^e
    spacing = torch.ldexp(torch.ones_like(value), exponent - _DIGITS[dtype])
    rounded = (value / spacing + uniform).floor() * spacing
    usable = nearest.isfinite() & (rounded.abs() <= torch.finfo(dtype).max)
    return torch.where(usable, rounded.to(dtype), nearest)
