"""Sampled output: the same video sampled with reference ops and with a candidate's, compared frame by frame.

For each prompt the reference is sampled twice and the candidate once, all from one seed. If the two
references differ in a bit, nothing can be said of the candidate: INCONCLUSIVE. Otherwise its frames are
held against the reference's in memory, as they leave the VAE, in this order; the first check that fails
names the record:

    sites     the ops ran at every mounted site, as often as they must, and returned what an op returns
    frames    as many frames, of the same size
    finite    no NaN or infinity
    floors    PSNR and SSIM of the worst frame, the worst tile, the whole and its motion stand above the
              floors of ``fixtures/tolerances/``: a guard against catastrophe, since sampling amplifies
              every rounding and no fixed number tells a legal one from a wrong one
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
from validation.errors import UsageError
from validation.media import metrics, video
from validation.models.prompts import Prompt, embed_prompt, read_json
from validation.models.trajectory import Trajectory
from validation.ops import OpSet, load_op_set
from validation.record import Level, Record, Status
from validation.session import Session

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"

TINY = FIXTURES / "checkpoints" / "helios-tiny"

MODELS = ("helios",)

FLOOR_NAMES = ("psnr", "psnr_worst_frame", "psnr_worst_tile", "psnr_temporal", "ssim_worst_frame")

DTYPE = torch.bfloat16  # of the transformer, as in production; the VAE works in float32


def check_request(session: Session) -> None:
    """Check what `quality` will sample in this session, before any work and without loading weights.

    Raises:
        UsageError: an unknown model or site, nothing to mount, a bad file, an unwritable folder.
    """
    for model in _models_of(session):
        _plan(model, session.ops, session.options.checkpoint, session.options.sites)
    if session.options.out is not None:
        video.require_writable(session.options.out)


def quality(session: Session, progress: Callable[[str], None] = lambda _text: None) -> Iterator[Record]:
    """Judge the session's op set by the session's models, and keep the frames in its run folder.

    Where no model was named, one that calls none of the set's ops is passed over.
    """
    options = session.options
    models = _models_of(session)
    for model in MODELS:
        if model not in models and options.model is None:
            progress(f"{model}: calls no op that {session.ops.name} provides, not sampled")
    for model in models:
        yield from run_quality(
            model,
            session.ops,
            device=session.device,
            checkpoint=options.checkpoint,
            sites=options.sites,
            seed=options.seed,
            folder=session.run.folder,
            progress=progress,
        )


def _models_of(session: Session) -> tuple[str, ...]:
    if session.options.model is not None or session.options.sites is not None:
        return (session.options.model or MODELS[0],)
    from validation.models import helios

    calls = {site.op for site in helios.sites_of({})}
    return MODELS if calls & set(session.ops.functions) else ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `run_quality` will do: files read and checked, no weights loaded.

    Attributes:
        checkpoint: the folder.
        prompts: what to sample.
        floors: lowest values by name, and the name of their file.
        floors_name: that name.
    """

    checkpoint: Path
    prompts: tuple[Prompt, ...]
    floors: dict[str, float]
    floors_name: str


