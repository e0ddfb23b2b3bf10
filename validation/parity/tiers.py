"""The tier of an op over all its cases, and the bias that single cases are too small to show."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from validation.record import Record
from validation.verdict import Tier

# Limits of the geometric means, over an op's cases of one dtype, of the RMS and of the maximum error over the
# baseline's. Either path rounds a 16-bit output once, so a lossless op stays at 1: where declared roundings fell the
# other way, the maximum of right op sets was at 1.011 (400 cases an op). In float32 two legal choices move the means:
# the order of a sum (RMS up to 1.17, maximum up to 1.14, and to 1.21 in torch.compile's layer_norm), and whether a
# product is contracted into the sum after it. A rotation makes two products and a sum: no contraction costs a factor of
# sqrt(3 / 2) = 1.22 over one if all three are of one size, and sqrt(2) = 1.41 if the products cancel (measured 1.23 to
# 1.38).
LOSSLESS_MEAN_RATIO = {
    ("rms", "float32"): 1.42,
    ("rms", "float16"): 1.005,
    ("rms", "bfloat16"): 1.005,
    ("max", "float32"): 1.25,
    ("max", "float16"): 1.03,
    ("max", "bfloat16"): 1.03,
}
# Ops whose reference contracts (`torch.addcmul`): a chain that does not also rounds the second product. If that product
# is most of the sum, or the products cancel, the error doubles (measured: a mean of 1.53).
CONTRACTED = frozenset({"split_rotary_embedding"})
CONTRACTED_MEAN_RATIO = {("max", "float32"): 2.0}

# The mean fails if it exceeds its limit by this many of its standard errors: a chance of 3e-5 for each op and dtype of
# a run. Measured on 51 float16 cases of a right q/k norm, in some of which a declared rounding fell the other way:
# 1.007, with a standard error of 0.0027.
TIER_SIGMAS = 4.0

# Standard errors of the mean over cases, whose seeds make them independent; 6 is a chance of 2e-9.
BIAS_SIGMAS = 6.0
# Below these a bias costs nothing. For arguments spread over [1, 4), torch's float32 sqrt on the CPU is 0.038 ulp too
# large on average, which over enough cases is significant.
BIAS_FLOOR_ULP = {"float32": 0.1, "float16": 0.02, "bfloat16": 0.02}


@dataclasses.dataclass(frozen=True)
class OpTier:
    """The tier of an op over all its passed cases.

    Attributes:
        tier: None if there are no cases.
        mean_ratio: geometric mean of the RMS ratios in the dtype that is nearest to its limit.
        reason: in words, with the number that decided.
        ratios: geometric means by name, ``mean_rms_ratio_float32``, for dtypes in which some case's ratio is not 1.
    """

    tier: Tier | None
    mean_ratio: float
    reason: str
    ratios: Mapping[str, float] = dataclasses.field(default_factory=dict)


def op_tier(records: Sequence[Record]) -> OpTier:
    """The tier over the passed records of one op and op set."""
    if not records:
        return OpTier(None, math.nan, "no case passed")
    contracted = records[0].subject in CONTRACTED
    limits = LOSSLESS_MEAN_RATIO | (CONTRACTED_MEAN_RATIO if contracted else {})
    logs = {
        (kind, dtype): _log_ratios((r for r in records if r.dtype == dtype), f"{kind}_ratio") for kind, dtype in limits
    }
    over = {key: _surely(logs[key]) - math.log(limit) for key, limit in limits.items()}
    means = {key: math.exp(statistics.fmean(of_key)) for key, of_key in logs.items()}
    ratios = {f"mean_{kind}_ratio_{dtype}": means[kind, dtype] for kind, dtype in logs if any(logs[kind, dtype])}
    # A lossless op reports the ratio of RMS errors.
    dtypes = {record.dtype for record in records}
    measured = [key for key in over if key[0] == "rms" and key[1] in dtypes]
    told = max(measured, key=lambda key: (any(logs[key]), over[key]))
    if all(record.tier == Tier.BIT_EXACT for record in records):
        reason = f"equal to the reference path to the bit in all {len(records)} cases"
        return OpTier(Tier.BIT_EXACT, means[told], reason, ratios)
    close = [record for record in records if record.tier == Tier.CLOSE]
    worst = max(over, key=lambda key: over[key])
    if over[worst] > 0.0:
        kind, dtype = worst
        mean, limit = means[worst], limits[worst]
        reason = f"{kind} is {mean:.3f}x the reference path's over the {dtype} cases, surely over {limit}x"
        return OpTier(Tier.CLOSE, means[told], reason, ratios)
    if close:
        example = max(close, key=lambda record: float(record.numbers.get("rms_ratio") or 0.0))
        reason = (
            f"{len(close)} of {len(records)} cases are further from the truth than float32 arithmetic explains, "
            f"{example.dtype} {example.case.get('values')} {example.numbers.get('rms_ratio'):.3g}x the reference path"
        )
        return OpTier(Tier.CLOSE, means[told], reason, ratios)
    reason = f"rms is {means[told]:.3f}x the reference path's over the {told[1]} cases"
    return OpTier(Tier.LOSSLESS, means[told], reason, ratios)


def _log_ratios(records: Iterable[Record], key: str) -> list[float]:
    """Logarithms of the cases' ratios, without cases that have no error on one side; [0.0] if none are left."""
    ratios = (record.numbers.get(key) for record in records)
    return [math.log(r) for r in ratios if isinstance(r, float) and 0.0 < r < math.inf] or [0.0]


def _surely(logs: Sequence[float]) -> float:
    """Lower bound of the mean: the mean less `TIER_SIGMAS` of its standard errors."""
    error = statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
    return statistics.fmean(logs) - (TIER_SIGMAS * error if any(logs) else 0.0)


def bias_over_cases(records: Sequence[Record]) -> str:
    """Describe the first bias found in any dtype and either of the two means; "" if there is none.

    It compares the mean, over cases, of the mean signed error with its own standard error over those cases and
    with the baseline's mean: a shift that single small cases cannot distinguish from chance.
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
