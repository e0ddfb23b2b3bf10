"""``validate bench denoise``: a whole denoiser's step, before the fusions and after, each arm beside its drift.

*Order*: in each round the arms take turns there and back (A B B A), so that a clock or a temperature that drifts
evenly shifts every arm alike. A visit is one step that is not timed, then some that are, between events on the
device's stream: what the device waits for the host counts, as it does in sampling.

*Ratio*: an arm's time in a round is the mean of its two visits' median steps; its ratio is to the first arm in the
same round. The interval of the median ratio is distribution-free: if rounds are independent, the number of ratios
below the true median is binomial with p = 1/2, so the k-th lowest and k-th highest ratio enclose it with probability
``1 - 2 P(Bin(n, 1/2) < k)`` (`sign_interval`; the sign test's interval). Fewer than six rounds cannot reach 95 %.

*End to end*: the timed steps of a visit and one decode. The decode is the same code in every arm, so it is timed
before the first round and after the last (`DECODES`), and not with each arm.

*Bytes*: beside the measured difference stands that of the byte model (`validation.bench.forward_bytes`), as the time
that a copy of as many bytes takes.
"""

import contextlib
import dataclasses
import gc
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from validation.bench import forward_bytes, subjects
from validation.bench.arm_drift import ArmVerdict, DriftOfArms
from validation.bench.arms import ALL, BEFORE, COMPACT, Arm, Running, arms_of
from validation.bench.forward_bytes import REST, StepBytes
from validation.bench.ops import aligned, one_line, random_pair
from validation.bench.picture import step_times
from validation.bench.subjects import EMBEDDED, FULL, TINY, Subject
from validation.bench.timing import GpuTimer, Timer
from validation.drift import measure
from validation.errors import CannotExpress, UsageError
from validation.files import default_folder
from validation.models.clock import peak_memory, reset_peak_memory
from validation.models.mount import SiteError
from validation.ops import OpSet
from validation.parity.sweep import default_tier
from validation.quality import DEFAULT
from validation.record import Environment
from validation.shape_quality import TRAINED
from validation.verdict import Status, Verdict

SCHEMA = 1
LEVEL = 0.95
SEED = 0
STEPS, ROUNDS, DECODES = 4, 6, 2

EMBEDDED_CHECKPOINTS = {"helios": DEFAULT, "hunyuan3d": TRAINED}

_COPY_BYTES = 1 << 30
_LAUNCH = re.compile(r"cu(da)?(LaunchKernel|LaunchCooperativeKernel|GraphLaunch)")


# Statistics


@dataclasses.dataclass(frozen=True)
class Interval:
    """A median and what encloses it with probability ``coverage``."""

    median: float
    low: float
    high: float
    coverage: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def sign_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The narrowest symmetric distribution-free interval for the median of at least ``level``; see the module.

    Where there are too few values for the level, their whole range with what it covers.

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


def order(arms: Sequence[str], rounds: int) -> Iterator[str]:
    """The visits of all rounds: there and back in each."""
    for _ in range(rounds):
        yield from arms
        yield from reversed(arms)


# What is kept of an arm


@dataclasses.dataclass(frozen=True)
class Activity:
    """One thing that the profiler saw: a kernel (or a copy, a fill) on the device, or a call on the host."""

    name: str
    on_device: bool
    seconds: float

    @property
    def is_kernel(self) -> bool:
        """Whether it is a kernel."""
        return self.on_device and not self.name.startswith(("Memcpy", "Memset"))

    @property
    def is_launch(self) -> bool:
        """Whether the host launched something there: a kernel, or a whole graph."""
        return not self.on_device and bool(_LAUNCH.match(self.name))


