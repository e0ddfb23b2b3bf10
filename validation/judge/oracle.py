"""The ops' formulas in 50 digits, which the float64 truth must agree with.

They are written from the definitions (LayerNorm: Ba et al. 2016; RMSNorm: Zhang and Sennrich 2019; rotary embedding: Su
et al. 2021; modulation forms: those that each op documents) and share no code with `reference_ops`, so a reference op
that computes another function does not stand for the truth. An op without a formula here has the reference op alone.
"""

import functools
import math
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from validation.cases.case import Case
from validation.judge.where import index_text

DIGITS = 50

# How far the float64 truth may be from a formula, over the size of the formula's terms: 256 roundings.
TOLERANCE = 2.0**-45

# In one case of eight, so many elements of one row are compared; of a row wider than `WIDE` only in one of 64, for its
# statistics take some 5 us an element.
ELEMENTS, SHARE, WIDE, WIDE_SHARE = 16, 8, 512, 64

Row = tuple[int, ...]
# Value and size of terms of some elements of a row.
Elements = list[tuple[Any, Any]]


class WrongTruthError(Exception):
    """The float64 truth differs from the op's formula; the text says where, with both numbers."""


class _UndefinedError(Exception):
    """A division by zero, or terms without a size: the formula says nothing."""


@functools.cache
def _context() -> Any:
    """mpmath with `DIGITS` digits."""
    import mpmath  # only where a formula is asked for

    context = mpmath.MPContext()  # its own precision, whatever a candidate does to mpmath's
    context.dps = DIGITS
    return context


def _exact(values: Tensor) -> Any:
    """Floating-point numbers as exact ones: nested lists as of ``tolist``."""
    made = values.tolist()
    return [_context().mpf(v) for v in made] if isinstance(made, list) else _context().mpf(made)


def _normalised(
    kwargs: Mapping[str, Any], name: str, row: Row, columns: Sequence[int], *, centred: bool
) -> tuple[Any, Any]:
    """``(x - mean) / sqrt(mean((x - mean)^2) + eps)`` at some columns of a row, and the size of its terms."""
    mp, x = _context(), kwargs[name][row]
    eps = mp.mpf(kwargs.get("eps", 1e-6))
    if "residual" not in kwargs and bool(x.isfinite().all()):
        # Exactly, in whole numbers of float32's smallest: eight times as fast as in 50 digits.
        whole, unit, n = [int(v) for v in (x.double() * 2.0**149).tolist()], mp.ldexp(1, -149), len(x)
        total, squares = sum(whole) if centred else 0, sum(v * v for v in whole)
        mean, square = mp.mpf(total) * unit / n, mp.mpf(n * squares - total * total) * unit * unit / (n * n)
        chosen, largest = [mp.mpf(whole[c]) * unit for c in columns], mp.mpf(max(map(abs, whole))) * unit
    else:
        if "residual" in kwargs:  # the norm is of the gated sum
            terms = _residual_gate_add(kwargs, 1, row, range(len(x)))
            values, largest = [v for v, _ in terms], max(size for _, size in terms)
        else:  # a NaN or an infinity makes the whole row NaN, or 0 where it has no mean
            values, largest = _exact(x), mp.inf
        mean = mp.fsum(values) / len(values) if centred else mp.mpf(0)
        square = mp.fsum((v - mean for v in values), squared=True) / len(values)
        chosen = [values[c] for c in columns]
    root = mp.sqrt(square + eps)
    if root == 0:
        raise _UndefinedError
    return [(v - mean) / root for v in chosen], (largest + abs(mean)) / root


def _affine(values: list[Any], size: Any, kwargs: Mapping[str, Any], columns: Sequence[int], weight: str) -> Elements:
    """``values * weight + bias``."""
    weights, biases = kwargs.get(weight), kwargs.get("bias")
    of = [1] * len(columns) if weights is None else _exact(weights[list(columns)])
    added = [0] * len(columns) if biases is None else _exact(biases[list(columns)])
    return [(v * w + b, size * abs(w) + abs(b)) for v, w, b in zip(values, of, added, strict=True)]


