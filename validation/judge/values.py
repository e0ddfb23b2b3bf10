"""Judge the values of one output: places of NaN and inf, error, bias; and its tier."""

import dataclasses
import functools
import math
import statistics

import torch
from torch import Tensor

from validation.judge import where
from validation.judge.bits import equal_bits
from validation.judge.expected import Target
from validation.judge.stats import Errors, bias_threshold, independent_samples
from validation.verdict import Status, Tier, Verdict

# A case is lossless if its RMS error is at most this factor times the larger of the baseline's and of correct float32
# arithmetic's (the ideal's error and the noise A, added in squares), plus LOSSLESS_SIGMAS standard errors of an RMS
# (`_standard_error`): 5.6, so that a correct op fails in 10,000 cases with a chance of 1 in 10,000. (With three, and
# each element counted as an independent error, a rotation with one rounding fewer than the reference failed in one of
# 305 cases, of 112 elements.) The op's own tier is decided over all its cases: `tiers`.
LOSSLESS_FACTOR = 1.02
LOSSLESS_CASES, LOSSLESS_CHANCE = 10_000, 1e-4
LOSSLESS_SIGMAS = -statistics.NormalDist().inv_cdf(LOSSLESS_CHANCE / LOSSLESS_CASES)

# The most that one rounding costs, in ulp: a path that is nearer in all of a case's elements was lucky. A path without
# an error is no measure (for a constant float32 row the reference's mean is exact, and that of sums in chunks is not).
ONE_ROUNDING = 0.5


def _kind(t: Tensor) -> Tensor:
    """0 finite, 1 NaN, 2 +inf, 3 -inf."""
    kind = t.isnan().to(torch.int8)
    return torch.where(t.isinf(), torch.where(t > 0, 2, 3).to(torch.int8), kind)


def _nonfinite(output: Tensor, target: Target) -> Tensor:
    """Where the output is NaN or inf and should not be, or the other way round.

    The truth's rounding from either end of its budget is right (at the edge of overflow both are), and so is all
    between: a budget may reach from -inf to inf (a weight and a bias of 6e4 that cancel, times a scale of 6e4, with
    intermediate float16 roundings), and then any finite number is judged by its error. Where an intermediate declared
    rounding may have overflowed, the reference path's kind of value and any non-finite value are right too. What is NaN
    or inf as the reference path is there is never wrong.
    """
    dtype, truth, budget = output.dtype, target.truth, target.budget
    rounded, finite = truth.to(dtype), truth.isfinite()
    if bool(output.isfinite().all()) and bool(rounded.isfinite().all()):
        return torch.zeros_like(finite)  # nearly every case
    kind = _kind(output)
    right = (kind == _kind(rounded)) | ((kind != 0) & (kind == _kind(target.baseline)))
    low, high = (_kind(edge.to(dtype)) for edge in (truth - budget.allowed, truth + budget.allowed))
    right |= finite & ((kind == low) | (kind == high) | ((kind == 0) & (low == 3) & (high == 2)))
    right |= target.running.overflow & ((kind != 0) | (kind == _kind(target.baseline)))
    return ~right


def _informative_share(truth: Tensor) -> float:
    """The share of an output's elements that a wrong op is not likely to get right by chance.

    Elements that are finite, not zero, and not all the same: 0 where the output is NaN, zero or one number throughout.
    """
    if not truth.numel():
        return 0.0
    telling = truth.isfinite() & (truth != 0)
    if truth.numel() > 1 and bool((truth == truth.flatten()[0]).all()):
        return 0.0
    return float(telling.double().mean())