@dataclasses.dataclass
class Timed:
    """An arm.

    Attributes:
        arm: it.
        visits: seconds of each timed step, visit by visit.
        peak_bytes: the greatest memory held during a step, weights included; 0 where it was not run.
        profile: of one step on a GPU; None where nothing was counted.
        step_bytes: the byte model; None for what a compiler makes.
        drift: None where it was not measured.
        left_out: why it was not timed; "" where it was.
        failed: it should have run, but raised.
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
        """Seconds a step in each round."""
        medians = [statistics.median(visit) for visit in self.visits]
        return [statistics.fmean(medians[n : n + 2]) for n in range(0, len(medians), 2)]

    @property
    def quantiles(self) -> list[float]:
        """The 5th, 25th, 50th, 75th and 95th percentile of all steps, in seconds."""
        steps = [seconds for visit in self.visits for seconds in visit]
        return [float(q) for q in np.quantile(steps, (0.05, 0.25, 0.5, 0.75, 0.95))]

    @property
    def denoise(self) -> list[float]:
        """Seconds of all steps of a visit, round by round."""
        sums = [sum(visit) for visit in self.visits]
        return [statistics.fmean(sums[n : n + 2]) for n in range(0, len(sums), 2)]

    @property
    def kernels(self) -> int | None:
        """Kernels that ran on the device in a step."""
        return None if self.profile is None else sum(activity.is_kernel for activity in self.profile)

    @property
    def launches(self) -> int | None:
        """Launches by the host in a step; a graph is one."""
        return None if self.profile is None else sum(activity.is_launch for activity in self.profile)


@dataclasses.dataclass(frozen=True)
class Goal:
    """What is aimed at: an arm's step so much below the first arm's (shares of 1), and whether in less memory."""

    arm: str
    least: float
    aim: float
    less_memory: bool


GOALS = {"helios": Goal(COMPACT, 0.15, 0.19, True), "hunyuan3d": Goal(ALL, 0.25, 0.30, False)}


@dataclasses.dataclass(frozen=True)
class Judged:
    """A goal and what came of it; ``met`` is None where it cannot be judged, and ``found`` says why."""

    goal: str
    met: bool | None
    found: str

    def __str__(self) -> str:
        word = {True: "met", False: "NOT met", None: "not judged"}[self.met]
        return f"{word}: {self.goal} ({self.found})"


@dataclasses.dataclass
class Result:
    """A benchmark.

    Attributes:
        model, weights, size: what ran. full: at full size. gpu: on a GPU.
        steps, rounds: timed steps of a visit; rounds.
        arms: all, the path before first, those left out included.
        decode: seconds of each decode.
        copy: bytes a second that a copy reads and writes; None where none was timed.
        drift_on: on what the drift was measured, in words.
    """

    model: str
    weights: str
    size: str
    full: bool
    gpu: bool
    steps: int
    rounds: int
    arms: list[Timed]
    decode: list[float] = dataclasses.field(default_factory=list)
    copy: float | None = None
    drift_on: str = "not measured"

    @property
    def before(self) -> Timed:
        """The arm that the others are held against."""
        return self.arms[0]

    @property
    def timed(self) -> list[Timed]:
        """The arms that ran."""
        return [timed for timed in self.arms if timed.visits]

    def ratio(self, timed: Timed) -> Interval:
        """Of a step's time to the first arm's."""
        pairs = zip(timed.rounds, self.before.rounds, strict=True)
        return sign_interval([arm / before for arm, before in pairs])

    def end_to_end(self, timed: Timed) -> float | None:
        """Median seconds of the steps of a visit and a decode; None where none was timed."""
        return statistics.median(timed.denoise) + statistics.median(self.decode) if self.decode else None

    def end_to_end_ratio(self, timed: Timed) -> Interval | None:
        """Of steps and decode to the first arm's."""
        if not self.decode:
            return None
        decode = statistics.median(self.decode)
        pairs = zip(timed.denoise, self.before.denoise, strict=True)
        return sign_interval([(arm + decode) / (before + decode) for arm, before in pairs])

    def bytes_saved(self, timed: Timed) -> int | None:
        """Fewer bytes a step than the first arm moves, by the byte model."""
        if timed.step_bytes is None or self.before.step_bytes is None:
            return None
        return self.before.step_bytes.total - timed.step_bytes.total

    def seconds_saved(self, timed: Timed) -> float:
        """Less time a step than the first arm takes, measured."""
        return statistics.median(b - a for a, b in zip(timed.rounds, self.before.rounds, strict=True))

    @property
    def failed(self) -> bool:
        """Whether an arm that should have run did not, or an op set's arm fails its drift verdict.

        A compiled model is a comparison, not what is offered: its verdict is shown alone.
        """
        return any(t.failed or (t.arm.ops is not None and t.drift is not None and t.drift.failed) for t in self.arms)

    def judge_goals(self) -> list[Judged]:
        """The goals of `GOALS`, each met, not met, or not judged."""
        goal = GOALS[self.model]
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


# Measuring


class Marks:
    """Moments on the device's stream, or on the host where that is the device."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self.at: list[Any] = []

    def mark(self) -> None:
        """Now, as far as the device has come with what it was given."""
        if self.gpu:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self.at.append(event)
        else:
            self.at.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between neighbours; waits for the device."""
        if not self.gpu:
            return [b - a for a, b in zip(self.at, self.at[1:], strict=False)]
        self.at[-1].synchronize()
        return [1e-3 * a.elapsed_time(b) for a, b in zip(self.at, self.at[1:], strict=False)]