def _modulation(m: Any, x: Tensor, row: Row, columns: Sequence[int]) -> list[Any]:
    """What a modulation argument gives token l of batch item b at some columns."""
    b, l = row
    if hasattr(m, "table"):
        n = int(m.index[b, l])
        of_token = m.table[n] if m.table.dim() == 2 else m.table[b, n]
    elif m.dim() < 2:
        of_token = m if m.dim() and m.shape[0] == x.shape[-1] else m.reshape(1).expand(x.shape[-1])
    elif m.dim() == 2:
        of_token = m[b]
    elif m.dim() == 3:
        of_token = m[b if m.shape[0] > 1 else 0, l if m.shape[1] > 1 else 0]
    else:
        of_token = m[b, l // (x.shape[1] // m.shape[1]), 0]
    exact: list[Any] = _exact(of_token[list(columns)])
    return exact


def _modulated(
    values: Elements, kwargs: Mapping[str, Any], row: Row, columns: Sequence[int], constant: Any
) -> Elements:
    """``value * (constant + scale) + shift``."""
    constant = _context().mpf(constant)
    scales, shifts = (_modulation(kwargs[name], kwargs["x"], row, columns) for name in ("scale", "shift"))
    return [
        (v * (constant + a) + b, size * (abs(constant) + abs(a)) + abs(b))
        for (v, size), a, b in zip(values, scales, shifts, strict=True)
    ]


def _layer_norm(kwargs: Mapping[str, Any], _output: int, row: Row, columns: Sequence[int]) -> Elements:
    values, size = _normalised(kwargs, "x", row, columns, centred=True)
    return _affine(values, size, kwargs, columns, "weight")


def _rms_norm(kwargs: Mapping[str, Any], _output: int, row: Row, columns: Sequence[int]) -> Elements:
    values, size = _normalised(kwargs, "x", row, columns, centred=False)
    return _affine(values, size, kwargs, columns, "weight")


def _layer_norm_scale_shift(kwargs: Mapping[str, Any], output: int, row: Row, columns: Sequence[int]) -> Elements:
    return _modulated(_layer_norm(kwargs, output, row, columns), kwargs, row, columns, 1)


def _rms_norm_scale_shift(kwargs: Mapping[str, Any], output: int, row: Row, columns: Sequence[int]) -> Elements:
    return _modulated(_rms_norm(kwargs, output, row, columns), kwargs, row, columns, 1)


def _scale_shift(kwargs: Mapping[str, Any], _output: int, row: Row, columns: Sequence[int]) -> Elements:
    values = [(v, abs(v)) for v in _exact(kwargs["x"][row][list(columns)])]
    return _modulated(values, kwargs, row, columns, kwargs.get("scale_constant", 1.0))


def _residual_gate_add(kwargs: Mapping[str, Any], _output: int, row: Row, columns: Sequence[int]) -> Elements:
    xs, residuals = (_exact(kwargs[name][row][list(columns)]) for name in ("x", "residual"))
    gate = kwargs.get("gate")
    gates = [1] * len(columns) if gate is None else _modulation(gate, kwargs["x"], row, columns)
    return [(r + x * g, abs(r) + abs(x * g)) for r, x, g in zip(residuals, xs, gates, strict=True)]


def _turned(
    values: list[Any], sizes: list[Any], angles: tuple[Tensor, Tensor], columns: Sequence[int], pair: Any
) -> Elements:
    """A row whose pairs (a, b) are turned to (a cos - b sin, a sin + b cos); the other channels pass through."""
    cos, sin = (_exact(t) for t in angles)
    found: Elements = []
    for c in columns:
        i, first, second = pair(c)
        if i is None:
            found.append((values[c], sizes[c]))
            continue
        a, b, p, q = values[first], values[second], cos[i], sin[i]
        turned = a * p - b * q if c == first else a * q + b * p
        found.append((turned, max(sizes[first], sizes[second]) * (abs(p) + abs(q))))
    return found


def _pairs(count: int, *, interleaved: bool) -> Callable[[int], tuple[int | None, int, int]]:
    """Maps a channel to the number of its pair and the pair's two channels; to None past the last pair."""

    def pair(c: int) -> tuple[int | None, int, int]:
        if c >= 2 * count:
            return None, c, c
        if interleaved:
            return c // 2, c - c % 2, c - c % 2 + 1
        return c % count, c % count, c % count + count

    return pair


def _angles(kwargs: Mapping[str, Any], row: Row) -> tuple[Tensor, Tensor]:
    """cos and sin of token s of batch item b."""
    b, s = row[:2]
    cos, sin = (t[b, s] if t.dim() == 3 else t[s] for t in (kwargs["cos"], kwargs["sin"]))
    return cos, sin


def _rotary_embedding(kwargs: Mapping[str, Any], _output: int, row: Row, columns: Sequence[int]) -> Elements:
    values = _exact(kwargs["x"][row])
    pair = _pairs(kwargs["cos"].shape[-1], interleaved=kwargs.get("interleaved", True))
    return _turned(values, [abs(v) for v in values], _angles(kwargs, row), columns, pair)


def _split_rotary_embedding(kwargs: Mapping[str, Any], _output: int, row: Row, columns: Sequence[int]) -> Elements:
    (b, s), half = row, kwargs["cos"].shape[-1]
    found = []
    for column in columns:
        head, c = divmod(column, 2 * half)
        values = _exact(kwargs["x"][b, s, 2 * half * head : 2 * half * (head + 1)])
        angles = kwargs["cos"][b, head, s], kwargs["sin"][b, head, s]
        found += _turned(values, [abs(v) for v in values], angles, [c], _pairs(half, interleaved=False))
    return found


def _head_norm(kwargs: Mapping[str, Any], output: int, row: Row, columns: Sequence[int]) -> Elements:
    name = "qk"[output]
    values, size = _normalised(kwargs, name, row, columns, centred=False)
    return _affine(values, size, kwargs, columns, f"{name}_weight")


def _qk_norm_rope(kwargs: Mapping[str, Any], output: int, row: Row, columns: Sequence[int]) -> Elements:
    normed = _head_norm(kwargs, output, row, range(kwargs["qk"[output]].shape[-1]))
    values, sizes = [v for v, _ in normed], [size for _, size in normed]
    pair = _pairs(kwargs["cos"].shape[-1], interleaved=kwargs.get("interleaved", True))
    return _turned(values, sizes, _angles(kwargs, row), columns, pair)


def _with_residual(norm: Callable[..., Elements]) -> Callable[..., Elements]:
    """The formulas of an op that returns (y, residual_out)."""
    return lambda kwargs, output, row, columns: (_residual_gate_add if output else norm)(kwargs, output, row, columns)


FORMULAS: dict[str, Callable[[Mapping[str, Any], int, Row, Sequence[int]], Elements]] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "layer_norm_scale_shift": _layer_norm_scale_shift,
    "rms_norm_scale_shift": _rms_norm_scale_shift,
    "scale_residual_layer_norm_scale_shift": _with_residual(_layer_norm_scale_shift),
    "scale_residual_rms_norm_scale_shift": _with_residual(_rms_norm_scale_shift),
    "scale_shift": _scale_shift,
    "residual_gate_add": _residual_gate_add,
    "rotary_embedding": _rotary_embedding,
    "split_rotary_embedding": _split_rotary_embedding,
    "qk_norm": _head_norm,
    "qk_norm_rope": _qk_norm_rope,
}


