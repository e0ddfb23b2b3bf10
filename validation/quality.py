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
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from validation import sample_runs
from validation.device import Device
from validation.drift import measure
from validation.errors import UsageError
from validation.files import FIXTURES, hash_files
from validation.media import metrics, video
from validation.models.mount import Site, SiteError
from validation.models.prompts import Prompt, embed_prompt
from validation.models.trajectory import Frames, Trajectory
from validation.ops import OpSet, load_op_set
from validation.progress import Estimate
from validation.record import Level, Record, cpu_name
from validation.sample_runs import Progress, Request, Subject, silent
from validation.samples.store import TAKEN, ArmStore
from validation.session import Session
from validation.shape_options import ShapeOptions
from validation.verdict import Numbers, Status, Verdict

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

    request = _request(session, session.options.out)
    for model in _models_of(session):
        chosen = (request.checkpoint, request.sites, request.prompts)
        if model in SHAPE_MODELS:
            shape_quality.make_plan(
                session.ops, *chosen, seed=request.seed, replays=request.replays, shape=request.shape
            )
        else:
            if session.options.model is not None and (words := request.shape.words()):
                raise UsageError(f"{words[0]}: {model} has no such option, expected --model {SHAPE_MODELS[0]}")
            make_plan(model, session.ops, *chosen, replays=request.replays)
    request.check_folders()


def quality(session: Session, progress: Progress = silent) -> Iterator[Record]:
    """Judge the session's op set by the session's models, and keep the frames in its run folder.

    Where no model was named, one that calls none of the set's ops is passed over.
    """
    from validation import shape_quality

    session.executor.close()  # a model runs here, and on a GPU has need of what that process holds of it
    models = _models_of(session)
    for model in MODELS:
        if model not in models and not _names_one_model(session):
            progress(f"{model}: calls no op that {session.ops.name} provides, not sampled")
    for model in models:
        request = _request(session, session.run.folder, progress)
        if model in SHAPE_MODELS:
            yield from shape_quality.run_quality(session.ops, request)
        else:
            yield from run_quality(model, session.ops, request)


def _request(session: Session, folder: Path | None, progress: Progress = silent) -> Request:
    """What a session asks of each of its models."""
    options = session.options
    return Request(
        session.device,
        options.checkpoint,
        options.sites,
        options.prompts,
        seed=options.seed,
        replays=options.replays,
        require=session.require or "close",
        cache=options.cache,
        folder=folder,
        shape=ShapeOptions.read(options),
        progress=progress,
    )


def _names_one_model(session: Session) -> bool:
    """Whether options were given that can only be meant for one model."""
    options = session.options
    return any(value is not None for value in (options.model, options.sites, options.checkpoint, options.prompts))


def _models_of(session: Session) -> tuple[str, ...]:
    from validation.models import helios, hunyuan3d

    options, shape = session.options, ShapeOptions.read(session.options)
    if options.model is not None and options.model not in MODELS:
        raise UsageError(f"--model: unknown model {options.model!r}, expected one of: {', '.join(MODELS)}")
    if _names_one_model(session):
        # Options of shapes alone name the model as well.
        return (options.model or (SHAPE_MODELS if shape.words() else VIDEO_MODELS)[0],)
    if shape.words():
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
    """Read and check everything that a run needs but the weights.

    Args:
        model: one of `VIDEO_MODELS`.
        ops: the candidate.
        checkpoint: a folder in diffusers' format; None is `DEFAULT`.
        sites: where to mount (`validation.models.helios.SITE_NAMES`); None is wherever the set has the op.
        prompts: a JSON file for `Prompt.read`; None is the one of ``fixtures/prompts/`` that is named like the
            checkpoint folder, or else that of `DEFAULT`.
        floors: a JSON file for `read_floors`; None is the one of ``fixtures/tolerances/`` that is named
            like the checkpoint folder, or else like the model.
        replays: see `Request`.

    Raises:
        UsageError: an unknown model or site, nothing to mount, a bad file or number.
    """
    if model not in VIDEO_MODELS:
        raise UsageError(f"--model: unknown model {model!r}, expected one of: {', '.join(VIDEO_MODELS)}")
    from validation.models import helios  # diffusers takes seconds to import

    sample_runs.check_replays(replays)
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


