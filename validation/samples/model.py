"""What a model says of itself, so that everything else works for any model.

A model is a folder of `validation.models` with a module ``model`` that defines ``MODEL``, a subclass of `Model`. It
says what its sites are, how it is loaded, how latents are sampled with an op set mounted, and what is made of them:
its `Rung`\\ s, in order, such as frames, or field, mesh and views. A rung compares what two samples made, and names
its `Measure`\\ s. The run, the drift, the gates, the records, the report and the controls read these, and know no
model.

**What a record of a sample holds** (`validation.record.Record`, level ``sample``), for those who read it:

``measures``  a list of ``{name, label, unit, better, rung}``, in the order in which they are shown: the numbers that
              are distances between candidate and reference. ``better`` is "low" or "high". Rungs that were not
              reached have none.
``numbers``   ``NAME``: the distance. ``floor_NAME`` or ``ceiling_NAME``: its bound, where it has one (a floor where
              "high" is better). ``reference_NAME`` and ``candidate_NAME``: the distance of either to the truth's
              sample; ``replays_NAME_least`` and ``replays_NAME_greatest``: that of legal replays. Any other number is
              no distance.
``players``   how artifacts are shown: a list of ``{role, unit, rate, width, captions, worst}``. The frames are those
              of the artifacts ``reference_ROLE`` and ``candidate_ROLE`` (npz); ``unit`` is what one of them is
              ("frame", "view"), ``rate`` how many are shown a second, ``width`` that of a pane in pixels or None,
              ``captions`` the words below each or None, ``worst`` the index to begin with or None.
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
    """What samples latents with an op set mounted: all that the drift needs.

    Attributes:
        name: of the model.
        sites: that `mount` mounts.
    """

    name: str
    sites: tuple[Site, ...]

    @abstractmethod
    def mount(self, ops: OpSet) -> AbstractContextManager[Mount]:
        """Mount an op set on the `sites`."""

    @abstractmethod
    def latents(self, prompt: P, mounted: Mount, progress: Progress = silent) -> Sample:
        """Sample; repeats itself to the bit. `sample` fills in the calls.

        Raises:
            SiteError: a mounted site failed, or was not called as often as it must be.
        """

    def sample(self, ops: OpSet, prompt: P, progress: Progress = silent) -> Sample:
        """The latents of a prompt with an op set mounted; errors as in `latents`."""
        with self.mount(ops) as mounted:
            sample = self.latents(prompt, mounted, progress)
        return dataclasses.replace(sample, calls=dict(mounted.calls), forwards=mounted.forwards)

    def steps(self, prompt: P) -> int:
        """Denoising steps of a sample, those of the prompt by default."""
        return int(getattr(prompt, "steps", 1))

    def forwards_per_step(self, _prompt: P) -> int:
        """Forwards of the mounted model in a step, 1 by default."""
        return 1

    def place_of(self, call: SiteCall) -> str:
        """Where in the model a site call is: another name for each call of a site in a forward."""
        return f"call {call.index}"


class Model(Sampler[P]):
    """A checkpoint of a model: files read and checked when it is made, weights with `load`.

    Attributes:
        name: of the model.
        dtype: of the denoiser.
        rungs: what is made of latents, in order.
        default_checkpoint: where none is asked for.
        options: that this model alone has.
        prompt_type: a dataclass with ``name, text, seed, steps, guidance_scale``, for `read_prompts`.
        gates_key: what the case of its records calls the file of gates.
        beside_replays: how many lossless replays are finished and compared with the truth's sample, beside each
            measure; None is as many as the band has.
        denoiser: that ``validate bench denoise`` times; None where nothing does.
        request: what is asked for. checkpoint: its folder. until: where samples end.
        prompts: what to sample, with the seeds.
        device: where; set by `load`.
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
        """Read and check everything that a run needs but the weights.

        Args:
            request: see `Request`.
            ops: the candidate, by whose ops the sites are chosen.

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
        """Where a sample may end."""
        return (LATENTS, *(rung.name for rung in cls.rungs))

    @classmethod
    @abstractmethod
    def ops(cls) -> frozenset[str]:
        """The ops that some configuration of the model calls."""

    @abstractmethod
    def choose_sites(self, ops: OpSet, names: Sequence[str] | None) -> tuple[Site, ...]:
        """The sites to mount: those named, or every one whose op the set has; no weights are read.

        Raises:
            UsageError: as in `validation.models.mount.select_sites`, or a bad checkpoint.
        """

    @abstractmethod
    def load(self, device: Device) -> None:
        """Load the weights, and check what can only be checked with them.

        Raises:
            UsageError: a file is missing or damaged.
        """

    @abstractmethod
    def make(self, rung: str, sample: Sample, made: Mapping[str, Any], prompt: P, progress: Progress = silent) -> Any:
        """What a rung has, of the latents and of what the rungs before ``made``.

        Raises:
            SampleError: there is nothing to make.
        """

    def read_prompts(self, path: Path | None) -> Sequence[P]:
        """What to sample, before options vary it; by default a file of `prompt_type`, or the fixture."""
        prompts: tuple[P, ...] = read_prompts(
            self.prompt_type, path or self.fixture("prompts", self.default_checkpoint.name)
        )
        return prompts

    def check_prompts(self) -> None:
        """UsageError where the checkpoint cannot sample one of the prompts."""

    def fixture(self, folder: str, otherwise: str) -> Path:
        """The file of a fixture folder that is named like the checkpoint's folder, or else another."""
        named = FIXTURES / folder / f"{self.checkpoint.resolve().name}.json"
        return named if named.is_file() else FIXTURES / folder / f"{otherwise}.json"

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the latents but op set, prompt, sites, dtype, device and code, as JSON values."""

    def finish_identity(self) -> dict[str, Any]:
        """What decides what is made of latents but `identity` and code, as JSON values; nothing by default."""
        return {}

    @property
    def site_names(self) -> list[str]:
        """The mounted sites as ``--sites`` names them."""
        return [site.name for site in self.sites]

    @property
    def sources(self) -> list[Path]:
        """Files whose content decides what is sampled; by default the model's folder, less what only describes it."""
        folder = Path(inspect.getfile(type(self))).parent
        return sorted(path for path in folder.glob("*.py") if path.stem not in ("faults", "workloads"))

    def own(self, name: str) -> Any:
        """The value of an option that this model alone has."""
        default = next(option.unset for option in self.options if option.key == name)
        return self.request.own.get(name, default)

    def rungs_to(self, until: str) -> tuple[Rung, ...]:
        """The rungs up to where a sample ends."""
        return self.rungs[: self.ends().index(until)]

    def finish(self, sample: Sample, prompt: P, until: str, progress: Progress = silent) -> Sample:
        """Make of a sample's latents what the rungs have, as far as `until`; what is there already stays."""
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
        """What the case of a prompt's record holds beside prompt, seed, steps and sites."""
        return {}

    def title(self, _case: Mapping[str, Any]) -> str:
        """What was sampled, in a few words, for the message of a failure."""
        return ""

    def keep(self, _samples: Mapping[str, Sample], _prompt: P, _folder: Path) -> Kept:
        """Write what people look at; nothing by default.

        Args:
            _samples: by arm, ``reference`` and ``candidate``, those that there are.
            _prompt: that was sampled.
            _folder: the run folder; files go to ``artifacts/`` below it.
        """
        return Kept()

    def players(self, _prompt: P, _numbers: Numbers) -> list[Player]:
        """How what `keep` wrote is shown."""
        return []

    # Beside each measure: distances to the truth's sample

    def beside(self, truth: Sample, sample: Sample) -> list[float]:
        """The distance of a sample to the truth's, always as many numbers; by default all measures, NaN for none."""
        numbers = self.distances(truth, sample)[0]
        return [as_number(numbers.get(measure.name)) for measure in self.measures()]

    def beside_record(self, arms: Mapping[str, list[float]], replays: Sequence[list[float]]) -> tuple[Numbers, Series]:
        """What a record says of the `beside` of each arm and of legal replays, as numbers and series."""
        numbers: Numbers = {}
        for i, measure in enumerate(self.measures()):
            if replays:
                values = [row[i] for row in replays]
                numbers[f"replays_{measure.name}_least"] = min(values)
                numbers[f"replays_{measure.name}_greatest"] = max(values)
            # Of a rung that an arm did not reach there is none.
            numbers |= {f"{arm}_{measure.name}": row[i] for arm, row in arms.items() if not math.isnan(row[i])}
        return numbers, {}

    def measures(self) -> list[Measure]:
        """Those of the rungs as far as samples go."""
        return [measure for rung in self.rungs_to(self.until) for measure in rung.measures]

    def distances(self, reference: Sample, candidate: Sample) -> tuple[Numbers, Series]:
        """The comparison of every rung that both samples have; raises as `Rung.compare`."""
        numbers: Numbers = {}
        series: Series = {}
        for rung in self.rungs:
            if rung.name in reference.made and rung.name in candidate.made:
                found = rung.compare(reference.made[rung.name], candidate.made[rung.name])
                numbers |= found[0]
                series |= found[1]
        return numbers, series


def _varied(prompts: Sequence[P], request: Request) -> tuple[P, ...]:
    """The prompts with the steps, the guidance and the seeds that were asked for."""
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
