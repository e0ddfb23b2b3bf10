"""The value regime ``exact``: small integers and powers of two, for which every order of summation gives the same bits.

Rows that are normalised are integers in units of an eighth of ``sqrt(4^k)``: a value and its negative, in random
places, and of squares so chosen that mean square + eps is a power of four. So the sums of a row, of its squares and of
its deviations are integers below 2^24, whatever the order; the mean is 0 (or, where the width is a power of two, an
integer in every other row), and ``1 / sqrt(variance + eps)`` a power of two. Weights, biases, shifts, scales and gates
have so few bits that the products and sums that follow are exact as well: in float32, and with ``casting_mode="input"``
in 16 bits too. `validation.chains.exact` proves it, case by case, from the values themselves.
"""

import functools
import itertools
import math
import random

import torch
from torch import Tensor

from validation.cases.roles import ACTIVATIONS, ANGLES, MODULATIONS, WEIGHTS

# Multiples of 1/16, so that variance + eps is 1 with integers in units of 1/8. With an eps of 0 each row has a power of
# two of its own.
EPS = (0.0, 0.25, 0.0625)

# A row's root of mean square + eps, in its units.
ROOT = 8
# Pairs of a value and its negative that have their sum of squares together, and how many such groups there are.
GROUP, GROUPS = 8, 32
# The least and the largest values of a row: 0.6 and 2.5 of its roots. Without values near 0, no column is lost unseen.
LEAST, LARGEST = 5, 20


def draw(
    name: str,
    shape: tuple[int, ...],
    *,
    eps: float | None,
    rounds: bool,
    chained: bool,
    centred: bool,
    generator: torch.Generator,
    shared: torch.Generator,
) -> Tensor:
    """Values for the tensor called ``name``, float32.

    Args:
        name: as in a case.
        shape: its shape.
        eps: of the norm; None if the op has none.
        rounds: whether the op rounds on the way, so that products must fit 16 bits.
        chained: whether the norm is of ``residual + x * gate``.
        centred: whether the norm may subtract the mean.
        generator: of this tensor.
        shared: one for residual, x and gate alike: the two are disjoint parts of one row.
    """
    argument = name.partition(".")[0]

    def one_of(*numbers: float) -> Tensor:
        return torch.tensor(numbers)[torch.randint(0, len(numbers), shape, generator=generator)]

    def integers(limit: int) -> Tensor:
        return torch.randint(-limit, limit + 1, shape, generator=generator).float()

    if argument in ANGLES:
        return one_of(0.0, 0.5, -0.5, 1.0, -1.0)
    if argument in ACTIVATIONS:
        if eps is None:
            return integers(15 if rounds else 127)
        return _part_of_a_row(argument, shape, eps, shared) if chained else _rows(shape, eps, generator, means=centred)
    if argument in WEIGHTS:
        return one_of(0.5, 1.0, 2.0, -1.0, *(() if rounds else (1.5, 3.0)))
    if argument == "gate" and chained:
        # Other signs give x * gate a mean of its own: an RMS norm is exact then too.
        return one_of(1.0) if bool(torch.rand((), generator=shared) < 0.5) else one_of(1.0, -1.0)
    if argument == "scale":
        return one_of(0.0, 1.0, -2.0, -3.0, *(() if rounds else (2.0, 4.0, -0.5)))
    return integers(3 if rounds or argument not in MODULATIONS else 12)


def _part_of_a_row(argument: str, shape: tuple[int, ...], eps: float, shared: torch.Generator) -> Tensor:
    """Residual or x: half of the elements of the rows that they share, 0 in place of the others."""
    torch.rand((), generator=shared)  # the gate's coin
    rows = _rows(shape, eps, shared, means=False)
    of_residual = torch.rand(shape, generator=shared) < 0.5
    return torch.where(of_residual == (argument == "residual"), rows, torch.zeros(()))


def _rows(shape: tuple[int, ...], eps: float, generator: torch.Generator, *, means: bool) -> Tensor:
    """Rows of mean 0 (with ``means`` some of another) and of mean square + eps a power of four, where there are any.

    There are none for some narrow widths: 3 squares of integers cannot have every sum.
    """
    width = shape[-1]
    count = math.prod(shape[:-1])
    pairs = width // 2
    # In units: the mean square, and the sum of the squares of one half of the pairs.
    square = max(round(ROOT * ROOT * (1.0 - eps)), 0)
    groups = max(pairs // GROUP - 1, 0)
    left = pairs - groups * GROUP
    source = random.Random(int(torch.randint(0, 2**31, (), generator=generator)))
    table = torch.tensor([squares_of(GROUP, GROUP * square, source) for _ in range(GROUPS)], dtype=torch.float32)
    chosen = table[torch.randint(0, GROUPS, (count, groups), generator=generator)].reshape(count, groups * GROUP)
    last = torch.tensor(squares_of(left, width * square // 2 - groups * GROUP * square, source), dtype=torch.float32)
    half = torch.cat((chosen, last.expand(count, left)), -1)
    row = torch.cat((half, -half, torch.full((count, width - 2 * pairs), float(ROOT * (width == 1)))), -1)
    order = torch.rand(row.shape, generator=generator).argsort(-1)
    row = row.gather(-1, order)
    if means and width & (width - 1) == 0 and width > 1:
        # Of an RMS norm, for which such rows are not exact, the other rows are.
        row[1::2] += torch.randint(-ROOT, ROOT + 1, (count // 2, 1), generator=generator)
    if eps == 0.0:
        row = row * torch.randint(-2, 3, (count, 1), generator=generator).float().exp2()
    return (row / ROOT).reshape(shape)


def squares_of(count: int, total: int, source: random.Random) -> list[int]:
    """``count`` integers from `LEAST` to `LARGEST` whose squares have that sum; as near as they come if there are none.

    Fours of them have every sum that is asked for but a few, so all but four are drawn freely.
    """
    few = min(count, 4)
    # Of numbers spread evenly between LEAST and this one, the mean square is that of the whole.
    most = round((math.sqrt(max(12 * total / max(count, 1) - 3 * LEAST**2, 0)) - LEAST) / 2)
    for _ in range(1000):
        made = [source.randint(LEAST, max(most, LEAST)) for _ in range(count - few)]
        fitting = _few_squares(few).get(total - sum(a * a for a in made))
        if fitting:
            made += source.choice(fitting)
            source.shuffle(made)
            return made
    return [math.isqrt(max(total, 0) // max(count, 1))] * count


@functools.cache
def _few_squares(count: int) -> dict[int, list[tuple[int, ...]]]:
    """All choices of ``count`` integers from `LEAST` to `LARGEST`, by the sum of their squares."""
    found: dict[int, list[tuple[int, ...]]] = {}
    for numbers in itertools.combinations_with_replacement(range(LEAST, LARGEST + 1), count):
        found.setdefault(sum(n * n for n in numbers), []).append(numbers)
    return found
