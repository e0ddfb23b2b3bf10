"""Verdicts on the measured drift: one teacher-forced, one against the band, each in one sentence."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from validation.chains.replay import KINDS, Kind
from validation.drift import band
from validation.drift.measure import Drift
from validation.drift.teacher import ARMS, CallErrors, Place, can_reject, first_further, places
from validation.equivalence import CONFIDENCE
from validation.verdict import TIERS, Numbers, Series, Status, Tier, Verdict


def verdicts(drift: Drift[Any], require: str) -> tuple[Verdict, Verdict]:
    """The teacher-forced and the free-running verdict; both INCONCLUSIVE unless every prompt was measured.

    Args:
        drift: with its prompts added.
        require: ``bit-exact``, ``lossless`` or ``close``.
    """
    missing = len(drift.prompts) - len(drift.measured)
    if missing:
        reason = f"{missing} of {_counted(len(drift.prompts), 'prompt')} could not be sampled with the candidate"
        first, second = (Verdict(Status.INCONCLUSIVE, check, reason) for check in ("teacher-forced", "band"))
        return first, second
    return judge_teacher(drift, require), judge_band(drift, require)


def judge_teacher(drift: Drift[Any], require: str) -> Verdict:
    """BELOW_REQUIRED_TIER if a site is further from the truth than the baseline.

    If only ``close`` is required, that is allowed, but a call that is further than roundings explain is not.
    """
    errors = drift.teacher.errors
    found = places(errors)
    first = first_further(found)
    numbers, series = _teacher_numbers(found), _teacher_series(errors, found)

    def verdict(tier: str | None, reason: str) -> Verdict:
        return _verdict("teacher-forced", tier, require, reason, numbers, series)

    if first is not None:
        numbers |= {
            "first_site": first.site,
            "first_place": first.place,
            "first_factor": first.factor,
            "first_p": first.p,
            "first_step": first.steps[0] + 1,
        }
        return verdict(
            "none" if any(place.gross for place in found) else "close",
            f"{first} is the first to be further from the truth than the path it replaces: RMS error "
            f"{'up to ' if first.gross else ''}{first.factor:.4g}x, further in {first.further} of {first.calls} calls "
            f"({'more than roundings explain' if first.gross else f'p = {first.p:.1e}'}), "
            f"from step {first.steps[0] + 1} on",
        )
    if drift.bit_exact and all(error.candidate == error.baseline for error in errors):
        return verdict("bit-exact", f"the path it replaces, to the bit: in {len(errors)} watched calls and all latents")
    if not can_reject(found):
        return verdict(
            None,
            f"{len(errors)} watched site calls on {_counted(len(drift.prompts), 'prompt')} are too few for the test, "
            "expected more prompts, seeds or steps",
        )
    sites = [place for place in found if not place.place]
    unsure = max(sites, key=lambda site: math.log(site.shown.upper) / math.log(site.shown.margin))
    if not unsure.shown.within:
        return verdict(
            None,
            f"no site is seen to be further from the truth in {len(errors)} calls, but {unsure.site} is not shown to "
            f"be as near: RMS error {unsure.shown}; expected more prompts, seeds or steps",
        )
    worst = max(sites, key=lambda site: site.factor)
    return verdict(
        "lossless",
        f"no site is further from the truth than the path it replaces in {len(errors)} calls: the furthest, "
        f"{worst.site}, has {worst.factor:.9f} times its RMS error, and the least sure, {unsure.site}, at most "
        f"{unsure.shown.upper:.6f} times with {100 * CONFIDENCE:.0f} % (margin {unsure.shown.margin})",
    )


def judge_band(drift: Drift[Any], require: str) -> Verdict:
    """OUTSIDE_BAND outside both bands; BELOW_REQUIRED_TIER outside the required tier's band only."""
    numbers: Numbers = {"prompts": len(drift.prompts), "replays": drift.replays}
    series = {f"{arm}_distance_per_step": _over_prompts(drift.rows(arm)) for arm in ("candidate", "reference")}
    numbers["candidate_distance"] = series["candidate_distance_per_step"][-1]
    numbers["reference_distance"] = series["reference_distance_per_step"][-1]

    def verdict(tier: str | None, reason: str) -> Verdict:
        return _verdict("band", tier, require, reason, numbers, series)

    if drift.replays:
        for kind in KINDS:
            # A band's edges: the nearest and the furthest of the K medians over the prompts.
            typical = band.over_prompts(drift.rows(kind))
            series[f"{kind}_band_least_per_step"] = typical.min(axis=0).tolist()
            series[f"{kind}_band_greatest_per_step"] = typical.max(axis=0).tolist()
    if drift.bit_exact:
        return verdict("bit-exact", "all latents equal the reference's to the bit")
    if not drift.replays:
        return verdict(
            None,
            f"{_counted(len(drift.prompts), 'prompt')} with {band.MAX_REPLAYS} replays each cannot reach "
            f"p < {band.ALPHA:g}, expected two prompts or seeds at least, better six",
        )
    tests = {kind: _test(drift, kind) for kind in KINDS}
    for kind, test in tests.items():
        for name in test.p:
            numbers[f"{kind}_rank_{name}"] = test.rank[name]
            numbers[f"{kind}_p_{name}"] = test.p[name]
            candidate, _, edge = test.ends[name]
            if kind == "lossless":
                numbers[f"lossless_share_{name}"] = candidate / edge if edge else math.inf
    if modes := _two_modes(drift):
        return verdict(None, f"{modes}: sampling takes one of two ways by chance, and p-values mean nothing")
    if all(test.saturated for test in tests.values()):
        return verdict(
            None,
            f"legal replays lie more than {band.SATURATED:g} of the latents' spread apart at every tested step: "
            "rounding alone decides what is sampled",
        )
    lossless, close = tests["lossless"], tests["close"]
    if not lossless.rejected:
        return verdict("lossless", f"inside the lossless band: {lossless}")
    if not close.rejected:
        return verdict("close", f"outside the lossless band: {lossless}; inside the close band: {close}")
    reason = f"outside both bands, the lossless and the close: {close}"
    return Verdict(Status.OUTSIDE_BAND, "band", reason, None, numbers, series)


