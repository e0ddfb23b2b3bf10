"""The run over sampled output: sample any model with reference ops and a candidate's, and compare rung by rung.

For each prompt the reference is sampled twice and the candidate once, all from one seed. If the two references differ
in a bit, or sampling fails, nothing follows about the candidate: INCONCLUSIVE. Otherwise, in this order, the first
check that fails names the prompt's record:

    sites     the ops ran at every mounted site, as often as they must, and returned what an op returns
    a rung's  what the model's rungs demand, and the gates on their measures (`validation.samples.compare`)

Two measurements over all prompts together separate legal roundings from wrong ones (`validation.drift`), one record
each:

    teacher-forced  no site is further from the truth than the path it replaces
    band            the latents lie no further from the truth's than those of legal roundings

Each measure is also taken to the truth's sample: for the reference, the candidate and some legal replays. These
distances are shown and not judged.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from validation import media
from validation.device import Device
from validation.drift import measure
from validation.errors import UsageError
from validation.files import hash_files
from validation.models.mount import SiteError
from validation.ops import OpSet, load_op_set
from validation.progress import Estimate
from validation.record import Level, Record, cpu_name
from validation.samples import compare
from validation.samples.clock import peak_memory, reset_peak_memory
from validation.samples.gates import Gates
from validation.samples.model import Model
from validation.samples.prompts import Seeded
from validation.samples.records import Records
from validation.samples.request import Progress, Request
from validation.samples.rung import Kept, Rung, Sample
from validation.samples.store import TAKEN, ArmStore
from validation.verdict import Numbers, Status, Verdict

M = TypeVar("M", bound=Model[Any])


def run(kind: type[Model[Any]], ops: OpSet, request: Request) -> Iterator[Record]:
    """Judge an op set by a sampled model: one record a prompt, and two on the drift over all of them.

    The call itself raises every UsageError below, before the first record is requested.

    Args:
        kind: the model's class, from `validation.samples.registry`.
        ops: the candidate.
        request: see `Request`.

    Raises:
        UsageError: an unknown site, nothing to mount, a bad file or number, an unwritable folder.
    """
    model, gates = plan(kind, ops, request)
    device = request.device
    records = Records(
        model.name,
        ops.name,
        str(model.dtype).removeprefix("torch."),
        request.repro,
        {"model": model.name, "checkpoint": model.checkpoint.resolve().name, model.gates_key: gates.name},
    )
    if model.dtype is torch.bfloat16 and device.bfloat16_problems:
        reason = f"bfloat16 cannot be judged here: {device.bfloat16_problems[0]}"
        verdict = Verdict(Status.BFLOAT16_NOT_JUDGED, "bfloat16", reason)
        return (records.record(Level.SAMPLE, verdict, [reason], _case(model, prompt, None)) for prompt in model.prompts)
    request.progress(f"{model.name}: loading {model.checkpoint}")
    model.load(device)
    sampled = SampleRun(model, ops, device, gates=gates, records=records, cache=request.cache_folder)
    return sampled.all_records(request.folder, request.require)


def plan(kind: type[M], ops: OpSet, request: Request) -> tuple[M, Gates]:
    """Read and check a model and its gates; no weights are loaded. Errors as in `run`."""
    model = kind(request, ops)
    gates = Gates.of(model)
    request.check_folders()
    return model, gates


def _case(model: Model[Any], prompt: Any, reference: Sample | None) -> dict[str, Any]:
    return {
        "prompt": prompt.text,
        "prompt_name": prompt.name,
        "seed": prompt.seed,
        "steps": prompt.steps,
        "guidance_scale": prompt.guidance_scale,
        **model.case(prompt, reference),
    }


class SampleRun:
    """The measurement of one op set by a loaded model.

    Attributes:
        drift: over all prompts; None if no replays are requested.
        store: finished arms.
    """

    def __init__(
        self,
        model: Model[Any],
        ops: OpSet,
        device: Device,
        *,
        gates: Gates,
        records: Records | None = None,
        cache: Path,
        replays: int | None = None,
        beside: bool = True,
    ) -> None:
        """Prepare; nothing is sampled yet.

        Args:
            model: loaded.
            ops: the candidate.
            device: where the model is.
            gates: bounds on the rungs' measures.
            records: makes the records; None names only model and op set.
            cache: folder of bands and arms.
            replays: overrides the request's.
            beside: also measure distances to the truth's sample.
        """
        self.model, self.ops, self.gates = model, ops, gates
        self.records = records or Records(model.name, ops.name, str(model.dtype).removeprefix("torch."))
        self._told, self._at = -math.inf, ""
        count = len(model.prompts)
        self.estimate = Estimate({"reference": 2 * count, "candidate": count})
        self.identity = _identity(model, device)
        run = {
            **self.identity,
            "mounted": model.site_names,
            "until": model.until,
            "prompts": [dataclasses.asdict(prompt) for prompt in model.prompts],
        }
        self.store = ArmStore(cache, run, ops)
        self.to_truth = _ToTruth(model, self._say) if beside and model.rungs_to(model.until) else None
        self.drift: measure.Drift[Any] | None = None
        replays = model.request.replays if replays is None else replays
        if replays:
            self.drift = measure.Drift(
                model,
                ops,
                model.prompts,
                identity=self.identity,
                cache=cache,
                replays=replays,
                store=self.store,
                beside=self.to_truth,
                estimate=self.estimate,
                progress=self._say,
            )

    def all_records(self, folder: Path | None, require: str) -> Iterator[Record]:
        """One record a prompt, then those of the drift; finished arms are kept until the run is complete."""
        for prompt in self.model.prompts:
            yield self.judge(prompt, folder=folder)
        if self.drift is not None:
            yield from self.records.of_drift(self.drift, require, self.model.site_names)
        self.store.clear()

    def judge(
        self,
        prompt: Any,
        *,
        reference: Sample | None = None,
        spoil: Callable[[Sample], Sample] | None = None,
        folder: Path | None = None,
    ) -> Record:
        """Sample both arms, compare them, measure the drift and keep the samples.

        Args:
            prompt: one of the model's.
            reference: the reference's arm, if it was sampled before and found to repeat itself.
            spoil: a planted fault in the sample: changes the candidate's arm.
            folder: the run folder; files go to ``artifacts/<model>-<prompt>-<seed>/`` below it.

        Raises:
            UsageError: a folder cannot be written.
        """
        model = self.model
        self._at = f"{prompt.name} seed {prompt.seed}"
        arms, verdict = self._sample_arms(prompt, reference, spoil)
        start = time.perf_counter()
        if verdict is None:
            verdict = compare.judge(arms["reference"], arms["candidate"], model.rungs, self.gates)
        seconds = {"compare": time.perf_counter() - start}
        measured = None
        if self.drift is not None and _comparable(arms):
            try:
                measured = self.drift.add(prompt, arms["reference"].latents, arms["candidate"].latents)
            except SiteError as error:
                verdict = compare.failed_arm("candidate, teacher-forced", error)
            else:
                start = time.perf_counter()
                verdict = self._with_truth(verdict, measured, arms)
                seconds["rungs"] = time.perf_counter() - start
        kept = Kept() if folder is None else model.keep(arms, prompt, folder)
        verdict = dataclasses.replace(verdict, numbers=verdict.numbers | kept.numbers)
        case = _case(model, prompt, arms.get("reference")) | {"sites": model.site_names}
        measures = [
            {"name": m.name, "label": m.label, "unit": m.unit, "better": m.better, "rung": rung.name}
            for rung in model.rungs
            for m in rung.measures
            if m.name in verdict.numbers
        ]
        return self.records.of_sample(
            verdict,
            _lines(model, verdict, case),
            case,
            arms,
            measured,
            seconds=seconds | kept.seconds,
            artifacts=kept.artifacts,
            measures=measures,
            players=[dataclasses.asdict(player) for player in model.players(prompt, verdict.numbers)] if folder else [],
        )

    def sample_reference(self, prompt: Any) -> tuple[Sample, Verdict | None]:
        """Sample the reference; the verdict says what is wrong with it, if anything (`compare.check_reference`)."""
        self._at = f"{prompt.name} seed {prompt.seed}"
        first = self._sample(prompt, "reference")
        return first, compare.check_reference(first, self._sample(prompt, "repetition"), self.model.rungs)

    def _sample_arms(
        self, prompt: Any, reference: Sample | None, spoil: Callable[[Sample], Sample] | None
    ) -> tuple[dict[str, Sample], Verdict | None]:
        arms: dict[str, Sample] = {}
        arm = "reference"
        try:
            if reference is None:
                reference, wrong = self.sample_reference(prompt)
                if wrong is not None:
                    return {"reference": reference}, wrong
            arms["reference"] = reference
            arm = "candidate"
            arms["candidate"] = self._sample(prompt, arm)
        except UsageError:
            raise
        except Exception as error:
            return arms, compare.failed_arm(arm, error)
        if spoil is not None:
            arms["candidate"] = spoil(arms["candidate"])
        return arms, None

    def _sample(self, prompt: Any, arm: str) -> Sample:
        model, start = self.model, time.perf_counter()
        ops = self.ops if arm == "candidate" else load_op_set("reference_ops")
        name, first = f"{prompt.name}-{prompt.seed}-{arm}", model.rungs[0].name
        # Later rungs are made from the first on the CPU: the same bits each time.
        until = first if arm == "repetition" and model.rungs_to(model.until) else model.until

        def read(latents: list[Tensor], decoded: Any, **measured: Any) -> Sample:
            return Sample(latents, {} if decoded is None else {first: decoded}, **measured)

        def say(text: str) -> None:
            # Steps may take milliseconds: one line per second is enough.
            if time.perf_counter() - self._told > 1:
                self._say(f"{arm}, {text}")

        kept = self.store.get(name, read)
        self._say(arm if kept is None else f"{arm}, {TAKEN}")
        if kept is not None:
            sample = model.finish(kept, prompt, until, say)
        else:
            device = torch.device(model.device)
            reset_peak_memory(device)
            sample = model.finish(model.sample(ops, prompt, say), prompt, until, say)
            sample = dataclasses.replace(sample, peak_bytes=peak_memory(device))
            self.store.put(name, sample, sample.made.get(first))
        self.estimate.done("candidate" if arm == "candidate" else "reference", time.perf_counter() - start)
        return sample

    def _with_truth(self, verdict: Verdict, measured: measure.PromptDrift, arms: Mapping[str, Sample]) -> Verdict:
        """Add the distances of both arms and of legal replays to the truth's sample."""
        if self.to_truth is None or self.to_truth.truth.problem is not None:
            return verdict
        rows = {arm: self.model.beside(self.to_truth.truth, sample) for arm, sample in arms.items()}
        numbers, series = self.model.beside_record(rows, measured.beside)
        return dataclasses.replace(verdict, numbers=verdict.numbers | numbers, series=verdict.series | series)

    def _say(self, text: str) -> None:
        self._told = time.perf_counter()
        self.model.request.progress(f"{self.model.name} {self._at}: {text} ({self.estimate})")


