"""Value regimes: each constant of an op matters in only some of them.

An op with an eps ten times too big is right to the last bit at unit variance and wrong where the variance is
about eps; a one-pass variance is right without a mean and wrong at 30 sigma, or in float32 at 100.
"""

import math

import torch
from torch import Tensor

from validation.cases.roles import ACTIVATIONS, ANGLES, MODULATIONS, WEIGHTS

EXACT = "exact"  # made by `validation.cases.exact`

REGIMES = {
    "normal": "standard normal",
    "mean_offset": "standard normal around a mean of 30 sigma, of 100 in float32, either sign, one a row; small gates",
    "row_mean": "standard normal around a mean of 0.1 to 1 sigma, either sign, one a row",
    "variance_eps": "normal with a variance of about eps, so that eps counts",
    "constant_rows": "every row one value: variance zero",
    "outlier_channels": "normal, a few channels x200, as in trained transformers",
    "tiny": "subnormal in the working dtype",
    "near_max": "about float16's largest number, 65504, so that sums and products overflow float16",
    "beyond_float16": "of 10^5 to 10^6, where the dtype has such numbers; 65504 in float16, which has not",
    "zeros": "all zero",
    "nonfinite": "normal, with NaN, inf and -inf in some rows and in all parameters; half of the modulation zero",
    "large_modulation": "normal; scale, and some of weight, bias and shift, about float16's largest number",
    "ties": "integers of as many bits as the dtype has, so that sums lie half-way between two of its numbers",
    "zero_modulation": "normal; shift, scale and gate zero, as an adaLN-Zero block starts",
    "some_zero": "normal; shift, scale and gate zero for the first item and each item's first row, not for all",
    "some_equal": "normal; shift, scale and gate equal for all rows of the first item, and for each item's first two",
    "dit": "as in a diffusion transformer: heavy tails, outlier channels, a mean, modulation up to 10",
    EXACT: "small integers and powers of two, with which every right order of operations gives the same bits",
}

LARGEST = 65504.0  # of float16
# Always large in the regime large_modulation.
LARGE = frozenset({"scale", "q_weight", "k_weight"})


def draw(
    regime: str, name: str, shape: tuple[int, ...], dtype: torch.dtype, eps: float, generator: torch.Generator
) -> Tensor:
    """Values for the tensor called ``name``, made in float32 and rounded to dtype; contiguous.

    Activations follow the regime. Weights lie about 1; biases, shifts, scales and gates about 0, except in the
    regimes that say otherwise (wider in ``dit``); cos and sin are cosines of random angles.
    """
    argument = name.partition(".")[0]
    if argument in ACTIVATIONS:
        return _activation(regime, shape, dtype, eps, generator).to(dtype)
    normal = torch.randn(shape, generator=generator)
    if argument in ANGLES:
        # Independent, not of one angle: a rotation by (cos, sin) of any length is still linear, and a swap of
        # the two shows.
        return torch.cos(math.pi * normal).to(dtype)
    made = 1.0 + 0.25 * normal if argument in WEIGHTS else 0.5 * normal
    match regime:
        case "zero_modulation" if argument in MODULATIONS:
            made = torch.zeros(shape)
        case "some_zero" | "some_equal" if argument in MODULATIONS and len(shape) > 1:
            made = _partly(made, zero=regime == "some_zero")
        case "mean_offset" if argument == "gate":
            # Otherwise the gated x deviates as much as its mean, and nothing cancels in the norm that follows.
            made = 0.01 * made
        case "dit" if argument not in WEIGHTS:
            made = normal * torch.exp(torch.randn(shape[-1:], generator=generator)).clamp(max=10.0)
        # Weight, bias and shift are large by chance: not all that could overflow does. A gated sum has `near_max`.
        case "large_modulation" if argument in LARGE or (argument != "gate" and bool(_coins((), generator))):
            made = _large(shape, generator)
        case "nonfinite":
            made = _spoiled(made, argument, generator)
        case "ties" if argument in ("scale", "gate"):
            made = torch.tensor([1.0, 2.0, -2.0, -3.0])[torch.randint(0, 4, shape, generator=generator)]
        case "ties" if argument == "shift":
            made = _integers(shape, dtype, generator)
    return made.to(dtype)


