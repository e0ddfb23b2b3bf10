"""Sampled output: the same video sampled with reference ops and with a candidate's, compared frame by frame and
step by step.

For each prompt the reference is sampled twice and the candidate once, all from one seed. If the two
references differ in a bit, nothing can be said of the candidate: INCONCLUSIVE. Otherwise its frames are
held against the reference's in memory, as they leave the VAE, in this order; the first check that fails
names the prompt's record:

    sites     the ops ran at every mounted site, as often as they must, and returned what an op returns
    frames    as many frames, of the same size
    finite    no NaN or infinity
    floors    PSNR and SSIM of the worst frame, the worst tile, the whole and its motion stand above the
              floors of ``fixtures/tolerances/``: a guard against catastrophe, since sampling amplifies
              every rounding and no fixed number tells a legal one from a wrong one

What tells them apart is measured over all prompts together (`validation.drift`), one record each:

    teacher-forced  no site is further from the truth than the path it replaces
    band            the latents lie no further from the truth's than those of legal roundings
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
import torch

from validation.device import Device
from validation.drift import band, measure, verdicts
from validation.drift.cache import default_folder, hash_files
from validation.errors import UsageError
from validation.estimate import Estimate
from validation.media import metrics, video
from validation.models.mount import Site, SiteError
from validation.models.prompts import Prompt, embed_prompt, read_json
from validation.models.trajectory import Trajectory
from validation.ops import OpSet, load_op_set
from validation.parity import default_tier
from validation.record import Level, Record, Status, cpu_name
from validation.session import Session

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"

TINY = FIXTURES / "checkpoints" / "helios-tiny"  # random weights, two prompts
DEFAULT = FIXTURES / "checkpoints" / "helios-trained"

VIDEO_MODELS = ("helios",)  # sampled here
SHAPE_MODELS = ("hunyuan3d",)  # and by `validation.shape_quality`
MODELS = (*VIDEO_MODELS, *SHAPE_MODELS)

FLOOR_NAMES = ("psnr", "psnr_worst_frame", "psnr_worst_tile", "psnr_temporal", "ssim_worst_frame")

DTYPE = torch.bfloat16  # of the transformer, as in production; the VAE works in float32


def check_request(session: Session) -> None:
    """Check what `quality` will sample in this session, before any work and without loading weights.

    Raises:
        UsageError: an unknown model or site, nothing to mount, a bad file, an unwritable folder.
    """
    from validation import shape_quality

    options = session.options
    for model in _models_of(session):
        chosen = (options.checkpoint, options.sites, options.prompts)
        if model in SHAPE_MODELS:
            shape_quality.make_plan(
                session.ops, *chosen, seed=options.seed, replays=options.replays, shape=options.shape
            )
        else:
            if options.model is not None and (words := options.shape.words()):
                raise UsageError(f"{words[0]}: {model} has no such option, expected --model {SHAPE_MODELS[0]}")
            make_plan(model, session.ops, *chosen, replays=options.replays)
    if options.out is not None:
        video.require_writable(options.out)
    if options.replays:
        video.require_writable(options.cache or default_folder())


def quality(session: Session, progress: Callable[[str], None] = lambda _text: None) -> Iterator[Record]:
    """Judge the session's op set by the session's models, and keep the frames in its run folder.

    Where no model was named, one that calls none of the set's ops is passed over.
    """
    from validation import shape_quality

    options = session.options
    models = _models_of(session)
    for model in MODELS:
        if model not in models and not _names_one_model(session):
            progress(f"{model}: calls no op that {session.ops.name} provides, not sampled")
    for model in models:
        chosen: dict[str, Any] = {
            "device": session.device,
            "checkpoint": options.checkpoint,
            "sites": options.sites,
            "prompts": options.prompts,
            "seed": options.seed,
            "replays": options.replays,
            "require": session.require or "close",
            "cache": options.cache,
            "folder": session.run.folder,
            "progress": progress,
        }
        if model in SHAPE_MODELS:
            yield from shape_quality.run_quality(session.ops, **chosen, shape=options.shape)
        else:
            yield from run_quality(model, session.ops, **chosen)


def _names_one_model(session: Session) -> bool:
    """Whether options were given that can only be meant for one model."""
    options = session.options
    return any(value is not None for value in (options.model, options.sites, options.checkpoint, options.prompts))


def _models_of(session: Session) -> tuple[str, ...]:
    from validation.models import helios, hunyuan3d

    options = session.options
    if options.model is not None and options.model not in MODELS:
        raise UsageError(f"--model: unknown model {options.model!r}, expected one of: {', '.join(MODELS)}")
    if _names_one_model(session):
        # Options of shapes alone name the model as well.
        return (options.model or (SHAPE_MODELS if options.shape.words() else VIDEO_MODELS)[0],)
    if options.shape.words():
        return SHAPE_MODELS
    sites = dict(zip(MODELS, (helios.sites_of({}), hunyuan3d.sites_of({})), strict=True))
    provided = set(session.ops.functions)
    return tuple(model for model in MODELS if provided & {site.op for site in sites[model]})


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `run_quality` will do: files read and checked, no weights loaded.

    Attributes:
        checkpoint: the folder.
        sites: where the op set will be mounted.
        prompts: what to sample.
        floors: lowest values by name, and the name of their file.
        floors_name: that name.
    """

    checkpoint: Path
    sites: tuple[Site, ...]
    prompts: tuple[Prompt, ...]
    floors: dict[str, float]
    floors_name: str


