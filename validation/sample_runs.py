"""What runs over sampled videos and over sampled shapes share.

What is asked of a run, the verdict of a comparison, the records of a prompt and of the drift over all prompts, and
the command that repeats it.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from validation import files
from validation.device import Device
from validation.drift import band, measure, verdicts
from validation.errors import UsageError
from validation.files import default_folder
from validation.models.mount import SiteError
from validation.models.prompts import read_json
from validation.ops import OpSet
from validation.options import repeat_line
from validation.record import Level, Record
from validation.samples.store import Arm
from validation.shape_options import ShapeOptions
from validation.verdict import Numbers, Status, Verdict

Progress = Callable[[str], None]


def silent(_text: str) -> None:
    """Progress that is told to nobody."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a run over sampled output.

    Attributes:
        device: where to sample.
        checkpoint: its folder; None is the embedded one.
        sites: where to mount; None is wherever the set has the op.
        prompts: a JSON file of what to sample; None is the checkpoint's own among the fixtures.
        bounds: a JSON file of the floors and ceilings; None is the checkpoint's own among the fixtures, or else the
            model's.
        seed: added to the seed of each prompt.
        replays: legal replays of each kind for each prompt, at least 4; where there are so few prompts that the
            test could not reject, more are made. 0 leaves the drift out: the bounds alone are judged then.
        require: the tier that the drift is held to.
        cache: where the replays' distances and finished arms are kept; None is
            `validation.drift.cache.default_folder`.
        folder: the run folder, for what was sampled; None keeps none.
        shape: the options of shapes alone.
        progress: called with a line of text as the work goes on.
    """

    device: Device
    checkpoint: Path | None = None
    sites: Sequence[str] | None = None
    prompts: Path | None = None
    bounds: Path | None = None
    seed: int = 0
    replays: int = measure.REPLAYS
    require: str = "lossless"
    cache: Path | None = None
    folder: Path | None = None
    shape: ShapeOptions = dataclasses.field(default_factory=ShapeOptions)
    progress: Progress = silent

    @property
    def cache_folder(self) -> Path:
        """`cache`, or the user's."""
        return self.cache or default_folder()

    def check_folders(self) -> None:
        """UsageError unless the folders that will be written to can be."""
        for folder in (self.folder, self.cache_folder):
            if folder is not None:
                files.require_writable(folder)

    def command(self, model: str, ops: OpSet, embedded: Path) -> str:
        """The command line that repeats the run; ``embedded`` is the checkpoint that needs no word."""
        return repeat_line(
            "quality",
            always=("ops",),
            model=model,
            ops=ops.origin,
            sites=None if self.sites is None else tuple(self.sites),
            checkpoint=None
            if self.checkpoint is not None and self.checkpoint.resolve() == embedded
            else self.checkpoint,
            prompts=self.prompts,
            seed=self.seed,
            replays=self.replays,
            require=None if self.require == (ops.default_tier or "close") else self.require,
            **self.shape.values(),
            gpu=not self.device.interpreted,
        )


def check_replays(replays: int) -> None:
    """UsageError unless it is a number of replays that a band can be made of."""
    if replays != 0 and replays < 4:
        raise UsageError(f"--replays: {replays}, expected at least 4, or 0 to leave the drift out")


