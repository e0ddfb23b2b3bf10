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
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from validation import sample_runs
from validation.chains import replay
from validation.device import Device
from validation.drift import measure
from validation.drift.cache import PromptBand
from validation.errors import UsageError
from validation.files import FIXTURES, default_folder, hash_files
from validation.media import field as field_module
from validation.media import mesh as mesh_module
from validation.media import render as render_module
from validation.media import shape_metrics, video
from validation.media.mesh import write_mesh
from validation.media.render import KINDS, Camera, turntable
from validation.models import flow_matching, hunyuan3d, mount, shape_pipeline, shape_vae
from validation.models.dinov2 import ImagePrompt
from validation.models.mount import Site, SiteError
from validation.models.shape_pipeline import DTYPE, PACKED, UNTIL, Parts, Prompt, Shape, ShapePipeline
from validation.models.shapes import ShapePrompt
from validation.ops import OpSet, load_op_set
from validation.progress import Estimate
from validation.record import Record, cpu_name
from validation.sample_runs import Progress, Request, Subject, silent
from validation.samples.store import TAKEN, ArmStore
from validation.shape_options import ShapeOptions
from validation.verdict import Numbers, Status, Verdict

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
        found = {
            section: sample_runs.read_bounds(path, section, known)
            for section, known in (("ceilings", CEILINGS), ("floors", FLOORS))
        }
        if not any(found.values()):
            raise UsageError(f"{path} has no gates, expected some under 'ceilings' or 'floors'")
        return cls(path.stem, **found)

    def failures(self, numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Rung and words of each bound that the numbers are beyond; a NaN is beyond every bound."""
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
    """Read and check everything that a run needs but the weights.

    Args:
        ops: the candidate.
        checkpoint: see `shape_pipeline.find_parts`; None is ``fixtures/checkpoints/hunyuan3d-trained``.
        sites: where to mount (`shape_pipeline.SITE_NAMES`); None is wherever the set has the op, the q/k norm on
            contiguous copies.
        prompts: a JSON file for `ShapePrompt.read`; None is ``fixtures/prompts/hunyuan3d-trained.json``.
        gates: a JSON file for `Gates.read`; None is the one of ``fixtures/tolerances/`` that is named like the
            checkpoint's folder or, where there is none or `shape` changes what its prompts ask for, like the model.
        seed, replays, shape: see `Request`.

    Raises:
        UsageError: an unknown site, nothing to mount, a bad file or number.
    """
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
    sample_runs.check_replays(replays)
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


def run_quality(ops: OpSet, request: Request) -> Iterator[Record]:
    """Judge an op set by sampled shapes: one record a prompt, and two on the drift over all of them.

    Everything that can be refused is refused by the call, before the first record is asked for.

    Args:
        ops: the candidate.
        request: see `make_plan` for its defaults.

    Raises:
        UsageError: an unknown site, nothing to mount, a bad file or number, an unwritable folder.
    """
    plan = make_plan(
        ops,
        request.checkpoint,
        request.sites,
        request.prompts,
        request.bounds,
        seed=request.seed,
        replays=request.replays,
        shape=request.shape,
    )
    request.check_folders()
    request.progress(f"{MODEL}: loading {plan.checkpoint}")
    pipeline = shape_pipeline.load(plan.parts, request.device.torch, packed_qk_norm=plan.packed)
    for prompt in plan.prompts:
        pipeline.condition(prompt)
    run = ShapeRun(
        pipeline,
        plan,
        ops,
        request.device,
        cache=request.cache,
        replays=request.replays,
        repro=request.command(MODEL, ops, TRAINED),
        progress=request.progress,
    )
    return run.records(request.folder, request.require)


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
        repro: str = "",
        progress: Progress = silent,
    ) -> None:
        """Prepare; nothing is sampled yet.

        Args:
            pipeline: loaded, for the plan's form of the q/k norm.
            plan: see `make_plan`.
            ops: the candidate.
            device, cache, replays, progress: see `Request`.
            beside: put the distances to the truth's shape beside each number of a rung.
            repro: the command line that repeats the run.
        """
        self.pipeline, self.plan, self.ops, self.cache = pipeline, plan, ops, cache or default_folder()
        self.subject = Subject(MODEL, ops, str(DTYPE).removeprefix("torch."), repro)
        self._with_truth = beside
        self._progress, self._told, self._at = progress, -math.inf, ""
        count = len(plan.prompts)
        self.estimate = Estimate({"reference": 2 * count, "candidate": count})
        self.drift: measure.Drift[Prompt] | None = None
        self.identity = identity_of(plan, device)
        run = {
            **self.identity,
            "mounted": plan.site_names,
            "until": plan.until,
            "prompts": [dataclasses.asdict(prompt) for prompt in plan.prompts],
        }
        self.store = ArmStore(self.cache, run, ops)
        if replays:
            self.drift = measure.Drift(
                self._drift_model(),
                ops,
                plan.prompts,
                cache=self.cache,
                replays=replays,
                store=self.store,
                progress=self._say,
            )
            self.estimate.plan({"truth": count, "replay": 2 * self.drift.replays * count})
            if beside:
                self.estimate.plan({"rungs": (1 + RUNG_REPLAYS) * count})

    def records(self, folder: Path | None, require: str) -> Iterator[Record]:
        """One record a prompt, then those of the drift; finished arms are kept until all are there."""
        about = {"model": MODEL, "checkpoint": self.plan.checkpoint.resolve().name, "gates": self.plan.gates.name}
        for prompt in self.plan.prompts:
            record = self.judge(prompt, folder=folder)
            yield dataclasses.replace(record, case=about | record.case)
        if self.drift is not None:
            yield from self.subject.drift_records(self.drift, require, self.plan.site_names, about)
        self.store.clear()

    def judge(
        self,
        prompt: Prompt,
        *,
        reference: Shape | None = None,
        spoil: Callable[[Shape], Shape] | None = None,
        folder: Path | None = None,
    ) -> Record:
        """Sample both arms, compare them, measure the drift and keep what was made.

        Args:
            prompt: one of the plan's.
            reference: its own arm, if it was sampled before and found to repeat itself.
            spoil: a planted fault of what was sampled: changes the candidate's arm.
            folder: the run folder; files go to ``artifacts/hunyuan3d-<prompt>-<seed>/`` below it.
        """
        plan, seconds = self.plan, {}
        self._at = f"{prompt.name} seed {prompt.seed}"
        arms, verdict = self._sample_arms(prompt, reference, spoil)
        start = time.perf_counter()
        if verdict is None:
            verdict = judge(arms["reference"], arms["candidate"], plan.gates)
        seconds["compare"] = time.perf_counter() - start
        measured = None
        beside: Numbers = {}
        if self.drift is not None and verdict.check not in ("sites", "reference", "latents"):
            try:
                measured = self.drift.add(prompt, arms["reference"].latents, arms["candidate"].latents)
            except SiteError as error:
                verdict = sample_runs.failed_arm("candidate, teacher-forced", error)
            else:
                self.estimate.done("replay", 0.0, measured.from_cache)
                if self._with_truth:
                    start = time.perf_counter()
                    beside = self._beside(prompt, measured.truth, arms)
                    seconds["rungs"] = time.perf_counter() - start
        artifacts: dict[str, str] = {}
        if folder is not None:
            start = time.perf_counter()
            artifacts = _keep(arms, prompt, plan, folder)
            seconds["save"] = time.perf_counter() - start
        case = sample_runs.prompt_case(prompt) | {
            "octree_resolution": prompt.octree_resolution,
            "until": plan.until,
            "sites": plan.site_names,
        }
        if plan.until == "views":
            case["cameras"] = [camera.name for camera in plan.cameras]
        return self.subject.sample_record(
            dataclasses.replace(verdict, numbers=verdict.numbers | beside),
            _lines(verdict, case),
            arms,
            measured,
            seconds=seconds,
            case=case,
            artifacts=artifacts,
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
        except UsageError:
            raise
        except Exception as error:
            return arms, sample_runs.failed_arm(arm, error)
        if spoil is not None:
            arms["candidate"] = spoil(arms["candidate"])
        return arms, None

    def _sample(self, prompt: Prompt, arm: str, ops: OpSet, until: str) -> Shape:
        start = time.perf_counter()
        name = f"{prompt.name}-{prompt.seed}-{arm}"
        kept = self.store.get(name, Shape)

        def say(text: str) -> None:
            self._say(f"{arm}, {text}")

        taken = "" if kept is None else f", {TAKEN}"
        self._say(f"{arm}{taken}", always=True)
        if kept is not None:
            shape = shape_pipeline.finish(self.pipeline, kept, prompt, say, until=until, cameras=self.plan.cameras)
        else:
            names = [site.name for site in self.plan.sites]
            shape = shape_pipeline.sample(
                self.pipeline, prompt, ops, names, say, until=until, cameras=self.plan.cameras
            )
            self.store.put(name, shape, shape.field)
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
            self.estimate.done("truth" if ops.name == "truth" else "replay", time.perf_counter() - start)
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

    def _beside(self, prompt: Prompt, latents: Sequence[Tensor], arms: Mapping[str, Shape]) -> Numbers:
        """The rungs' distances to the truth's shape: both arms', and the least and greatest of legal replays."""

        def shape_of(latents: Tensor, what: str) -> Shape:
            start = time.perf_counter()
            shape = shape_pipeline.finish(
                self.pipeline,
                Shape([latents]),
                prompt,
                lambda text: self._say(f"{what}, {text}"),
                until=self.plan.until,
                cameras=self.plan.cameras,
            )
            self.estimate.done("rungs", time.perf_counter() - start)
            return shape

        truth = shape_of(latents[-1], "the truth's shape")
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
        kept.begin(latents)
        rows = []
        for number in range(RUNG_REPLAYS):
            row = kept.get("lossless", number)
            if row is None or len(row) != len(names):
                what = f"the shape of replay {number + 1} of {RUNG_REPLAYS}"
                ops = replay.Replay("lossless", f"{prompt.name} {prompt.seed} {number}").op_set()
                found = distances(truth, shape_of(self._latents(ops, prompt)[-1], what))
                row = [_float(found.get(name)) for name in names]
                kept.put("lossless", number, row)
            else:
                self.estimate.done("rungs", 0.0)
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
    modules = (hunyuan3d, flow_matching, mount)
    sources = [*replay.sources(), *(Path(str(module.__file__)) for module in modules)]
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


def check_reference(first: Shape, second: Shape) -> Verdict | None:
    """INCONCLUSIVE unless the reference is a shape and its repetition has the same bits, in latents and field."""
    if first.problem is not None:
        problem = first.problem
        return sample_runs.inconclusive(
            f"the reference's own shape: {problem.status}: {problem}: nothing to compare with", problem.numbers
        )
    wrong = sample_runs.check_repetition(first, second)
    if wrong is not None:
        return wrong
    if first.field is None or second.field is None or not sample_runs.same_bits(first.field, second.field):
        return sample_runs.inconclusive(
            "the reference sampled twice has equal latents but another field: the decoder is not deterministic here"
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
    series = {"latents_per_step": sample_runs.latent_distances(reference, candidate)}
    judged = {name: value for name, value in gates.numbers().items() if name.removeprefix("gate_") in numbers}
    numbers |= judged

    def verdict(status: Status, check: str, reason: str, tier: str | None = None) -> Verdict:
        return Verdict(status, check, reason, tier, numbers, series)

    if problem is not None:
        return verdict(problem.status, problem.check, str(problem))
    failures = gates.failures(numbers)
    if numbers.get("mesh_watertight_reference") and not numbers["mesh_watertight_candidate"]:
        failures.insert(0, ("mesh", "the mesh is not watertight, as the reference is"))
    if failures:
        first, *others = (rung for rung in RUNGS if any(failed == rung for failed, _ in failures))
        texts = {rung: [text for failed, text in failures if failed == rung] for rung in (first, *others)}
        words = [f"past the gate: {', '.join(texts[first])}"]
        for rung in others:
            text, *more = texts[rung]
            words.append(f"{rung} too: {text}{f' and {len(more)} more' if more else ''}")
        return verdict(Status.BELOW_FLOOR, first, "; ".join(words))
    check = "views" if candidate.views is not None else "mesh" if candidate.mesh is not None else "field"
    same = reference.field is not None and candidate.field is not None
    if same and not any(series["latents_per_step"]) and sample_runs.same_bits(reference.field, candidate.field):
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


# What is kept


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


def _lines(verdict: Verdict, case: Mapping[str, Any]) -> list[str]:
    """The lines of a failure's message."""
    lines = [
        f'"{case["prompt"]}" seed {case["seed"]}, octree resolution {case["octree_resolution"]}, until {case["until"]}',
        f"{case['steps']} steps, mounted on {', '.join(case['sites'])}",
        verdict.reason,
    ]
    if latents := verdict.series.get("latents_per_step"):
        beyond = next((step for step, distance in enumerate(latents) if not math.isfinite(distance)), None)
        lines.append(
            f"latents after the first step {latents[0]:.1e} of their spread away, after the last {latents[-1]:.1e}"
            if beyond is None
            else f"latents hold NaN or infinity from step {beyond + 1} of {len(latents)} on"
        )
    return lines
