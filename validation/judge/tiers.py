"""The tier of an op over all its cases, and the bias that single cases are too small to show."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from validation.record import Record

# The geometric mean, over an op's cases of one dtype, of RMS error over the baseline's. Outputs of 16 bits
# are rounded once by either path, so a lossless op stays at 1. In float32 two legal choices move it: the order
# of a sum (measured 0.8 to 1.1), and whether a product is contracted into the sum after it. A rotation makes two
# products and a sum: between none and one contracted lie sqrt(3 / 2) = 1.22, where all are of one size, and
# sqrt(2) = 1.41, where the products cancel (measured 1.23 to 1.38).
LOSSLESS_MEAN_RATIO = {"float32": 1.42, "float16": 1.005, "bfloat16": 1.005}

# Standard errors of that mean by which it must be over: a chance of 3e-5, for each op and dtype of a run. Measured on
# 51 float16 cases of a right q/k norm, in some of which a declared rounding fell the other way: 1.007, with a standard
# error of 0.0027.
TIER_SIGMAS = 4.0

# Standard errors of the mean over cases, whose seeds make them independent; chance of 2e-9 at 6.
BIAS_SIGMAS = 6.0
# Below these a bias costs nothing. Of arguments spread over [1, 4) torch's float32 sqrt on the CPU is 0.038 ulp too
# large on the mean, which over enough cases is no chance.
BIAS_FLOOR_ULP = {"float32": 0.1, "float16": 0.02, "bfloat16": 0.02}


@dataclasses.dataclass(frozen=True)
class OpTier:
    """What an op's passed cases say together.

    Attributes:
        tier: ``bit-exact``, ``lossless`` or ``close``; None where there are no cases.
        mean_ratio: geometric mean of the RMS ratios, of the worst dtype.
        reason: in words, with the number that decided.
        ratios: the geometric mean of each dtype that has cases with an error.
    """

    tier: str | None
    mean_ratio: float
    reason: str
    ratios: Mapping[str, float] = dataclasses.field(default_factory=dict)


def op_tier(records: Sequence[Record]) -> OpTier:
    """The tier over the passed records of one op and op set."""
    if not records:
        return OpTier(None, math.nan, "no case passed")
    logs = {dtype: _log_ratios(r for r in records if r.dtype == dtype) for dtype in LOSSLESS_MEAN_RATIO}
    over = {dtype: _surely(logs[dtype]) - math.log(limit) for dtype, limit in LOSSLESS_MEAN_RATIO.items()}
    worst = max(over, key=lambda dtype: over[dtype])
    mean = math.exp(statistics.fmean(logs[worst]))
    ratios = {dtype: math.exp(statistics.fmean(of_dtype)) for dtype, of_dtype in logs.items() if any(of_dtype)}
    if all(record.tier == "bit-exact" for record in records):
        return OpTier("bit-exact", mean, f"equal to the reference path to the bit in all {len(records)} cases", ratios)
    close = [record for record in records if record.tier == "close"]
    if over[worst] > 0.0:
        limit = LOSSLESS_MEAN_RATIO[worst]
        reason = f"rms is {mean:.3f}x the reference path's over the {worst} cases, surely over {limit}x"
        return OpTier("close", mean, reason, ratios)
    if close:
        example = max(close, key=lambda record: float(record.numbers.get("rms_ratio") or 0.0))
        reason = (
            f"{len(close)} of {len(records)} cases are further from the truth than float32 arithmetic explains, "
            f"{example.dtype} {example.case.get('values')} {example.numbers.get('rms_ratio'):.3g}x the reference path"
        )
        return OpTier("close", mean, reason, ratios)
    return OpTier("lossless", mean, f"rms is {mean:.3f}x the reference path's over the {worst} cases", ratios)


def _log_ratios(records: Iterable[Record]) -> list[float]:
    """Logarithms of RMS ratios, cases without an error on one side left out; one of 1 where none are left."""
    ratios = (record.numbers.get("rms_ratio") for record in records)
    return [math.log(r) for r in ratios if isinstance(r, float) and 0.0 < r < math.inf] or [0.0]


def _surely(logs: Sequence[float]) -> float:
    """Their mean, less `TIER_SIGMAS` of its standard errors."""
    error = statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
    return statistics.fmean(logs) - (TIER_SIGMAS * error if any(logs) else 0.0)


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
            limit = max(BIAS_SIGMAS * error, BIAS_FLOOR_ULP[dtype]) + abs(statistics.fmean(path))
            if abs(mean) > limit:
                what = "mean signed error" if key == "bias_ulp" else "mean error away from zero"
                return f"{what} over {len(values)} {dtype} cases is {mean:+.3f} ulp, over {limit:.3f}"
    return ""
