"""Legal replays of the ops, as op sets: the effect that a correct kernel's roundings may have on a model.

They compute an op's chain in float64 and round as a correct kernel may:

``lossless``  the normalised value is moved by a few float32 roundings (relative 2^-22) and the result too
              (2^-23), each element at random and uniformly, then the result is rounded to nearest: all that
              a correct kernel with float32 inside can do.
``close``     the float64 result is rounded stochastically to one of its two neighbours (up with the
              probability of its distance from the lower one): one rounding in either direction, at the size
              of one rounding more than declared (variance 1/6 ulp^2 against 1/12).

``casting_mode="input"``, and a rotation of 16-bit values by 16-bit angles, declare roundings on the way.
Replays round there as the eager chain does, to nearest, on steps computed in float64; only the normalised value
before its rounding and the last rounding are free. That is why replays of such a chain lie further from
the truth than those of a float32 chain, as the baseline itself does.

An op without a chain is replayed from a tape of its reference: every float32 step is moved by one rounding of its own
(``lossless``), 16-bit steps are rounded to nearest, and the result as above.

The random numbers decide a replay: each call draws from a generator seeded with (kind, seed), so equal calls in
equal order repeat it to the bit on one device.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import reference_ops
from validation.chains import chain, perturbed, running, steps, tape, truth, ulp
from validation.chains.chain import OPS, Chain, functions
from validation.chains.steps import FLOAT32, INPUT
from validation.chains.truth import bound, delivered
from validation.ops import Op, OpSet, reference_op

Kind = Literal["lossless", "close"]
KINDS: tuple[Kind, ...] = ("lossless", "close")

NORMALISED_NOISE = 2.0**-22
RESULT_NOISE = 2.0**-23

# Together with the reference ops these decide the truth and its replays.
_MODULES = (chain, perturbed, running, steps, tape, truth, ulp)

_DIGITS = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def sources() -> list[Path]:
    """The files on which the truth and its replays depend, in a fixed order."""
    modules = [Path(__file__), *(Path(str(module.__file__)) for module in _MODULES)]
    return [*sorted(Path(reference_ops.__path__[0]).rglob("*.py")), *modules]


@dataclasses.dataclass(frozen=True)
class _Value:
    """A step's float64 result, not yet rounded to the dtype in which the eager chain would hold it."""

    exact: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        return self.exact.shape

    def settled(self) -> Tensor:
        """Round to 16 bits where the chain declares it; a rounding to float32 counts as noise of the result."""
        return self.exact if self.dtype is torch.float32 else self.exact.to(self.dtype).double()

    def __add__(self, other: "_Value | float") -> "_Value":
        if not isinstance(other, _Value):
            return _Value(self.settled() + other, self.dtype)
        return _Value(self.settled() + other.settled(), torch.promote_types(self.dtype, other.dtype))

    def __mul__(self, other: "_Value") -> "_Value":
        return _Value(self.settled() * other.settled(), torch.promote_types(self.dtype, other.dtype))

    def __neg__(self) -> "_Value":
        return _Value(-self.exact, self.dtype)


class Replay(Chain[_Value]):
    """One legal replay, with one random generator per device.

    Attributes:
        kind: the kind of roundings.
        seed: identifies the replay; another seed is another replay.
    """

    def __init__(self, kind: Kind, seed: str) -> None:
        self.kind, self.seed = kind, seed
        self._generators: dict[torch.device, torch.Generator] = {}

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
            self._generator if self.kind == "lossless" else None,
        )
        rounded = tuple(self.rounded(_Value(exact, dtype), dtype) for exact, dtype in outputs)
        return delivered(rounded, arguments, options)

    def _generator(self, device: torch.device) -> torch.Generator:
        generator = self._generators.get(device)
        if generator is None:
            key = hashlib.sha256(f"{self.kind} {self.seed}".encode()).digest()
            generator = torch.Generator(device).manual_seed(int.from_bytes(key[:8], "big") >> 1)
            self._generators[device] = generator
        return generator

    def _random(self, like: Tensor) -> Tensor:
        """Random numbers, uniform in [0, 1), in a tensor's shape, float64."""
        generator = self._generator(like.device)
        return torch.rand(like.shape, dtype=torch.float64, device=like.device, generator=generator)

    def _disturbed(self, value: Tensor, relative: float) -> Tensor:
        if self.kind == "close":
            return value
        return value * (1 + relative * (2 * self._random(value) - 1))

    def taken(self, t: Tensor, mode: str) -> _Value:
        """See `Steps`."""
        return _Value(t.double(), torch.float32 if mode == FLOAT32 else t.dtype)

    def modulation(self, name: str, m: Any, x: Tensor, mode: str) -> _Value:
        """See `Steps`; a 0-d modulation is rounded to x's dtype first, as in PyTorch's promotion."""
        rows = self.rows(name, m, x)
        return self.taken(rows.to(x.dtype) if mode == INPUT and rows.dim() == 0 else rows, mode)

    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> _Value:
        """See `Steps`."""
        wide = x.double()
        if centred:
            wide = wide - wide.mean(-1, keepdim=True)
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return _Value(self._disturbed(wide, NORMALISED_NOISE), torch.float32)

    def midway(self, value: _Value, dtype: torch.dtype, mode: str) -> _Value:
        """See `Steps`; the next step that reads the value rounds it."""
        return _Value(value.settled(), dtype) if mode == INPUT else value

    def part(self, value: _Value, columns: slice) -> _Value:
        """See `Steps`."""
        return _Value(value.settled()[..., columns], value.dtype)

    def rounded(self, value: _Value, dtype: torch.dtype) -> Tensor:
        """See `Steps`."""
        if self.kind == "close":
            return stochastically_rounded(value.exact, dtype, self._random(value.exact))
        # A result that float32 holds exactly needed no rounding. Sums of 16-bit values are an example, and often
        # lie halfway between two neighbours (6 % of a bfloat16 gated sum): every kernel rounds these to even.
        held = value.exact.float().double() == value.exact
        return torch.where(held, value.exact, self._disturbed(value.exact, RESULT_NOISE)).to(dtype)

    def rotary_embedding(
        self, x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = True, inplace: bool = False
    ) -> Any:
        """See `Chain`."""
        y = super().rotary_embedding(x, cos, sin, interleaved=interleaved)
        y[..., 2 * cos.shape[-1] :] = x[..., 2 * cos.shape[-1] :]  # passed through: no step, no noise
        return self.returned((x,), [y], inplace=inplace)[0]


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
