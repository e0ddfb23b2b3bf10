"""Compare a candidate's sample with the reference's, rung by rung, and check that the reference repeats itself."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from validation.drift import band
from validation.models.mount import SiteError
from validation.samples.gates import Gates
from validation.samples.rung import Rung, Sample, SampleError
from validation.verdict import Numbers, Series, Status, Tier, Verdict


def failed_arm(arm: str, error: Exception) -> Verdict:
    """The verdict on an arm that could not be sampled."""
    if isinstance(error, SiteError):
        return Verdict(error.status, "sites", f"{arm}: {error}")
    return Verdict(Status.RUNTIME_ERROR, "sites", f"{arm}: {type(error).__name__}: {error}")


def check_reference(first: Sample, second: Sample, rungs: Sequence[Rung]) -> Verdict | None:
    """INCONCLUSIVE unless the reference is a sample and its repetition has the same bits.

    Args:
        first: the reference. second: its repetition, finished as far as the first rung.
        rungs: the model's.
    """

    def inconclusive(reason: str, numbers: Numbers | None = None) -> Verdict:
        return Verdict(Status.INCONCLUSIVE, "reference", reason, numbers=numbers or {})

    if first.problem is not None:
        problem = first.problem
        reason = f"the reference's own sample: {problem.status}: {problem}: nothing to compare with"
        return inconclusive(reason, dict(problem.numbers))
    for step, (a, b) in enumerate(zip(first.latents, second.latents, strict=True)):
        if not same_bits(a.numpy(), b.numpy()):
            return inconclusive(
                f"the reference sampled twice differs from itself, first in the latents of step {step + 1} "
                f"of {len(first.latents)}: the model is not deterministic here"
            )
    name = rungs[0].name
    if name in first.made and not same_bits(first.made[name], second.made.get(name)):
        return inconclusive(
            f"the reference sampled twice has equal latents but other {name}: the decoder is not deterministic here"
        )
    return None


def same_bits(a: Any, b: Any) -> bool:
    """Whether two arrays are equal to the bit."""
    return bool(b is not None and a.shape == b.shape and a.tobytes() == b.tobytes())


def latent_distances(reference: Sample, candidate: Sample) -> list[float]:
    """RMS of the latents' difference over the standard deviation of the reference's, step by step."""
    pairs = zip(reference.latents, candidate.latents, strict=False)
    return [band.distance(b, a) if a.shape == b.shape else math.inf for a, b in pairs]


def judge(reference: Sample, candidate: Sample, rungs: Sequence[Rung], gates: Gates) -> Verdict:
    """Compare two samples; the first rung that fails names the verdict.

    Args:
        reference: one that `check_reference` accepted. candidate: a sample of the same prompt.
        rungs: the model's, in order; compared as far as both samples have them.
        gates: bounds on the rungs' measures.
    """
    latents = latent_distances(reference, candidate)
    if not any(rung.name in reference.made for rung in rungs) and candidate.problem is None:
        same = not any(latents)
        reason = f"latents after the last step {latents[-1]:.2g} of their spread away" if latents else "no latents"
        return Verdict(
            Status.PASSED,
            "latents",
            "all latents are equal bit for bit" if same else reason,
            Tier.BIT_EXACT if same else None,
            series={"latents_per_step": latents},
        )
    verdict = judge_made(reference.made, candidate.made, rungs, gates, candidate.problem)
    series = {**verdict.series, "latents_per_step": latents}
    if verdict.tier == Tier.BIT_EXACT:
        exact = not any(latents)
        reason = f"{verdict.reason}, {'and all latents' if exact else 'the latents are not'}"
        return dataclasses.replace(verdict, tier=verdict.tier if exact else None, series=series, reason=reason)
    return dataclasses.replace(verdict, series=series)


def judge_made(
    reference: Any, candidate: Any, rungs: Sequence[Rung], gates: Gates, problem: SampleError | None = None
) -> Verdict:
    """Compare what was made of two samples' latents.

    Args:
        reference, candidate: what was made, by rung name, as in `Sample.made`.
        rungs, gates: see `judge`.
        problem: why the candidate ends early.
    """
    numbers: Numbers = {}
    series: Series = {}
    reached = [rung for rung in rungs if rung.name in reference and rung.name in candidate]

    def verdict(status: Status, check: str, reason: str, tier: Tier | None = None) -> Verdict:
        return Verdict(status, check, reason, tier, numbers, series)

    try:
        for rung in reached:
            found = rung.compare(reference[rung.name], candidate[rung.name])
            numbers |= found[0]
            series |= found[1]
            rung.require(candidate[rung.name])
    except SampleError as error:
        problem = error
    bounds = gates.bounds_of(numbers)
    numbers |= bounds
    if problem is not None:
        numbers |= problem.numbers
        series |= problem.series
        return verdict(problem.status, problem.check, str(problem))
    failures = [(rung, text) for rung in reached for text in rung.demands(numbers)]
    failures += gates.failures(numbers, reached)
    if failures:
        failed = [rung for rung in reached if any(rung is one for one, _ in failures)]
        texts = [[text for one, text in failures if one is rung] for rung in failed]
        words = [f"past the gate: {', '.join(texts[0])}"]
        for rung, (text, *more) in zip(failed[1:], texts[1:], strict=True):
            words.append(f"{rung.name} too: {text}{f' and {len(more)} more' if more else ''}")
        return verdict(Status.BELOW_FLOOR, failed[0].check, "; ".join(words))
    first, check = reached[0], reached[-1].check
    made = reference[first.name]
    if same_bits(made, candidate[first.name]):
        return verdict(Status.PASSED, check, f"{first.same(made)} equal bit for bit", Tier.BIT_EXACT)
    parts = [rung.words(numbers) for rung in reached]
    if not bounds:
        parts.append("no number of these rungs has a gate")
    return verdict(Status.PASSED, check, "; ".join(parts))