class _ToTruth:
    """The distances of finished replays to the truth's sample, a `measure.Beside`.

    Attributes:
        truth: the finished truth of the latest prompt.
    """

    def __init__(self, model: Model[Any], say: Progress) -> None:
        self.model, self.say = model, say
        self.truth = Sample([])

    @property
    def replays(self) -> int | None:
        """See `Model.beside_replays`."""
        return self.model.beside_replays

    def identity(self, _prompt: Seeded) -> Mapping[str, Any]:
        """Where the sample ends, and the code and settings that finish it."""
        return {
            "until": self.model.until,
            "code": hash_files([*self.model.sources, *sorted(Path(media.__path__[0]).glob("*.py"))]),
            **self.model.finish_identity(),
        }

    def begin(self, prompt: Seeded, truth: Sequence[Tensor]) -> bool:
        """Finish the truth; False if that fails."""
        self.truth = self._finish(prompt, truth, "the truth's sample")
        return self.truth.problem is None

    def row(self, prompt: Seeded, latents: Sequence[Tensor], what: str) -> list[float]:
        """See `Model.beside`."""
        return self.model.beside(self.truth, self._finish(prompt, latents, what))

    def _finish(self, prompt: Seeded, latents: Sequence[Tensor], what: str) -> Sample:
        self.say(f"{what}, finished")
        return self.model.finish(Sample(list(latents)), prompt, self.model.until)


