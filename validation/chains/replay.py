"""Legal replays of the ops, as op sets: the effect that a correct kernel's roundings may have on a model.

They compute an op's chain in float64 and round as a correct kernel may:

``lossless``  every float32 step rounds its result once: an intermediate one is moved by its rounding error, to
              either side, and the last is rounded; sums are summed for real, in float32 and in a random order
              (`rounding`). So a mean is as wrong as a kernel's, which grows with |mean| / sigma, and common to its
              row.
``close``     the float64 result is rounded stochastically to one of its two neighbours (up with the
              probability of its distance from the lower one): one rounding in either direction, at the size
              of one rounding more than declared (variance 1/6 ulp^2 against 1/12).

``casting_mode="input"``, and a rotation of 16-bit values by 16-bit angles, declare roundings on the way.
Replays round there as the eager chain does, to nearest; only the normalised value before its rounding and the last
rounding are free. That is why replays of such a chain lie further from the truth than those of a float32 chain, as the
baseline itself does.

Where right kernels differ, a lossless replay does what the less exact ones do: products and sums are rounded one by
one, blocks of columns are added one after the other, and a centred value is ``x * rstd - mean * rstd``, as in PyTorch's
own kernel (128 bfloat16 columns at a mean of 30 sigma: of a million elements 1,465 fall the other way, and 27 with
``(x - mean) * rstd``). The test on the band is one-sided: a kernel that is nearer to the truth than its replays is no
fault, and one that is as right as the path it replaces must not be outside of them.

An op without a chain is replayed from a tape of its reference, with the same steps.

(kind, seed) decide a replay. A lossless one is a function of its arguments, as a kernel is. A close one draws from a
generator call by call: equal calls in equal order repeat it to the bit on one device.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import reference_ops
from validation.chains import chain, perturbed, rounding, running, steps, tape, truth, ulp
from validation.chains.chain import OPS, Chain, functions
from validation.chains.rounding import Rounding
from validation.chains.steps import FLOAT32, INPUT
from validation.chains.truth import bound, delivered
from validation.ops import Op, OpSet, reference_op

Kind = Literal["lossless", "close"]
KINDS: tuple[Kind, ...] = ("lossless", "close")

# Together with the reference ops these decide the truth and its replays.
_MODULES = (chain, perturbed, rounding, running, steps, tape, truth, ulp)

_DIGITS = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def sources() -> list[Path]:
    """The files on which the truth and its replays depend, in a fixed order."""
    modules = [Path(__file__), *(Path(str(module.__file__)) for module in _MODULES)]
    return [*sorted(Path(reference_ops.__path__[0]).rglob("*.py")), *modules]


@dataclasses.dataclass(frozen=True)
class _Value:
    """A step's exact result, not yet rounded to the dtype in which the eager chain would hold it.

    Attributes:
        exact: float64.
        dtype: that dtype.
        rounding: the float32 arithmetic that made it; None makes no error.
    """

    exact: Tensor
    dtype: torch.dtype
    rounding: Rounding | None

    @property
    def shape(self) -> torch.Size:
        return self.exact.shape

    def settled(self) -> Tensor:
        """Rounded, in float64: as the next step reads it."""
        if self.dtype is not torch.float32:
            return self.exact.to(self.dtype).double()
        return self.exact if self.rounding is None else self.rounding.rounded(self.exact)

    def __add__(self, other: "_Value | float") -> "_Value":
        if not isinstance(other, _Value):
            return dataclasses.replace(self, exact=self.settled() + other)
        dtype = torch.promote_types(self.dtype, other.dtype)
        return _Value(self.settled() + other.settled(), dtype, self.rounding)

    def __mul__(self, other: "_Value") -> "_Value":
        dtype = torch.promote_types(self.dtype, other.dtype)
        return _Value(self.settled() * other.settled(), dtype, self.rounding)

    def __neg__(self) -> "_Value":
        return dataclasses.replace(self, exact=-self.exact)


class Replay(Chain[_Value]):
    """One legal replay, with one random generator per device.

    Attributes:
        kind: the kind of roundings.
        seed: identifies the replay; another seed is another replay.
    """

    def __init__(self, kind: Kind, seed: str) -> None:
        self.kind, self.seed = kind, seed
        self._generators: dict[torch.device, torch.Generator] = {}
        self._rounding = Rounding(_seed(kind, seed) - 2**63) if kind == "lossless" else None

    def op_set(self) -> OpSet:
        """All ops as an op set; arguments must be acceptable to the reference ops and are not checked again."""
        taped = {op: functools.partial(self._taped, op) for op in reference_ops.OP_NAMES if op not in OPS}
        made: dict[str, Op] = {**functions(self), **taped}
        return OpSet(f"{self.kind} replay {self.seed}", made, "replay")

    def _taped(self, op: str, *given: Any, **named: Any) -> Any:
        """Replay an op without a chain."""
        arguments, options = bound(op, given, named)
        kept = {name: value for name, value in options.items() if name != "inplace"}
        outputs = perturbed.replay(
            functools.partial(reference_op(op), *arguments, **kept),
            self._rounding,
        )
        rounded = tuple(self.rounded(_Value(exact, dtype, self._rounding), dtype) for exact, dtype in outputs)
        return delivered(rounded, arguments, options)

    def _generator(self, device: torch.device) -> torch.Generator:
        generator = self._generators.get(device)
        if generator is None:
            generator = torch.Generator(device).manual_seed(_seed(self.kind, self.seed) >> 1)
            self._generators[device] = generator
        return generator

    def _random(self, like: Tensor) -> Tensor:
        """Random numbers, uniform in [0, 1), in a tensor's shape, float64."""
        generator = self._generator(like.device)
        return torch.rand(like.shape, dtype=torch.float64, device=like.device, generator=generator)

    def taken(self, t: Tensor, mode: str) -> _Value:
        """See `Steps`."""
        return _Value(t.double(), torch.float32 if mode == FLOAT32 else t.dtype, self._rounding)

    def modulation(self, name: str, m: Any, x: Tensor, mode: str) -> _Value:
        """See `Steps`; a 0-d modulation is rounded to x's dtype first, as in PyTorch's promotion."""
        rows = self.rows(name, m, x)
        return self.taken(rows.to(x.dtype) if mode == INPUT and rows.dim() == 0 else rows, mode)

    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> _Value:
        """See `Steps`."""
        wide, rounding = x.double(), self._rounding
        if rounding is None:
            value = wide - wide.mean(-1, keepdim=True) if centred else wide
            value = value * torch.rsqrt(value.square().mean(-1, keepdim=True) + eps)
            return _Value(value, torch.float32, None)
        narrow = x.float()
        mean = rounding.sum(narrow) / x.shape[-1] if centred else torch.zeros_like(narrow[..., :1])
        square = rounding.sum((narrow - mean).square()) / x.shape[-1]
        rstd = rounding.rounded((square + eps).double().rsqrt())
        if not centred:
            return _Value(wide * rstd, torch.float32, rounding)
        # Without slack: at a large mean this form alone is further from the truth than the other.
        both = rounding.rounded(wide * rstd, 1.0) - rounding.rounded(mean.double() * rstd, 1.0)
        return _Value(both, torch.float32, rounding)

    def midway(self, value: _Value, dtype: torch.dtype, mode: str) -> _Value:
        """See `Steps`; the next step that reads the value rounds it."""
        return dataclasses.replace(value, exact=value.settled(), dtype=dtype) if mode == INPUT else value

    def part(self, value: _Value, columns: slice) -> _Value:
        """See `Steps`."""
        return dataclasses.replace(value, exact=value.exact[..., columns])

    def rotated_pair(self, a: _Value, b: _Value, cos: _Value, sin: _Value) -> tuple[_Value, _Value]:
        """See `Steps`; each channel is read twice and rounded once."""
        a, b = (dataclasses.replace(value, exact=value.settled()) for value in (a, b))
        return super().rotated_pair(a, b, cos, sin)

    def rounded(self, value: _Value, dtype: torch.dtype) -> Tensor:
        """See `Steps`."""
        if self._rounding is None:
            return stochastically_rounded(value.exact, dtype, self._random(value.exact))
        return value.exact.float().to(dtype)

    def rotary_embedding(
        self, x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = True, inplace: bool = False
    ) -> Any:
        """See `Chain`."""
        y = super().rotary_embedding(x, cos, sin, interleaved=interleaved)
        y[..., 2 * cos.shape[-1] :] = x[..., 2 * cos.shape[-1] :]  # passed through: no step, no noise
        return self.returned((x,), [y], inplace=inplace)[0]


def _seed(kind: Kind, seed: str) -> int:
    """64 bits."""
    return int.from_bytes(hashlib.sha256(f"{kind} {seed}".encode()).digest()[:8], "big")


def stochastically_rounded(value: Tensor, dtype: torch.dtype, uniform: Tensor) -> Tensor:
    """Round float64 values to one of their two neighbours in dtype.

    A value representable in dtype stays; a value at share p of the way from the lower neighbour to the upper one
    goes up with probability p. NaN and values that round to infinity are rounded to nearest.

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