def make_plan(
    model: str,
    ops: OpSet,
    checkpoint: Path | None,
    sites: Sequence[str] | None,
    prompts: Path | None = None,
    floors: Path | None = None,
    replays: int = measure.REPLAYS,
) -> Plan:
    """Read and check everything that `run_quality` needs but the weights; arguments and errors as there."""
    if model not in VIDEO_MODELS:
        raise UsageError(f"--model: unknown model {model!r}, expected one of: {', '.join(VIDEO_MODELS)}")
    from validation.models import helios  # diffusers takes seconds to import

    if replays != 0 and replays < 4:
        raise UsageError(f"--replays: {replays}, expected at least 4, or 0 to leave the drift out")
    checkpoint = DEFAULT if checkpoint is None else checkpoint
    read = Prompt.read(prompts or _fixture("prompts", checkpoint, DEFAULT.name))
    chosen = helios.check(checkpoint, ops, sites, read)
    if not (checkpoint / "text_encoder").is_dir():
        for text in {text for prompt in read for text in (prompt.text, prompt.negative_text)}:
            embed_prompt(text, 1)
    floors = floors or _fixture("tolerances", checkpoint, model)
    return Plan(checkpoint, chosen, read, read_floors(floors), floors.stem)


def _fixture(folder: str, checkpoint: Path, otherwise: str) -> Path:
    """The file of a fixture folder that is named like the checkpoint's folder, or else another."""
    named = FIXTURES / folder / f"{checkpoint.resolve().name}.json"
    return named if named.is_file() else FIXTURES / folder / f"{otherwise}.json"