def _comparable(arms: Mapping[str, Sample]) -> bool:
    """Whether there are two arms with latents of the same shapes."""
    shapes = [[t.shape for t in arm.latents] for arm in arms.values()]
    return len(shapes) == 2 and shapes[0] == shapes[1]


def _identity(model: Model[Any], device: Device) -> dict[str, Any]:
    """Everything that decides the latents except op set and prompt, as JSON values: the cache's key."""
    return {
        **model.identity(),
        "dtype": str(model.dtype),
        "sites": [site.name for site in model.sites],
        "device": device.name if device.gpu else cpu_name(),
        "torch": torch.__version__,
        "code": hash_files([*measure.sources(), *model.sources]),
    }


def _lines(model: Model[Any], verdict: Verdict, case: Mapping[str, Any]) -> list[str]:
    """The lines of a failure's message."""
    lines = [
        ", ".join(filter(None, [f'"{case["prompt"]}" seed {case["seed"]}', model.title(case)])),
        f"{case['steps']} steps, mounted on {', '.join(case['sites'])}",
        verdict.reason,
    ]
    words = [rung.worst(verdict.numbers) for rung in model.rungs if _measured(rung, verdict.numbers)]
    if latents := verdict.series.get("latents_per_step"):
        beyond = next((step for step, distance in enumerate(latents) if not math.isfinite(distance)), None)
        words.append(
            f"latents after the first step {latents[0]:.1e} of their spread away, after the last {latents[-1]:.1e}"
            if beyond is None
            else f"latents hold NaN or infinity from step {beyond + 1} of {len(latents)} on"
        )
    return [*lines, "; ".join(filter(None, words))] if any(words) else lines


def _measured(rung: Rung, numbers: Numbers) -> bool:
    return any(measure.name in numbers for measure in rung.measures)
