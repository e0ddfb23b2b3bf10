"""The teacher-forced comparison: at every site call of the truth's own trajectory, who is further from the truth?

The truth drives the model. At some of its forwards each site call also hands its exact inputs to the baseline
(the reference op in the working dtype), to a ``lossless`` replay and to the candidate, and records how far each
output is from the float64 truth before its rounding. Errors cannot grow: each is seen where it is made. The
model is not copied; these are extra calls.

*Test*: in one call the candidate is *further* if its mean squared error exceeds both the baseline's and the
replay's, the RMS by more than a factor `HAIR`. If it is as right as the baseline the two are exchangeable,
so this happens with probability at most 1/2, and the number of such calls is at most binomial: a sign test, exact
and blind to outliers. It is made for each place (one call of a site in a forward, over steps and prompts) and for
each site (over its places too), and Bonferroni's correction covers all of these together. The replay is needed
because float32 arithmetic can only lose, by a hair, against exact rounding, which enough calls would show; so is
the margin (in bfloat16 correct op sets stay below 1 + 1e-8; eps ten times too big, near unit variance, is 1.004).

A sign test needs many calls. An error in only a few calls is caught by its size: a single call whose RMS error is
more than `GROSS` times both others is further without a test. A second rounding makes it 1.4 times as large, three
more 2.

*First*: the first further place in the order in which the model runs; if only sites as a whole are further, the
first site.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import reference_ops
from validation import equivalence
from validation.chains.replay import Replay
from validation.chains.truth import bound, delivered, exact_outputs, rounded_outputs
from validation.drift.band import ALPHA
from validation.models.mount import SiteCall, SiteError, running_call
from validation.ops import Op, OpSet
from validation.verdict import Status

HAIR = 1.001
GROSS = 2.0

ARMS = ("baseline", "replay", "candidate")

# Calls per place beyond the fewest with which the sign test can reject, so that it tolerates a few near ones.
SPARE_CALLS = 6


@dataclasses.dataclass(frozen=True)
class CallErrors:
    """The errors of one output of one site call, against the float64 truth.

    Attributes:
        site: its name; with the output's number if the op returns several.
        place: the model's name for the place.
        prompt: its number, from 0. step: the denoising step, from 0.
        dtype: of the output, ``bfloat16``.
        baseline, replay, candidate: mean squared errors; infinite if an output is not finite where the truth is.
        rounding: mean squared error of the truth's own rounding: the least possible.
        candidate_max, baseline_max: greatest absolute errors.
        candidate_mean: mean signed error.
        power: mean square of the truth.
    """

    site: str
    place: str
    prompt: int
    step: int
    dtype: str
    baseline: float
    replay: float
    candidate: float
    rounding: float
    candidate_max: float
    baseline_max: float
    candidate_mean: float
    power: float

    @property
    def further(self) -> bool:
        """The candidate is further from the truth than the baseline and the replay."""
        return self._beyond(HAIR)

    @property
    def gross(self) -> bool:
        """The candidate is further than roundings explain."""
        return self._beyond(GROSS)

    def _beyond(self, factor: float) -> bool:
        # Written so that NaN is gross. If both others are exact, a float64 rounding still does not count as an error.
        least = self.power * 2.0**-100
        return not self.candidate <= factor**2 * max(self.baseline, self.replay, least)


@dataclasses.dataclass(frozen=True)
class Place:
    """The calls of one place, or of one site, summarised.

    Attributes:
        site: its name.
        place: as in `CallErrors`; "" for the site as a whole.
        calls: their number.
        further: the number in which the candidate is further.
        gross: whether one of them is further than roundings explain.
        factor: the candidate's RMS error over the baseline's: geometric mean over the calls, or the greatest if one
            is gross.
        shown: what the calls show of that mean, see `equivalence`.
        p: p-value of the sign test, corrected for all places and sites; 0 if a call is gross.
        steps: the steps in which the candidate is further, in order.
        errors: RMS error over the RMS of the truth, by arm (``baseline``, ``replay``, ``candidate``).
    """

    site: str
    place: str
    calls: int
    further: int
    gross: bool
    factor: float
    shown: equivalence.Shown
    p: float
    steps: tuple[int, ...]
    errors: dict[str, float]

    @property
    def rejected(self) -> bool:
        """Further than chance explains."""
        return self.p < ALPHA

    def __str__(self) -> str:
        return f"{self.site} in {self.place}" if self.place else self.site


def forwards_to_watch(forwards: int, prompts: int, families: int) -> list[int]:
    """Indices of the forwards to watch: evenly spaced from the first to the last, as few as suffice.

    Args:
        forwards: number in one trajectory. prompts: number of trajectories.
        families: number of places and sites that are tested.
    """
    calls = math.ceil(math.log2(families / ALPHA)) + SPARE_CALLS
    count = min(forwards, math.ceil(calls / prompts))
    return sorted({round(i * (forwards - 1) / max(count - 1, 1)) for i in range(count)})


class TeacherForced:
    """Watches the truth's trajectories and records the errors of the extra calls.

    Attributes:
        errors: of all calls so far, in call order.
    """

    def __init__(self, candidate: OpSet, place_of: Callable[[SiteCall], str]) -> None:
        self.candidate = candidate
        self.place_of = place_of
        self.errors: list[CallErrors] = []

    def op_set(self, prompt: int, watched: Iterable[int], forwards_per_step: int) -> OpSet:
        """The truth's op set for one trajectory, which also makes the comparison at the watched forwards.

        Args:
            prompt: its number. watched: indices of forwards. forwards_per_step: the model's.
        """
        indices, replay = frozenset(watched), Replay("lossless", f"teacher-forced {prompt}").op_set()

        def make(op: str) -> Op:
            def call(*given: Any, **named: Any) -> Any:
                arguments, options = bound(op, given, named)
                exact = exact_outputs(op, *arguments, **options)
                truth = rounded_outputs(op, exact, arguments)
                here = running_call()
                if here.forward in indices and op in self.candidate:
                    functions = (getattr(reference_ops, op), replay[op], self.candidate[op])
                    arms = dict(zip(ARMS, functions, strict=True))
                    outputs = {}
                    for arm, function in arms.items():
                        # Copies: an op may work in place, and a candidate may do so even where it must not.
                        copied = options.get("inplace") or arm == "candidate"
                        own, own_named = _own(given, named) if copied else (given, named)
                        outputs[arm] = _tuple(function(*own, **own_named))
                    _require_alike(here.site, op, outputs["candidate"], truth)
                    self._keep(here, prompt, forwards_per_step, exact, truth, outputs)
                return delivered(truth, arguments, options)

            return call

        return OpSet("truth", {op: make(op) for op in reference_ops.OP_NAMES}, "truth")

    def place_names(self) -> list[str]:
        """The places with their sites, in the order in which the model runs them."""
        return [str(place) for place in places(self.errors) if place.place]

    def _keep(
        self,
        here: SiteCall,
        prompt: int,
        forwards_per_step: int,
        exact: Sequence[Tensor],
        truth: Sequence[Tensor],
        outputs: Mapping[str, Sequence[Tensor]],
    ) -> None:
        for n, (y, rounded) in enumerate(zip(exact, truth, strict=True)):
            if not y.numel():
                continue
            finite = rounded.isfinite()
            arms = [*(outputs[arm][n] for arm in ARMS), rounded]
            # A non-finite value is infinitely far from a finite truth; a non-finite truth counts as no distance.
            errors = [_infinite_for_nan(t.double() - y).where(finite, 0.0) for t in arms]
            squares = [error.square().mean() for error in errors]
            greatest = [errors[2].abs().amax(), errors[0].abs().amax()]
            numbers = [*squares, *greatest, errors[2].mean(), y.where(finite, 0.0).square().mean()]
            values = torch.stack(numbers).tolist()
            name = here.site if len(exact) == 1 else f"{here.site} output {n}"
            step = here.forward // forwards_per_step
            dtype = str(rounded.dtype).removeprefix("torch.")
            self.errors.append(CallErrors(name, self.place_of(here), prompt, step, dtype, *values))


def places(errors: Sequence[CallErrors]) -> list[Place]:
    """The places in the order in which the model runs them, then the sites as a whole in that order."""
    by_place: dict[tuple[str, str], list[CallErrors]] = {}
    by_site: dict[tuple[str, str], list[CallErrors]] = {}
    for error in errors:
        by_place.setdefault((error.site, error.place), []).append(error)
        by_site.setdefault((error.site, ""), []).append(error)
    families = len(by_place) + len(by_site)
    return [_place(*key, of, families) for key, of in itertools.chain(by_place.items(), by_site.items())]


def can_reject(found: Sequence[Place]) -> bool:
    """Whether each place had enough calls for the sign test to reject."""
    return bool(found) and min(place.calls for place in found) >= math.log2(len(found) / ALPHA)


def first_further(found: Sequence[Place]) -> Place | None:
    """The first place that is further, else the first site, else None."""
    return next((place for place in found if place.rejected), None)


def _place(site: str, place: str, errors: Sequence[CallErrors], families: int) -> Place:
    further = [error for error in errors if error.further]
    logs = [_log_ratio(error) for error in errors]
    gross = any(error.gross for error in errors)
    p = sum(math.comb(len(errors), n) for n in range(len(further), len(errors) + 1)) / 2 ** len(errors)
    log = max(logs) if gross else statistics.fmean(logs)
    power = sum(error.power for error in errors) or 1.0
    ratios = (math.exp(min(max(of_call / 2, -700.0), 700.0)) for of_call in logs)
    return Place(
        site,
        place,
        calls=len(errors),
        further=len(further),
        gross=gross,
        factor=math.exp(min(log / 2, 700.0)),
        shown=equivalence.shown(ratios, equivalence.MARGIN["rms", errors[0].dtype]),
        p=0.0 if gross else min(1.0, p * families),
        steps=tuple(sorted({error.step for error in further})),
        errors={arm: math.sqrt(sum(getattr(error, arm) for error in errors) / power) for arm in ARMS},
    )


def _log_ratio(error: CallErrors) -> float:
    # Where the baseline is exact, its error counts as one float64 rounding, so that the ratio stays a number.
    least = error.power * 2.0**-100 or 1e-300
    ratio = (error.candidate + least) / (error.baseline + least)
    return math.log(ratio) if math.isfinite(ratio) else 1400.0


def _infinite_for_nan(t: Tensor) -> Tensor:
    return t.masked_fill(t.isnan(), math.inf)


def _own(arguments: Sequence[Any], named: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    # Copies of the buffers, with the same views: in-place work depends on strides and neighbours. Copied as bytes,
    # since views of one buffer may differ in dtype; keyed by device too, since empty buffers all begin at 0.
    buffers: dict[tuple[int, torch.device], torch.UntypedStorage] = {}

    def own(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        storage = value.untyped_storage()
        key = storage.data_ptr(), value.device
        if key not in buffers:
            buffers[key] = storage.clone()  # type: ignore[no-untyped-call]
        empty = torch.empty(0, dtype=value.dtype, device=value.device)
        return empty.set_(buffers[key], value.storage_offset(), value.shape, value.stride())

    return [own(value) for value in arguments], {name: own(value) for name, value in named.items()}


def _tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _require_alike(site: str, op: str, outputs: Sequence[Any], truth: Sequence[Tensor]) -> None:
    came = [(list(t.shape), t.dtype, t.device) if isinstance(t, Tensor) else type(t).__name__ for t in outputs]
    expected = [(list(t.shape), t.dtype, t.device) for t in truth]
    if came != expected:
        raise SiteError(Status.INCORRECT_STRUCTURE, f"{op} returned {came} at site {site}, expected {expected}")
