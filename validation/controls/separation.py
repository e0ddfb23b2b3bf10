"""The distance between right and wrong op sets in a sampled model: each control, judged like any op set.

The right ones are this package's controls, the wrong ones those of a model's module ``faults``
(`validation.samples.planted`). The reference is sampled once for all, and the band comes from the cache. Every control
is held to ``lossless``.
"""

import dataclasses
import importlib
import math
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from validation import controls
from validation.drift import verdicts
from validation.errors import UsageError
from validation.ops import OpSet, load_op_set
from validation.record import Record
from validation.samples import compare
from validation.samples.gates import Gates
from validation.samples.model import Model
from validation.samples.planted import Planted
from validation.samples.registry import model_class
from validation.samples.request import Request
from validation.samples.run import SampleRun, plan
from validation.samples.rung import Sample
from validation.verdict import Status, Verdict


@dataclasses.dataclass(frozen=True)
class Separation:
    """The result of one control.

    Attributes:
        name: the control's.
        failed: the checks that failed, in order.
        inconclusive: the checks without an answer.
        expected: whether the verdict is the required one; None if none is required.
        teacher, band: the verdicts of the drift; None for a fault in the sample.
        measure: the least of the model's ``MEASURE`` over all prompts; NaN if it could not be measured.
    """

    name: str
    failed: tuple[str, ...]
    inconclusive: tuple[str, ...]
    expected: bool | None
    teacher: Verdict | None
    band: Verdict | None
    measure: float


def faults_of(model: str) -> ModuleType:
    """A model's module of planted faults.

    Raises:
        UsageError: there is no such model, or it has no planted faults.
    """
    module = model_class(model).__module__.rpartition(".")[0] + ".faults"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise UsageError(f"--model: {model} has no planted faults, expected them in {module}") from error


def names(model: str) -> tuple[str, ...]:
    """The controls of a model, the right ones first."""
    faults = faults_of(model)
    return (*controls.NAMES, *faults.FAULTS, *faults.SHOWN)


def separate(model: str, chosen: Sequence[str], request: Request) -> Iterator[Separation]:
    """Judge controls on a checkpoint of a model.

    Args:
        model: its name.
        chosen: some of `names`.
        request: what to sample, and how; its sites are the default ones.

    Raises:
        UsageError: an unknown control, a bad file, no replays, or a reference that fails or does not repeat itself.
    """
    faults = faults_of(model)
    planted: dict[str, Planted] = {**faults.FAULTS, **faults.SHOWN}
    if not request.replays:
        raise UsageError("--replays: 0, expected at least 4: controls are told apart by the band")
    for name in chosen:
        if name not in names(model):
            raise UsageError(f"unknown control {name!r}, expected one of: {', '.join(names(model))}")
    reference_ops = load_op_set("reference_ops")
    loaded: dict[tuple[str, ...] | None, tuple[Model[Any], Gates]] = {}

    def run_of(sites: tuple[str, ...] | None, ops: OpSet, replays: int) -> SampleRun:
        if sites not in loaded:
            loaded[sites] = plan(model_class(model), reference_ops, dataclasses.replace(request, sites=sites))
            loaded[sites][0].load(request.device)
        made, gates = loaded[sites]
        cache = request.cache_folder
        return SampleRun(made, ops, request.device, gates=gates, cache=cache, replays=replays, beside=False)

    # The reference's latents have the same bits at any choice of sites.
    references = _references(run_of(None, reference_ops, 0))
    for name in chosen:
        fault = planted.get(name)
        sites = None if fault is None else fault.sites
        if fault is None:
            run = run_of(sites, controls.op_set(name), request.replays)
        elif fault.ops is not None:
            run = run_of(sites, faults.op_set(name), request.replays)
        else:
            run = run_of(sites, reference_ops, 0)
        yield _judged(name, run, references, fault, faults.MEASURE)


def _references(run: SampleRun) -> list[Sample]:
    """The reference's sample of each prompt."""
    references = []
    for prompt in run.model.prompts:
        reference, wrong = run.sample_reference(prompt)
        if wrong is not None:
            raise UsageError(f"prompt {prompt.name}: {wrong.reason}, expected a reference that controls can be held to")
        references.append(reference)
    run.store.clear()
    return references


def _judged(name: str, run: SampleRun, references: Sequence[Sample], fault: Planted | None, number: str) -> Separation:
    found: dict[str, Status] = {}
    measured: list[float] = []
    for prompt, reference in zip(run.model.prompts, references, strict=True):
        if fault is not None and fault.spoil is not None:
            judged: Record | Verdict = compare.judge(
                reference, fault.spoil(reference, run.model), run.model.rungs, run.gates
            )
        else:
            judged = run.judge(prompt, reference=reference)
        _note(found, judged.check, judged.status)
        value = judged.numbers.get(number)
        measured += [float(value)] if isinstance(value, (int, float)) else []
    run.store.clear()
    teacher = band = None
    if run.drift is not None:
        teacher, band = verdicts.verdicts(run.drift, "lossless")
        for part in (teacher, band):
            _note(found, part.check, part.status)
    failed = tuple(check for check, status in found.items() if status.failed)
    unsure = tuple(check for check, status in found.items() if status is Status.INCONCLUSIVE)
    if fault is None:
        expected: bool | None = not failed and not unsure
    else:
        expected = bool(fault.gates & set(failed)) if fault.gates else None
    return Separation(name, failed, unsure, expected, teacher, band, min(measured, default=math.nan))


def _note(found: dict[str, Status], check: str, status: Status) -> None:
    if check not in found or status.failed:
        found[check] = status


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else float("inf")


def header(model: str) -> str:
    """The table's first line."""
    return (
        f"{'control':<34}{'verdict':<10}{'failed by':<30}{'factor':>8}  {'first site':<28}"
        f"{'distance / lossless band':>26}{'rank':>6}{'p':>9}{'close p':>9}  {faults_of(model).MEASURE}"
    )


def line(found: Separation) -> str:
    """One line of the table: the verdict, the first site, and where the candidate lies against the band.

    The distance is taken at the tested step where the lossless band is most telling (the least p, then the greatest
    share), as a multiple of the band's upper edge.
    """
    verdict = {True: "as it must", False: "WRONG", None: "shown"}[found.expected]
    cells = [f"{found.name:<34}{verdict:<10} {', '.join(found.failed) or '-':<29}"]
    shown = f"{'-' if math.isnan(found.measure) else f'{found.measure:.1f}':>7}"
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
