"""The drift of an arm, reported with its time, so that nobody buys speed with quality.

The arm runs as it is timed, graph or compiled model included, for a few steps from `STARTS` seeds, and its latents
are ranked among those of legal replays (`validation.drift.band`); its op set is compared with the reference call by
call on the truth's trajectories (`validation.drift.teacher`), with the same sites, compact modulation and packed q
and k. A compiled model has no op set, so it is judged by the band alone, which includes what the compiler rounds
elsewhere.
"""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from inspect import getfile
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from validation.bench.arms import Running
from validation.bench.results import one_line
from validation.chains.truth import truth
from validation.drift import measure, verdicts
from validation.drift.teacher import forwards_to_watch
from validation.errors import UsageError
from validation.files import hash_files
from validation.models.mount import Mount, Site, SiteCall, SiteError
from validation.ops import OpSet
from validation.record import cpu_name
from validation.samples.denoiser import BEFORE, Arm, Denoiser, Forward
from validation.samples.model import Sampler
from validation.samples.request import REPLAYS, Progress, silent
from validation.samples.rung import Sample
from validation.verdict import Status, Tier, Verdict

STARTS = 6


@dataclasses.dataclass(frozen=True)
class Start:
    """What is sampled: noise from a seed, under the denoiser's condition."""

    name: str
    seed: int
    steps: int


@dataclasses.dataclass(frozen=True)
class ArmVerdict:
    """The drift verdicts of an arm.

    Attributes:
        verdicts: teacher-forced and the band's, or the band's alone; empty for the path before.
        reason: the verdicts in one sentence.
    """

    verdicts: tuple[Verdict, ...]
    reason: str

    @property
    def failed(self) -> bool:
        """Whether a verdict fails."""
        return any(verdict.status.failed for verdict in self.verdicts)

    @property
    def passed(self) -> bool:
        """Whether there are verdicts and all pass."""
        return bool(self.verdicts) and all(verdict.status is Status.PASSED for verdict in self.verdicts)

    @property
    def word(self) -> str:
        """The loosest tier if all pass, else the first status that fails or is not PASSED; "-" for the path before."""
        wrong = [verdict.status for verdict in self.verdicts if verdict.status is not Status.PASSED]
        if wrong:
            return str(next((status for status in wrong if status.failed), wrong[0]))
        return Tier.loosest(verdict.tier for verdict in self.verdicts) or "-"

    def to_dict(self) -> dict[str, Any]:
        """The verdicts as JSON values."""
        of = {verdict.check: f"{verdict.status} {verdict.tier or ''}".strip() for verdict in self.verdicts}
        return {"word": self.word, "reason": self.reason, **of}


class _Sampler(Sampler[Start]):
    """Adapts a denoiser to the drift's sampling, with the sites and the variant of an arm."""

    def __init__(self, denoiser: Denoiser, variant: str, sites: tuple[Site, ...]) -> None:
        self.name, self.sites = f"bench {denoiser.name}", sites
        self.denoiser, self.variant = denoiser, variant

    def mount(self, ops: OpSet) -> AbstractContextManager[Mount]:
        """See `Denoiser.mount`."""
        return self.denoiser.mount(ops, [site.name for site in self.sites], self.variant)

    def latents(self, prompt: Start, _mounted: Mount, _progress: Progress = silent) -> Sample:
        """See `Sampler.latents`."""
        return Sample(_walk(self.denoiser, self.denoiser.model, prompt))

    def place_of(self, call: SiteCall) -> str:
        """See `Denoiser.place_of`."""
        return self.denoiser.place_of(call)


def _walk(denoiser: Denoiser, forward: Forward, start: Start) -> list[Tensor]:
    with torch.no_grad():
        return [x.cpu() for x in denoiser.sample(forward, start.seed, start.steps)]


