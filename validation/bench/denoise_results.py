"""Results of ``validate bench denoise``: times, memory and launches of each arm, compared with the goals."""

import dataclasses
import math
import re
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from validation.bench.arm_drift import ArmVerdict
from validation.bench.forward_bytes import StepBytes
from validation.record import Environment
from validation.samples.denoiser import Arm, Goal

SCHEMA = 1
LEVEL = 0.95
SEED = 0

_LAUNCH = re.compile(r"cu(da)?(LaunchKernel|LaunchCooperativeKernel|GraphLaunch)")


@dataclasses.dataclass(frozen=True)
class Interval:
    """A median, and an interval that contains it with probability ``coverage``."""

    median: float
    low: float
    high: float
    coverage: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def sign_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The narrowest symmetric distribution-free interval for the median that covers at least ``level``.

    `validation.bench.denoise` derives it. With too few values for the level, their whole range and its coverage.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values, expected at least one")
    ordered, n = sorted(values), len(values)

    def coverage(k: int) -> float:
        return 1 - sum(math.comb(n, i) for i in range(k)) / float(2 ** (n - 1))

    k = max((k for k in range(1, (n + 1) // 2 + 1) if coverage(k) >= level), default=1)
    return Interval(statistics.median(ordered), ordered[k - 1], ordered[n - k], max(coverage(k), 0.0))


@dataclasses.dataclass(frozen=True)
class Activity:
    """One event of the profiler: a kernel (or a copy, a fill) on the device, or a call on the host."""

    name: str
    on_device: bool
    seconds: float

    @property
    def is_kernel(self) -> bool:
        """Whether it is a kernel on the device, not a copy or a fill."""
        return self.on_device and not self.name.startswith(("Memcpy", "Memset"))

    @property
    def is_launch(self) -> bool:
        """Whether the host launched a kernel or a whole graph with it."""
        return not self.on_device and bool(_LAUNCH.match(self.name))


@dataclasses.dataclass
class TimedArm:
    """An arm and its measurements.

    Attributes:
        arm: the arm.
        visits: seconds of each timed step, visit by visit.
        peak_bytes: the most memory held during a step, weights included; 0 if it did not run.
        profile: the events of one step on a GPU; None if nothing was counted.
        step_bytes: the byte model; None for a compiled model.
        drift: its verdicts; None if the drift was not measured.
        left_out: why it was not timed; "" if it was.
        failed: whether it should have run but raised.
    """

    arm: Arm
    visits: list[list[float]] = dataclasses.field(default_factory=list)
    peak_bytes: int = 0
    profile: list[Activity] | None = None
    step_bytes: StepBytes | None = None
    drift: ArmVerdict | None = None
    left_out: str = ""
    failed: bool = False

    @property
    def rounds(self) -> list[float]:
        """Seconds per step in each round."""
        return _pair_means([statistics.median(visit) for visit in self.visits])

    @property
    def quantiles(self) -> list[float]:
        """The 5th, 25th, 50th, 75th and 95th percentile of all steps, in seconds."""
        steps = [seconds for visit in self.visits for seconds in visit]
        return [float(q) for q in np.quantile(steps, (0.05, 0.25, 0.5, 0.75, 0.95))]

    @property
    def denoise(self) -> list[float]:
        """Seconds of all steps of a visit, round by round."""
        return _pair_means([sum(visit) for visit in self.visits])

    @property
    def kernels(self) -> int | None:
        """Number of kernels that ran on the device in a step."""
        return None if self.profile is None else sum(activity.is_kernel for activity in self.profile)

    @property
    def launches(self) -> int | None:
        """Number of launches by the host in a step; a graph is one."""
        return None if self.profile is None else sum(activity.is_launch for activity in self.profile)


def _pair_means(values: Sequence[float]) -> list[float]:
    return [statistics.fmean(values[n : n + 2]) for n in range(0, len(values), 2)]


@dataclasses.dataclass(frozen=True)
class Judged:
    """A goal and its outcome; ``met`` is None if it cannot be judged, and ``found`` then says why."""

    goal: str
    met: bool | None
    found: str

    def __str__(self) -> str:
        word = {True: "met", False: "NOT met", None: "not judged"}[self.met]
        return f"{word}: {self.goal} ({self.found})"


@dataclasses.dataclass
class Result:
    """The result of a benchmark.

    Attributes:
        model, weights, size, goal: the denoiser's. full: whether at full size. gpu: whether on a GPU.
        steps, rounds: timed steps of a visit; rounds.
        arms: all arms, the path before first, those left out included.
        decode: seconds of each decode.
        copy: bytes per second that a copy reads and writes; None if none was timed.
        drift_on: the model on which the drift was measured, in words.
    """

    model: str
    weights: str
    size: str
    goal: Goal
    full: bool
    gpu: bool
    steps: int
    rounds: int
    arms: list[TimedArm]
    decode: list[float] = dataclasses.field(default_factory=list)
    copy: float | None = None
    drift_on: str = "not measured"

    @property
    def before(self) -> TimedArm:
        """The arm that the others are compared with."""
        return self.arms[0]

    @property
    def timed(self) -> list[TimedArm]:
        """The arms that ran."""
        return [timed for timed in self.arms if timed.visits]

    def ratio(self, timed: TimedArm) -> Interval:
        """The ratio of a step's time to the first arm's."""
        pairs = zip(timed.rounds, self.before.rounds, strict=True)
        return sign_interval([arm / before for arm, before in pairs])

    def end_to_end(self, timed: TimedArm) -> float | None:
        """Median seconds of the steps of a visit and a decode; None if no decode was timed."""
        return statistics.median(timed.denoise) + statistics.median(self.decode) if self.decode else None

    def end_to_end_ratio(self, timed: TimedArm) -> Interval | None:
        """The ratio of steps and decode to the first arm's; None if no decode was timed."""
        if not self.decode:
            return None
        decode = statistics.median(self.decode)
        pairs = zip(timed.denoise, self.before.denoise, strict=True)
        return sign_interval([(arm + decode) / (before + decode) for arm, before in pairs])

    def bytes_saved(self, timed: TimedArm) -> int | None:
        """How many bytes less per step it moves than the first arm, by the byte model."""
        if timed.step_bytes is None or self.before.step_bytes is None:
            return None
        return self.before.step_bytes.total - timed.step_bytes.total

    def seconds_saved(self, timed: TimedArm) -> float:
        """How many seconds less per step it takes than the first arm, measured."""
        return statistics.median(b - a for a, b in zip(timed.rounds, self.before.rounds, strict=True))

    @property
    def failed(self) -> bool:
        """Whether an arm that should have run did not, or an op set's arm fails its drift verdict.

        A compiled model is only a comparison: its verdict is shown, but does not count.
        """
        return any(t.failed or (t.arm.ops is not None and t.drift is not None and t.drift.failed) for t in self.arms)

    def judge_goals(self) -> list[Judged]:
        """The goals: each is met, not met, or not judged."""
        goal = self.goal
        timed = next((timed for timed in self.arms if timed.arm.name == goal.arm), None)
        asked = [
            f"{goal.arm}: a step at least {goal.least:.0%} below the path before",
            f"{goal.arm}: aiming at {goal.aim:.0%} below",
            f"{goal.arm}: the drift verdict passes",
        ]
        if goal.less_memory:
            asked.append(f"{goal.arm}: peak memory below that of the path before")
        why = ""
        if not (self.full and self.gpu):
            why = "only full size on a GPU counts"
        elif timed is None or not timed.visits:
            why = "the arm was not asked for" if timed is None else timed.left_out
        if timed is None or why:
            return [Judged(text, None, why) for text in asked]
        ratio = self.ratio(timed)
        found = f"ratio {ratio}, {ratio.coverage:.1%} of intervals hold"
        enough = ratio.coverage >= LEVEL
        judged = [
            Judged(text, (ratio.high <= 1 - share) if enough else None, found)
            for text, share in zip(asked, (goal.least, goal.aim), strict=False)
        ]
        drift = timed.drift
        judged.append(
            Judged(asked[2], None if drift is None else drift.passed, drift.word if drift else "not measured")
        )
        if goal.less_memory:
            peaks = timed.peak_bytes, self.before.peak_bytes
            judged.append(Judged(asked[3], peaks[0] < peaks[1], f"{peaks[0] / 1e9:.2f} of {peaks[1] / 1e9:.2f} GB"))
        return judged


def to_dict(result: Result, device: str, measures: str) -> dict[str, Any]:
    """The result as JSON values; in seconds and bytes."""

    def interval(found: Interval | None) -> dict[str, float] | None:
        return None if found is None else dataclasses.asdict(found)

    arms = {}
    for timed in result.arms:
        about: dict[str, Any] = {
            "about": timed.arm.about,
            "ops": None if timed.arm.ops is None else timed.arm.ops.name,
            "left_out": timed.left_out,
            "failed": timed.failed,
            "drift": None if timed.drift is None else timed.drift.to_dict(),
        }
        if timed.step_bytes is not None:
            about["model_bytes"] = dict(timed.step_bytes.by_place)
            about["model_bytes_saved"] = result.bytes_saved(timed)
        if timed.visits:
            about |= {
                "step_seconds": timed.visits,
                "step_seconds_quantiles_5_25_50_75_95": timed.quantiles,
                "ratio": interval(result.ratio(timed)),
                "seconds_saved_a_step": result.seconds_saved(timed),
                "end_to_end_seconds": result.end_to_end(timed),
                "end_to_end_ratio": interval(result.end_to_end_ratio(timed)),
                "peak_bytes": timed.peak_bytes,
                "kernels_a_step": timed.kernels,
                "launches_a_step": timed.launches,
            }
        arms[timed.arm.name] = about
    return {
        "schema": SCHEMA,
        "environment": dataclasses.asdict(Environment.capture(device=device, seed=SEED, profile="")),
        "measures": measures,
        "model": result.model,
        "weights": result.weights,
        "size": result.size,
        "steps": result.steps,
        "rounds": result.rounds,
        "copy_bytes_per_second": result.copy,
        "decode_seconds": result.decode,
        "drift_on": result.drift_on,
        "arms": arms,
        "goals": [dataclasses.asdict(judged) for judged in result.judge_goals()],
    }