def judge_values(output: Tensor, target: Target) -> Verdict:
    """Judge one output of the right dtype and shape.

    An element may be as far from the truth as its budget, or as the reference path's own is: what equals the reference
    to the bit never fails.

    Its numbers: the percent used of the budget, and of the arithmetic's allowance, which is the budget less the
    roundings that a right op makes (half an ulp, and the declared ones); `Errors` of candidate, baseline and ideal; the
    ratios of RMS and maximum error over the baseline's; the share of elements equal to the baseline's to the bit; the
    share that tells something.
    """
    name, truth, baseline, budget = target.name, target.truth, target.baseline, target.budget
    misplaced = _nonfinite(output, target)
    if bool(misplaced.any()):
        at = tuple(misplaced.nonzero()[0].tolist())
        reason = (
            f"{int(misplaced.sum())} of {output.numel()} elements of {name} are NaN or inf where they should not be, "
            f"or are not where they should be: the first at {where.index_text(at)} "
            f"(got {output[at].item()}, truth {truth[at].item():.6g}, reference {baseline[at].item():.6g})"
        )
        return Verdict(Status.INCORRECT_NONFINITE, "nonfinite", reason, lines=where.lines(misplaced, target.frames))

    finite = truth.isfinite() & output.isfinite() & budget.allowed.isfinite()
    error = output.double() - truth
    # Where the only right result is known, the size of errors says nothing: the reference path may have none.
    slack = target.slack
    counted = finite if slack is None else finite & ~_certain(slack, truth)
    errors = Errors.of(error, truth, budget.unit, counted)
    path_finite = finite & baseline.isfinite()
    path_error = baseline.double() - target.baseline_truth
    path = Errors.of(path_error, truth, budget.unit, counted & path_finite)
    allowed = torch.where(path_finite, torch.maximum(budget.allowed, path_error.abs()), budget.allowed)
    ideal = Errors.of(truth.to(output.dtype).double() - truth, truth, budget.unit, counted)
    equal = equal_bits(output, baseline)
    used = torch.where(finite, error.abs() / allowed, torch.zeros_like(error))
    worst = float(used.max()) if used.numel() else 0.0
    beyond = torch.where(finite, error.abs() - budget.declared, torch.zeros_like(error)).clamp(min=0.0)
    arithmetic = torch.where(beyond > 0.0, beyond / (allowed - budget.declared), beyond)
    of_exact = 1.0 if errors.rms_ulp == 0.0 else math.inf
    ratio = errors.rms_ulp / path.rms_ulp if path.rms_ulp else of_exact
    max_ratio = max(errors.max_ulp, ONE_ROUNDING) / max(path.max_ulp, ONE_ROUNDING) if path.rms_ulp else of_exact
    comparable = bool(errors.count) or not bool(finite.any())
    numbers: dict[str, float | int | str | None] = {
        "budget_percent": 100.0 * worst,
        "arithmetic_percent": 100.0 * float(arithmetic.max()) if arithmetic.numel() else 0.0,
        **errors.numbers(""),
        **path.numbers("baseline_"),
        **ideal.numbers("ideal_"),
        "rms_ratio": ratio if comparable else None,
        "max_ratio": max_ratio if comparable else None,
        "equal_share": float(equal.double().mean()) if equal.numel() else 1.0,
        "elements": output.numel(),
        "informative_share": _informative_share(truth),
    }
    if worst > 1.0:
        at = tuple((used == worst).nonzero()[0].tolist())
        reason = (
            f"worst |error| {abs(float(error[at])):.3g} is {_over(worst)}x its budget at {name}{where.index_text(at)} "
            f"(got {output[at].item():.9g}, truth {truth[at].item():.9g}); rms {ratio:.3g}x the reference path's"
        )
        wrong = used > 1.0
        share = f"{int(wrong.sum())} of {output.numel()} elements exceed their budget"
        place = f"the worst is in {where.place(at, output.shape, target.frames)}"
        # For a single wrong element the index is enough.
        pattern = where.lines(wrong, target.frames) if int(wrong.sum()) > 1 else ()
        lines = (share, place, *pattern, *where.displaced(output, truth, allowed, wrong))
        return Verdict(Status.INCORRECT_NUMERICAL, "error", reason, numbers=numbers, lines=lines)

    if slack is not None:
        numbers["exact_share"] = float(_certain(slack, truth).double().mean()) if output.numel() else 0.0
        wrong = _not_exact(output, target, slack)
        if bool(wrong.any()):
            return dataclasses.replace(_inexact(output, target, slack, wrong), numbers=numbers)

    rounds_on_the_way = bool(target.running.declared.any())

    @functools.cache  # lazy: it took a third of judging when counted whether or not a verdict depended on it
    def samples() -> int:
        return independent_samples(truth, counted, output.dtype, target.operands if rounds_on_the_way else ())

    for label, mean in (("mean signed error", "bias_ulp"), ("mean error away from zero", "magnitude_bias_ulp")):
        bias, path_bias, ideal_bias = (getattr(of, mean) for of in (errors, path, ideal))
        # On a grid the truth's own rounding has a bias: 65504 (2^16 less one ulp) times 200 float16 angles, rotated and
        # rounded once, is 0.136 ulp too small on average.
        own = max(abs(path_bias), abs(ideal_bias))
        # `errors.count` is an upper bound of the independent errors, and the threshold falls with their number: a bias
        # below this one is below the real one.
        if abs(bias) <= bias_threshold(errors, errors.count, output.dtype) + own:
            continue
        threshold = bias_threshold(errors, samples(), output.dtype)
        if samples() >= 16 and abs(bias) > threshold + own:
            reason = (
                f"{label} of {name} is {bias:+.3f} ulp, over {threshold:.3f} ulp for {samples()} independent errors "
                f"(the reference path's is {path_bias:+.3f}, that of one rounding {ideal_bias:+.3f})"
            )
            return Verdict(Status.BIASED, "bias", reason, numbers=numbers)

    noise = torch.where(counted, target.running.noise / budget.unit, torch.zeros_like(error))
    of_right = math.sqrt(ideal.rms_ulp**2 + float((noise * noise).sum()) / max(errors.count, 1))
    least = max(path.rms_ulp, of_right)
    if bool(equal.all()):
        tier = Tier.BIT_EXACT
    elif errors.rms_ulp <= LOSSLESS_FACTOR * least:
        tier = Tier.LOSSLESS
    else:
        spread = _standard_error(target, counted, least, samples() if rounds_on_the_way else errors.count)
        by_chance = errors.rms_ulp <= LOSSLESS_FACTOR * least + LOSSLESS_SIGMAS * spread
        tier = Tier.LOSSLESS if by_chance else Tier.CLOSE
    share = f"{numbers['arithmetic_percent']:.0f} % of the arithmetic's allowance used"
    reason = f"{share}, rms {ratio:.3g}x the reference path's"
    return Verdict(Status.PASSED, "bias", reason, tier=tier, numbers=numbers)


