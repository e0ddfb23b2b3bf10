"""The tier of an op over all its cases, and the bias that single cases are too small to show."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence

from validation.record import Record

# The geometric mean, over an op's cases of one dtype, of RMS error over the baseline's. Outputs of 16 bits
# are rounded once by either path, so a lossless op stays at 1. In float32 two legal choices move it: the order
# of a sum (measured 0.8 to 1.1), and whether a product is contracted into the sum after it (a rotation makes
# two products and a sum: sqrt(3 / 2) = 1.22 between none and one contracted, measured 1.23).
LOSSLESS_MEAN_RATIO = {"float32": 1.3, "float16": 1.005, "bfloat16": 1.005}

# Standard errors of the mean over cases, whose seeds make them independent; chance of 2e-9 at 6.
BIAS_SIGMAS = 6.0
BIAS_FLOOR_ULP = 0.02


@dataclasses.dataclass(frozen=True)
class OpTier:
    """What an op's passed cases say together.

    Attributes:
        tier: ``bit-exact``, ``lossless`` or ``close``; None where there are no cases.
        mean_ratio: geometric mean of the RMS ratios, of the worst dtype.
        reason: in words, with the number that decided.
    """

    tier: str | None
    mean_ratio: float
    reason: str


def op_tier(records: Sequence[Record]) -> OpTier:
    """The tier over the passed records of one op and op set."""
    if not records:
        return OpTier(None, math.nan, "no case passed")
    ratios = {dtype: _mean_ratio(r for r in records if r.dtype == dtype) for dtype in LOSSLESS_MEAN_RATIO}
    worst = max(ratios, key=lambda dtype: ratios[dtype] / LOSSLESS_MEAN_RATIO[dtype])
    mean = ratios[worst]
    if all(record.tier == "bit-exact" for record in records):
        return OpTier("bit-exact", mean, f"equal to the reference path to the bit in all {len(records)} cases")
    close = [record for record in records if record.tier == "close"]
    if mean > LOSSLESS_MEAN_RATIO[worst]:
        limit = LOSSLESS_MEAN_RATIO[worst]
        reason = f"rms is {mean:.3f}x the reference path's over the {worst} cases, over {limit}x"
        return OpTier("close", mean, reason)
    if close:
        example = max(close, key=lambda record: float(record.numbers.get("rms_ratio") or 0.0))
        reason = (
            f"{len(close)} of {len(records)} cases are further from the truth than float32 arithmetic explains, "
            f"{example.dtype} {example.case.get('values')} {example.numbers.get('rms_ratio'):.3g}x the reference path"
        )
        return OpTier("close", mean, reason)
    return OpTier("lossless", mean, f"rms is {mean:.3f}x the reference path's over the {worst} cases")


def _mean_ratio(records: Iterable[Record]) -> float:
    """Geometric mean of RMS ratios, cases without an error on one side left out; 1 where none are left."""
    logs = [
        math.log(ratio)
        for record in records
        if isinstance(ratio := record.numbers.get("rms_ratio"), float) and 0.0 < ratio < math.inf
    ]
    return math.exp(statistics.fmean(logs)) if logs else 1.0


def bias_over_cases(records: Sequence[Record]) -> str:
    """A bias in words, "" if there is none, for each dtype and each of the two means.

    The mean over cases of a case's mean signed error, against its own standard error over those cases and
    against the baseline's mean: a shift that single small cases cannot tell from chance.
    """
    for dtype in sorted({record.dtype for record in records}):
        for key in ("bias_ulp", "magnitude_bias_ulp"):
            values = [float(v) for r in records if r.dtype == dtype and isinstance(v := r.numbers.get(key), float)]
            path = [
                float(v)
                for r in records
                if r.dtype == dtype and isinstance(v := r.numbers.get(f"baseline_{key}"), float)
            ]
            if len(values) < 20:
                continue
            mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
            limit = max(BIAS_SIGMAS * error, BIAS_FLOOR_ULP) + abs(statistics.fmean(path))
            if abs(mean) > limit:
                what = "mean signed error" if key == "bias_ulp" else "mean error away from zero"
                return f"{what} over {len(values)} {dtype} cases is {mean:+.3f} ulp, over {limit:.3f}"
    return ""
