"""What a model declares about itself, so that everything else works for any model.

A model is a folder of `validation.models` with a module ``model`` that defines ``MODEL``, a subclass of `Model`. It
declares its sites, how it is loaded, how latents are sampled with an op set mounted, and what is made from them:
its `Rung`\\ s, in order, such as frames, or field, mesh and views. A rung compares what two samples made, and names
its `Measure`\\ s. The run, the drift, the gates, the records, the report and the controls read these, and know no
model.

**What a record of a sample holds** (`validation.record.Record`, level ``sample``), for its readers:

``measures``  a list of ``{name, label, unit, better, rung}`` in display order, one for each number that is a distance
              between candidate and reference. ``better`` is "low" or "high". Rungs that were not reached have none.
``numbers``   ``NAME``: the distance. ``floor_NAME`` or ``ceiling_NAME``: its bound, if any (a floor where "high" is
              better). ``reference_NAME`` and ``candidate_NAME``: the distance of that arm to the truth's sample;
              ``replays_NAME_least`` and ``replays_NAME_greatest``: the range for legal replays. No other number is a
              distance.
``players``   how artifacts are shown: a list of ``{role, unit, rate, width, captions, worst}``. The frames are those
              of the artifacts ``reference_ROLE`` and ``candidate_ROLE`` (npz); ``unit`` names one of them ("frame",
              "view"), ``rate`` is frames per second, ``width`` a pane's width in pixels or None, ``captions`` the text
              below each or None, ``worst`` the index to begin with or None.
``series``    ``NAME_per_frame`` and ``NAME_per_step``.
"""

import dataclasses
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch

from validation.device import Device
from validation.errors import UsageError
from validation.files import FIXTURES
from validation.models.mount import Mount, Site, SiteCall
from validation.ops import OpSet
from validation.option import Option
from validation.samples.clock import Clock
from validation.samples.denoiser import Denoiser
from validation.samples.prompts import P, read_prompts
from validation.samples.request import LATENTS, Progress, Request, silent
from validation.samples.rung import Kept, Measure, Player, Rung, Sample, SampleError, as_number
from validation.verdict import Numbers, Series


class Sampler(ABC, Generic[P]):
    """Samples latents with an op set mounted: all that the drift needs.

    Attributes:
        name: the model's.
        sites: the sites that `mount` mounts.
    """

    name: str
    sites: tuple[Site, ...]

    @abstractmethod
    def mount(self, ops: OpSet) -> AbstractContextManager[Mount]:
        """Mount an op set on the `sites`."""

    @abstractmethod
    def latents(self, prompt: P, mounted: Mount, progress: Progress = silent) -> Sample:
        """Sample the latents; repetition gives the same bits. `sample` fills in the calls.

        Raises:
            SiteError: a mounted site failed, or was called the wrong number of times.
        """

    def sample(self, ops: OpSet, prompt: P, progress: Progress = silent) -> Sample:
        """The latents of a prompt with an op set mounted; errors as in `latents`."""
        with self.mount(ops) as mounted:
            sample = self.latents(prompt, mounted, progress)
        return dataclasses.replace(sample, calls=dict(mounted.calls), forwards=mounted.forwards)

    def steps(self, prompt: P) -> int:
        """Denoising steps of a sample; the prompt's by default."""
        return int(getattr(prompt, "steps", 1))

    def forwards_per_step(self, _prompt: P) -> int:
        """Forwards of the mounted model in a step, 1 by default."""
        return 1

    def place_of(self, call: SiteCall) -> str:
        """Name the place of a site call in the model: different for each call of a site in a forward."""
        return f"call {call.index}"


