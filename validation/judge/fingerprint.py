"""Where a 16-bit candidate rounds: which of the plausible placements of roundings its bits match best.

A verdict says that a kernel differs; this says why: see `placement`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from validation.chains.placement import EAGER, ONCE, PLACEMENTS, replay
from validation.judge.bits import equal_bits

# A share below this speaks for none of the placements.
NAMED = 0.5

# Shares as close as this are one: what float32 arithmetic turns. With float32 modulation the eager chain rounds
# the normalised value and nothing else.
TIE = 1e-3


def shares(op: str, arguments: Mapping[str, Any], outputs: tuple[Tensor, ...]) -> dict[str, float]:
    """The share of elements in which a candidate's bits are those of each placement, the best first.

    Args:
        op: its name.
        arguments: what the candidate was called with, as it was before the call.
        outputs: what it returned.

    Returns:
        Nothing for an op without placements, outputs without elements, or a float32 output, in which
        float32 arithmetic is as large as the rounding.
    """
    elements = sum(t.numel() for t in outputs)
    if not elements or any(t.dtype is torch.float32 for t in outputs):
        return {}
    found = {}
    with torch.no_grad():
        for name in PLACEMENTS.get(op, ()):
            replayed = replay(op, arguments, name)
            pairs = zip(outputs, replayed, strict=True)
            found[name] = sum(int(equal_bits(t, r).sum()) for t, r in pairs) / elements
    best, expected = max(found.values(), default=0.0), _expected(arguments)

    def rank(item: tuple[str, float]) -> tuple[bool, bool, float]:
        name, share = item
        tied = share >= best - TIE
        return (not tied, tied and name != expected, 0.0 if tied else -share)

    return dict(sorted(found.items(), key=rank))


def _expected(arguments: Mapping[str, Any]) -> str:
    """The placement that the contract asks for."""
    return ONCE if arguments.get("casting_mode", "float32") == "float32" else EAGER


def sentence(arguments: Mapping[str, Any], found: Mapping[str, float]) -> str:
    """The best match in words, beside the placement that the contract asks for, or beside the next best."""
    best, second, *_ = found
    expected = _expected(arguments)
    other = expected if best != expected and expected in found else second
    return f"matches {best!r} in {100 * found[best]:.4g} % of the elements, {other!r} in {100 * found[other]:.4g} %"


def summary(found: Iterable[tuple[str, float, int]]) -> tuple[str, float] | None:
    """Of many cases, as (best placement, its share, elements): the one that most elements speak for, its share."""
    totals: dict[str, tuple[float, int]] = {}
    for name, share, elements in found:
        matched, count = totals.get(name, (0.0, 0))
        totals[name] = (matched + share * elements, count + elements)
    if not totals:
        return None
    best = max(totals, key=lambda name: totals[name][1])
    return best, totals[best][0] / totals[best][1]