def visit(running: Running, steps: int) -> list[float]:
    """Seconds of each of some steps, after one that is not timed."""
    marks = Marks(running.subject.device)
    with torch.no_grad(), running.entered():
        walk = running.subject.sample(running.forward, SEED, steps + 1)
        next(walk)
        marks.mark()
        for _ in walk:
            marks.mark()
    return marks.seconds()


def _prepare(timed: Timed, subject: Subject) -> Running:
    """An arm, warm; its memory."""
    running = Running(subject, timed.arm)
    device = subject.device
    if not timed.arm.graph:  # what a graph holds is allocated while it is captured
        visit(running, 1)
    gc.collect()  # what an arm before left behind, one that failed above all, is no memory of this one
    reset_peak_memory(device)
    visit(running, 1)
    timed.peak_bytes = peak_memory(device)
    return running


def _profile(running: Running) -> list[Activity] | None:
    """What one step launches and runs, seen by CUPTI; None where it may not look at the device."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.no_grad(), running.entered():
        walk = running.subject.sample(running.forward, SEED, 2)
        next(walk)
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=kinds) as profiler:
            next(walk)
            torch.cuda.synchronize()
    seen = [
        Activity(event.name, event.device_type == DeviceType.CUDA, 1e-6 * event.time_range.elapsed_us())
        for event in profiler.events() or ()
        if not getattr(event, "is_user_annotation", False)
    ]
    return seen if any(activity.is_kernel for activity in seen) else None


def time_decode(subject: Subject) -> float:
    """Seconds of one decode."""
    with torch.no_grad():
        *_, latents = subject.sample(subject.model, SEED, 1)
        subject.decode(latents, warm_up=True)
        marks = Marks(subject.device)
        marks.mark()
        subject.decode(latents)
        marks.mark()
    return marks.seconds()[0]


def copy_bandwidth(timer: Timer) -> float:
    """Bytes a second that a copy reads and writes, past the cache."""
    source, target = random_pair(_COPY_BYTES // 8, timer.device)
    return 2 * _COPY_BYTES / statistics.median(timer.sample(lambda: target.copy_(source), 4).device for _ in range(5))


def run(
    subject: Subject,
    arms: Sequence[Arm],
    *,
    full: bool,
    steps: int = STEPS,
    rounds: int = ROUNDS,
    decodes: int = DECODES,
    drift: Callable[[], DriftOfArms] | None = None,
    require: str = "close",
    step_bytes: Callable[[Arm], StepBytes | None] = lambda _arm: None,
    copy: float | None = None,
    keep: Callable[[Result], object] = lambda _result: None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Result:
    """Time arms on a subject.

    Args:
        subject: see `validation.bench.subjects`.
        arms: from `arms_of`, the path before first.
        full: whether the subject has its full size.
        steps, rounds: timed steps of a visit; rounds of two visits of each arm.
        decodes: 0, 1 (before the rounds) or 2 (after them too).
        drift: makes what measures each arm's, once the times are known. require: the tier that it is held to.
        step_bytes: the byte model of an arm.
        copy: from `copy_bandwidth`.
        keep: called once the times are known, and again once launches are counted, before the drift is measured:
            neither a profiler that crashes nor a process that is stopped may cost the times.
        progress: called with a line of text as the work goes on.

    Raises:
        Exception: whatever the path before raises. Other arms' errors are written down, and they are left out.
    """
    gpu = subject.device.type == "cuda"
    kept = [Timed(arm, step_bytes=step_bytes(arm), left_out=arm.left_out) for arm in arms]
    result = Result(subject.name, subject.weights, subject.size, full, gpu, steps, rounds, kept, copy=copy)
    running: dict[str, Running] = {}
    by_name = {timed.arm.name: timed for timed in kept}

    @contextlib.contextmanager
    def left_out_if_it_fails(timed: Timed) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if timed.arm.name == BEFORE:
                raise
            why = error.__cause__ if isinstance(error, SiteError) else error
            cannot = isinstance(why, (CannotExpress, UsageError, torch.OutOfMemoryError))
            timed.left_out, timed.failed = one_line(error), timed.arm.ops is not None and not cannot
            timed.visits.clear()
            running.pop(timed.arm.name, None)
        if timed.left_out and gpu:  # what it held, for the arms that follow
            torch.cuda.empty_cache()

    for timed in kept:
        if not timed.left_out:
            progress(f"{timed.arm.name}: warming up")
            with left_out_if_it_fails(timed):
                running[timed.arm.name] = _prepare(timed, subject)
    if decodes:
        progress("decoding")
        result.decode.append(time_decode(subject))
    visits = list(order(list(running), rounds))
    for n, name in enumerate(visits):
        if name in running:
            progress(f"visit {n + 1} of {len(visits)}: {name}")
            with left_out_if_it_fails(by_name[name]):
                by_name[name].visits.append(visit(running[name], steps))
    if decodes > 1:
        progress("decoding")
        result.decode.append(time_decode(subject))
    keep(result)
    if gpu:
        for name, arm in running.items():
            progress(f"{name}: counting launches")
            try:
                by_name[name].profile = _profile(arm)
            except Exception as error:
                progress(f"{name}: not counted: {one_line(error)}")
        keep(result)
    if drift is not None:
        _measure_drift(result, [by_name[name] for name in running], drift, require, progress)
    return result


def _measure_drift(
    result: Result,
    arms: Sequence[Timed],
    drift: Callable[[], DriftOfArms],
    require: str,
    progress: Callable[[str], None],
) -> None:
    """The verdict of each arm; one that cannot be had is a failure, and costs no times."""
    measure: DriftOfArms | None = None
    for timed in arms:
        progress(f"{timed.arm.name}: drift")
        try:
            measure = measure or drift()
            result.drift_on = measure.about
            timed.drift = measure(timed.arm, require)
        except Exception as error:
            verdict = Verdict(Status.RUNTIME_ERROR, "drift", one_line(error))
            timed.drift = ArmVerdict((verdict,), verdict.reason)


def benchmark(
    model: str,
    ops: OpSet,
    device: str,
    *,
    tiny: bool = False,
    checkpoint: Path | None = None,
    names: Sequence[str] = (),
    steps: int = STEPS,
    rounds: int = ROUNDS,
    decodes: int = DECODES,
    drift: str | None = None,
    replays: int = measure.REPLAYS,
    cache: Path | None = None,
    keep: Callable[[Result], object] = lambda _result: None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Result:
    """Make a model, time the arms, measure their drift: what the command does.

    Args:
        model: of `subjects.MODELS`. ops: the op set to mount. device: ``cpu`` or ``cuda``.
        tiny: at a tiny size. checkpoint: weights; None is random ones.
        names: arms beside the first; none is all.
        steps, rounds, decodes: as of `run`.
        drift: ``embedded``, ``model`` or ``none``; None is the model's if tiny, else the embedded checkpoint's.
        replays: legal replays of each kind. cache: folder of the bands; None is the default one.
        keep: as of `run`.
        progress: called with a line of text as the work goes on.

    Raises:
        UsageError: an unknown model or arm, or a checkpoint that cannot be loaded.
    """
    size = TINY if tiny else FULL
    subject = subjects.make(model, size, device, checkpoint=checkpoint, seed=SEED)
    arms = chosen_arms(subject, ops, names)
    progress(f"{model}: {subject.size}")
    _, moved = byte_model(model, size, arms, checkpoint)
    copy = copy_bandwidth(GpuTimer()) if device == "cuda" else None

    def drift_of_arms() -> DriftOfArms:
        on, weights = subject, checkpoint
        if (drift or ("model" if tiny else "embedded")) == "embedded":
            weights = EMBEDDED_CHECKPOINTS[model]
            # Its own arms: what is mounted on one model is not on the other.
            on = subjects.make(model, EMBEDDED, device, checkpoint=weights)
        return DriftOfArms(on, cache=cache or default_folder(), replays=replays, checkpoint=weights, progress=progress)

    return run(
        subject,
        arms,
        full=not tiny,
        steps=steps,
        rounds=rounds,
        decodes=decodes,
        drift=None if drift == "none" else drift_of_arms,
        require=default_tier(ops) or "close",
        step_bytes=lambda arm: moved.get(arm.name),
        copy=copy,
        keep=keep,
        progress=progress,
    )


def chosen_arms(subject: Subject, ops: OpSet, names: Sequence[str] = ()) -> list[Arm]:
    """The first arm and those named, or all.

    Raises:
        UsageError: an unknown name.
    """
    arms = arms_of(subject, ops)
    known = [arm.name for arm in arms]
    for name in names:
        if name not in known:
            raise UsageError(f"--arm: unknown arm {name!r}, expected some of: {', '.join(known)}")
    return [arm for arm in arms if not names or arm.name in names or arm.name == BEFORE]


# The byte model


def byte_model(
    model: str, size: str, arms: Sequence[Arm], checkpoint: Path | None = None
) -> tuple[str, dict[str, StepBytes]]:
    """The bytes of a step of each arm but those that a compiler decides, and the size in words.

    Args:
        model, size, checkpoint: as of `subjects.make`; no weights are made or read.
        arms: from `arms_of`.
    """
    with forward_bytes.fake_tensors():
        subject = subjects.make(model, size, "cpu", checkpoint=checkpoint, weights=False)

    def step() -> Tensor:
        return next(subject.sample(subject.model, SEED, 1))

    found: dict[str, StepBytes] = {}
    for arm in arms:
        same = next((a for a in arms if a.name in found and _moves_as(a, arm)), None)
        if arm.compiled or (arm.left_out and same is None and not arm.graph):
            continue
        if same is not None:
            found[arm.name] = found[same.name]
            continue
        # Mounted first: mounting proves itself on a small real model.
        attached = (
            subject.path_before()
            if arm.ops is None
            else subject.mount(forward_bytes.fused(arm.ops), arm.sites, compact=arm.compact, packed=arm.packed)
        )
        with attached, forward_bytes.fake_tensors():
            found[arm.name] = forward_bytes.count(step)
    return subject.size, found


def _moves_as(a: Arm, b: Arm) -> bool:
    return (a.ops, a.sites, a.compact, a.packed) == (b.ops, b.sites, b.compact, b.packed)


def byte_table(found: dict[str, StepBytes]) -> str:
    """The byte model as text: a line a place, a column an arm."""
    before = next(iter(found.values()))
    unit, scale = ("GB", 1e9) if before.total >= 1e9 else ("MB", 1e6)
    places = list(dict.fromkeys(place for of in found.values() for place in of.by_place))

    def line(name: str, numbers: Sequence[int]) -> Sequence[str]:
        return (name, *(f"{number / scale:.2f}" if number else "-" for number in numbers))

    cells: list[Sequence[str]] = [(f"{unit} a step", *found)]
    places.sort(key=lambda place: -max(of.by_place[place] for of in found.values()))
    cells += [line(place, [of.by_place[place] for of in found.values()]) for place in places]
    cells.append(line("in all", [of.total for of in found.values()]))
    cells.append(line("below the first", [before.total - of.total for of in found.values()]))
    operators = ", ".join(f"{name} {moved / scale:.2f}" for name, moved in before.by_operator.most_common(6))
    return "\n".join([*aligned(cells), f'  "{REST}" of the first arm, {unit} by operator: {operators}'])


def without_gpu(model: str, ops: OpSet, checkpoint: Path | None = None) -> str:
    """What can be known without a GPU: the byte model at full size."""
    with forward_bytes.fake_tensors():
        subject = subjects.make(model, FULL, "cpu", checkpoint=checkpoint, weights=False)
    arms = arms_of(subject, ops)
    size, found = byte_model(model, FULL, arms, checkpoint)
    return "\n".join(
        [
            f"{model}: {size}",
            "Bytes that a step must move: each kernel's inputs once and outputs once; a fused op at a site is one.",
            "",
            byte_table(found),
            "",
            *(f"{arm.name}: {arm.about}" for arm in arms),
            "",
            "Goals, not judged:",
            *(f"  {text}" for text in _goal_texts(model)),
            f"Nothing was timed: timings need a GPU (validate bench denoise --model {model} --gpu).",
        ]
    )


def _goal_texts(model: str) -> list[str]:
    goal = GOALS[model]
    memory = ", in less memory" if goal.less_memory else ""
    return [f"{goal.arm}: a step at least {goal.least:.0%} below the path before, aiming at {goal.aim:.0%}{memory}"]


# What is said


def table(result: Result) -> str:
    """The benchmark as text."""
    cells: list[Sequence[str]] = [
        ("arm", "ms a step", "5 to 95 %", "x the first", "kernels", "launches", "peak GB", "end to end s", "drift")
    ]
    for timed in result.timed:
        low, *_, high = timed.quantiles
        cells.append(
            (
                timed.arm.name,
                f"{1e3 * timed.quantiles[2]:.2f}",
                f"{1e3 * low:.2f} to {1e3 * high:.2f}",
                str(result.ratio(timed)),
                "not counted" if timed.kernels is None else str(timed.kernels),
                "not counted" if timed.launches is None else str(timed.launches),
                f"{timed.peak_bytes / 1e9:.2f}",
                _end_to_end(result, timed),
                "not measured" if timed.drift is None else timed.drift.word,
            )
        )
    coverage = result.ratio(result.before).coverage
    lines = [
        f"{result.model}, {result.weights}; {result.size}",
        f"{result.rounds} rounds there and back, {result.steps} timed steps a visit"
        + ("" if result.gpu else "; on the CPU: a test of the harness, no measurement"),
        "",
        *aligned(cells),
        "",
        f"x the first: median ratio of a round's times, with its {coverage:.1%} interval. kernels: on the device in a",
        f"step; launches: by the host. End to end: {result.steps} steps and a decode"
        + (f" of {statistics.median(result.decode):.3f} s." if result.decode else ", which was not timed."),
        f"Drift measured on: {result.drift_on}.",
    ]
    lines += [f"  {t.arm.name}: {t.drift.reason}" for t in result.timed if t.drift is not None]
    lines += ["", "arms:", *(f"  {t.arm.name}: {t.arm.about}" for t in result.timed)]
    left = [f"  {t.arm.name}: {t.left_out}{' (FAILED)' if t.failed else ''}" for t in result.arms if t.left_out]
    lines += ["left out:", *left] if left else []
    found = {t.arm.name: t.step_bytes for t in result.arms if t.step_bytes is not None}
    if found:
        lines += ["", "The byte model:", byte_table(found)]
    for timed in result.timed[1:]:
        saved = result.bytes_saved(timed)
        if saved is not None:
            model = "no copy was timed" if result.copy is None else f"{1e3 * saved / result.copy:.2f} ms of copying"
            measured = f"{1e3 * result.seconds_saved(timed):.2f} ms measured"
            lines.append(f"  {timed.arm.name}: {saved / 1e9:.4g} GB less, {model}; {measured}")
    return "\n".join([*lines, "", "Goals:", *(f"  {judged}" for judged in result.judge_goals())])


def _end_to_end(result: Result, timed: Timed) -> str:
    seconds, ratio = result.end_to_end(timed), result.end_to_end_ratio(timed)
    return "not measured" if seconds is None or ratio is None else f"{seconds:.3f} = {ratio.median:.3f} x"


def kernel_table(timed: Timed) -> str:
    """What ran on the device in one step, by kernel, the longest first."""
    by_name: dict[str, list[float]] = {}
    for activity in timed.profile or ():
        if activity.on_device:
            by_name.setdefault(activity.name, []).append(activity.seconds)
    total = sum(map(sum, by_name.values())) or math.inf
    cells: list[Sequence[str]] = [("kernel", "ms", "share", "calls")]
    for name, seconds in sorted(by_name.items(), key=lambda item: -sum(item[1])):
        cells.append((name[:100], f"{1e3 * sum(seconds):.3f}", f"{sum(seconds) / total:.1%}", str(len(seconds))))
    return "\n".join(aligned(cells))


def to_dict(result: Result, device: str, measures: str) -> dict[str, Any]:
    """As JSON takes it; seconds and bytes."""

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


def write(result: Result, device: str, folder: Path, stamp: str, *, profile: bool = False) -> list[Path]:
    """Write ``denoise-<model>-<stamp>.json``, its picture ``.svg`` and, where asked, tables of kernels ``.txt``, anew.

    Raises:
        UsageError: the folder cannot be written.
    """
    measures = "events on the device's stream" if result.gpu else "wall clock: a test of the harness, no measurement"
    goal = GOALS[result.model]
    bars = [
        (
            timed.arm.name,
            (ratio := result.ratio(timed)).median,
            ratio.low,
            ratio.high,
            "drift not measured" if timed.drift is None else f"drift: {timed.drift.word}",
        )
        for timed in result.timed
    ]
    texts = {
        ".json": json.dumps(to_dict(result, device, measures), indent=1) + "\n",
        ".svg": str(step_times(bars, 1 - goal.least, f"{result.model}, {device}, {stamp}, {measures}")),
    }
    if profile:
        texts[".txt"] = "\n\n".join(f"{t.arm.name}\n{kernel_table(t)}" for t in result.timed if t.profile) + "\n"
    paths = [folder / f"denoise-{result.model}-{stamp}{suffix}" for suffix in texts]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts.values(), strict=True):
            path.write_text(text)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}, expected a writable folder") from error
    return paths