def is_sampled(case: Case) -> bool:
    """Whether the truth of a case is compared with the formula; its seed decides."""
    return _hash(case) % SHARE == 0


def _hash(case: Case) -> int:
    return zlib.crc32(f"{case.seed}/{case.op}/formula".encode())


def sampled(case: Case, op: str, kwargs: Mapping[str, Any], truths: Sequence[Tensor]) -> int:
    """Compare some elements of the truth with the formula, if the case is one of the sample.

    Args:
        case: the case that is judged.
        op: the op of which ``truths`` are the outputs.
        kwargs: its arguments.
        truths: float64.

    Returns:
        How many elements were compared.

    Raises:
        WrongTruthError: they differ.
    """
    if op not in FORMULAS or not is_sampled(case):
        return 0
    seed, count = _hash(case), 0
    generator = random.Random(seed)
    for n, truth in enumerate(truths):
        if truth.numel() and (truth.shape[-1] <= WIDE or not seed % WIDE_SHARE):
            row = tuple(generator.randrange(size) for size in truth.shape[:-1])
            columns = generator.sample(range(truth.shape[-1]), min(ELEMENTS, truth.shape[-1]))
            count += compare(op, kwargs, truth, n, row, columns)
    return count


def compare(op: str, kwargs: Mapping[str, Any], truth: Tensor, output: int, row: Row, columns: Sequence[int]) -> int:
    """Compare the truth of one output with the formula at some columns of a row; returns how many have a number there.

    Raises:
        WrongTruthError: the truth is further from the formula than `TOLERANCE` of its terms' size.
    """
    if op not in FORMULAS:
        return 0
    try:
        exact = FORMULAS[op](kwargs, output, row, columns)
    except _UndefinedError:
        return 0
    compared = 0
    for column, (value, size) in zip(columns, exact, strict=True):
        got = truth[(*row, column)].item()
        if not _context().isfinite(value):
            right = got == value or (math.isnan(got) and bool(_context().isnan(value)))
        elif _context().isfinite(size):
            right = bool(abs(_context().mpf(got) - value) <= TOLERANCE * size)
        else:  # finite over infinite
            continue
        compared += 1
        if not right:
            name = "qk"[output] if "q" in kwargs else ("y", "residual_out")[output]
            raise WrongTruthError(
                f"the reference op is wrong: {op} in float64 gives {name}{index_text((*row, column))} = {got:.17g}, "
                f"its formula in {DIGITS} digits is {_context().nstr(value, 17)}; nothing is known about the candidate"
            )
    return compared


def confirm(op: str, kwargs: Mapping[str, Any], truth: Tensor, output: int, candidate: Tensor, allowed: Tensor) -> None:
    """Compare the truth with the formula where a candidate is furthest from it, over what it may be.

    Raises:
        WrongTruthError: they differ there.
    """
    if not truth.numel():
        return
    alike = (candidate == truth) | (candidate.isnan() & truth.isnan())
    used = torch.where(alike, 0.0, (candidate.double() - truth).abs() / allowed)
    # An overflow that the output's dtype excuses must not hide the largest error among numbers.
    for places in (used.nan_to_num(nan=torch.inf), torch.where(used.isfinite(), used, 0.0)):
        *row, column = (int(i) for i in torch.unravel_index(places.argmax(), places.shape))
        compare(op, kwargs, truth, output, tuple(row), [column])
