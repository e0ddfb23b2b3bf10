"""Sampled shapes: from noise to field, mesh and views, with reference ops and with a candidate's, rung by rung.

For each prompt the reference is sampled and decoded twice and the candidate once, all from one seed. If the
references differ in a bit, or are no shape, nothing can be said of the candidate: INCONCLUSIVE. Otherwise, in this
order, the first check that fails names the prompt's record:

    sites     the ops ran at every mounted site, as often as they must, and returned what an op returns
    latents   as many as the decoder was trained with
    field     finite, with a surface; RMS of the logits, points that change sides, IoU
    mesh      not degenerate, watertight where the reference is; distances from points to the other surface, volume
    views     PSNR and SSIM of the worst view and the worst tile; silhouettes

The gates on numbers are those of ``fixtures/tolerances/``: a guard against catastrophe. What tells a legal rounding
from a wrong one is measured over all prompts together (`validation.drift`), one record each:

    teacher-forced  no site is further from the truth than the path it replaces
    band            the latents lie no further from the truth's than those of legal roundings

Beside each number of a rung stand the same distances to the truth's shape: the reference's, the candidate's, and
those of `RUNG_REPLAYS` legal replays. They are shown and not judged.
"""

import dataclasses
import json
import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import reference_ops
from validation.arms import ArmStore
from validation.device import Device
from validation.drift import band, measure, replay, verdicts
from validation.drift.cache import PromptBand, default_folder, hash_files
from validation.errors import UsageError
from validation.estimate import Estimate
from validation.media import field as field_module
from validation.media import mesh as mesh_module
from validation.media import render as render_module
from validation.media import shape_metrics, video
from validation.media.mesh import write_mesh
from validation.media.render import KINDS, Camera, turntable
from validation.models import flow_matching, hunyuan3d, mount, shape_pipeline, shape_vae
from validation.models.dinov2 import ImagePrompt
from validation.models.mount import Site, SiteError
from validation.models.prompts import read_json
from validation.models.shape_pipeline import DTYPE, PACKED, UNTIL, Parts, Prompt, Shape, ShapePipeline
from validation.models.shapes import ShapePrompt
from validation.ops import OpSet, load_op_set
from validation.parity import default_tier
from validation.record import Level, Record, Status, cpu_name
from validation.session import ShapeOptions

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TRAINED = FIXTURES / "checkpoints" / "hunyuan3d-trained"
PROMPTS = FIXTURES / "prompts" / "hunyuan3d-trained.json"
CAMERAS = FIXTURES / "cameras" / "views.json"

MODEL = "hunyuan3d"

RUNG_REPLAYS = 4
"""Lossless replays that are decoded, meshed and rendered for the numbers beside each rung."""

TURNTABLE_FRAMES, TURNTABLE_SIZE = 24, 192

# Of a real checkpoint, where nothing else is asked for: the official pipeline's defaults.
STEPS, GUIDANCE, RESOLUTION = 50, 5.0, shape_vae.RESOLUTION

CEILINGS = (
    "field_rms",
    "field_flips",
    "mesh_candidate_rms",
    "mesh_candidate_max",
    "mesh_reference_rms",
    "mesh_reference_max",
    "mesh_chamfer",
    "mesh_volume_change",
)
FLOORS = (
    "field_iou",
    *(f"{kind}_{name}" for kind in KINDS for name in ("psnr_worst_view", "psnr_worst_tile", "ssim_worst_view")),
    "silhouette_iou_worst_view",
)
RUNGS = ("field", "mesh", "views")
RUNG_NUMBERS = (*CEILINGS[:2], "field_max", "field_iou", *CEILINGS[2:], *FLOORS[1:])
"""Every number of a rung that is a distance, in the order of the rungs."""

Numbers = dict[str, float | int | str | None]
Progress = Callable[[str], None]


def rung_of(name: str) -> str:
    """The rung that a number belongs to."""
    return next((rung for rung in RUNGS if name.startswith(rung)), "views")


# Gates