def run_quality(model: str, ops: OpSet, request: Request) -> Iterator[Record]:
    """Judge an op set by sampled videos: one record a prompt, and two on the drift over all of them.

    Everything that can be refused is refused by the call, before the first record is asked for.

    Args:
        model: one of `VIDEO_MODELS`.
        ops: the candidate.
        request: see `make_plan` for its defaults.

    Raises:
        UsageError: an unknown model or site, nothing to mount, a bad file or number, an unwritable folder.
    """
    device, sites = request.device, request.sites
    plan = make_plan(model, ops, request.checkpoint, sites, request.prompts, request.bounds, request.replays)
    request.check_folders()
    about = {"model": model, "checkpoint": plan.checkpoint.resolve().name, "floors": plan.floors_name}
    samples = [dataclasses.replace(prompt, seed=prompt.seed + request.seed) for prompt in plan.prompts]
    repro = request.command(model, ops, DEFAULT)
    subject = Subject(model, ops, str(DTYPE).removeprefix("torch."), repro)
    if device.bfloat16_problems:
        reason = f"bfloat16 cannot be judged here: {device.bfloat16_problems[0]}"
        verdict = Verdict(Status.BFLOAT16_NOT_JUDGED, "bfloat16", reason)
        return (
            subject.record(Level.SAMPLE, verdict, [reason], case={**about, **_case_of(prompt)}) for prompt in samples
        )
    from validation.models import helios

    request.progress(f"{model}: loading {plan.checkpoint}")
    pipeline = helios.load(plan.checkpoint, DTYPE, device.torch)
    helios.mount(pipeline.transformer, ops, sites).unmount()
    estimate = Estimate({"reference": 2 * len(samples), "candidate": len(samples)})
    seen = drift_model(pipeline, plan, device, estimate)
    run = {**seen.identity, "prompts": [dataclasses.asdict(prompt) for prompt in samples]}
    store = ArmStore(request.cache_folder, run, ops)
    drift = None
    if request.replays:
        drift = measure.Drift(
            seen,
            ops,
            samples,
            cache=request.cache_folder,
            replays=request.replays,
            store=store,
            progress=lambda text: say(text),
        )
        estimate.plan({"truth": len(samples), "replay": 2 * drift.replays * len(samples)})
    prompt_name = ""

    def say(text: str) -> None:
        request.progress(f"{model} {prompt_name}: {text} ({estimate})")

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
                store=store,
                folder=request.folder,
                repro=repro,
                progress=say,
            )
            yield dataclasses.replace(record, case=about | record.case)
        if drift is not None:
            yield from subject.drift_records(drift, request.require, [site.name for site in plan.sites], about)
        store.clear()

    return records()


def drift_model(pipeline: Any, plan: Plan, device: Device, estimate: Estimate) -> measure.Model[Prompt]:
    """A Helios pipeline as the drift sees it."""
    import diffusers

    from validation.chains import replay
    from validation.models import helios, mount

    sources = [*replay.sources(), *(Path(str(module.__file__)) for module in (helios, mount, metrics))]
    parts = ("transformer", "vae", "scheduler", "text_encoder", "tokenizer")
    names = [site.name for site in plan.sites]

    decoded: dict[int, tuple[Sequence[torch.Tensor], Frames]] = {}  # the last truth; held, so that its id stays its own

    def frames_to_truth(prompt: Prompt, truth: Sequence[torch.Tensor], latents: Sequence[torch.Tensor]) -> list[float]:
        if id(truth) not in decoded:
            decoded.clear()
            decoded[id(truth)] = truth, helios.decode(pipeline, truth, prompt.frames)
        return psnr_per_frame(decoded[id(truth)][1], helios.decode(pipeline, latents, prompt.frames))

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
            "beside": "PSNR of each frame",
        },
        sample=sample,
        steps=lambda prompt: helios.steps_of(pipeline, prompt),
        forwards_per_step=helios.forwards_per_step,
        place_of=helios.place_of,
        places=sum(site.calls for site in plan.sites),
        beside=frames_to_truth,
    )


def psnr_per_frame(reference: Frames, candidate: Frames) -> list[float]:
    """PSNR of each frame in dB; inf if identical."""
    return [metrics.psnr(a[None], b[None], 1.0) for a, b in zip(reference, candidate, strict=True)]


