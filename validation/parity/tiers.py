"""The tier of an op over all its cases, and the bias that single cases are too small to show."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from validation.equivalence import MARGIN, Shown, shown
from validation.record import Record, numbered_outputs
from validation.verdict import Tier

# Ops whose reference contracts (`torch.addcmul`): a chain that does not also rounds the second product. If that product
# is most of the sum, or the products cancel, the error doubles (measured: a mean of 1.53).
CONTRACTED = frozenset({"split_rotary_embedding"})
CONTRACTED_MARGIN = {("max", "float32"): 2.2}

# On fewer cases of a dtype an op that is not shown to be lossless is too little judged; on more it is below that tier.
FEWEST_OF_DTYPE = 20

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
        mean_ratio: geometric mean of the RMS ratios in the dtype that is nearest to its margin.
        reason: in words, with the number that decided.
        ratios: geometric means by name, ``mean_rms_ratio_float32``, and their bounds, ``upper_rms_ratio_float32``, for
            dtypes in which some case's ratio is not 1.
        unshown: it is close because it is not shown to be lossless, and may be.
        little: that, on fewer than `FEWEST_OF_DTYPE` cases of a dtype.
    """

    tier: Tier | None
    mean_ratio: float
    reason: str
    ratios: Mapping[str, float] = dataclasses.field(default_factory=dict)
    unshown: bool = False
    little: bool = False


def op_tier(records: Sequence[Record]) -> OpTier:
    """The tier over the passed records of one op and op set.

    Lossless if the mean ratios of the RMS and of the maximum error are shown to be within their margins in each dtype
    (`equivalence`), and no case is further from the truth than float32 arithmetic explains.
    """
    if not records:
        return OpTier(None, math.nan, "no case passed")
    margins = MARGIN | (CONTRACTED_MARGIN if records[0].subject in CONTRACTED else {})
    outputs = numbered_outputs(record for record in records if record.tier != Tier.BIT_EXACT)
    if not outputs:
        return OpTier(Tier.BIT_EXACT, 1.0, f"equal to the reference path to the bit in all {len(records)} cases")
    found = {
        (kind, of, n): shown(_ratios(records, kind, n, of), margin)
        for (kind, dtype), margin in margins.items()
        for n, of in outputs
        if of == dtype
    }
    ratios: dict[str, float] = {}
    # Of several outputs of a dtype the one that is nearest to its margin.
    for (kind, dtype, _), ratio in sorted(found.items(), key=lambda one: _used(one[1])):
        if ratio.count and (ratio.mean, ratio.upper) != (1.0, 1.0):
            ratios |= {f"mean_{kind}_ratio_{dtype}": ratio.mean, f"upper_{kind}_ratio_{dtype}": ratio.upper}
    rms = max((key for key in found if key[0] == "rms"), key=lambda key: _used(found[key]))
    worst = max(found, key=lambda key: _used(found[key]))
    if not found[worst].within:
        kind, dtype, n = worst
        ratio = found[worst]
        unshown = not ratio.mean > ratio.margin  # NaN without cases
        how = "not shown to be as near to the truth" if unshown else "further from the truth"
        reason = f"{how}: {kind} over {ratio.count} {dtype} cases{_of_output(n)} is {ratio}"
        return OpTier(Tier.CLOSE, found[rms].mean, reason, ratios, unshown, unshown and ratio.count < FEWEST_OF_DTYPE)
    close = [record for record in records if record.tier == Tier.CLOSE]
    if close:
        example = max(close, key=lambda record: float(record.numbers.get("rms_ratio") or 0.0))
        reason = (
            f"{len(close)} of {len(records)} cases are further from the truth than float32 arithmetic explains, "
            f"{example.dtype} {example.case.get('values')} {example.numbers.get('rms_ratio'):.3g}x the reference path"
        )
        return OpTier(Tier.CLOSE, found[rms].mean, reason, ratios)
    reason = f"rms over {found[rms].count} {rms[1]} cases{_of_output(rms[2])} is {found[rms]}"
    return OpTier(Tier.LOSSLESS, found[rms].mean, reason, ratios)


def _of_output(n: int) -> str:
    return f" of output {n}" if n else ""


def _ratios(records: Iterable[Record], kind: str, output: int, dtype: str) -> list[float]:
    """The ratios of the cases in which both sides have an error: the others would thin out what these show."""
    measured = (record for record in records if record.of_output("baseline_rms_ulp", output, dtype) != 0.0)
    ratios = (record.of_output(f"{kind}_ratio", output, dtype) for record in measured)
    return [ratio for ratio in ratios if ratio is not None and 0.0 < ratio < math.inf]


def _used(ratio: Shown) -> tuple[float, float]:
    """How near a ratio's bound comes to its margin; then the ratio itself."""
    return math.log(ratio.upper) / math.log(ratio.margin), ratio.mean


def bias_over_cases(records: Sequence[Record]) -> str:
    """Describe the first bias found in any output, dtype and either of the two means; "" if there is none.

    It compares the mean, over cases, of the mean signed error with its own standard error over those cases and with the
    mean of the baseline or of one rounding, whichever is larger: a shift that single small cases cannot distinguish
    from chance.
    """
    for output, dtype in numbered_outputs(records):
        for key in ("bias_ulp", "magnitude_bias_ulp"):
            values, *own = (
                [v for r in records if (v := r.of_output(name, output, dtype)) is not None]
                for name in (key, f"baseline_{key}", f"ideal_{key}")
            )
            if len(values) < 20:
                continue
            mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
            limit = max(BIAS_SIGMAS * error, BIAS_FLOOR_ULP[dtype]) + max(
                abs(statistics.fmean(path)) for path in own if path
            )
            if abs(mean) > limit:
                what = "mean signed error" if key == "bias_ulp" else "mean error away from zero"
                return (
                    f"{what} over {len(values)} {dtype} cases{_of_output(output)} is {mean:+.3f} ulp, over {limit:.3f}"
                )
    return ""