def read_bounds(path: Path, section: str, known: Sequence[str]) -> dict[str, float]:
    """The numbers of one section of a JSON file, by name; none where it has no such section.

    Raises:
        UsageError: no such file, an unknown name, or no number.
    """
    bounds = read_json(path).get(section, {})
    if not isinstance(bounds, dict):
        raise UsageError(f"{path}: {section} is a {type(bounds).__name__}, expected names and numbers")
    for name, value in bounds.items():
        if name not in known:
            raise UsageError(f"{path}: unknown name {name!r} in {section}, expected some of: {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UsageError(f"{path}: {name} in {section} is {json.dumps(value)}, expected a finite number")
    return {name: float(value) for name, value in bounds.items()}


# A comparison


def failed_arm(arm: str, error: Exception) -> Verdict:
    """The verdict on an arm that could not be sampled."""
    if isinstance(error, SiteError):
        return Verdict(error.status, "sites", f"{arm}: {error}")
    return Verdict(Status.RUNTIME_ERROR, "sites", f"{arm}: {type(error).__name__}: {error}")


def inconclusive(reason: str, numbers: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict where the reference itself is in doubt."""
    return Verdict(Status.INCONCLUSIVE, "reference", reason, numbers=dict(numbers or {}))


def check_repetition(first: Arm, second: Arm) -> Verdict | None:
    """INCONCLUSIVE unless the reference's repetition has the same bits in the latents of every step."""
    for step, (a, b) in enumerate(zip(first.latents, second.latents, strict=True)):
        if not same_bits(a.numpy(), b.numpy()):
            return inconclusive(
                f"the reference sampled twice differs from itself, first in the latents of step {step + 1} "
                f"of {len(first.latents)}: the model is not deterministic here"
            )
    return None


def same_bits(a: Any, b: Any) -> bool:
    """Whether two arrays are equal to the bit."""
    return bool(a.shape == b.shape and a.tobytes() == b.tobytes())


def latent_distances(reference: Arm, candidate: Arm) -> list[float]:
    """RMS of the latents' difference over the standard deviation of the reference's, step by step."""
    pairs = zip(reference.latents, candidate.latents, strict=False)
    return [band.distance(b, a) if a.shape == b.shape else math.inf for a, b in pairs]


# Records


def prompt_case(prompt: Any) -> dict[str, Any]:
    """What the case of every sampled prompt holds."""
    return {
        "prompt": prompt.text,
        "prompt_name": prompt.name,
        "seed": prompt.seed,
        "steps": prompt.steps,
        "guidance_scale": prompt.guidance_scale,
    }


@dataclasses.dataclass(frozen=True)
class Subject:
    """What the records of a run are about.

    Attributes:
        model: its name. ops: the candidate. dtype: of the denoiser, in torch's names.
        repro: the command line that repeats the run, or "".
    """

    model: str
    ops: OpSet
    dtype: str
    repro: str = ""

    def record(self, level: Level, verdict: Verdict, lines: Sequence[str], **more: Any) -> Record:
        """A record of a verdict; the lines tell a failure between the title and the command."""
        title = f"{self.model}  {self.ops.name}  {self.dtype}  {verdict.status}"
        repeat = [f"repeat: {self.repro}"] if self.repro else []
        kept = {"numbers": verdict.numbers, "series": verdict.series, "tier": verdict.tier, **more}
        return Record(
            level=level,
            subject=self.model,
            op_set=self.ops.name,
            status=verdict.status,
            check=verdict.check,
            reason=verdict.reason,
            dtype=self.dtype,
            message="\n".join([title, *lines, *repeat]) if verdict.status.failed else "",
            repro=self.repro,
            **kept,
        )

    def sample_record(
        self,
        verdict: Verdict,
        lines: Sequence[str],
        arms: Mapping[str, Arm],
        measured: measure.PromptDrift | None = None,
        *,
        seconds: Mapping[str, float],
        **more: Any,
    ) -> Record:
        """The record of one prompt: beside the verdict each arm's stage times and memory, and what the drift measured.

        Args:
            verdict: of the comparison.
            lines: see `record`.
            arms: those that were sampled.
            measured: the drift of this prompt.
            seconds: of the stages that are no arm's.
            more: further fields of the record.
        """
        numbers, series, spent = dict(verdict.numbers), dict(verdict.series), dict(seconds)
        for name, arm in arms.items():
            spent |= {f"{name}_{stage}": value for stage, value in arm.seconds.items()}
            numbers[f"{name}_peak_mib"] = round(arm.peak_bytes / 2**20, 1)
        if "candidate" in arms:
            numbers["forwards"] = arms["candidate"].forwards
            numbers |= {f"calls_{site}": calls for site, calls in arms["candidate"].calls.items()}
        if measured is not None:
            spent |= measured.seconds
            series |= drift_series(measured)
            numbers |= drift_ranks(measured)
        rounded = {stage: round(value, 4) for stage, value in spent.items()}
        return self.record(Level.SAMPLE, verdict, lines, numbers=numbers, series=series, seconds=rounded, **more)

    def drift_records(
        self, drift: measure.Drift[Any], require: str, sites: Sequence[str], about: Mapping[str, Any]
    ) -> Iterator[Record]:
        """The verdicts of the drift over all prompts, as two records of the model; ``about`` begins their case."""
        case = {
            **about,
            "prompts": [f"{prompt.name} seed {prompt.seed}" for prompt in drift.prompts],
            "sites": list(sites),
            "replays": drift.replays,
            "require": require,
            "places": drift.teacher.place_names(),
        }
        prompts = "1 prompt" if len(drift.prompts) == 1 else f"{len(drift.prompts)} prompts"
        for verdict in verdicts.verdicts(drift, require):
            lines = [f"{verdict.check}, over {prompts}", verdict.reason]
            yield self.record(Level.MODEL, verdict, lines, case=case)


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


def drift_ranks(measured: measure.PromptDrift) -> Numbers:
    """How many replays of each kind lie nearer to the truth than the candidate, at the tested steps."""
    return {
        f"{kind}_rank_{name}": int((rows[:, step] < measured.candidate[step]).sum())
        for kind, rows in measured.replays.items()
        if len(rows)
        for name, step in band.tested_steps(len(measured.candidate)).items()
    }
