"""How far right and wrong lie apart in a sampled model: each control of `sampled`, judged like any op set.

The reference is sampled once for all, and the band comes from the cache. Every control is held to ``lossless``.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from validation import quality
from validation.controls import sampled
from validation.device import Device
from validation.drift import measure, verdicts
from validation.errors import UsageError
from validation.files import default_folder
from validation.models.trajectory import Trajectory
from validation.ops import load_op_set
from validation.progress import Estimate
from validation.verdict import Numbers, Status, Verdict

NAMES = (*sampled.RIGHT, *sampled.FAULTS, *sampled.SHOWN)


@dataclasses.dataclass(frozen=True)
class Separation:
    """What became of one control.

    Attributes:
        name: of the control.
        failed: the checks that failed, in order.
        inconclusive: the checks that could not say.
        expected: True if the verdict is the one it must be; None where none is asked for.
        teacher, band: the verdicts of the drift; None for a fault of the frames.
        psnr_worst_frame: of all prompts, dB; NaN where frames could not be compared.
    """

    name: str
    failed: tuple[str, ...]
    inconclusive: tuple[str, ...]
    expected: bool | None
    teacher: Verdict | None
    band: Verdict | None
    psnr_worst_frame: float


def require_band(replays: int) -> None:
    """UsageError where there would be no band."""
    if not replays:
        raise UsageError("--replays: 0, expected at least 4: controls are told apart by the band")


def separate(
    names: Sequence[str],
    device: Device,
    *,
    checkpoint: Path | None = None,
    prompts: Path | None = None,
    seed: int = 0,
    replays: int = measure.REPLAYS,
    cache: Path | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Iterator[Separation]:
    """Judge controls on a Helios checkpoint; arguments as in `quality.make_plan` and `Request`.

    Raises:
        UsageError: an unknown control, a bad file, or a reference that does not repeat itself.
    """
    from validation.models import helios

    for name in names:
        if name not in NAMES:
            raise UsageError(f"unknown control {name!r}, expected one of: {', '.join(NAMES)}")
    require_band(replays)
    reference_ops = load_op_set("reference_ops")
    plan = quality.make_plan("helios", reference_ops, checkpoint, None, prompts, replays=replays)
    samples = [dataclasses.replace(prompt, seed=prompt.seed + seed) for prompt in plan.prompts]
    pipeline = helios.load(plan.checkpoint, quality.DTYPE, device.torch)
    estimate = Estimate({})
    model = quality.drift_model(pipeline, plan, device, estimate)
    references: list[Trajectory] = []
    for prompt in samples:
        progress(f"reference {prompt.name} seed {prompt.seed}")
        arms = []
        for _ in range(2):
            with helios.mount(pipeline.transformer, reference_ops) as mounted:
                arms.append(helios.sample(pipeline, prompt, mounted))
        wrong = quality.check_reference(*arms)
        if wrong is not None:
            raise UsageError(f"prompt {prompt.name}: {wrong.reason}, expected a reference that controls can be held to")
        references.append(arms[0])
    for name in names:
        fault = {**sampled.FAULTS, **sampled.SHOWN}.get(name)
        found: dict[str, Status] = {}
        frames: list[float] = []
        teacher = band = None
        if fault is not None and fault.spoil is not None:
            for reference in references:
                verdict = quality.judge(reference, fault.spoil(reference), plan.floors)
                _note(found, verdict.check, verdict.status)
                frames += _psnr(verdict.numbers)
        else:
            ops = sampled.op_set(name)
            drift = measure.Drift(model, ops, samples, cache=cache or default_folder(), replays=replays)
            for prompt, reference in zip(samples, references, strict=True):
                progress(f"{name} {prompt.name} seed {prompt.seed}")
                record = quality.sample_and_judge(
                    pipeline, ops, prompt, floors=plan.floors, drift=drift, reference=reference
                )
                _note(found, record.check, record.status)
                frames += _psnr(record.numbers)
            teacher, band = verdicts.verdicts(drift, "lossless")
            for part in (teacher, band):
                _note(found, part.check, part.status)
        failed = tuple(check for check, status in found.items() if status.failed)
        unsure = tuple(check for check, status in found.items() if status is Status.INCONCLUSIVE)
        if name in sampled.RIGHT:
            expected: bool | None = not failed and not unsure
        else:
            expected = bool(fault.gates & set(failed)) if fault is not None and fault.gates else None
        yield Separation(name, failed, unsure, expected, teacher, band, min(frames, default=math.nan))


def _note(found: dict[str, Status], check: str, status: Status) -> None:
    if check not in found or status.failed:
        found[check] = status


def _psnr(numbers: Numbers) -> list[float]:
    value = numbers.get("psnr_worst_frame")
    return [float(value)] if isinstance(value, (int, float)) else []


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else float("inf")


HEADER = (
    f"{'control':<34}{'verdict':<10}{'failed by':<30}{'factor':>8}  {'first site':<28}"
    f"{'distance / lossless band':>26}{'rank':>6}{'p':>9}{'close p':>9}{'PSNR':>7}"
)


def line(found: Separation) -> str:
    """One line of the table: the verdict, the first site, and where the candidate lies against the band.

    The distance is that of the tested step where the lossless band tells most (the least p, then the greatest
    share), as a multiple of the band's upper edge.
    """
    verdict = {True: "as it must", False: "WRONG", None: "shown"}[found.expected]
    cells = [f"{found.name:<34}{verdict:<10} {', '.join(found.failed) or '-':<29}"]
    shown = f"{'-' if math.isnan(found.psnr_worst_frame) else f'{found.psnr_worst_frame:.1f}':>7}"
    if found.teacher is None or found.band is None:
        return f"{''.join(cells)}{'':>88}{shown}"
    teacher, band = found.teacher.numbers, found.band.numbers
    factor = teacher.get("first_factor") or max(
        (_number(value) for name, value in teacher.items() if name.startswith("factor_")), default=1.0
    )
    first = " ".join(str(teacher[name]) for name in ("first_site", "first_place") if teacher.get(name))
    steps = [name.removeprefix("lossless_p_") for name in band if name.startswith("lossless_p_")]
    cells.append(f"{factor:>8.4g}  {first or '-':<28}")
    if steps:
        told = min(
            steps, key=lambda name: (_number(band[f"lossless_p_{name}"]), -_number(band[f"lossless_share_{name}"]))
        )
        cells.append(f"{_number(band[f'lossless_share_{told}']):>15.3f} at {told:<7}")
        cells.append(f"{_number(band[f'lossless_rank_{told}']):>6.1f}{_number(band[f'lossless_p_{told}']):>9.1e}")
        cells.append(f"{min(_number(band[f'close_p_{name}']) for name in steps):>9.1e}")
    else:
        cells.append(f"{'to the bit':>26}{'':>24}")
    return f"{''.join(cells)}{shown}"
