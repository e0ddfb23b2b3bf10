"""How much further from the truth than the path it replaces a lossless op may be, and how sure a run is of it.

The ratio of two errors is shown to be no larger than its margin by its upper confidence bound (a one-sided test of
non-inferiority: Wellek, Testing Statistical Hypotheses of Equivalence and Noninferiority, 2nd ed., 2010). An op whose
ratio is at the margin fails with a chance of `CONFIDENCE`. Fewer cases make the bound larger, and so nothing easier.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable

CONFIDENCE = 0.95

# In cases of few elements the ratio of right ops spreads over 0.5 to 1.5, to either side: cut off at the margin below,
# a right rotation with contraction had a mean of 1.008, at most 1.031 (52 float16 cases). Not cut off at all, a few
# ratios of 0.01 make any bound unsure.
NEARER = 2.0

# Margins of the mean ratio of the RMS and of the maximum error, by dtype of the output.
#
# 16 bits: either path rounds a result once, and that is the error: right op sets are at 1.00. Where a declared rounding
# fell the other way in some cases they were at 1.007, at most 1.011 with 95 %; a maximum is one element, and theirs was
# at most 1.043 (45 bfloat16 cases of a q/k norm with rotation). A second rounding, somewhere in a chain, is 1.1 to 1.4.
#
# float32: the arithmetic is the error, and legal choices move it: the order of a sum (RMS up to 1.17, maximum up to
# 1.14, and to 1.21 in torch.compile's layer_norm), and whether a product is contracted into the sum after it. A
# rotation makes two products and a sum: no contraction costs a factor of sqrt(3 / 2) = 1.22 over one if all three are
# of one size, and sqrt(2) = 1.41 if the products cancel (measured 1.23 to 1.38).
MARGIN = {
    ("rms", "float32"): 1.5,
    ("rms", "float16"): 1.015,
    ("rms", "bfloat16"): 1.015,
    ("max", "float32"): 1.5,
    ("max", "float16"): 1.1,
    ("max", "bfloat16"): 1.1,
}


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a run shows of a ratio.

    Attributes:
        mean: geometric mean of the cases; NaN without cases.
        upper: its upper bound with `CONFIDENCE`; infinite for fewer than two cases.
        count: how many cases have the ratio.
        margin: what it is held to.
    """

    mean: float
    upper: float
    count: int
    margin: float

    @property
    def within(self) -> bool:
        """Whether the ratio is shown to be within its margin."""
        return self.upper <= self.margin

    def __str__(self) -> str:
        most = f"at most {self.upper:.3f}x" if self.upper < math.inf else "without a bound"
        sure = f"{100 * CONFIDENCE:.0f} %"
        return f"{self.mean:.3f}x the reference path's, {most} with {sure}, margin {self.margin}x (at it {sure} fail)"


def shown(ratios: Iterable[float], margin: float) -> Shown:
    """What cases show of a ratio: of errors, candidate over reference path.

    A case whose ratio is below 1 / `NEARER` counts as that: far nearer, it makes up for no more of the others, and does
    not make the bound less sure.

    Args:
        ratios: positive and finite.
        margin: above 1.
    """
    logs = [max(math.log(ratio), -math.log(NEARER)) for ratio in ratios]
    if len(logs) < 2:
        return Shown(math.exp(logs[0]) if logs else math.nan, math.inf, len(logs), margin)
    mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    return Shown(math.exp(mean), math.exp(mean + student(len(logs) - 1) * error), len(logs), margin)


def student(freedom: int) -> float:
    """The quantile of Student's t at `CONFIDENCE`.

    Abramowitz and Stegun, 1964, 26.7.5: 1.2 % low at 2 degrees of freedom; exact at 1.
    """
    if freedom == 1:
        return math.tan(math.pi * (CONFIDENCE - 0.5))
    z = statistics.NormalDist().inv_cdf(CONFIDENCE)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
