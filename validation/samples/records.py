"""The records of a run over sampled output: one a prompt, and two on the drift over all of them."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from validation.drift import band, measure, verdicts
from validation.record import Level, Record
from validation.samples.rung import Sample
from validation.verdict import Numbers, Verdict


@dataclasses.dataclass(frozen=True)
class Records:
    """Makes the records of a run.

    Attributes:
        subject: the model's name. op_set: the candidate's. dtype: the denoiser's, in torch's names.
        repro: the command line that repeats the run, or "".
        about: entries at the start of each record's case.
    """

    subject: str
    op_set: str
    dtype: str
    repro: str = ""
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def record(
        self, level: Level, verdict: Verdict, lines: Sequence[str], case: Mapping[str, Any], **more: Any
    ) -> Record:
        """A record of a verdict; a failure's message has the lines between the title and the command."""
        title = f"{self.subject}  {self.op_set}  {self.dtype}  {verdict.status}"
        repeat = [f"repeat: {self.repro}"] if self.repro else []
        kept = {"numbers": verdict.numbers, "series": verdict.series, **more}
        return Record(
            level=level,
            subject=self.subject,
            op_set=self.op_set,
            status=verdict.status,
            check=verdict.check,
            reason=verdict.reason,
            tier=verdict.tier,
            case={**self.about, **case},
            dtype=self.dtype,
            message="\n".join([title, *lines, *repeat]) if verdict.status.failed else "",
            repro=self.repro,
            **kept,
        )

    def of_sample(
        self,
        verdict: Verdict,
        lines: Sequence[str],
        case: Mapping[str, Any],
        arms: Mapping[str, Sample],
        measured: measure.PromptDrift | None,
        *,
        seconds: Mapping[str, float],
        **more: Any,
    ) -> Record:
        """The record of one prompt: the verdict, each arm's stage times and memory, and the measured drift.

        Args:
            verdict: on the comparison.
            lines, case: see `record`.
            arms: those that were sampled.
            measured: the drift of this prompt.
            seconds: of the stages that belong to no arm.
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
        return self.record(Level.SAMPLE, verdict, lines, case, numbers=numbers, series=series, seconds=rounded, **more)

    def of_drift(self, drift: measure.Drift[Any], require: str, sites: Sequence[str]) -> Iterator[Record]:
        """Two records of the model: the verdicts on the drift over all prompts."""
        case = {
            "prompts": [f"{prompt.name} seed {prompt.seed}" for prompt in drift.prompts],
            "sites": list(sites),
            "replays": drift.replays,
            "require": require,
            "places": drift.teacher.place_names(),
        }
        prompts = "1 prompt" if len(drift.prompts) == 1 else f"{len(drift.prompts)} prompts"
        for verdict in verdicts.verdicts(drift, require):
            yield self.record(Level.MODEL, verdict, [f"{verdict.check}, over {prompts}", verdict.reason], case)


def drift_series(measured: measure.PromptDrift) -> dict[str, list[float]]:
    """Distances to the truth's latents by step: both arms, and the edges of the bands."""
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