def _plan(
    model: str,
    ops: OpSet,
    checkpoint: Path | None,
    sites: Sequence[str] | None,
    prompts: Path | None = None,
    floors: Path | None = None,
) -> Plan:
    if model not in MODELS:
        raise UsageError(f"--model: unknown model {model!r}, expected one of: {', '.join(MODELS)}")
    from validation.models import helios  # diffusers takes seconds to import

    checkpoint = TINY if checkpoint is None else checkpoint
    helios.check(checkpoint, ops, sites)
    read = Prompt.read(prompts or FIXTURES / "prompts" / "helios-tiny.json")
    if not (checkpoint / "text_encoder").is_dir():
        for text in {text for prompt in read for text in (prompt.text, prompt.negative_text)}:
            embed_prompt(text, 1)
    if floors is None:
        named = FIXTURES / "tolerances" / f"{checkpoint.resolve().name}.json"
        floors = named if named.is_file() else FIXTURES / "tolerances" / f"{model}.json"
    return Plan(checkpoint, read, read_floors(floors), floors.stem)


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
    folder: Path | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Iterator[Record]:
    """Judge an op set by sampled videos: one record a prompt.

    Everything that can be refused is refused by the call, before the first record is asked for.

    Args:
        model: one of `MODELS`.
        ops: the candidate.
        device: where to sample.
        checkpoint: a folder in diffusers' format; None is ``fixtures/checkpoints/helios-tiny``.
        sites: where to mount (`validation.models.helios.SITE_NAMES`); None is wherever the set has the op.
        prompts: a JSON file for `Prompt.read`; None is ``fixtures/prompts/helios-tiny.json``.
        floors: a JSON file for `read_floors`; None is the one of ``fixtures/tolerances/`` that is named
            like the checkpoint folder, or else like the model.
        seed: added to the seed of each prompt.
        folder: the run folder, for frames and previews; None keeps none.
        progress: called with a line of text as the work goes on.

    Raises:
        UsageError: an unknown model or site, nothing to mount, a bad file, an unwritable folder.
    """
    plan = _plan(model, ops, checkpoint, sites, prompts, floors)
    if folder is not None:
        video.require_writable(folder)
    about = {"model": model, "checkpoint": plan.checkpoint.resolve().name, "floors": plan.floors_name}
    samples = [dataclasses.replace(prompt, seed=prompt.seed + seed) for prompt in plan.prompts]
    repro = _command(model, ops, device, plan.checkpoint, sites, seed)
    if device.bfloat16_problems:
        return (_not_judged(model, ops, prompt, device, about, repro) for prompt in samples)
    from validation.models import helios

    progress(f"{model}: loading {plan.checkpoint}")
    pipeline = helios.load(plan.checkpoint, DTYPE, device.torch)
    helios.mount(pipeline.transformer, ops, sites).unmount()

    def records() -> Iterator[Record]:
        for prompt in samples:
            record = sample_and_judge(
                pipeline, ops, prompt, floors=plan.floors, sites=sites, folder=folder, repro=repro, progress=progress
            )
            yield dataclasses.replace(record, case=about | record.case)

    return records()


def _command(model: str, ops: OpSet, device: Device, checkpoint: Path, sites: Sequence[str] | None, seed: int) -> str:
    words = ["validate", "quality", "--model", model, "--ops", ops.origin]
    if sites is not None:
        words += ["--sites", ",".join(sites)]
    if checkpoint.resolve() != TINY:
        words += ["--checkpoint", str(checkpoint)]
    if seed:
        words += ["--seed", str(seed)]
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
    folder: Path | None = None,
    repro: str = "",
    progress: Callable[[str], None] = lambda _text: None,
) -> Record:
    """Sample both arms, compare them and keep their frames.

    Args:
        pipeline: from `validation.models.helios.load`.
        ops: the candidate; the reference arm has ``reference_ops`` on the same sites.
        prompt: what to sample.
        floors: lowest values by name, see `FLOOR_NAMES`.
        sites: where to mount; None is wherever the set has the op.
        folder: the run folder; files go to ``artifacts/helios-<prompt>-<seed>/`` below it.
        repro: the command line that repeats it.
        progress: called with a line of text at each step.

    Raises:
        UsageError: the sites cannot be mounted, or the folder cannot be written.
    """
    from validation.models import helios
    from validation.models.mount import SiteError

    with helios.mount(pipeline.transformer, ops, sites) as mounted:
        names = tuple(mounted.sites)
    arms: dict[str, Trajectory] = {}
    verdict: Verdict | None = None
    reference_ops = load_op_set("reference_ops")
    for arm, op_set in (("reference", reference_ops), ("repetition", reference_ops), ("candidate", ops)):

        def say(text: str, arm: str = arm) -> None:
            progress(f"helios {prompt.name} seed {prompt.seed}: {arm}, {text}")

        try:
            with helios.mount(pipeline.transformer, op_set, names) as mounted:
                arms[arm] = helios.sample(pipeline, prompt, mounted, say)
        except UsageError:
            raise
        except SiteError as error:
            verdict = Verdict(error.status, "sites", f"{arm}: {error}")
        except Exception as error:
            verdict = Verdict(Status.RUNTIME_ERROR, "sites", f"{arm}: {type(error).__name__}: {error}")
        if arm == "repetition" and verdict is None:
            verdict = check_reference(arms["reference"], arms["repetition"])
        if verdict is not None:
            break
    start = time.perf_counter()
    if verdict is None:
        verdict = judge(arms["reference"], arms["candidate"], floors)
    seconds = {"compare": time.perf_counter() - start}
    arms.pop("repetition", None)

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
        series=verdict.series,
        artifacts=artifacts,
        seconds={name: round(spent, 4) for name, spent in seconds.items()},
        message=_message(verdict, f"helios  {ops.name}  {dtype}", case, repro) if verdict.status.failed else "",
        repro=repro,
    )


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
