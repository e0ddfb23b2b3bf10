"""``validate bench denoise``: times a whole denoiser's step before and after the fusions, each arm with its drift.

*Order*: in each round the arms take turns there and back (A B B A), so that a clock or a temperature that drifts
evenly shifts every arm alike. A visit is one step that is not timed, then timed steps between events on the device's
stream: time in which the device waits for the host counts, as it does in sampling.

*Ratio*: an arm's time in a round is the mean of its two visits' median steps; its ratio is to the first arm in the
same round. The interval of the median ratio is distribution-free: if rounds are independent, the number of ratios
below the true median is binomial with p = 1/2, so the k-th lowest and k-th highest ratio enclose it with probability
``1 - 2 P(Bin(n, 1/2) < k)`` (`sign_interval`; the sign test's interval). Fewer than six rounds cannot reach 95 %.

*End to end*: the timed steps of a visit and one decode. The decode is the same code in every arm, so it is timed
before the first round and after the last (`DECODES`), and not for each arm.

*Bytes*: the measured difference is shown beside the one that the byte model (`validation.bench.forward_bytes`)
predicts, as the time of a copy of as many bytes.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from validation.bench import forward_bytes
from validation.bench.arm_drift import ArmVerdict, DriftOfArms
from validation.bench.arms import Running, arms_of
from validation.bench.denoise_report import untimed
from validation.bench.denoise_results import SEED, Activity, Result, TimedArm
from validation.bench.forward_bytes import StepBytes
from validation.bench.results import one_line
from validation.bench.timing import GpuTimer, Marks, copy_bandwidth
from validation.errors import CannotExpress, UsageError
from validation.files import default_folder
from validation.models.mount import SiteError
from validation.ops import OpSet
from validation.samples.clock import peak_memory, reset_peak_memory
from validation.samples.denoiser import BEFORE, Arm, Denoiser, Size
from validation.samples.registry import model_class
from validation.samples.request import REPLAYS
from validation.verdict import DEFAULT_TIER, Status, Verdict

STEPS, ROUNDS, DECODES = 4, 6, 2


def order(arms: Sequence[str], rounds: int) -> Iterator[str]:
    """The visits of all rounds: there and back in each."""
    for _ in range(rounds):
        yield from arms
        yield from reversed(arms)


def visit(running: Running, steps: int) -> list[float]:
    """Seconds of each of ``steps`` steps, after one that is not timed."""
    marks = Marks(running.denoiser.device)
    with torch.no_grad(), running.entered():
        walk = running.denoiser.sample(running.forward, SEED, steps + 1)
        next(walk)
        marks.mark()
        for _ in walk:
            marks.mark()
    return marks.seconds()


def _prepare(timed: TimedArm, denoiser: Denoiser) -> Running:
    """Warm an arm up, and measure its peak memory."""
    running = Running(denoiser, timed.arm)
    device = denoiser.device
    if not timed.arm.graph:  # a graph's memory is allocated while it is captured
        visit(running, 1)
    gc.collect()  # memory left behind by an earlier arm, above all one that failed, must not count for this one
    reset_peak_memory(device)
    visit(running, 1)
    timed.peak_bytes = peak_memory(device)
    return running


def _profile(running: Running) -> list[Activity] | None:
    """What one step launches and runs, as CUPTI sees it; None if it has no access to the device."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.no_grad(), running.entered():
        walk = running.denoiser.sample(running.forward, SEED, 2)
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


def time_decode(denoiser: Denoiser) -> float:
    """Seconds of one decode, after a warm-up."""
    with torch.no_grad():
        *_, latents = denoiser.sample(denoiser.model, SEED, 1)
        denoiser.decode(latents, warm_up=True)
        marks = Marks(denoiser.device)
        marks.mark()
        denoiser.decode(latents)
        marks.mark()
    return marks.seconds()[0]