def read_floors(path: Path) -> dict[str, float]:
    """The floors of a JSON file: under ``floors``, a number for some of `FLOOR_NAMES`, in dB or SSIM.

    Raises:
        UsageError: no such file, an unknown name, no number, or none for ``psnr_worst_frame``.
    """
    floors = sample_runs.read_bounds(path, "floors", FLOOR_NAMES)
    if "psnr_worst_frame" not in floors:
        raise UsageError(f"{path} has no floor for psnr_worst_frame, expected one under 'floors'")
    return floors


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
    store: ArmStore | None = None,
    folder: Path | None = None,
    repro: str = "",
    progress: Progress = silent,
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
        store: of finished arms, which are taken from there.
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
        name = f"{prompt.name}-{prompt.seed}-{arm}"
        kept = store.get(name, Trajectory) if store else None
        progress(arm if kept is None else f"{arm}, {TAKEN}")
        told = start = time.perf_counter()

        def say(text: str, arm: str = arm) -> None:
            nonlocal told
            # Steps may take milliseconds: a line a second is enough.
            if time.perf_counter() - told > 1:
                told = time.perf_counter()
                progress(f"{arm}, {text}")

        try:
            if kept is None:
                with helios.mount(pipeline.transformer, op_set, names) as mounted:
                    arms[arm] = helios.sample(pipeline, prompt, mounted, say)
                if store:
                    store.put(name, arms[arm], arms[arm].frames)
            else:
                arms[arm] = kept
        except UsageError:
            raise
        except Exception as error:
            verdict = sample_runs.failed_arm(arm, error)
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
            verdict = sample_runs.failed_arm("candidate, teacher-forced", error)
        else:
            verdict = dataclasses.replace(verdict, series=verdict.series | _to_truth(pipeline, prompt, measured, arms))
            if estimate is not None:
                estimate.done("replay", 0.0, measured.from_cache)

    artifacts: dict[str, str] = {}
    if folder is not None:
        artifacts, factor, spent = _keep(arms, prompt, folder)
        if factor is not None:
            verdict = dataclasses.replace(verdict, numbers=verdict.numbers | {"difference_factor": factor})
        seconds |= spent
    case = _case_of(prompt) | {"sites": list(names)}
    if "reference" in arms:
        case["frames"] = len(arms["reference"].frames)
    subject = Subject("helios", ops, str(pipeline.transformer.dtype).removeprefix("torch."), repro)
    return subject.sample_record(
        verdict, _lines(verdict, case), arms, measured, seconds=seconds, case=case, artifacts=artifacts
    )


def check_reference(first: Trajectory, second: Trajectory) -> Verdict | None:
    """INCONCLUSIVE unless the reference's frames are finite and its repetition has the same bits."""

    if not np.isfinite(first.frames).all():
        frame = int(np.argmin(np.isfinite(first.frames).all(axis=(1, 2, 3))))
        return sample_runs.inconclusive(
            f"the reference's own frame {frame} holds NaN or infinity: nothing to compare with"
        )
    wrong = sample_runs.check_repetition(first, second)
    if wrong is not None:
        return wrong
    if not sample_runs.same_bits(first.frames, second.frames):
        return sample_runs.inconclusive(
            "the reference sampled twice has equal latents but other frames: the VAE is not deterministic here"
        )
    return None


def judge(reference: Trajectory, candidate: Trajectory, floors: Mapping[str, float]) -> Verdict:
    """Compare a candidate's trajectory with the reference's."""
    verdict = judge_frames(reference.frames, candidate.frames, floors, 1.0)
    if verdict.status is Status.INCORRECT_FRAMES:
        return verdict
    series = verdict.series | {"latents_per_step": sample_runs.latent_distances(reference, candidate)}
    if verdict.tier == "bit-exact" and any(series["latents_per_step"]):
        return dataclasses.replace(verdict, tier=None, series=series, reason=f"{verdict.reason}, the latents are not")
    if verdict.tier == "bit-exact":
        return dataclasses.replace(verdict, series=series, reason=f"{verdict.reason}, and all latents")
    return dataclasses.replace(verdict, series=series)