def _activation(
    regime: str, shape: tuple[int, ...], dtype: torch.dtype, eps: float, generator: torch.Generator
) -> Tensor:
    def normal(size: tuple[int, ...] = shape) -> Tensor:
        return torch.randn(size, generator=generator)

    def uniform(size: tuple[int, ...] = shape) -> Tensor:
        return torch.rand(size, generator=generator)

    row = (*shape[:-1], 1)
    match regime:
        case "normal" | "zero_modulation" | "large_modulation" | "some_zero" | "some_equal":
            return normal()
        case "ties":
            return _integers(shape, dtype, generator)
        case "mean_offset":
            # A one-pass variance of float32 values is wrong by 0.3 to 3 times its budget at 30 sigma, by luck, and by
            # three times that at 100. At 100, 16-bit values would have too few distinct numbers.
            offset = 100.0 if dtype is torch.float32 else 30.0
            return normal() + offset * torch.where(uniform(row) < 0.5, -1.0, 1.0)
        case "row_mean":
            return normal() + (0.1 + 0.9 * uniform(row)) * torch.where(uniform(row) < 0.5, -1.0, 1.0)
        case "variance_eps":
            return normal() * math.sqrt(max(eps, 1e-12))
        case "constant_rows":
            return normal(row).expand(shape)
        case "outlier_channels":
            return normal() * torch.where(uniform(shape[-1:]) < max(0.01, 1.5 / max(shape[-1], 1)), 200.0, 1.0)
        case "tiny":
            return normal().clamp(-4.0, 4.0) * (0.2 * torch.finfo(dtype).tiny)
        case "near_max":
            return torch.where(uniform() < 0.5, -1.0, 1.0) * (0.5 + 0.5 * uniform()) * LARGEST
        case "beyond_float16":
            sizes = 10.0 ** (5.0 + uniform())
            sizes = sizes.clamp(max=LARGEST) if dtype is torch.float16 else sizes
            return torch.where(uniform() < 0.5, -1.0, 1.0) * sizes
        case "zeros":
            return torch.zeros(shape)
        case "nonfinite":
            return _sprinkled(normal(), generator)
        case "dit":
            heavy = normal() * (1.0 + normal(shape[-1:]).abs().pow(3))
            return heavy + 0.5 * normal(shape[-1:])
    raise ValueError(f"unknown value regime {regime!r}, expected one of {', '.join(REGIMES)}")


def _coins(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) < 0.5


def _partly(made: Tensor, *, zero: bool) -> Tensor:
    """Modulation ``[items, ..., D]`` that looks zero, or like one row, to whoever looks at its beginning alone.

    With zero, all rows of the first item (frames, tokens) and the first row of each other one are zero. Otherwise all
    rows of the first item are equal, and the first two of each other one. Of items with one row each (or of the rows
    of one item), the first is zero, or the first two are equal. The last row is always another.
    """
    if not made.numel():
        return made
    rows = made.reshape(made.shape[0], -1, made.shape[-1]).clone()
    if 1 in rows.shape[:2]:
        rows = rows.reshape(1, -1, made.shape[-1])
    items, count, _ = rows.shape
    few = min(1 if zero else 2, count - 1)
    for item in range(items):
        alike = count if item == 0 and items > 1 else few
        rows[item, :alike] = 0.0 if zero else rows[item, :1].clone()
    return rows.reshape(made.shape)


def _large(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Values about float16's largest number; an eighth are that number itself, to which float16 cannot add 1."""
    sizes = (0.5 + 0.5625 * torch.rand(shape, generator=generator)).clamp(max=1.0)
    return torch.where(_coins(shape, generator), -LARGEST, LARGEST) * sizes


def _integers(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Integers of up to as many bits as the dtype's significand; with one bit more, its numbers are 2 apart."""
    limit = round(2.0 / torch.finfo(dtype).eps)
    return torch.randint(1 - limit, limit, shape, generator=generator).float()


def _sprinkled(made: Tensor, generator: torch.Generator, *, each: int = 1) -> Tensor:
    """Put NaN, inf and -inf into a third of the rows: ``each`` in a row (up to 3, no two alike), sometimes more.

    At least one row is hit, and of two or more rows at least one is not: drawing each row independently left 8 rows
    clean one time in 12.
    """
    if made.numel() == 0:
        return made
    rows = made.clone().reshape(-1, made.shape[-1])
    count, width = rows.shape
    special = torch.tensor([math.nan, math.inf, -math.inf])
    hit = torch.randperm(count, generator=generator)[: max(round(0.35 * count), 1)]
    more = torch.zeros(rows.shape, dtype=torch.bool)
    more[hit] = torch.rand((len(hit), width), generator=generator) < 0.5 / width
    rows = torch.where(more, special[torch.randint(0, 3, rows.shape, generator=generator)], rows)
    at, which = (torch.rand((len(hit), n), generator=generator).argsort(-1)[:, :each] for n in (width, 3))
    rows[hit.unsqueeze(1), at] = special[which]
    return rows.reshape(made.shape)


def _spoiled(made: Tensor, argument: str, generator: torch.Generator) -> Tensor:
    """A parameter with NaN, inf and -inf; half of the modulation is zero, to meet an inf.

    One gate for all rows would spoil every row of the norm that follows: it gets only zeros.
    """
    if argument in MODULATIONS:
        made = torch.where(_coins(made.shape, generator), torch.zeros(()), made)
    rows = made.numel() // made.shape[-1] if made.numel() > 1 else 0
    if rows <= (argument == "gate"):
        return made
    return _sprinkled(made, generator, each=3 if made.shape[-1] > 8 else 1)