@dataclasses.dataclass(frozen=True)
class Gates:
    """Bounds on the rungs' numbers: ceilings for `CEILINGS`, floors for `FLOORS`; a number without one is not judged.

    Attributes:
        name: of their file.
    """

    name: str
    ceilings: Mapping[str, float]
    floors: Mapping[str, float]

    @classmethod
    def read(cls, path: Path) -> "Gates":
        """The gates of a JSON file, under ``ceilings`` and ``floors``.

        Raises:
            UsageError: no such file, an unknown name, no number, or no gate at all.
        """
        content = read_json(path)
        found: dict[str, dict[str, float]] = {}
        for section, known in (("ceilings", CEILINGS), ("floors", FLOORS)):
            bounds = content.get(section, {})
            if not isinstance(bounds, dict):
                raise UsageError(f"{path}: {section} is a {type(bounds).__name__}, expected names and numbers")
            for name, value in bounds.items():
                if name not in known:
                    raise UsageError(
                        f"{path}: unknown name {name!r} in {section}, expected some of: {', '.join(known)}"
                    )
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                    raise UsageError(f"{path}: {name} is {json.dumps(value)}, expected a finite number")
            found[section] = {name: float(value) for name, value in bounds.items()}
        if not any(found.values()):
            raise UsageError(f"{path} has no gates, expected some under 'ceilings' or 'floors'")
        return cls(path.stem, **found)

    def failures(self, numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Rung and words of each bound that is passed; a NaN passes every bound."""
        found = []
        for name in RUNG_NUMBERS:
            if name not in numbers:
                continue
            if name in self.ceilings and not numbers[name] <= self.ceilings[name]:
                found.append((rung_of(name), f"{name} {numbers[name]:.4g} (ceiling {self.ceilings[name]:.4g})"))
            if name in self.floors and not numbers[name] >= self.floors[name]:
                found.append((rung_of(name), f"{name} {numbers[name]:.4g} (floor {self.floors[name]:.4g})"))
        return found

    def numbers(self) -> Numbers:
        """For `Record.numbers`."""
        return {f"gate_{name}": value for name, value in (*self.ceilings.items(), *self.floors.items())}


# The plan


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run will do: files read and checked, no weights loaded.

    Attributes:
        checkpoint: as given. parts: of it.
        sites: where the op set will be mounted. packed: the q/k norm works on the packed projection.
        prompts: what to sample, with the seeds.
        gates: on the rungs' numbers. cameras: of the views. until: where arms end.
    """

    checkpoint: Path
    parts: Parts
    sites: tuple[Site, ...]
    packed: bool
    prompts: tuple[Prompt, ...]
    gates: Gates
    cameras: tuple[Camera, ...]
    until: str

    @property
    def site_names(self) -> list[str]:
        """As ``--sites`` names them."""
        return [PACKED if site.name == "qk_norm" and self.packed else site.name for site in self.sites]


def make_plan(
    ops: OpSet,
    checkpoint: Path | None = None,
    sites: Sequence[str] | None = None,
    prompts: Path | None = None,
    gates: Path | None = None,
    *,
    seed: int = 0,
    replays: int = measure.REPLAYS,
    shape: ShapeOptions | None = None,
) -> Plan:
    """Read and check everything that `run_quality` needs but the weights; arguments and errors as there."""
    shape = shape or ShapeOptions()
    if shape.until not in UNTIL:
        raise UsageError(f"--until: {shape.until!r}, expected one of: {', '.join(UNTIL)}")
    for option, value in (("--steps", shape.steps), ("--octree-resolution", shape.octree_resolution)):
        if value is not None and value < 1:
            raise UsageError(f"{option}: {value}, expected an integer >= 1")
    if shape.seeds < 1:
        raise UsageError(f"--seeds: {shape.seeds}, expected an integer >= 1")
    if shape.guidance is not None and not 1 <= shape.guidance < math.inf:
        raise UsageError(f"--guidance: {shape.guidance}, expected a number of at least 1")
    if replays != 0 and replays < 4:
        raise UsageError(f"--replays: {replays}, expected at least 4, or 0 to leave the drift out")
    checkpoint = TRAINED if checkpoint is None else checkpoint
    parts = shape_pipeline.find_parts(checkpoint, shape.image_encoder)
    chosen, packed = shape_pipeline.choose_sites(parts, ops, sites)
    read = _read_prompts(parts, prompts, shape)
    schedule = hunyuan3d.load_schedule(parts.denoiser)
    for prompt in read:
        try:
            schedule.sigmas(prompt.steps)
        except ValueError as error:
            raise UsageError(f"prompt {prompt.name}: {error}") from error
    if gates is None:
        named = FIXTURES / "tolerances" / f"{checkpoint.resolve().name}.json"
        # Measured gates are of the prompts as they stand: on a grid of 20 a single point is 1e-4 of all.
        as_measured = (shape.steps, shape.guidance, shape.octree_resolution) == (None, None, None)
        gates = named if named.is_file() and as_measured else FIXTURES / "tolerances" / f"{MODEL}.json"
    seeded = tuple(
        dataclasses.replace(prompt, seed=prompt.seed + seed + n) for prompt in read for n in range(shape.seeds)
    )
    if len({(prompt.name, prompt.seed) for prompt in seeded}) < len(seeded):
        raise UsageError(f"with {shape.seeds} seeds each, two prompts have one name and seed, expected each once")
    cameras = Camera.read(CAMERAS)
    return Plan(checkpoint, parts, chosen, packed, seeded, Gates.read(gates), cameras, shape.until)


def _read_prompts(parts: Parts, prompts: Path | None, shape: ShapeOptions) -> list[Prompt]:
    if parts.encoder is None:
        if shape.images:
            raise UsageError("--image: the checkpoint has no image encoder, expected one (or --image-encoder)")
        asked = {
            "steps": shape.steps,
            "guidance_scale": shape.guidance,
            "octree_resolution": shape.octree_resolution,
        }
        changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        return [dataclasses.replace(prompt, **changes) for prompt in ShapePrompt.read(prompts or PROMPTS)]
    if prompts is not None:
        raise UsageError(f"--prompts: {parts.denoiser.name} makes shapes of pictures, expected --image")
    if not shape.images:
        raise UsageError(f"--image: none given, expected a picture: {parts.denoiser.name} has an image encoder")
    return [
        ImagePrompt.read(
            image,
            steps=shape.steps or STEPS,
            guidance_scale=shape.guidance or GUIDANCE,
            octree_resolution=shape.octree_resolution or RESOLUTION,
        )
        for image in shape.images
    ]


# The run


def run_quality(
    ops: OpSet,
    *,
    device: Device,
    checkpoint: Path | None = None,
    sites: Sequence[str] | None = None,
    prompts: Path | None = None,
    gates: Path | None = None,
    seed: int = 0,
    replays: int = measure.REPLAYS,
    require: str = "lossless",
    cache: Path | None = None,
    folder: Path | None = None,
    shape: ShapeOptions | None = None,
    progress: Progress = lambda _text: None,
) -> Iterator[Record]:
    """Judge an op set by sampled shapes: one record a prompt, and two on the drift over all of them.

    Everything that can be refused is refused by the call, before the first record is asked for.

    Args:
        ops: the candidate.
        device: where to sample.
        checkpoint: see `shape_pipeline.find_parts`; None is ``fixtures/checkpoints/hunyuan3d-trained``.
        sites: where to mount (`shape_pipeline.SITE_NAMES`); None is wherever the set has the op, the q/k norm on
            contiguous copies.
        prompts: a JSON file for `ShapePrompt.read`; None is ``fixtures/prompts/hunyuan3d-trained.json``.
        gates: a JSON file for `Gates.read`; None is the one of ``fixtures/tolerances/`` that is named like the
            checkpoint's folder or, where there is none or `shape` changes what its prompts ask for, like the model.
        seed: added to the seed of each prompt.
        replays: legal replays of each kind for each prompt, at least 4; 0 leaves the drift out.
        require: the tier that the drift is held to.
        cache: of the replays' distances and of finished arms; None is `validation.drift.cache.default_folder`.
        folder: the run folder, for latents, meshes and views; None keeps none.
        shape: the further options.
        progress: called with a line of text as the work goes on.

    Raises:
        UsageError: an unknown site, nothing to mount, a bad file or number, an unwritable folder.
    """
    plan = make_plan(ops, checkpoint, sites, prompts, gates, seed=seed, replays=replays, shape=shape)
    for written in (folder, cache or default_folder()):
        if written is not None:
            video.require_writable(written)
    repro = _command(
        ops, device, plan, sites, prompts, seed=seed, replays=replays, require=require, shape=shape or ShapeOptions()
    )
    progress(f"{MODEL}: loading {plan.checkpoint}")
    pipeline = shape_pipeline.load(plan.parts, device.torch, packed_qk_norm=plan.packed)
    for prompt in plan.prompts:
        pipeline.condition(prompt)
    run = ShapeRun(pipeline, plan, ops, device, cache=cache, replays=replays, progress=progress)
    return run.records(folder, require, repro)


class ShapeRun:
    """The measurement of one op set over a plan's prompts.

    Attributes:
        drift: over all prompts; None where no replays are asked for.
    """

    def __init__(
        self,
        pipeline: ShapePipeline,
        plan: Plan,
        ops: OpSet,
        device: Device,
        *,
        cache: Path | None = None,
        replays: int = measure.REPLAYS,
        beside: bool = True,
        progress: Progress = lambda _text: None,
    ) -> None:
        """Prepare; nothing is sampled yet.

        Args:
            pipeline: loaded, for the plan's form of the q/k norm.
            beside: put the distances to the truth's shape beside each number of a rung.
            plan, ops, device, cache, replays, progress: as in `run_quality`.
        """
        self.pipeline, self.plan, self.ops, self.cache = pipeline, plan, ops, cache or default_folder()
        self._with_truth = beside
        self._progress, self._told, self._at = progress, -math.inf, ""
        count = len(plan.prompts)
        self.estimate = Estimate({"reference": 2 * count, "candidate": count})
        self.drift: measure.Drift[Prompt] | None = None
        self.identity = identity_of(plan, device)
        self._truth: list[Tensor] = []
        if replays:
            self.drift = measure.Drift(
                self._drift_model(), ops, plan.prompts, cache=self.cache, replays=replays, progress=self._say
            )
            self.estimate.plan({"truth": count, "replay": 2 * self.drift.replays * count})
        run = {
            **self.identity,
            "mounted": plan.site_names,
            "until": plan.until,
            "candidate": ops.origin,
            "prompts": [dataclasses.asdict(prompt) for prompt in plan.prompts],
        }
        self.store = ArmStore(self.cache, run)

    def records(self, folder: Path | None, require: str, repro: str) -> Iterator[Record]:
        """One record a prompt, then those of the drift; finished arms are kept until all are there."""
        about = {"model": MODEL, "checkpoint": self.plan.checkpoint.resolve().name, "gates": self.plan.gates.name}
        for prompt in self.plan.prompts:
            record = self.judge(prompt, folder=folder, repro=repro)
            yield dataclasses.replace(record, case=about | record.case)
        if self.drift is not None:
            yield from drift_records(self.drift, self.ops, require, self.plan, about, repro)
        self.store.clear()

    def judge(
        self,
        prompt: Prompt,
        *,
        reference: Shape | None = None,
        spoil: Callable[[Shape], Shape] | None = None,
        folder: Path | None = None,
        repro: str = "",
    ) -> Record:
        """Sample both arms, compare them, measure the drift and keep what was made.

        Args:
            prompt: one of the plan's.
            reference: its own arm, if it was sampled before and found to repeat itself.
            spoil: a planted fault of what was sampled: changes the candidate's arm.
            folder: the run folder; files go to ``artifacts/hunyuan3d-<prompt>-<seed>/`` below it.
            repro: the command line that repeats it.
        """
        plan, seconds = self.plan, {}
        self._at = f"{prompt.name} seed {prompt.seed}"
        arms, verdict = self._sample_arms(prompt, reference, spoil)
        start = time.perf_counter()
        if verdict is None:
            verdict = judge(arms["reference"], arms["candidate"], plan.gates)
        seconds["compare"] = time.perf_counter() - start
        measured = None
        numbers, series = dict(verdict.numbers), dict(verdict.series)
        if self.drift is not None and verdict.check not in ("sites", "reference", "latents"):
            try:
                measured = self.drift.add(prompt, arms["reference"].latents, arms["candidate"].latents)
            except SiteError as error:
                verdict = Verdict(error.status, "sites", f"candidate, teacher-forced: {error}")
            else:
                seconds |= measured.seconds
                series |= drift_series(measured)
                self.estimate.done("replay", 0.0, measured.from_cache)
                if self._with_truth:
                    start = time.perf_counter()
                    numbers |= self._beside(prompt, arms)
                    seconds["rungs"] = time.perf_counter() - start
        artifacts: dict[str, str] = {}
        if folder is not None:
            start = time.perf_counter()
            artifacts = _keep(arms, prompt, plan, folder)
            seconds["save"] = time.perf_counter() - start
        for arm, shape in arms.items():
            seconds |= {f"{arm}_{stage}": spent for stage, spent in shape.seconds.items()}
            numbers[f"{arm}_peak_mib"] = round(shape.peak_bytes / 2**20, 1)
        if "candidate" in arms:
            numbers["forwards"] = arms["candidate"].forwards
            numbers |= {f"calls_{site}": calls for site, calls in arms["candidate"].calls.items()}
        case = _case_of(prompt) | {"until": plan.until, "sites": plan.site_names}
        if plan.until == "views":
            case["cameras"] = [camera.name for camera in plan.cameras]
        title = f"{MODEL}  {self.ops.name}  {DTYPE_NAME}"
        return Record(
            level=Level.SAMPLE,
            subject=MODEL,
            op_set=self.ops.name,
            status=verdict.status,
            check=verdict.check,
            reason=verdict.reason,
            case=case,
            dtype=DTYPE_NAME,
            tier=verdict.tier,
            numbers=numbers,
            series=series,
            artifacts=artifacts,
            seconds={name: round(spent, 4) for name, spent in seconds.items()},
            message=_message(verdict, title, case, repro) if verdict.status.failed else "",
            repro=repro,
        )

    def sample_reference(self, prompt: Prompt) -> "tuple[Shape, Verdict | None]":
        """The reference's arm, and what is wrong with it (`check_reference`)."""
        self._at = f"{prompt.name} seed {prompt.seed}"
        ops = load_op_set("reference_ops")
        first = self._sample(prompt, "reference", ops, self.plan.until)
        # The field is the last that is computed on the device.
        second = self._sample(prompt, "repetition", ops, "shape")
        return first, check_reference(first, second)

    def _sample_arms(
        self, prompt: Prompt, reference: Shape | None, spoil: Callable[[Shape], Shape] | None
    ) -> "tuple[dict[str, Shape], Verdict | None]":
        arms: dict[str, Shape] = {}
        arm = "reference"
        try:
            if reference is None:
                reference, wrong = self.sample_reference(prompt)
                arms["reference"] = reference
                if wrong is not None:
                    return arms, wrong
            arms["reference"] = reference
            arm = "candidate"
            arms["candidate"] = self._sample(prompt, "candidate", self.ops, self.plan.until)
        except SiteError as error:
            return arms, Verdict(error.status, "sites", f"{arm}: {error}")
        except RuntimeError as error:  # torch's, such as one of memory
            return arms, Verdict(Status.RUNTIME_ERROR, "sites", f"{arm}: {type(error).__name__}: {error}")
        if spoil is not None:
            arms["candidate"] = spoil(arms["candidate"])
        return arms, None

    def _sample(self, prompt: Prompt, arm: str, ops: OpSet, until: str) -> Shape:
        start = time.perf_counter()
        name = f"{prompt.name}-{prompt.seed}-{arm}"
        kept = self.store.get(name)

        def say(text: str) -> None:
            self._say(f"{arm}, {text}")

        taken = "" if kept is None else ", taken from the run that was interrupted"
        self._say(f"{arm}{taken}", always=True)
        if kept is not None:
            shape = shape_pipeline.finish(self.pipeline, kept, prompt, say, until=until, cameras=self.plan.cameras)
        else:
            names = [site.name for site in self.plan.sites]
            shape = shape_pipeline.sample(
                self.pipeline, prompt, ops, names, say, until=until, cameras=self.plan.cameras
            )
            self.store.put(name, shape)
        self.estimate.done("candidate" if arm == "candidate" else "reference", time.perf_counter() - start)
        return shape

    def _say(self, text: str, *, always: bool = False) -> None:
        # Steps may take milliseconds: a line a second is enough.
        if always or time.perf_counter() - self._told > 1:
            self._told = time.perf_counter()
            self._progress(f"{MODEL} {self._at}: {text} ({self.estimate})")

    # The drift

    def _drift_model(self) -> measure.Model[Prompt]:
        plan = self.plan
        depth = self.pipeline.denoiser.config.depth

        def sample(ops: OpSet, prompt: Prompt) -> list[Tensor]:
            start = time.perf_counter()
            latents = self._latents(ops, prompt)
            truth = ops.name == "truth"
            if truth:
                self._truth = latents
            self.estimate.done("truth" if truth else "replay", time.perf_counter() - start)
            return latents

        return measure.Model(
            name=MODEL,
            identity=self.identity,
            sample=sample,
            steps=lambda prompt: prompt.steps,
            forwards_per_step=lambda _prompt: 1,  # with and without the condition in one batch
            place_of=lambda call: hunyuan3d.place_of(call, depth),
            places=sum(site.calls for site in plan.sites),
        )

    def _latents(self, ops: OpSet, prompt: Prompt) -> list[Tensor]:
        context = self.pipeline.condition(prompt)
        with hunyuan3d.mount(self.pipeline.denoiser, ops, [site.name for site in self.plan.sites]) as mounted:
            return shape_pipeline.sample_latents(self.pipeline, prompt, context, mounted)

    def _beside(self, prompt: Prompt, arms: Mapping[str, Shape]) -> Numbers:
        """The rungs' distances to the truth's shape: both arms', and the least and greatest of legal replays."""

        def shape_of(latents: Tensor, what: str) -> Shape:
            return shape_pipeline.finish(
                self.pipeline,
                Shape([latents]),
                prompt,
                lambda text: self._say(f"{what}, {text}"),
                until=self.plan.until,
                cameras=self.plan.cameras,
            )

        truth = shape_of(self._truth[-1], "the truth's shape")
        if truth.problem is not None:
            return {}
        names = [name for name in RUNG_NUMBERS if self.plan.until in UNTIL[RUNGS.index(rung_of(name)) :]]
        sources = (field_module, mesh_module, render_module, shape_metrics, shape_vae, shape_pipeline)
        identity = {
            **self.identity,
            "model": MODEL,
            "prompt": dataclasses.asdict(prompt),
            "rungs": names,
            "rung_code": hash_files([Path(str(module.__file__)) for module in sources]),
            "cameras": [dataclasses.asdict(camera) for camera in self.plan.cameras],
        }
        kept = PromptBand(self.cache, identity, self._progress)
        kept.begin(self._truth)
        rows = []
        for number in range(RUNG_REPLAYS):
            row = kept.get("lossless", number)
            if row is None or len(row) != len(names):
                what = f"the shape of replay {number + 1} of {RUNG_REPLAYS}"
                ops = replay.Replay("lossless", f"{prompt.name} {prompt.seed} {number}").op_set()
                found = distances(truth, shape_of(self._latents(ops, prompt)[-1], what))
                row = [_float(found.get(name)) for name in names]
                kept.put("lossless", number, row)
            rows.append(row)
        numbers: Numbers = {}
        for i, name in enumerate(names):
            values = [row[i] for row in rows]
            numbers[f"replays_{name}_least"], numbers[f"replays_{name}_greatest"] = min(values), max(values)
        for arm, shape in arms.items():
            numbers |= {f"{arm}_{name}": value for name, value in distances(truth, shape).items() if name in names}
        return numbers


def identity_of(plan: Plan, device: Device) -> dict[str, Any]:
    """Everything that decides the latents but op set and prompt, as JSON values: the cache's key."""
    sources = [*sorted(Path(reference_ops.__path__[0]).glob("*.py"))]
    modules = (replay, hunyuan3d, flow_matching, mount)
    sources += [Path(str(module.__file__)) for module in modules]
    return shape_pipeline.identity_of(
        plan.parts,
        # The q/k norm has one truth, on copies and on the packed projection.
        [site.name for site in plan.sites],
        {
            "device": cpu_name() if device.interpreted else device.name,
            "versions": {"torch": torch.__version__},
            "code": hash_files(sources),
        },
    )


# The verdict


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the comparison of two shapes says; the fields are those of a `Record`."""

    status: Status
    check: str
    reason: str
    tier: str | None = None
    numbers: Numbers = dataclasses.field(default_factory=dict)
    series: dict[str, list[float]] = dataclasses.field(default_factory=dict)


def check_reference(first: Shape, second: Shape) -> Verdict | None:
    """INCONCLUSIVE unless the reference is a shape and its repetition has the same bits, in latents and field."""
    if first.problem is not None:
        problem = first.problem
        return Verdict(
            Status.INCONCLUSIVE,
            "reference",
            f"the reference's own shape: {problem.status}: {problem}: nothing to compare with",
            numbers=dict(problem.numbers),
        )
    for step, (a, b) in enumerate(zip(first.latents, second.latents, strict=True)):
        if not _same_bits(a.numpy(), b.numpy()):
            return Verdict(
                Status.INCONCLUSIVE,
                "reference",
                f"the reference sampled twice differs from itself, first in the latents of step {step + 1} "
                f"of {len(first.latents)}: the model is not deterministic here",
            )
    if first.field is None or second.field is None or not _same_bits(first.field, second.field):
        return Verdict(
            Status.INCONCLUSIVE,
            "reference",
            "the reference sampled twice has equal latents but another field: the decoder is not deterministic here",
        )
    return None


def distances(reference: Shape, candidate: Shape) -> Numbers:
    """The numbers of every rung that both shapes have; see `validation.media.shape_metrics`."""
    numbers: Numbers = {}
    if reference.field is not None and candidate.field is not None:
        found = shape_metrics.compare_fields(reference.field, candidate.field)
        x, y, z = found.worst
        numbers |= {
            "field_rms": found.rms,
            "field_max": found.max,
            "field_worst": f"x {x}, y {y}, z {z}",
            "field_flips": found.flips,
            "field_iou": found.iou,
        }
    if reference.mesh is not None and candidate.mesh is not None:
        meshes = shape_metrics.compare_meshes(reference.mesh, candidate.mesh)
        numbers |= {f"mesh_{name}": value for name, value in dataclasses.asdict(meshes).items()}
        volume, volume_candidate = meshes.volume_reference, meshes.volume_candidate
        numbers["mesh_volume_change"] = abs(volume_candidate - volume) / abs(volume) if volume else math.inf
    if reference.views is not None and candidate.views is not None:
        numbers |= shape_metrics.compare_views(reference.views, candidate.views).numbers()
    return numbers


def judge(reference: Shape, candidate: Shape, gates: Gates) -> Verdict:
    """Compare a candidate's shape with the reference's, rung by rung; the first that fails names the verdict."""
    problem = candidate.problem
    numbers = distances(reference, candidate) if problem is None else dict(problem.numbers)
    series = {"latents_per_step": _latent_distances(reference, candidate)}
    judged = {name: value for name, value in gates.numbers().items() if name.removeprefix("gate_") in numbers}
    numbers |= judged

    def verdict(status: Status, check: str, reason: str, tier: str | None = None) -> Verdict:
        return Verdict(status, check, reason, tier, numbers, series)

    if problem is not None:
        return verdict(problem.status, problem.check, str(problem))
    failures = gates.failures(numbers)
    if numbers.get("mesh_watertight_reference") and not numbers["mesh_watertight_candidate"]:
        failures.append(("mesh", "the mesh is not watertight, as the reference is"))
    if failures:
        first = min((rung for rung, _ in failures), key=RUNGS.index)
        words = ", ".join(text for _, text in failures)
        return verdict(Status.BELOW_FLOOR, first, f"past the gate: {words}")
    check = "views" if candidate.views is not None else "mesh" if candidate.mesh is not None else "field"
    same = reference.field is not None and candidate.field is not None
    if same and not any(series["latents_per_step"]) and _same_bits(reference.field, candidate.field):
        return verdict(Status.PASSED, check, "all latents and the field are equal bit for bit", "bit-exact")
    parts = [f"field RMS {numbers['field_rms']:.2g} logits, {100 * _float(numbers['field_flips']):.2g} % changed sides"]
    if candidate.mesh is not None:
        parts.append(f"surface {numbers['mesh_candidate_rms']:.2g} of the diagonal away (RMS)")
    if candidate.views is not None:
        view, tile = numbers["shaded_psnr_worst_view"], numbers["shaded_psnr_worst_tile"]
        parts.append(f"worst view {view:.1f} dB, worst tile {tile:.1f} dB")
    if not judged:
        parts.append("no number of these rungs has a gate")
    return verdict(Status.PASSED, check, "; ".join(parts))


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _latent_distances(reference: Shape, candidate: Shape) -> list[float]:
    """RMS of the latents' difference over the standard deviation of the reference's, step by step."""
    pairs = zip(reference.latents, candidate.latents, strict=False)
    return [band.distance(b, a) if a.shape == b.shape else math.inf for a, b in pairs]


def _same_bits(a: Any, b: Any) -> bool:
    return bool(a.shape == b.shape and a.tobytes() == b.tobytes())


DTYPE_NAME = str(DTYPE).removeprefix("torch.")


def drift_series(measured: measure.PromptDrift) -> dict[str, list[float]]:
    """Distances to the truth's latents over the steps: of both arms, and the edges of the bands."""
    series = {
        "candidate_distance_per_step": measured.candidate,
        "reference_distance_per_step": measured.reference,
    }
    for kind, rows in measured.replays.items():
        if len(rows):
            series[f"{kind}_band_least_per_step"] = rows.min(axis=0).tolist()
            series[f"{kind}_band_greatest_per_step"] = rows.max(axis=0).tolist()
    return series


def drift_records(
    drift: measure.Drift[Prompt], ops: OpSet, require: str, plan: Plan, about: Mapping[str, Any], repro: str
) -> Iterator[Record]:
    """The verdicts of the drift over all prompts, as two records of the model."""
    case = {
        **about,
        "prompts": [f"{prompt.name} seed {prompt.seed}" for prompt in drift.prompts],
        "sites": plan.site_names,
        "replays": drift.replays,
        "require": require,
        "places": drift.teacher.places_by_site(),
    }
    for verdict in verdicts.verdicts(drift, require):
        title = f"{MODEL}  {ops.name}  {DTYPE_NAME}  {verdict.status}"
        lines = [title, f"{verdict.check}, over {len(drift.prompts)} prompts", verdict.reason, f"repeat: {repro}"]
        yield Record(
            level=Level.MODEL,
            subject=MODEL,
            op_set=ops.name,
            status=verdict.status,
            check=verdict.check,
            reason=verdict.reason,
            case=case,
            dtype=DTYPE_NAME,
            tier=verdict.tier,
            numbers=verdict.numbers,
            series=verdict.series,
            message="\n".join(lines) if verdict.status.failed else "",
            repro=repro,
        )


# What is kept


def _case_of(prompt: Prompt) -> dict[str, Any]:
    return {
        "prompt": prompt.text,
        "prompt_name": prompt.name,
        "seed": prompt.seed,
        "steps": prompt.steps,
        "guidance_scale": prompt.guidance_scale,
        "octree_resolution": prompt.octree_resolution,
    }


def _keep(arms: Mapping[str, Shape], prompt: Prompt, plan: Plan, folder: Path) -> dict[str, str]:
    """Write each arm's latents, and its mesh, views and turntable; without a mesh the field, which is the shape."""
    relative = Path("artifacts") / f"{MODEL}-{prompt.name}-{prompt.seed}"
    artifacts: dict[str, str] = {}

    def path_of(role: str, suffix: str) -> Path:
        artifacts[role] = (relative / f"{role}{suffix}").as_posix()
        return folder / artifacts[role]

    for arm, shape in arms.items():
        arrays: dict[str, npt.NDArray[Any]] = {"latents": shape.latents[-1].float().numpy()}
        if shape.mesh is None and shape.field is not None:
            arrays["field"] = shape.field
        _write_arrays(path_of(f"{arm}_shape", ".npz"), arrays)
        if shape.mesh is not None:
            write_mesh(path_of(f"{arm}_mesh", ".glb"), shape.mesh)
        if shape.views is not None and shape.mesh is not None:
            frames = np.concatenate([shape.views.shaded, shape.views.normal])
            video.write_video(path_of(f"{arm}_views", ".npz"), video.to_uint8(frames))
            camera = dataclasses.replace(plan.cameras[0], height=TURNTABLE_SIZE, width=TURNTABLE_SIZE)
            around = video.to_uint8(turntable(shape.mesh, camera, TURNTABLE_FRAMES))
            video.write_video(path_of(f"{arm}_turntable", ".npz"), around)
            video.write_video(path_of(f"{arm}_turntable_mp4", ".mp4"), around)
    return artifacts


def _write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for allow_pickle
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}, expected a writable folder") from error