def run(
    denoiser: Denoiser,
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
    """Time arms of a denoiser.

    Args:
        denoiser: the denoiser to time.
        arms: from `arms_of`, the path before first.
        full: whether the denoiser has its full size.
        steps, rounds: timed steps of a visit; rounds of two visits of each arm.
        decodes: number of decodes: 0, 1 (before the rounds) or 2 (after them too).
        drift: makes the object that measures each arm's drift, once the times are known.
        require: the tier that the drift must reach.
        step_bytes: the byte model of an arm.
        copy: bytes per second from `copy_bandwidth`.
        keep: called once the times are known, and again once launches are counted, before the drift is measured:
            neither a profiler that crashes nor a process that is stopped may lose the times.
        progress: called with a line of text as the work goes on.

    Raises:
        Exception: whatever the path before raises. Errors of other arms are recorded, and those arms left out.
    """
    gpu = denoiser.device.type == "cuda"
    kept = [TimedArm(arm, step_bytes=step_bytes(arm), left_out=arm.left_out) for arm in arms]
    result = Result(
        denoiser.name, denoiser.weights, denoiser.size, denoiser.goal, full, gpu, steps, rounds, kept, copy=copy
    )
    running: dict[str, Running] = {}
    by_name = {timed.arm.name: timed for timed in kept}

    @contextlib.contextmanager
    def left_out_if_it_fails(timed: TimedArm) -> Iterator[None]:
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
        if timed.left_out and gpu:  # frees its memory for the arms that follow
            torch.cuda.empty_cache()

    for timed in kept:
        if not timed.left_out:
            progress(f"{timed.arm.name}: warming up")
            with left_out_if_it_fails(timed):
                running[timed.arm.name] = _prepare(timed, denoiser)
    if decodes:
        progress("decoding")
        result.decode.append(time_decode(denoiser))
    visits = list(order(list(running), rounds))
    for n, name in enumerate(visits):
        if name in running:
            progress(f"visit {n + 1} of {len(visits)}: {name}")
            with left_out_if_it_fails(by_name[name]):
                by_name[name].visits.append(visit(running[name], steps))
    if decodes > 1:
        progress("decoding")
        result.decode.append(time_decode(denoiser))
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
    arms: Sequence[TimedArm],
    drift: Callable[[], DriftOfArms],
    require: str,
    progress: Callable[[str], None],
) -> None:
    """Add each arm's drift verdict; an error becomes a failed verdict, so that no times are lost."""
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


def denoiser_of(model: str) -> type[Denoiser]:
    """A model's denoiser.

    Raises:
        UsageError: an unknown model, or one without a denoiser.
    """
    kind = model_class(model).denoiser
    if kind is None:
        raise UsageError(f"--model: {model} has no denoiser that can be timed, expected a model that says `denoiser`")
    return kind


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
    replays: int = REPLAYS,
    cache: Path | None = None,
    keep: Callable[[Result], object] = lambda _result: None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Result:
    """Make a model, time the arms and measure their drift, as the command does.

    Args:
        model: its name. ops: the op set to mount. device: ``cpu`` or ``cuda``.
        tiny: whether to use a tiny size. checkpoint: the weights; None means random ones.
        names: arms in addition to the first; empty means all.
        steps, rounds, decodes: as in `run`.
        drift: ``embedded``, ``model`` or ``none``; None means ``model`` if tiny, else ``embedded``.
        replays: legal replays of each kind. cache: folder of the bands; None means the default one.
        keep: as in `run`.
        progress: called with a line of text as the work goes on.

    Raises:
        UsageError: an unknown model or arm, or a checkpoint that cannot be loaded.
    """
    size: Size = "tiny" if tiny else "full"
    kind = denoiser_of(model)
    denoiser = kind(size, device, checkpoint=checkpoint, seed=SEED)
    arms = chosen_arms(denoiser, ops, names)
    progress(f"{model}: {denoiser.size}")
    with forward_bytes.fake_tensors():
        fake = kind(size, "cpu", checkpoint=checkpoint, weights=False)
    moved = forward_bytes.of_arms(fake, arms)
    copy = copy_bandwidth(GpuTimer()) if device == "cuda" else None

    def drift_of_arms() -> DriftOfArms:
        on, weights = denoiser, checkpoint
        if (drift or ("model" if tiny else "embedded")) == "embedded":
            weights = model_class(model).default_checkpoint
            # The embedded model has its own arms: what is mounted on one model is not on the other.
            on = kind("embedded", device, checkpoint=weights)
        return DriftOfArms(on, cache=cache or default_folder(), replays=replays, checkpoint=weights, progress=progress)

    return run(
        denoiser,
        arms,
        full=not tiny,
        steps=steps,
        rounds=rounds,
        decodes=decodes,
        drift=None if drift == "none" else drift_of_arms,
        require=DEFAULT_TIER,
        step_bytes=lambda arm: moved.get(arm.name),
        copy=copy,
        keep=keep,
        progress=progress,
    )


def chosen_arms(denoiser: Denoiser, ops: OpSet, names: Sequence[str] = ()) -> list[Arm]:
    """The first arm and those named, or all.

    Raises:
        UsageError: an unknown name.
    """
    arms = arms_of(denoiser, ops)
    known = [arm.name for arm in arms]
    for name in names:
        if name not in known:
            raise UsageError(f"--arm: unknown arm {name!r}, expected some of: {', '.join(known)}")
    return [arm for arm in arms if not names or arm.name in names or arm.name == BEFORE]


def without_gpu(model: str, ops: OpSet, checkpoint: Path | None = None) -> str:
    """What is known without a GPU, as text: the byte model at full size. Raises what `benchmark` raises."""
    with forward_bytes.fake_tensors():
        denoiser = denoiser_of(model)("full", "cpu", checkpoint=checkpoint, weights=False)
    return untimed(denoiser, ops)
