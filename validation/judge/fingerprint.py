"""Find where a 16-bit candidate rounds: the plausible placement of roundings that its bits match best.

A verdict says that a kernel differs; this says why: see `placement`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from validation.chains.placement import EAGER, ONCE, PLACEMENTS, replay
from validation.judge.bits import equal_bits

# A share below this supports no placement.
NAMED = 0.5

# The share of the elements that the contract's placement does not give which another one must give: a guess that
# leaves more of them open is none. (A race that spoilt 2 % of the elements matched "truncated" in the rest.)
EXPLAINED = 0.9

# Shares closer than this are a tie: float32 arithmetic alone moves them so far. With float32 modulation the eager
# chain rounds only the normalised value.
TIE = 1e-3


def shares(op: str, arguments: Mapping[str, Any], outputs: tuple[Tensor, ...]) -> dict[str, float]:
    """The share of elements in which a candidate's bits equal those of each placement, the best first.

    Placements that do not explain the elements in which the candidate differs from the contract's are left out.

    Args:
        op: its name.
        arguments: the candidate's arguments as they were before the call.
        outputs: what it returned.

    Returns:
        Empty for an op without placements, for outputs without elements, and for a float32 output, where
        float32 arithmetic error is as large as the rounding.
    """
    elements = sum(t.numel() for t in outputs)
    if not elements or any(t.dtype is torch.float32 for t in outputs):
        return {}
    expected = _expected(arguments)
    with torch.no_grad():
        matched = {
            name: torch.cat([equal_bits(t, r).flatten() for t, r in zip(outputs, replayed, strict=True)])
            for name in PLACEMENTS.get(op, ())
            if (replayed := replay(op, arguments, name))
        }
    found = {name: float(bits.double().mean()) for name, bits in matched.items() if _explains(bits, matched[expected])}
    best = max(found.values(), default=0.0)

    def rank(item: tuple[str, float]) -> tuple[bool, bool, float]:
        name, share = item
        tied = share >= best - TIE
        return (not tied, tied and name != expected, 0.0 if tied else -share)

    return dict(sorted(found.items(), key=rank))


def _explains(bits: Tensor, contract: Tensor) -> bool:
    """Whether a placement gives the elements that the contract's does not; the contract's own always counts."""
    others = ~contract
    return bits is contract or float((bits & others).sum()) >= EXPLAINED * float(others.sum())


def _expected(arguments: Mapping[str, Any]) -> str:
    """The placement that the contract asks for."""
    return ONCE if arguments.get("casting_mode", "float32") == "float32" else EAGER


def sentence(arguments: Mapping[str, Any], found: Mapping[str, float]) -> str:
    """Put the best match into words, compared with the contract's placement or, if that is the best, the next best."""
    best, *others = found
    expected = _expected(arguments)
    other = expected if best != expected else next(iter(others), "")
    if not other:
        return (
            f"matches {best!r} in {100 * found[best]:.4g} % of the elements, and no other placement explains the rest"
        )
    return f"matches {best!r} in {100 * found[best]:.4g} % of the elements, {other!r} in {100 * found[other]:.4g} %"


def summary(found: Iterable[tuple[str, float, int]]) -> tuple[str, float] | None:
    """Reduce many cases' (best placement, share, elements) to the placement of most elements, and its share there."""
    totals: dict[str, tuple[float, int]] = {}
    for name, share, elements in found:
        matched, count = totals.get(name, (0.0, 0))
        totals[name] = (matched + share * elements, count + elements)
    if not totals:
        return None
    best = max(totals, key=lambda name: totals[name][1])
    return best, totals[best][0] / totals[best][1]
