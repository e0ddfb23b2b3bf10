"""How far right and wrong lie apart in a sampled model: each control of `sampled`, judged like any op set.

The reference is sampled once for all, and the band comes from the cache. Every control is held to ``lossless``.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from validation.controls import sampled
from validation.controls.planted import Fault
from validation.device import Device
from validation.drift import verdicts
from validation.errors import UsageError
from validation.ops import OpSet, load_op_set
from validation.samples.registry import model_class
from validation.samples.request import REPLAYS, Progress, Request, silent
from validation.samples.run import SampleRun, plan
from validation.samples.rung import Sample
from validation.verdict import Status, Verdict

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


def separate(
    names: Sequence[str],
    device: Device,
    *,
    checkpoint: Path | None = None,
    prompts: Path | None = None,
    seed: int = 0,
    replays: int = REPLAYS,
    cache: Path | None = None,
    progress: Progress = silent,
) -> Iterator[Separation]:
    """Judge controls on a Helios checkpoint; arguments as in `Request`.

    Raises:
        UsageError: an unknown control, a bad file, or a reference that does not repeat itself.
    """
    check_names(names, NAMES, replays)
    request = Request(device, checkpoint, None, prompts, seed=seed, replays=replays, cache=cache, progress=progress)
    model, gates = plan(model_class("helios"), load_op_set("reference_ops"), request)
    model.load(device)

    def run_of(ops: OpSet, drift: bool) -> SampleRun:
        return SampleRun(
            model,
            ops,
            device,
            gates=gates,
            cache=request.cache_folder,
            replays=replays if drift else 0,
            beside=False,
        )

    references = sample_references(run_of(load_op_set("reference_ops"), False))
    faults = {**sampled.FAULTS, **sampled.SHOWN}
    for name in names:
        fault = faults.get(name)
        spoil = None if fault is None else fault.spoil
        run = run_of(load_op_set("reference_ops") if spoil else sampled.op_set(name), spoil is None)
        yield judged(name, run, references, fault, name in sampled.RIGHT, spoil, "psnr_worst_frame")


def check_names(names: Sequence[str], known: Sequence[str], replays: int) -> None:
    """UsageError unless all are names of controls, and there will be a band."""
    if not replays:
        raise UsageError("--replays: 0, expected at least 4: controls are told apart by the band")
    for name in names:
        if name not in known:
            raise UsageError(f"unknown control {name!r}, expected one of: {', '.join(known)}")


def sample_references(run: SampleRun) -> list[Sample]:
    """The reference's sample of each prompt; UsageError where it is none or does not repeat itself."""
    references = []
    for prompt in run.model.prompts:
        reference, wrong = run.sample_reference(prompt)
        if wrong is not None:
            raise UsageError(f"prompt {prompt.name}: {wrong.reason}, expected a reference that controls can be held to")
        references.append(reference)
    run.store.clear()
    return references


def judged(
    name: str,
    run: SampleRun,
    references: Sequence[Sample],
    fault: Fault[Any] | None,
    right: bool,
    spoil: Callable[[Sample], Sample] | None,
    number: str,
) -> Separation:
    """What became of one control: the least of a number over all prompts is told too."""
    found: dict[str, Status] = {}
    worst: list[float] = []
    for prompt, reference in zip(run.model.prompts, references, strict=True):
        record = run.judge(prompt, reference=reference, spoil=spoil)
        _note(found, record.check, record.status)
        value = record.numbers.get(number)
        worst += [float(value)] if isinstance(value, (int, float)) else []
    run.store.clear()
    teacher = band = None
    if run.drift is not None:
        teacher, band = verdicts.verdicts(run.drift, "lossless")
        for part in (teacher, band):
            _note(found, part.check, part.status)
    failed = tuple(check for check, status in found.items() if status.failed)
    unsure = tuple(check for check, status in found.items() if status is Status.INCONCLUSIVE)
    expected = bool(fault.gates & set(failed)) if fault is not None and fault.gates else None
    if right:
        expected = not failed and not unsure
    return Separation(name, failed, unsure, expected, teacher, band, min(worst, default=math.nan))


def _note(found: dict[str, Status], check: str, status: Status) -> None:
    if check not in found or status.failed:
        found[check] = status


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