def _verdict(check: str, tier: str | None, require: str, reason: str, numbers: Numbers, series: Series) -> Verdict:
    if tier is None:
        return Verdict(Status.INCONCLUSIVE, check, reason, None, numbers, series)
    if tier not in TIERS or not Tier(tier).meets(require):
        return Verdict(Status.BELOW_REQUIRED_TIER, check, reason, None, numbers, series)
    return Verdict(Status.PASSED, check, reason, Tier(tier), numbers, series)


# The test against a band


@dataclasses.dataclass(frozen=True)
class _Test:
    """The test against one band: mean rank, adjusted p and three distances, by the name of the tested step.

    Attributes:
        ends: medians over the prompts: the candidate's, the nearest and the furthest replay's.
        saturated: whether every tested step is, see `band.SATURATED`.
    """

    kind: Kind
    replays: int
    rank: dict[str, float]
    p: dict[str, float]
    ends: dict[str, tuple[float, float, float]]
    saturated: bool

    @property
    def rejected(self) -> bool:
        """Further from the truth than the replays, at some tested step."""
        return min(self.p.values()) < band.ALPHA

    def __str__(self) -> str:
        name = min(self.p, key=lambda name: self.p[name])
        candidate, low, high = self.ends[name]
        where = "the end of the first half" if name == "half" else f"the {name} step"
        return (
            f"at {where} {candidate:.3g} of the spread from the truth, {self.kind} replays {low:.3g} to {high:.3g}, "
            f"mean rank {self.rank[name]:.1f} of {self.replays}, p = {self.p[name]:.1e}"
        )


def _test(drift: Drift[Any], kind: Kind) -> _Test:
    rank, ends, p, saturated = {}, {}, [], []
    for name in band.tested_steps(1):
        # Each prompt at its own step of that name, with the distances of its replays.
        at = [(found, band.tested_steps(len(found.candidate))[name]) for found in drift.measured.values()]
        candidate = np.array([found.candidate[step] for found, step in at])
        replays = np.stack([found.replays[kind][:, step] for found, step in at])
        ranks = band.ranks(candidate, replays)
        rank[name] = float(ranks.mean())
        p.append(band.rank_sum_p(ranks, drift.replays))
        saturated.append(float(np.median(replays)) > band.SATURATED)
        typical = band.over_prompts(replays)
        ends[name] = (float(band.over_prompts(candidate)), float(typical.min()), float(typical.max()))
    return _Test(kind, drift.replays, rank, dict(zip(rank, band.holm(p), strict=True)), ends, all(saturated))


def _two_modes(drift: Drift[Any]) -> str:
    """A message naming the band that has two modes at its end; "" if none has.

    Another path leads further than the close replays, which have a rounding at each site: lossless ones that met few
    roundings lie at 0 and nearly there (measured on a model of random weights: 0, 1.9e-4, 0 and 1.9e-4, where the
    nearest of the close ones was at 2.1e-3).
    """
    rows = {(kind, n): found.replays[kind][:, -1] for kind in KINDS for n, found in drift.measured.items()}
    rounding = min(row.min() for (kind, _), row in rows.items() if kind == "close")
    p = {
        key: band.two_modes_p(row)
        for key, row in rows.items()
        if row.max() >= band.TWO_WAYS * max(row.min(), rounding if key[0] == "lossless" else 0.0)
    }
    if not p:
        return ""
    kind, n = min(p, key=lambda key: p[key])
    least = p[kind, n] * len(rows)
    if least >= band.ALPHA:
        return ""
    return f"the {kind} band of {drift.prompts[n].name} seed {drift.prompts[n].seed} has two modes (p = {least:.1e})"


# Numbers and series for reports


def _teacher_numbers(found: Sequence[Place]) -> Numbers:
    """The factor, p-value and number of calls of each site as a whole."""
    numbers: Numbers = {}
    for place in found:
        if not place.place:
            numbers[f"factor_{_name(place)}"] = place.factor
            numbers[f"upper_{_name(place)}"] = place.shown.upper
            numbers[f"p_{_name(place)}"] = place.p
            numbers[f"watched_{_name(place)}"] = place.calls
    return numbers


def _teacher_series(errors: Sequence[CallErrors], found: Sequence[Place]) -> Series:
    """RMS errors over the RMS of the truth, by arm: for each place in the model's order, and over the watched steps.

    Also the p-value of each place.
    """
    here = [place for place in found if place.place]
    series: Series = {f"{arm}_error_per_place": [place.errors[arm] for place in here] for arm in ARMS}
    series["p_per_place"] = [place.p for place in here]
    by_step: dict[int, list[CallErrors]] = {}
    for call in errors:
        if call.power:
            by_step.setdefault(call.step, []).append(call)
    series["watched_steps"] = [float(step + 1) for step in sorted(by_step)]
    for arm in ARMS:
        series[f"{arm}_error_per_watched_step"] = [
            math.sqrt(statistics.fmean(getattr(call, arm) / call.power for call in by_step[step]))
            for step in sorted(by_step)
        ]
    return series


def _name(place: Place) -> str:
    return place.site.replace(" ", "_")


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _over_prompts(rows: band.Distances) -> list[float]:
    means: list[float] = band.over_prompts(rows).tolist()
    return means
