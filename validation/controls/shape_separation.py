"""How far right and wrong lie apart in the sampled shape model: `separation` for the controls of `shapes`.

The reference is sampled once for all, and the band comes from the cache. Every control is held to ``lossless``.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from validation.controls import shapes
from validation.controls.separation import Separation, check_names, judged, sample_references
from validation.device import Device
from validation.models.hunyuan3d.model import Hunyuan3D
from validation.models.hunyuan3d.sites import PACKED, SITE_NAMES
from validation.ops import OpSet, load_op_set
from validation.samples.request import REPLAYS, Progress, Request, silent
from validation.samples.run import SampleRun, plan
from validation.samples.rung import Sample

NAMES = (*shapes.RIGHT, *shapes.FAULTS, *shapes.SHOWN)

PACKED_SITES = [PACKED if name == "qk_norm" else name for name in SITE_NAMES]


def separate(
    names: Sequence[str],
    device: Device,
    *,
    checkpoint: Path | None = None,
    prompts: Path | None = None,
    bounds: Path | None = None,
    seed: int = 0,
    replays: int = REPLAYS,
    cache: Path | None = None,
    varied: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Iterator[Separation]:
    """Judge controls on a Hunyuan3D-2 checkpoint; arguments as in `Request`, ``varied`` being further ones.

    Raises:
        UsageError: an unknown control, a bad file, no replays, or a reference that is no shape or does not repeat
            itself.
    """
    check_names(names, NAMES, replays)
    reference_ops = load_op_set("reference_ops")
    models = {}
    for packed, sites in ((False, None), (True, PACKED_SITES)):
        request = Request(
            device,
            checkpoint,
            sites,
            prompts,
            bounds,
            seed=seed,
            replays=replays,
            cache=cache,
            progress=progress,
            **(varied or {}),
        )
        models[packed] = plan(Hunyuan3D, reference_ops, request)
        models[packed][0].load(device)

    def run_of(packed: bool, ops: OpSet, drift: bool) -> SampleRun:
        model, gates = models[packed]
        folder = model.request.cache_folder
        return SampleRun(model, ops, device, gates=gates, cache=folder, replays=replays if drift else 0, beside=False)

    # The reference's latents are the same bits on copies and on the packed projection.
    references = sample_references(run_of(False, reference_ops, False))
    faults = {**shapes.FAULTS, **shapes.SHOWN}
    for name in names:
        fault = faults.get(name)
        change = None if fault is None else fault.spoil
        run = run_of(
            fault is not None and fault.packed, reference_ops if change else shapes.op_set(name), change is None
        )

        def spoil(sample: Sample, change: Any = change) -> Sample:
            spoilt: Sample = change(sample, models[False][0].cameras)
            return spoilt

        yield judged(
            name,
            run,
            references,
            fault,
            name in shapes.RIGHT,
            spoil if change else None,
            "shaded_psnr_worst_view",
        )