def _certain(slack: Tensor, truth: Tensor) -> Tensor:
    """Where the only right result of exact inputs is known."""
    return slack.isfinite() & truth.isfinite()


def _not_exact(output: Tensor, target: Target, slack: Tensor) -> Tensor:
    """Where exact inputs did not give what every right order of operations gives.

    Numbers are compared, so that 0 and -0 are one: their sign depends on the order of operations. What equals the
    reference path is never wrong.
    """
    certain = _certain(slack, target.truth)
    slack = torch.where(certain, slack, 0.0)
    low, high = ((target.truth + edge).to(output.dtype) for edge in (-slack, slack))
    return certain & ((output < low) | (output > high)) & (output != target.baseline)


def _inexact(output: Tensor, target: Target, slack: Tensor, wrong: Tensor) -> Verdict:
    """The verdict on elements that differ from the only right result."""
    # The first of those that are furthest away.
    distance = torch.where(wrong, (output.double() - target.truth).abs(), -1.0)
    at = tuple((distance == distance.max()).nonzero()[0].tolist())
    room = float(slack[at])
    near = "these bits" if room == 0.0 else f"this to {room:.2g}, that is rounding in 1/sqrt"
    reason = (
        f"exact inputs: every right order of operations gives {near}; {int(wrong.sum())} of {wrong.numel()} elements "
        f"of {target.name} have others, the furthest at {where.index_text(at)} (got {output[at].item():.9g}, "
        f"exact {target.truth[at].item():.9g})"
    )
    return Verdict(Status.INCORRECT_NUMERICAL, "exact", reason, lines=where.lines(wrong, target.frames))


def _standard_error(target: Target, finite: Tensor, least: float, samples: int) -> float:
    """The standard error, in ulp, of a correct op's RMS error.

    ``r / sqrt(2 n)`` for n errors of RMS r. An element's error has the variance of its last rounding, of the noise
    and of the declared roundings, uniform over their bound. A few elements with large variances count as few
    (``(sum v)^2 / sum v^2``), and make the baseline's own RMS a matter of luck. Measured: a contracted rotation of
    six float16 numbers with outliers was at 3.6 times the reference path's, 8.9 standard errors of six equal errors.

    Args:
        target: the target that the output was judged against.
        finite: the elements that count.
        least: the RMS error to compare with, in ulp.
        samples: how many errors are independent.
    """
    noise, declared = (t[finite] / target.budget.unit[finite] for t in (target.running.noise, target.running.declared))
    variance = 1.0 / 12.0 + noise * noise + declared * declared / 3.0
    total = float(variance.sum())
    if not 0.0 < total < math.inf:
        return 0.0
    count = min(samples, total * total / float((variance * variance).sum()))
    return max(least, math.sqrt(total / variance.numel())) / math.sqrt(2 * max(count, 1.0))


def _over(ratio: float) -> str:
    """A ratio above 1, never printed as 1."""
    short = f"{ratio:.3g}"
    return short if short != "1" else f"{ratio:.9g}"
