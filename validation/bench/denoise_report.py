"""The output of ``validate bench denoise``: its table, its files, and what is known without a GPU."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from validation.bench.arms import arms_of
from validation.bench.denoise_results import Result, TimedArm, to_dict
from validation.bench.forward_bytes import byte_table, of_arms
from validation.bench.picture import step_times
from validation.bench.results import aligned, write_anew
from validation.ops import OpSet
from validation.samples.denoiser import Denoiser


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


def _end_to_end(result: Result, timed: TimedArm) -> str:
    seconds, ratio = result.end_to_end(timed), result.end_to_end_ratio(timed)
    return "not measured" if seconds is None or ratio is None else f"{seconds:.3f} = {ratio.median:.3f} x"


def kernel_table(timed: TimedArm) -> str:
    """The kernels that ran on the device in one step as text, the longest first."""
    by_name: dict[str, list[float]] = {}
    for activity in timed.profile or ():
        if activity.on_device:
            by_name.setdefault(activity.name, []).append(activity.seconds)
    total = sum(map(sum, by_name.values())) or math.inf
    cells: list[Sequence[str]] = [("kernel", "ms", "share", "calls")]
    for name, seconds in sorted(by_name.items(), key=lambda item: -sum(item[1])):
        cells.append((name[:100], f"{1e3 * sum(seconds):.3f}", f"{sum(seconds) / total:.1%}", str(len(seconds))))
    return "\n".join(aligned(cells))


def write(result: Result, device: str, folder: Path, stamp: str, *, profile: bool = False) -> list[Path]:
    """Write ``denoise-<model>-<stamp>.json``, its picture ``.svg`` and, with ``profile``, tables of kernels ``.txt``.

    Raises:
        UsageError: the folder cannot be written.
    """
    measures = "events on the device's stream" if result.gpu else "wall clock: a test of the harness, no measurement"
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
        ".svg": str(step_times(bars, 1 - result.goal.least, f"{result.model}, {device}, {stamp}, {measures}")),
    }
    if profile:
        texts[".txt"] = "\n\n".join(f"{t.arm.name}\n{kernel_table(t)}" for t in result.timed if t.profile) + "\n"
    return write_anew(folder, {f"denoise-{result.model}-{stamp}{suffix}": text for suffix, text in texts.items()})


def untimed(denoiser: Denoiser, ops: OpSet) -> str:
    """What is known without a GPU, as text: the byte model.

    Args:
        denoiser: made inside `fake_tensors`, without weights.
        ops: the op set to mount.
    """
    arms, goal = arms_of(denoiser, ops), denoiser.goal
    memory = ", in less memory" if goal.less_memory else ""
    return "\n".join(
        [
            f"{denoiser.name}: {denoiser.size}",
            "Bytes that a step must move: each kernel's inputs once and outputs once; a fused op at a site is one.",
            "",
            byte_table(of_arms(denoiser, arms)),
            "",
            *(f"{arm.name}: {arm.about}" for arm in arms),
            "",
            "Goals, not judged:",
            f"  {goal.arm}: a step at least {goal.least:.0%} below the path before, aiming at {goal.aim:.0%}{memory}",
            f"Nothing was timed: timings need a GPU (validate bench denoise --model {denoiser.name} --gpu).",
        ]
    )
