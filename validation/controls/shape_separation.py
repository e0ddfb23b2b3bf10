"""How far right and wrong lie apart in the sampled shape model: `separation` for the controls of `shapes`.

The reference is sampled once for all, and the band comes from the cache. Every control is held to ``lossless``.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from validation.controls import shapes
from validation.controls.separation import Separation, require_band
from validation.device import Device
from validation.drift import measure, verdicts
from validation.errors import UsageError
from validation.models import shape_pipeline
from validation.models.shape_pipeline import PACKED, SITE_NAMES, Shape
from validation.ops import load_op_set
from validation.shape_options import ShapeOptions
from validation.shape_quality import Plan, ShapeRun, make_plan
from validation.verdict import Status

NAMES = (*shapes.RIGHT, *shapes.FAULTS, *shapes.SHOWN)

PACKED_SITES = [PACKED if name == "qk_norm" else name for name in SITE_NAMES if name != PACKED]


def separate(
    names: Sequence[str],
    device: Device,
    *,
    checkpoint: Path | None = None,
    prompts: Path | None = None,
    gates: Path | None = None,
    seed: int = 0,
    replays: int = measure.REPLAYS,
    cache: Path | None = None,
    shape: ShapeOptions | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Iterator[Separation]:
    """Judge controls on a Hunyuan3D-2 checkpoint; arguments as in `shape_quality.make_plan` and `Request`.

    Raises:
        UsageError: an unknown control, a bad file, no replays, or a reference that is no shape or does not repeat
            itself.
    """
    for name in names:
        if name not in NAMES:
            raise UsageError(f"unknown control {name!r}, expected one of: {', '.join(NAMES)}")
    require_band(replays)
    reference_ops = load_op_set("reference_ops")
    plans = {
        packed: make_plan(reference_ops, checkpoint, sites, prompts, gates, seed=seed, replays=replays, shape=shape)
        for packed, sites in ((False, None), (True, PACKED_SITES))
    }
    pipeline = shape_pipeline.load(plans[False].parts, device.torch)

    def run_of(plan: Plan, control: str, drift: bool) -> ShapeRun:
        pipeline.denoiser.sites.packed_qk_norm = plan.packed
        ops = shapes.op_set(control) if control else reference_ops
        return ShapeRun(
            pipeline, plan, ops, device, cache=cache, replays=replays if drift else 0, beside=False, progress=progress
        )

    # The reference's latents are the same bits on copies and on the packed projection.
    first = run_of(plans[False], "", False)
    references = []
    for prompt in first.plan.prompts:
        reference, wrong = first.sample_reference(prompt)
        if wrong is not None:
            raise UsageError(f"prompt {prompt.name}: {wrong.reason}, expected a reference that controls can be held to")
        references.append(reference)
    first.store.clear()
    for name in names:
        yield _judged(name, plans, references, run_of)


def _judged(
    name: str,
    plans: dict[bool, Plan],
    references: Sequence[Shape],
    run_of: Callable[[Plan, str, bool], ShapeRun],
) -> Separation:
    fault = {**shapes.FAULTS, **shapes.SHOWN}.get(name)
    plan = plans[fault is not None and fault.packed]
    spoil: Callable[[Shape], Shape] | None = None
    if fault is not None and fault.spoil is not None:
        change = fault.spoil

        def spoil(shape: Shape) -> Shape:
            return change(shape, plan.cameras)

    run = run_of(plan, "" if spoil is not None else name, spoil is None)
    found: dict[str, Status] = {}
    worst = float("inf")
    for prompt, reference in zip(plan.prompts, references, strict=True):
        record = run.judge(prompt, reference=reference, spoil=spoil)
        if record.check not in found or record.status.failed:
            found[record.check] = record.status
        value = record.numbers.get("shaded_psnr_worst_view")
        worst = min(worst, float(value) if isinstance(value, (int, float)) else float("inf"))
    run.store.clear()
    teacher = banded = None
    if run.drift is not None:
        teacher, banded = verdicts.verdicts(run.drift, "lossless")
        found |= {part.check: part.status for part in (teacher, banded)}
    failed = tuple(check for check, status in found.items() if status.failed)
    unsure = tuple(check for check, status in found.items() if status is Status.INCONCLUSIVE)
    expected: bool | None = None
    if name in shapes.RIGHT:
        expected = not failed and not unsure
    elif fault is not None and fault.gates:
        expected = bool(fault.gates & set(failed))
    return Separation(name, failed, unsure, expected, teacher, banded, worst)
