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
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal

import torch
from torch import Tensor

from validation import files
from validation.device import Device
from validation.errors import UsageError
from validation.files import FIXTURES, default_folder
from validation.models.mount import Mount, Site, SiteCall
from validation.ops import OpSet
from validation.samples.clock import Clock
from validation.samples.options import Option
from validation.samples.prompts import P, read_prompts
from validation.verdict import Numbers, Series, Status

REPLAYS = 8

LATENTS = "latents"
"""``--until latents``: nothing is made of them."""

Progress = Callable[[str], None]


def silent(_text: str) -> None:
    """Progress that is reported to nobody."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a run over sampled output.

    Attributes:
        device: where to sample.
        checkpoint: its folder; None is `Model.default_checkpoint`.
        sites: where to mount; None is wherever the set has the op.
        prompts: a JSON file of what to sample; None is the checkpoint's own among the fixtures.
        bounds: a JSON file for `validation.samples.gates.Gates.read`; None is the checkpoint's own among the
            fixtures, or else the model's.
        seed: added to the seed of each prompt. seeds: how many seeds each prompt gets, from its own on.
        steps, guidance: denoising steps and guidance scale instead of the prompts' own.
        until: where a sample ends: `LATENTS`, or a rung; None is the last rung.
        own: values of the model's own options that were given, by name.
        replays: legal replays of each kind for each prompt, at least 4; where there are so few prompts that the
            test could not reject, more are made. 0 leaves the drift out: the gates alone are judged then.
        require: the tier that the drift is held to.
        cache: where the replays' distances and finished arms are kept; None is `validation.files.default_folder`.
        folder: the run folder, for what was sampled; None keeps none.
        repro: the command line that repeats the run, or "".
        progress: called with a line of text as the work goes on.
    """

    device: Device
    checkpoint: Path | None = None
    sites: Sequence[str] | None = None
    prompts: Path | None = None
    bounds: Path | None = None
    seed: int = 0
    seeds: int = 1
    steps: int | None = None
    guidance: float | None = None
    until: str | None = None
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    replays: int = REPLAYS
    require: str = "lossless"
    cache: Path | None = None
    folder: Path | None = None
    repro: str = ""
    progress: Progress = silent

    @property
    def cache_folder(self) -> Path:
        """`cache`, or the user's."""
        return self.cache or default_folder()

    @property
    def changes_prompts(self) -> bool:
        """Whether options change what the prompts ask for."""
        return self.steps is not None or self.guidance is not None or bool(self.own)

    def check_folders(self) -> None:
        """UsageError unless the folders that will be written to can be."""
        for folder in (self.folder, self.cache_folder):
            if folder is not None:
                files.require_writable(folder)

    def check_numbers(self) -> None:
        """UsageError naming the first number that cannot be met."""
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"--steps: {self.steps}, expected an integer >= 1")
        if self.seeds < 1:
            raise UsageError(f"--seeds: {self.seeds}, expected an integer >= 1")
        if self.guidance is not None and not 1 <= self.guidance < math.inf:
            raise UsageError(f"--guidance: {self.guidance}, expected a number of at least 1")
        if self.replays != 0 and self.replays < 4:
            raise UsageError(f"--replays: {self.replays}, expected at least 4, or 0 to leave the drift out")


# Samples and what they are compared by


class SampleError(Exception):
    """A sample is none: what came is known, and there is nothing further to make of it.

    Attributes:
        status: what a `Record` says of it.
        check: what found it, such as a rung's name.
        numbers, series: what was found, for the record.
    """

    def __init__(
        self,
        status: Status,
        check: str,
        reason: str,
        numbers: Mapping[str, float | int | str | None] | None = None,
        series: Mapping[str, list[float]] | None = None,
    ) -> None:
        super().__init__(reason)
        self.status, self.check = status, check
        self.numbers, self.series = dict(numbers or {}), dict(series or {})


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one sampling left behind, as far as it was made.

    Attributes:
        latents: after each denoising step, on the CPU.
        made: by rung's name, what was made of them. The first rung's is a numpy array, the last that is computed on
            the device.
        problem: why it ends early.
        seconds: wall-clock seconds by stage; a stage that was not reached is left out.
        peak_bytes: the greatest memory held meanwhile: allocated on the GPU, resident on the CPU.
        calls: calls of each mounted site. forwards: of the denoiser.
    """

    latents: list[Tensor]
    made: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    problem: SampleError | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    peak_bytes: int = 0
    calls: dict[str, int] = dataclasses.field(default_factory=dict)
    forwards: int = 0


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number that says how far two samples are apart on a rung.

    Attributes:
        name: in `Record.numbers`. label: in a table. unit: such as "dB", or "".
        better: whether a low or a high value is nearer.
        required: a file of gates must bound it.
    """

    name: str
    label: str
    unit: str
    better: Literal["low", "high"]
    required: bool = False


class Rung(ABC):
    """One form of a sample, and how two of that form are compared.

    Attributes:
        name: for ``--until``, and the key in `Sample.made`.
        stage: of `Sample.seconds`: making it.
        check: that a record names where its gates decide; its name, unless it says otherwise.
        measures: what `compare` gives and gates may bound, in the order in which failures are told.
    """

    name: ClassVar[str]
    stage: ClassVar[str] = "decode"
    check: ClassVar[str] = ""
    measures: ClassVar[tuple[Measure, ...]]

    def __init_subclass__(cls, **options: Any) -> None:
        """A rung's check is named like the rung, unless it says otherwise."""
        super().__init_subclass__(**options)
        if not cls.check:
            cls.check = cls.name

    @abstractmethod
    def compare(self, reference: Any, candidate: Any) -> tuple[Numbers, Series]:
        """The measures, and whatever else there is to say; a measure that does not apply is None.

        Raises:
            SampleError: they cannot be compared.
        """

    def require(self, _made: Any) -> None:
        """SampleError if nothing further can be made of what was made; nothing by default."""
        return

    def demands(self, _numbers: Numbers) -> list[str]:
        """What is wrong whatever the gates are, in words; nothing by default."""
        return []

    def words(self, numbers: Numbers) -> str:
        """The measures in a sentence that passed."""
        return ", ".join(f"{m.label} {numbers[m.name]:.3g} {m.unit}".rstrip() for m in self.measures[:2])

    def worst(self, _numbers: Numbers) -> str:
        """Where it is worst, for the message of a failure; "" by default."""
        return ""

    def same(self, _made: Any) -> str:
        """What is equal bit for bit where it is, with its verb."""
        return f"the {self.name} is"


@dataclasses.dataclass(frozen=True)
class Player:
    """How artifacts are shown: see ``players`` above."""

    role: str
    unit: str
    rate: float
    width: int | None = None
    captions: list[str] | None = None
    worst: int | None = None


@dataclasses.dataclass(frozen=True)
class Kept:
    """What was written of some samples.

    Attributes:
        artifacts: files by role, relative to the run folder.
        numbers: for the record. seconds: by stage.
    """

    artifacts: dict[str, str] = dataclasses.field(default_factory=dict)
    numbers: Numbers = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)


# Models


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
        """Files whose content decides what is sampled; by default those of the model's folder."""
        return sorted(Path(inspect.getfile(type(self))).parent.glob("*.py"))

    def own(self, name: str) -> Any:
        """The value of an option that this model alone has."""
        default = next(option.default for option in self.options if option.name == name)
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


def as_number(value: object) -> float:
    """A float, NaN for anything that is no number."""
    return float(value) if isinstance(value, (int, float)) else math.nan


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