class Model(Sampler[P]):
    """A checkpoint of a model: the constructor reads and checks files, `load` reads weights.

    Attributes:
        name: the model's.
        dtype: the denoiser's.
        rungs: what is made from latents, in order.
        default_checkpoint: the folder used if none is requested.
        options: options that only this model has.
        prompt_type: a dataclass with ``name, text, seed, steps, guidance_scale``, for `read_prompts`.
        gates_key: key of the gates' file in the case of its records.
        beside_replays: how many lossless replays are finished and compared with the truth's sample for each
            measure; None is all that the band has.
        denoiser: the class that ``validate bench denoise`` times; None if there is none.
        request: the request. checkpoint: its folder. until: where samples end.
        prompts: what to sample, with the seeds.
        device: where to sample; set by `load`.
    """

    dtype: ClassVar[torch.dtype]
    rungs: ClassVar[tuple[Rung, ...]]
    default_checkpoint: ClassVar[Path]
    options: ClassVar[tuple[Option, ...]] = ()
    prompt_type: ClassVar[type[Any]]
    gates_key: ClassVar[str] = "gates"
    beside_replays: ClassVar[int | None] = 4
    denoiser: ClassVar[type[Denoiser] | None] = None
    device: torch.device

    def __init__(self, request: Request, ops: OpSet) -> None:
        """Read and check everything that a run needs except the weights.

        Args:
            request: see `Request`.
            ops: the candidate; its ops decide the sites.

        Raises:
            UsageError: an unknown site or rung, nothing to mount, a bad file or number.
        """
        request.check_numbers()
        self.request = request
        self.until = request.until or self.rungs[-1].name
        if self.until not in self.ends():
            raise UsageError(f"--until: {self.until!r}, expected one of: {', '.join(self.ends())}")
        self.checkpoint = request.checkpoint or self.default_checkpoint
        self.sites = self.choose_sites(ops, request.sites)
        self.prompts = _varied(self.read_prompts(request.prompts), request)
        self.check_prompts()

    @classmethod
    def ends(cls) -> tuple[str, ...]:
        """The values of ``until``: where a sample may end."""
        return (LATENTS, *(rung.name for rung in cls.rungs))

    @classmethod
    @abstractmethod
    def ops(cls) -> frozenset[str]:
        """The ops that some configuration of the model calls."""

    @abstractmethod
    def choose_sites(self, ops: OpSet, names: Sequence[str] | None) -> tuple[Site, ...]:
        """The sites to mount: those named, or every site whose op the set has; no weights are read.

        Raises:
            UsageError: as in `validation.models.mount.select_sites`, or a bad checkpoint.
        """

    @abstractmethod
    def load(self, device: Device) -> None:
        """Load the weights, and make the checks that need them.

        Raises:
            UsageError: a file is missing or damaged.
        """

    @abstractmethod
    def make(self, rung: str, sample: Sample, made: Mapping[str, Any], prompt: P, progress: Progress = silent) -> Any:
        """Make a rung's form from the latents and from what earlier rungs ``made``.

        Raises:
            SampleError: it cannot be made.
        """

    def read_prompts(self, path: Path | None) -> Sequence[P]:
        """What to sample, before options vary it; by default read from a file of `prompt_type`, or the fixture."""
        prompts: tuple[P, ...] = read_prompts(
            self.prompt_type, path or self.fixture("prompts", self.default_checkpoint.name)
        )
        return prompts

    def check_prompts(self) -> None:
        """Raise UsageError if the checkpoint cannot sample one of the prompts."""

    def fixture(self, folder: str, otherwise: str) -> Path:
        """The file in a fixture folder that is named like the checkpoint's folder, or else ``otherwise``."""
        named = FIXTURES / folder / f"{self.checkpoint.resolve().name}.json"
        return named if named.is_file() else FIXTURES / folder / f"{otherwise}.json"

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the latents apart from op set, prompt, sites, dtype, device and code, as JSON values."""

    def finish_identity(self) -> dict[str, Any]:
        """What decides the finished sample apart from `identity` and code, as JSON values; empty by default."""
        return {}

    @property
    def site_names(self) -> list[str]:
        """The mounted sites as ``--sites`` names them."""
        return [site.name for site in self.sites]

    @property
    def sources(self) -> list[Path]:
        """Files whose content decides the samples; by default the model's folder without faults and workloads."""
        folder = Path(inspect.getfile(type(self))).parent
        return sorted(path for path in folder.glob("*.py") if path.stem not in ("faults", "workloads"))

    def own(self, name: str) -> Any:
        """The value of an option that only this model has."""
        default = next(option.unset for option in self.options if option.key == name)
        return self.request.own.get(name, default)

    def rungs_to(self, until: str) -> tuple[Rung, ...]:
        """The rungs up to where a sample ends."""
        return self.rungs[: self.ends().index(until)]

    def finish(self, sample: Sample, prompt: P, until: str, progress: Progress = silent) -> Sample:
        """Make the rungs' forms from a sample's latents, up to `until`; those already made stay."""
        clock, made, problem = Clock(self.device), dict(sample.made), None
        try:
            for rung in self.rungs_to(until):
                if rung.name not in made:
                    with clock.timed(rung.stage):
                        made[rung.name] = self.make(rung.name, sample, made, prompt, progress)
                rung.require(made[rung.name])
        except SampleError as error:
            problem = error
        return dataclasses.replace(sample, made=made, problem=problem, seconds=sample.seconds | clock.seconds)

    def case(self, _prompt: P, _reference: Sample | None) -> dict[str, Any]:
        """What a prompt's record holds in its case in addition to prompt, seed, steps and sites."""
        return {}

    def title(self, _case: Mapping[str, Any]) -> str:
        """A few words on what was sampled, for the message of a failure."""
        return ""

    def keep(self, _samples: Mapping[str, Sample], _prompt: P, _folder: Path) -> Kept:
        """Write files for people to look at; none by default.

        Args:
            _samples: by arm (``reference``, ``candidate``); a missing arm is left out.
            _prompt: the prompt that was sampled.
            _folder: the run folder; files go to ``artifacts/`` below it.
        """
        return Kept()

    def players(self, _prompt: P, _numbers: Numbers) -> list[Player]:
        """How to show the files that `keep` wrote."""
        return []

    # Beside each measure: distances to the truth's sample

    def beside(self, truth: Sample, sample: Sample) -> list[float]:
        """The distances of a sample to the truth's, in fixed number; by default all measures, NaN where missing."""
        numbers = self.distances(truth, sample)[0]
        return [as_number(numbers.get(measure.name)) for measure in self.measures()]

    def beside_record(self, arms: Mapping[str, list[float]], replays: Sequence[list[float]]) -> tuple[Numbers, Series]:
        """A record's numbers and series on the `beside` of each arm and of legal replays."""
        numbers: Numbers = {}
        for i, measure in enumerate(self.measures()):
            if replays:
                values = [row[i] for row in replays]
                numbers[f"replays_{measure.name}_least"] = min(values)
                numbers[f"replays_{measure.name}_greatest"] = max(values)
            # NaN: the arm did not reach that rung.
            numbers |= {f"{arm}_{measure.name}": row[i] for arm, row in arms.items() if not math.isnan(row[i])}
        return numbers, {}

    def measures(self) -> list[Measure]:
        """The measures of the rungs up to where samples end."""
        return [measure for rung in self.rungs_to(self.until) for measure in rung.measures]

    def distances(self, reference: Sample, candidate: Sample) -> tuple[Numbers, Series]:
        """Compare every rung that both samples have; raises as `Rung.compare`."""
        numbers: Numbers = {}
        series: Series = {}
        for rung in self.rungs:
            if rung.name in reference.made and rung.name in candidate.made:
                found = rung.compare(reference.made[rung.name], candidate.made[rung.name])
                numbers |= found[0]
                series |= found[1]
        return numbers, series


def _varied(prompts: Sequence[P], request: Request) -> tuple[P, ...]:
    """The prompts with the requested steps, guidance and seeds."""
    asked = {"steps": request.steps, "guidance_scale": request.guidance}
    changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    varied = tuple(
        dataclasses.replace(prompt, **changes, seed=prompt.seed + request.seed + n)
        for prompt in prompts
        for n in range(request.seeds)
    )
    if len({(prompt.name, prompt.seed) for prompt in varied}) < len(varied):
        raise UsageError(
            f"--seeds: with {request.seeds} seeds each, two prompts have one name and seed, expected each once"
        )
    return varied