class DriftOfArms:
    """Measures the drift of a denoiser's arms.

    Attributes:
        about: the model on which it is measured, in words.
        steps: steps of a trajectory: the fewest with which the teacher-forced test can reject.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        cache: Path,
        replays: int = REPLAYS,
        checkpoint: Path | None = None,
        progress: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """Sample the path before, twice from the first seed.

        Args:
            denoiser: the denoiser on which to measure.
            cache: folder of the bands.
            replays: legal replays of each kind for each seed, at least 4.
            checkpoint: the denoiser's; its content is part of the bands' identity.
            progress: called with a line of text for each sample.
        """
        self.denoiser, self.cache, self.replays, self.progress = denoiser, cache, replays, progress
        places = sum(site.calls for site in denoiser.sites)
        self.steps = len(forwards_to_watch(1 << 20, STARTS, 2 * places))
        self.about = f"{denoiser.name} ({denoiser.weights}; {denoiser.size}), {self.steps} steps from {STARTS} seeds"
        self.starts = [Start("noise", seed, self.steps) for seed in range(STARTS)]
        self.content = "" if checkpoint is None else hash_files([checkpoint])
        before = Running(denoiser, Arm(BEFORE, ""))
        self.before = [self._sample(before, start) for start in self.starts]
        again = self._sample(before, self.starts[0])
        self.repeats = all(torch.equal(a, b) for a, b in zip(self.before[0], again, strict=True))

    def __call__(self, arm: Arm, require: str = "close") -> ArmVerdict:
        """Measure and judge the drift of an arm; errors while it runs become a failed verdict.

        Raises:
            UsageError: its sites cannot be mounted, or the cache cannot be written.
        """
        if arm.ops is None and not arm.compiled:
            same = "repeats itself to the bit" if self.repeats else "does NOT repeat itself to the bit"
            return ArmVerdict((), f"what the others are held against; {same}")
        if not self.repeats:
            reason = "the path before does not repeat itself to the bit: rounding cannot be told from chance here"
            return ArmVerdict((Verdict(Status.INCONCLUSIVE, "reference", reason),), reason)
        candidate = arm.ops or OpSet("none", {}, "")
        with self.denoiser.mount(arm.ops or truth(), arm.sites, arm.variant) as mounted:
            chosen = tuple(mounted.sites.values())

        drift = measure.Drift(
            _Sampler(self.denoiser, arm.variant, chosen),
            candidate,
            self.starts,
            identity=self._identity() | {"sites": [site.name for site in chosen]},
            cache=self.cache,
            replays=self.replays,
            progress=self.progress,
        )
        try:
            running = Running(self.denoiser, arm)
            for start, before in zip(self.starts, self.before, strict=True):
                drift.add(start, before, self._sample(running, start))
        except UsageError:
            raise
        except Exception as error:  # the arm's time is already known and must not be lost
            status = error.status if isinstance(error, SiteError) else Status.RUNTIME_ERROR
            return ArmVerdict((Verdict(status, "sites", one_line(error)),), one_line(error))
        if arm.compiled:
            found: tuple[Verdict, ...] = (verdicts.judge_band(drift, require),)
        else:
            found = verdicts.verdicts(drift, require)
        wrong = [verdict for verdict in found if verdict.status is not Status.PASSED]
        return ArmVerdict(found, "; ".join(f"{verdict.check}: {verdict.reason}" for verdict in wrong or found))

    def _sample(self, running: Running, start: Start) -> list[Tensor]:
        with running.entered():
            return _walk(self.denoiser, running.forward, start)

    def _identity(self) -> dict[str, Any]:
        """What decides the bands, except sites and start. Compact modulation and packed q and k give the same bits."""
        device = self.denoiser.device
        sources = [*measure.sources(), *sorted(Path(getfile(type(self.denoiser))).parent.glob("*.py"))]
        return {
            "weights": self.denoiser.weights,
            "content": self.content,
            "size": self.denoiser.size,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
            "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
            "code": hash_files(sources),
        }