def _message(verdict: Verdict, title: str, case: Mapping[str, Any], repro: str) -> str:
    lines = [
        f"{title}  {verdict.status}",
        f'"{case["prompt"]}" seed {case["seed"]}, octree resolution {case["octree_resolution"]}, until {case["until"]}',
        f"{case['steps']} steps, mounted on {', '.join(case['sites'])}",
        verdict.reason,
    ]
    if latents := verdict.series.get("latents_per_step"):
        lines.append(
            f"latents after the first step {latents[0]:.1e} of their spread away, after the last {latents[-1]:.1e}"
        )
    return "\n".join([*lines, f"repeat: {repro}"] if repro else lines)


def _command(
    ops: OpSet,
    device: Device,
    plan: Plan,
    sites: Sequence[str] | None,
    prompts: Path | None,
    *,
    seed: int,
    replays: int,
    require: str,
    shape: ShapeOptions,
) -> str:
    words = ["validate", "quality", "--model", MODEL, "--ops", ops.origin]
    if sites is not None:
        words += ["--sites", ",".join(sites)]
    if plan.checkpoint.resolve() != TRAINED:
        words += ["--checkpoint", str(plan.checkpoint)]
    if prompts is not None:
        words += ["--prompts", str(prompts)]
    if seed:
        words += ["--seed", str(seed)]
    if replays != measure.REPLAYS:
        words += ["--replays", str(replays)]
    if require != (default_tier(ops) or "close"):
        words += ["--require", require]
    words += shape.words()
    if not device.interpreted:
        words += ["--gpu"]
    return shlex.join(words)