def judge_frames(
    reference: npt.NDArray[Any], candidate: npt.NDArray[Any], floors: Mapping[str, float], data_range: float
) -> Verdict:
    """Compare a candidate's frames with the reference's.

    Args:
        reference, candidate: ``[T, H, W, C]``.
        floors: lowest values by name, see `FLOOR_NAMES`.
        data_range: the distance between black and white.
    """
    try:
        found = metrics.compare(reference, candidate, data_range)
    except metrics.FramesDifferError as error:
        return Verdict(Status.INCORRECT_FRAMES, "frames", str(error))
    row, column = found.worst_tile[1:]
    numbers: Numbers = {
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
    }
    if not np.isfinite(candidate).all():
        bad = np.flatnonzero(~np.isfinite(candidate).all(axis=(1, 2, 3)))
        return Verdict(
            Status.INCORRECT_NONFINITE,
            "finite",
            f"{len(bad)} of {len(candidate)} frames hold NaN or infinity, first frame {bad[0]}",
            numbers=numbers,
            series=series,
        )
    # Written so that a NaN is below every floor; a video of one frame has no motion to judge.
    below = [
        f"{name} {getattr(found, name):.4g} (floor {floor:.4g})"
        for name, floor in floors.items()
        if not getattr(found, name) >= floor and not (name == "psnr_temporal" and len(reference) == 1)
    ]
    if below:
        reason = f"below the floor: {', '.join(below)}"
        return Verdict(Status.BELOW_FLOOR, "floors", reason, numbers=numbers, series=series)
    if sample_runs.same_bits(reference, candidate):
        reason = f"all {len(reference)} frames are equal bit for bit"
        return Verdict(Status.PASSED, "floors", reason, "bit-exact", numbers, series)
    reason = (
        f"PSNR {found.psnr:.1f} dB, worst frame {found.worst_frame} {found.psnr_worst_frame:.1f} dB, "
        f"worst tile {found.psnr_worst_tile:.1f} dB; SSIM {found.ssim_mean:.4f}, worst {found.ssim_worst_frame:.4f}"
    )
    return Verdict(Status.PASSED, "floors", reason, numbers=numbers, series=series)


def _to_truth(
    pipeline: Any, prompt: Prompt, measured: measure.PromptDrift, arms: Mapping[str, Trajectory]
) -> dict[str, list[float]]:
    """PSNR of each frame to the truth's: of the arms, and the least and the greatest of the lossless replays."""
    from validation.models import helios

    truth = helios.decode(pipeline, measured.truth, prompt.frames)
    series = {
        f"{arm}_psnr_to_truth_per_frame": psnr_per_frame(truth, sampled.frames)
        for arm, sampled in arms.items()
        if sampled.frames.shape == truth.shape
    }
    if measured.beside.size:
        series["lossless_band_psnr_to_truth_least_per_frame"] = measured.beside.min(axis=0).tolist()
        series["lossless_band_psnr_to_truth_greatest_per_frame"] = measured.beside.max(axis=0).tolist()
    return series


def _case_of(prompt: Prompt) -> dict[str, Any]:
    return sample_runs.prompt_case(prompt) | {"size": [prompt.height, prompt.width], "frames": prompt.frames}


def _keep(
    arms: Mapping[str, Trajectory], prompt: Prompt, folder: Path
) -> tuple[dict[str, str], int | None, dict[str, float]]:
    """Write each arm's frames and a preview, and where they can be subtracted their amplified difference.

    Returns:
        The files by role, the difference's factor, and the seconds that each took.
    """
    relative = Path("artifacts") / f"helios-{prompt.name}-{prompt.seed}"
    shown = {arm: video.to_uint8(trajectory.frames) for arm, trajectory in arms.items()}
    factor = None
    if len(arms) == 2 and arms["reference"].frames.shape == arms["candidate"].frames.shape:
        shown["difference"], factor = video.difference(arms["reference"].frames, arms["candidate"].frames)
    artifacts, seconds = {}, {}
    for name, frames in shown.items():
        start = time.perf_counter()
        for role, suffix in ((f"{name}_frames", ".npz"), (f"{name}_mp4", ".mp4")):
            path = relative / f"{name}{suffix}"
            video.write_video(folder / path, frames, prompt.fps)
            artifacts[role] = path.as_posix()
        seconds[f"{name}_save"] = time.perf_counter() - start
    return artifacts, factor, seconds


def _lines(verdict: Verdict, case: Mapping[str, Any]) -> list[str]:
    """The lines of a failure's message."""
    height, width = case["size"]
    lines = [
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
    return lines
