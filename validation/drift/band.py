"""The free-running comparison: a candidate's distances to the truth, ranked among those of legal replays.

*Distance*: the RMS of the difference of two latents over the standard deviation of the truth's, step by step.

*Test*: if the candidate is as right as the replays, its distance and theirs are exchangeable within a prompt
(one prompt with one seed), so the number of the K replays that lie nearer to the truth than the candidate is
uniform on 0 to K, and independent from prompt to prompt. The statistic is the sum of these ranks over the
prompts; its distribution under the null is a convolution of uniform ones, so the one-sided p-value is exact for
any number of prompts. Ties count in the candidate's favour. Being nearer than the replays is no fault.

*Steps*: the first, the second, the last of the first half and the last of all are tested (`tested_steps`), chosen
before any distance is known, and Holm's method corrects for their number under any dependence. Early steps are the
most telling: sampling has not yet amplified anything there.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

Distances = npt.NDArray[np.float64]
Ranks = npt.NDArray[np.int64]

# A correct op set is flagged by one band in at most a thousandth of all runs.
ALPHA = 1e-3
MAX_REPLAYS = 64

# Past this distance two samples have little in common: two unrelated ones are sqrt(2) apart.
SATURATED = 0.5

# If sampling can take two paths, replays on the other path are at least this many times as far. Modes closer than
# that come from having few roundings: in a model of 16,000 activations a replay may meet none for a step, and then
# stays nearer (measured: 0.8 of the others' distance at the end).
TWO_WAYS = 2.0

SIMULATIONS = 400_000


def distance(latents: Tensor, truth: Tensor) -> float:
    """RMS of the difference over the truth's standard deviation; infinite where either is not finite."""
    wide = truth.double()
    value = float((latents.double() - wide).square().mean().sqrt() / wide.std())
    return value if math.isfinite(value) else math.inf


def distances(latents: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """`distance` at each step.

    Raises:
        ValueError: the numbers of steps or the latents' shapes differ.
    """
    if [t.shape for t in latents] != [t.shape for t in truth]:
        raise ValueError(
            f"latents of {len(latents)} steps and shapes {[list(t.shape) for t in latents[-1:]]}, "
            f"expected {len(truth)} and {[list(t.shape) for t in truth[-1:]]}, those of the truth"
        )
    return [distance(a, b) for a, b in zip(latents, truth, strict=True)]


def over_prompts(rows: Distances) -> Distances:
    """The median over the first axis: prompts differ by factors, and one must not dominate."""
    return np.asarray(np.median(rows, axis=0))


def tested_steps(steps: int) -> dict[str, int]:
    """Names and indices of the tested steps of a trajectory of ``steps`` steps."""
    return {"first": 0, "second": min(1, steps - 1), "half": (steps - 1) // 2, "last": steps - 1}


def replays_needed(prompts: int, wanted: int) -> int:
    """How many replays the test needs to be able to reject: `wanted`, or more if there are few prompts.

    The least p-value is (K + 1)^-prompts, times the number of tested steps. 0 if `MAX_REPLAYS` are too few.
    """
    least = math.floor((len(tested_steps(1)) / ALPHA) ** (1 / prompts))
    needed = max(wanted, least)
    return needed if needed <= max(MAX_REPLAYS, wanted) else 0


def ranks(candidate: Distances, replays: Distances) -> Ranks:
    """How many replays ``[P, K]`` lie nearer to the truth than the candidate ``[P]``, prompt by prompt."""
    return np.asarray((replays < candidate[:, None]).sum(axis=1), dtype=np.int64)


def rank_sum_p(found: Ranks, replays: int) -> float:
    """P(sum of the ranks >= that found) if every rank is uniform on 0 to ``replays``; exact up to float64 rounding."""
    uniform = np.full(replays + 1, 1 / (replays + 1))
    total = functools.reduce(np.convolve, [uniform] * len(found))
    return float(min(1.0, total[int(found.sum()) :].sum()))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given (Scandinavian Journal of Statistics 6, 1979)."""
    adjusted = [0.0] * len(p)
    greatest = 0.0
    for n, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        greatest = max(greatest, min(1.0, p[i] * (len(p) - n)))
        adjusted[i] = greatest
    return adjusted


def two_modes_p(values: Distances) -> float:
    """The probability that K samples of one normal distribution split as widely as these: small for two modes.

    The statistic is the greatest gap between neighbours in order, with at least two values on either side, over
    the root mean square of the values' deviations from the mean of their own side. Its distribution is
    simulated, `SIMULATIONS` times from one seed.

    Raises:
        ValueError: fewer than four values.
    """
    if len(values) < 4:
        raise ValueError(f"{len(values)} values, expected at least 4: two on either side")
    null = _simulated_splits(len(values))
    (found,) = _split(np.asarray(values)[None])
    return float((1 + np.searchsorted(-null, -found, side="right")) / (1 + len(null)))


def _split(samples: Distances) -> Distances:
    """The statistic of `two_modes_p` for each row of ``[N, K]``."""
    ordered = np.sort(samples, axis=1)
    count = ordered.shape[1]
    best = np.zeros(len(ordered))
    for left in range(2, count - 1):
        sides = ordered[:, :left], ordered[:, left:]
        within = sum(((side - side.mean(axis=1, keepdims=True)) ** 2).sum(axis=1) for side in sides)
        gap = ordered[:, left] - ordered[:, left - 1]
        spread = np.sqrt(np.asarray(within) / count)
        # Equal values on each side are two points: an infinite ratio. If all are equal there is no gap.
        best = np.maximum(best, np.where(gap > 0, gap / np.maximum(spread, 1e-300), 0.0))
    return best


@functools.cache
def _simulated_splits(count: int) -> Distances:
    """The statistic under the null, in descending order."""
    generator = np.random.default_rng(0)
    parts = [_split(generator.standard_normal((SIMULATIONS // 20, count))) for _ in range(20)]
    return -np.sort(-np.concatenate(parts))