def run_quality(
    model: str,
    ops: OpSet,
    *,
    device: Device,
    checkpoint: Path | None = None,
    sites: Sequence[str] | None = None,
    prompts: Path | None = None,
    floors: Path | None = None,
    seed: int = 0,
    replays: int = measure.REPLAYS,
    require: str = "lossless",
    cache: Path | None = None,
    folder: Path | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Iterator[Record]:
    """Judge an op set by sampled videos: one record a prompt, and two on the drift over all of them.

    Everything that can be refused is refused by the call, before the first record is asked for.

    Args:
        model: one of `MODELS`.
        ops: the candidate.
        device: where to sample.
        checkpoint: a folder in diffusers' format; None is `DEFAULT`.
        sites: where to mount (`validation.models.helios.SITE_NAMES`); None is wherever the set has the op.
        prompts: a JSON file for `Prompt.read`; None is the one of ``fixtures/prompts/`` that is named like the
            checkpoint folder, or else that of `DEFAULT`.
        floors: a JSON file for `read_floors`; None is the one of ``fixtures/tolerances/`` that is named
            like the checkpoint folder, or else like the model.
        seed: added to the seed of each prompt.
        replays: legal replays of each kind for each prompt, at least 4; where there are so few prompts that the
            test could not reject, more are made. 0 leaves the drift out: floors alone are judged then.
        require: the tier that the drift is held to.
        cache: where the replays' distances are kept; None is `validation.drift.cache.default_folder`.
        folder: the run folder, for frames and previews; None keeps none.
        progress: called with a line of text as the work goes on.

    Raises:
        UsageError: an unknown model or site, nothing to mount, a bad file or number, an unwritable folder.
    """
    plan = make_plan(model, ops, checkpoint, sites, prompts, floors, replays)
    if folder is not None:
        video.require_writable(folder)
    if replays:
        video.require_writable(cache or default_folder())
    about = {"model": model, "checkpoint": plan.checkpoint.resolve().name, "floors": plan.floors_name}
    samples = [dataclasses.replace(prompt, seed=prompt.seed + seed) for prompt in plan.prompts]
    repro = _command(
        model,
        ops,
        device,
        plan.checkpoint,
        sites=sites,
        prompts=prompts,
        seed=seed,
        replays=replays,
        require=require,
    )
    if device.bfloat16_problems:
        return (_not_judged(model, ops, prompt, device, about, repro) for prompt in samples)
    from validation.models import helios

    progress(f"{model}: loading {plan.checkpoint}")
    pipeline = helios.load(plan.checkpoint, DTYPE, device.torch)
    helios.mount(pipeline.transformer, ops, sites).unmount()
    estimate = Estimate({"reference": 2 * len(samples), "candidate": len(samples)})
    drift = None
    if replays:
        seen = drift_model(pipeline, plan, device, estimate)
        drift = measure.Drift(
            seen, ops, samples, cache=cache or default_folder(), replays=replays, progress=lambda text: say(text)
        )
        estimate.plan({"truth": len(samples), "replay": 2 * drift.replays * len(samples)})
    prompt_name = ""

    def say(text: str) -> None:
        progress(f"{model} {prompt_name}: {text} ({estimate})")

    def records() -> Iterator[Record]:
        nonlocal prompt_name
        for prompt in samples:
            prompt_name = f"{prompt.name} seed {prompt.seed}"
            record = sample_and_judge(
                pipeline,
                ops,
                prompt,
                floors=plan.floors,
                sites=sites,
                drift=drift,
                estimate=estimate,
                folder=folder,
                repro=repro,
                progress=say,
            )
            yield dataclasses.replace(record, case=about | record.case)
        if drift is not None:
            yield from drift_records(drift, ops, require, plan, about, repro)

    return records()


def drift_model(pipeline: Any, plan: Plan, device: Device, estimate: Estimate) -> measure.Model[Prompt]:
    """A Helios pipeline as the drift sees it."""
    import diffusers

    import reference_ops
    from validation.drift import replay
    from validation.models import helios, mount

    sources = [*sorted(Path(reference_ops.__path__[0]).glob("*.py"))]
    sources += [Path(str(module.__file__)) for module in (replay, helios, mount)]
    parts = ("transformer", "scheduler", "text_encoder", "tokenizer")
    names = [site.name for site in plan.sites]

    def sample(ops: OpSet, prompt: Prompt) -> list[torch.Tensor]:
        start = time.perf_counter()
        with helios.mount(pipeline.transformer, ops, names) as mounted:
            latents = helios.sample(pipeline, prompt, mounted, decode=False).latents
        estimate.done("truth" if ops.name == "truth" else "replay", time.perf_counter() - start)
        return latents

    return measure.Model(
        name="helios",
        identity={
            "checkpoint": hash_files([plan.checkpoint / part for part in parts if (plan.checkpoint / part).is_dir()]),
            "dtype": str(DTYPE),
            "device": cpu_name() if device.interpreted else device.name,
            "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
            "sites": names,
            "code": hash_files(sources),
        },
        sample=sample,
        steps=lambda prompt: helios.steps_of(pipeline, prompt),
        forwards_per_step=helios.forwards_per_step,
        place_of=helios.place_of,
        places=sum(site.calls for site in plan.sites),
    )


def drift_records(
    drift: measure.Drift[Prompt], ops: OpSet, require: str, plan: Plan, about: Mapping[str, Any], repro: str
) -> Iterator[Record]:
    """The verdicts of the drift over all prompts, as two records of the model."""
    case = {
        **about,
        "prompts": [f"{prompt.name} seed {prompt.seed}" for prompt in drift.prompts],
        "sites": [site.name for site in plan.sites],
        "replays": drift.replays,
        "require": require,
        "places": drift.teacher.places_by_site(),
    }
    dtype = str(DTYPE).removeprefix("torch.")
    for verdict in verdicts.verdicts(drift, require):
        title = f"{drift.model.name}  {ops.name}  {dtype}  {verdict.status}"
        lines = [title, f"{verdict.check}, over {len(drift.prompts)} prompts", verdict.reason, f"repeat: {repro}"]
        yield Record(
            level=Level.MODEL,
            subject=drift.model.name,
            op_set=ops.name,
            status=verdict.status,
            check=verdict.check,
            reason=verdict.reason,
            case=case,
            dtype=dtype,
            tier=verdict.tier,
            numbers=verdict.numbers,
            series=verdict.series,
            message="\n".join(lines) if verdict.status.failed else "",
            repro=repro,
        )


def _command(
    model: str,
    ops: OpSet,
    device: Device,
    checkpoint: Path,
    *,
    sites: Sequence[str] | None,
    prompts: Path | None,
    seed: int,
    replays: int,
    require: str,
) -> str:
    words = ["validate", "quality", "--model", model, "--ops", ops.origin]
    if sites is not None:
        words += ["--sites", ",".join(sites)]
    if checkpoint.resolve() != DEFAULT:
        words += ["--checkpoint", str(checkpoint)]
    if prompts is not None:
        words += ["--prompts", str(prompts)]
    if seed:
        words += ["--seed", str(seed)]
    if replays != measure.REPLAYS:
        words += ["--replays", str(replays)]
    if require != (default_tier(ops) or "close"):
        words += ["--require", require]
    if not device.interpreted:
        words += ["--gpu"]
    return shlex.join(words)


def _not_judged(model: str, ops: OpSet, prompt: Prompt, device: Device, about: Mapping[str, Any], repro: str) -> Record:
    reason = f"bfloat16 cannot be judged here: {device.bfloat16_problems[0]}"
    return Record(
        level=Level.SAMPLE,
        subject=model,
        op_set=ops.name,
        status=Status.BFLOAT16_NOT_JUDGED,
        check="bfloat16",
        reason=reason,
        case={**about, **_case_of(prompt)},
        dtype="bfloat16",
        message=f"{model}  {ops.name}  bfloat16  {Status.BFLOAT16_NOT_JUDGED}\n{reason}",
        repro=repro,
    )


def read_floors(path: Path) -> dict[str, float]:
    """The floors of a JSON file: under ``floors``, a number for some of `FLOOR_NAMES`, in dB or SSIM.

    Raises:
        UsageError: no such file, an unknown name, no number, or none for ``psnr_worst_frame``.
    """
    floors = read_json(path).get("floors")
    if not isinstance(floors, dict) or "psnr_worst_frame" not in floors:
        raise UsageError(f"{path} has no floor for psnr_worst_frame, expected one under 'floors'")
    for name, value in floors.items():
        if name not in FLOOR_NAMES:
            raise UsageError(f"{path}: unknown floor {name!r}, expected some of: {', '.join(FLOOR_NAMES)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UsageError(f"{path}: floor {name} is {json.dumps(value)}, expected a finite number")
    return {name: float(value) for name, value in floors.items()}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the comparison of two trajectories says; the fields are those of a `Record`."""

    status: Status
    check: str
    reason: str
    tier: str | None = None
    numbers: dict[str, float | int | str | None] = dataclasses.field(default_factory=dict)
    series: dict[str, list[float]] = dataclasses.field(default_factory=dict)


def sample_and_judge(
    pipeline: Any,
    ops: OpSet,
    prompt: Prompt,
    *,
    floors: Mapping[str, float],
    sites: Sequence[str] | None = None,
    drift: measure.Drift[Prompt] | None = None,
    estimate: Estimate | None = None,
    reference: Trajectory | None = None,
    folder: Path | None = None,
    repro: str = "",
    progress: Callable[[str], None] = lambda _text: None,
) -> Record:
    """Sample both arms, compare them, measure the drift and keep the frames.

    Args:
        pipeline: from `validation.models.helios.load`.
        ops: the candidate; the reference arm has ``reference_ops`` on the same sites.
        prompt: what to sample.
        floors: lowest values by name, see `FLOOR_NAMES`.
        sites: where to mount; None is wherever the set has the op.
        drift: measures this prompt too, if the candidate could be sampled.
        estimate: told of each finished sample.
        reference: its own trajectory, if it was sampled before and found to repeat itself.
        folder: the run folder; files go to ``artifacts/helios-<prompt>-<seed>/`` below it.
        repro: the command line that repeats it.
        progress: called with a line of text as arms begin, and at steps.

    Raises:
        UsageError: the sites cannot be mounted, or a folder cannot be written.
    """
    from validation.models import helios

    with helios.mount(pipeline.transformer, ops, sites) as mounted:
        names = tuple(mounted.sites)
    arms: dict[str, Trajectory] = {} if reference is None else {"reference": reference}
    verdict: Verdict | None = None
    planned = {"reference": load_op_set("reference_ops"), "repetition": load_op_set("reference_ops"), "candidate": ops}
    for arm, op_set in planned.items() if reference is None else [("candidate", ops)]:
        progress(arm)
        told = start = time.perf_counter()

        def say(text: str, arm: str = arm) -> None:
            nonlocal told
            # Steps may take milliseconds: a line a second is enough.
            if time.perf_counter() - told > 1:
                told = time.perf_counter()
                progress(f"{arm}, {text}")

        try:
            with helios.mount(pipeline.transformer, op_set, names) as mounted:
                arms[arm] = helios.sample(pipeline, prompt, mounted, say)
        except UsageError:
            raise
        except SiteError as error:
            verdict = Verdict(error.status, "sites", f"{arm}: {error}")
        except Exception as error:
            verdict = Verdict(Status.RUNTIME_ERROR, "sites", f"{arm}: {type(error).__name__}: {error}")
        if estimate is not None:
            estimate.done("candidate" if arm == "candidate" else "reference", time.perf_counter() - start)
        if arm == "repetition" and verdict is None:
            verdict = check_reference(arms["reference"], arms["repetition"])
        if verdict is not None:
            break
    start = time.perf_counter()
    if verdict is None:
        verdict = judge(arms["reference"], arms["candidate"], floors)
    seconds = {"compare": time.perf_counter() - start}
    arms.pop("repetition", None)
    measured = None
    if drift is not None and "candidate" in arms:
        try:
            measured = drift.add(prompt, arms["reference"].latents, arms["candidate"].latents)
        except SiteError as error:
            verdict = Verdict(error.status, "sites", f"candidate, teacher-forced: {error}")
        else:
            seconds |= measured.seconds
            if estimate is not None:
                estimate.done("replay", 0.0, measured.from_cache)

    artifacts: dict[str, str] = {}
    numbers = dict(verdict.numbers)
    if folder is not None:
        start = time.perf_counter()
        artifacts, factor = _keep(arms, prompt, folder)
        if factor is not None:
            numbers["difference_factor"] = factor
        seconds["save"] = time.perf_counter() - start
    for arm, trajectory in arms.items():
        seconds |= {f"{arm}_{stage}": spent for stage, spent in trajectory.seconds.items()}
        numbers[f"{arm}_peak_mib"] = round(trajectory.peak_bytes / 2**20, 1)
    if "candidate" in arms:
        numbers["forwards"] = arms["candidate"].forwards
        numbers |= {f"calls_{site}": calls for site, calls in arms["candidate"].calls.items()}
    series = dict(verdict.series)
    if measured is not None:
        series |= _drift_series(measured)
        numbers |= _drift_ranks(measured)
    case = _case_of(prompt) | {"sites": list(names)}
    if "reference" in arms:
        case["frames"] = len(arms["reference"].frames)
    dtype = str(pipeline.transformer.dtype).removeprefix("torch.")
    return Record(
        level=Level.SAMPLE,
        subject="helios",
        op_set=ops.name,
        status=verdict.status,
        check=verdict.check,
        reason=verdict.reason,
        case=case,
        dtype=dtype,
        tier=verdict.tier,
        numbers=numbers,
        series=series,
        artifacts=artifacts,
        seconds={name: round(spent, 4) for name, spent in seconds.items()},
        message=_message(verdict, f"helios  {ops.name}  {dtype}", case, repro) if verdict.status.failed else "",
        repro=repro,
    )


def _drift_series(measured: measure.PromptDrift) -> dict[str, list[float]]:
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


def _drift_ranks(measured: measure.PromptDrift) -> dict[str, float | int | str | None]:
    """How many replays of each kind lie nearer to the truth than the candidate, at the tested steps."""
    return {
        f"{kind}_rank_{name}": int((rows[:, step] < measured.candidate[step]).sum())
        for kind, rows in measured.replays.items()
        if len(rows)
        for name, step in band.tested_steps(len(measured.candidate)).items()
    }


def check_reference(first: Trajectory, second: Trajectory) -> Verdict | None:
    """INCONCLUSIVE unless the reference's frames are finite and its repetition has the same bits."""

    def inconclusive(reason: str) -> Verdict:
        return Verdict(Status.INCONCLUSIVE, "reference", reason)

    if not np.isfinite(first.frames).all():
        frame = int(np.argmin(np.isfinite(first.frames).all(axis=(1, 2, 3))))
        return inconclusive(f"the reference's own frame {frame} holds NaN or infinity: nothing to compare with")
    for step, (a, b) in enumerate(zip(first.latents, second.latents, strict=True)):
        if not _same_bits(a.numpy(), b.numpy()):
            return inconclusive(
                f"the reference sampled twice differs from itself, first in the latents of step {step + 1} "
                f"of {len(first.latents)}: the model is not deterministic here"
            )
    if not _same_bits(first.frames, second.frames):
        return inconclusive(
            "the reference sampled twice has equal latents but other frames: the VAE is not deterministic here"
        )
    return None


def judge(reference: Trajectory, candidate: Trajectory, floors: Mapping[str, float]) -> Verdict:
    """Compare a candidate's trajectory with the reference's."""
    try:
        found = metrics.compare(reference.frames, candidate.frames, 1.0)
    except metrics.FramesDifferError as error:
        return Verdict(Status.INCORRECT_FRAMES, "frames", str(error))
    row, column = found.worst_tile[1:]
    numbers: dict[str, float | int | str | None] = {
        "psnr": found.psnr,
        "psnr_worst_frame": found.psnr_worst_frame,
        "worst_frame": found.worst_frame,
        "psnr_worst_tile": found.psnr_worst_tile,
        "worst_tile": f"frame {found.worst_tile[0]}, rows {row} to {row + metrics.TILE - 1}, "
        f"columns {column} to {column + metrics.TILE - 1}",
        "psnr_temporal": found.psnr_temporal,
        "ssim_mean": found.ssim_mean,
        "ssim_worst_frame": found.ssim_worst_frame,
        "worst_ssim_frame": found.worst_ssim_frame,
        **{f"floor_{name}": value for name, value in floors.items()},
    }
    series = {
        "psnr_per_frame": found.psnr_per_frame,
        "ssim_per_frame": found.ssim_per_frame,
        "latents_per_step": _latent_distances(reference, candidate),
    }
    if not np.isfinite(candidate.frames).all():
        bad = np.flatnonzero(~np.isfinite(candidate.frames).all(axis=(1, 2, 3)))
        return Verdict(
            Status.INCORRECT_NONFINITE,
            "finite",
            f"{len(bad)} of {len(candidate.frames)} frames hold NaN or infinity, first frame {bad[0]}",
            numbers=numbers,
            series=series,
        )
    # Written so that a NaN is below every floor; a video of one frame has no motion to judge.
    below = [
        f"{name} {getattr(found, name):.4g} (floor {floor:.4g})"
        for name, floor in floors.items()
        if not getattr(found, name) >= floor and not (name == "psnr_temporal" and len(reference.frames) == 1)
    ]
    if below:
        reason = f"below the floor: {', '.join(below)}"
        return Verdict(Status.BELOW_FLOOR, "floors", reason, numbers=numbers, series=series)
    if _same_bits(reference.frames, candidate.frames) and not any(series["latents_per_step"]):
        reason = f"all {len(reference.frames)} frames and all latents are equal bit for bit"
        return Verdict(Status.PASSED, "floors", reason, "bit-exact", numbers, series)
    reason = (
        f"PSNR {found.psnr:.1f} dB, worst frame {found.worst_frame} {found.psnr_worst_frame:.1f} dB, "
        f"worst tile {found.psnr_worst_tile:.1f} dB; SSIM {found.ssim_mean:.4f}, worst {found.ssim_worst_frame:.4f}"
    )
    return Verdict(Status.PASSED, "floors", reason, numbers=numbers, series=series)


def _latent_distances(reference: Trajectory, candidate: Trajectory) -> list[float]:
    """RMS of the latents' difference over the standard deviation of the reference's, step by step."""
    return [
        float((b.double() - a.double()).square().mean().sqrt() / a.double().std())
        for a, b in zip(reference.latents, candidate.latents, strict=True)
    ]


def _same_bits(a: Any, b: Any) -> bool:
    return bool(a.shape == b.shape and a.tobytes() == b.tobytes())


def _case_of(prompt: Prompt) -> dict[str, Any]:
    return {
        "prompt": prompt.text,
        "prompt_name": prompt.name,
        "seed": prompt.seed,
        "steps": prompt.steps,
        "guidance_scale": prompt.guidance_scale,
        "size": [prompt.height, prompt.width],
        "frames": prompt.frames,
    }


def _keep(arms: Mapping[str, Trajectory], prompt: Prompt, folder: Path) -> tuple[dict[str, str], int | None]:
    """Write each arm's frames and a preview, and where they can be subtracted their amplified difference."""
    relative = Path("artifacts") / f"helios-{prompt.name}-{prompt.seed}"
    shown = {arm: video.to_uint8(trajectory.frames) for arm, trajectory in arms.items()}
    factor = None
    if len(arms) == 2 and arms["reference"].frames.shape == arms["candidate"].frames.shape:
        shown["difference"], factor = video.difference(arms["reference"].frames, arms["candidate"].frames)
    artifacts = {}
    for name, frames in shown.items():
        for role, suffix in ((f"{name}_frames", ".npz"), (f"{name}_mp4", ".mp4")):
            path = relative / f"{name}{suffix}"
            video.write_video(folder / path, frames, prompt.fps)
            artifacts[role] = path.as_posix()
    return artifacts, factor


def _message(verdict: Verdict, title: str, case: Mapping[str, Any], repro: str) -> str:
    height, width = case["size"]
    lines = [
        f"{title}  {verdict.status}",
        f'"{case["prompt"]}" seed {case["seed"]}, {case["frames"]} frames of {height} x {width}',
        f"{case['steps']} steps, mounted on {', '.join(case['sites'])}",
        verdict.reason,
    ]
    if "worst_tile" in verdict.numbers:
        lines.append(
            f"worst frame {verdict.numbers['worst_frame']}; worst tile at {verdict.numbers['worst_tile']}; latents "
            f"after the first step {verdict.series['latents_per_step'][0]:.1e} of their spread away, "
            f"after the last {verdict.series['latents_per_step'][-1]:.1e}"
        )
    return "\n".join([*lines, f"repeat: {repro}"] if repro else lines)
