"""The drift of a candidate over some prompts, measured: teacher-forced, and free-running beside the replays."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from validation.chains.replay import KINDS, Kind, Replay
from validation.drift import band
from validation.drift.cache import PromptBand
from validation.drift.teacher import CallErrors, TeacherForced, forwards_to_watch
from validation.models.mount import SiteCall
from validation.ops import OpSet
from validation.samples.store import TAKEN, ArmStore

REPLAYS = 8


class Seeded(Protocol):
    """What is sampled: a dataclass with a name and a seed."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """For messages and file names."""

    @property
    def seed(self) -> int:
        """Of the noise."""


P = TypeVar("P", bound=Seeded)


@dataclasses.dataclass(frozen=True)
class Model(Generic[P]):
    """A model as the measurement sees it.

    Attributes:
        name: of the model.
        identity: everything that decides its samples except op set and prompt (checkpoint content, dtype,
            device, versions, mounted sites, code), as JSON values: the cache's key.
        sample: ``(ops, prompt) -> latents after each step``, on the CPU, with the op set mounted; repeats
            itself to the bit.
        steps: denoising steps of a prompt's sample.
        forwards_per_step: of the mounted model.
        place_of: where in the model a site call is, such as ``block 3``: another name for each call of a site in a
            forward.
        places: how many calls of sites a forward has.
        beside: ``(prompt, truth's latents, latents of a lossless replay) -> further numbers``, always as many, which
            are kept with the replay's distances and not judged.
    """

    name: str
    identity: Mapping[str, Any]
    sample: Callable[[OpSet, P], Sequence[Tensor]]
    steps: Callable[[P], int]
    forwards_per_step: Callable[[P], int]
    place_of: Callable[[SiteCall], str]
    places: int
    beside: Callable[[P, Sequence[Tensor], Sequence[Tensor]], Sequence[float]] = lambda _prompt, _truth, _latents: ()


@dataclasses.dataclass(frozen=True)
class PromptDrift:
    """What was measured on one prompt.

    Attributes:
        reference, candidate: distances to the truth, step by step.
        replays: ``[K, S]`` by kind.
        bit_exact: the candidate's latents are the reference's.
        seconds: of the stages ``teacher_forced``, ``band``.
        from_cache: replays that were not sampled now.
        truth: its latents, step by step.
        beside: ``[K, n]``, what `Model.beside` says of the lossless replays.
    """

    reference: list[float]
    candidate: list[float]
    replays: dict[Kind, band.Distances]
    bit_exact: bool
    seconds: dict[str, float]
    from_cache: int
    truth: Sequence[Tensor] = ()
    beside: band.Distances = dataclasses.field(default_factory=lambda: np.empty((0, 0)))


@dataclasses.dataclass(frozen=True)
class _Taught:
    """A truth's trajectory, and the errors that were kept on the side as dictionaries."""

    latents: Sequence[Tensor]
    errors: list[dict[str, Any]]

    @classmethod
    def read(cls, latents: Sequence[Tensor], _decoded: object, errors: list[dict[str, Any]]) -> Self:
        """What `ArmStore.get` asks for."""
        return cls(latents, errors)


class Drift(Generic[P]):
    """The measurement, prompt by prompt.

    Attributes:
        replays: how many of each kind a prompt gets: those wanted, or more where there are few prompts
            (`band.replays_needed`); 0 where no number would do, and the band is then left out.
        measured: what there is so far, by the prompt's number.
    """

    def __init__(
        self,
        model: Model[P],
        candidate: OpSet,
        prompts: Sequence[P],
        *,
        cache: Path,
        replays: int = REPLAYS,
        store: ArmStore | None = None,
        progress: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """Prepare; nothing is sampled yet.

        Args:
            model: see `Model`.
            candidate: the op set to measure.
            prompts: all that `add` will be called with.
            cache: folder of the bands.
            replays: of each kind, at least 4.
            store: of finished arms, where the truths are kept too.
            progress: called with a line of text for each sample.
        """
        self.model, self.prompts, self.cache, self.progress = model, tuple(prompts), cache, progress
        self.store = store
        self.replays = band.replays_needed(len(self.prompts), replays)
        self.teacher = TeacherForced(candidate, model.place_of)
        self.measured: dict[int, PromptDrift] = {}

    def add(self, prompt: P, reference: Sequence[Tensor], candidate: Sequence[Tensor]) -> PromptDrift:
        """Measure one of the prompts, whose free-running latents these are.

        Raises:
            SiteError: an op failed inside the model.
            UsageError: the cache cannot be written.
            ValueError: latents of another number or shape than the truth's.
        """
        number = self.prompts.index(prompt)
        start = time.perf_counter()
        truth = self._truth(number, prompt)
        taught = time.perf_counter()
        replays, beside, from_cache = self._band(prompt, truth)
        found = PromptDrift(
            band.distances(reference, truth),
            band.distances(candidate, truth),
            replays,
            all(torch.equal(a, b) for a, b in zip(reference, candidate, strict=True)),
            {"teacher_forced": taught - start, "band": time.perf_counter() - taught},
            from_cache,
            truth,
            beside,
        )
        self.measured[number] = found
        return found

    def _truth(self, number: int, prompt: P) -> Sequence[Tensor]:
        """The truth's latents; the teacher has watched its trajectory then."""
        name = f"{prompt.name}-{prompt.seed}-truth"
        kept = self.store.get(name, _Taught.read) if self.store else None
        self.progress("truth, teacher-forced" if kept is None else f"truth, {TAKEN}")
        if kept is not None:
            self.teacher.errors += [CallErrors(**error) for error in kept.errors]
            return kept.latents
        per_step = self.model.forwards_per_step(prompt)
        families = 2 * self.model.places  # at most: a site has a place at least
        watched = forwards_to_watch(self.model.steps(prompt) * per_step, len(self.prompts), families)
        before = len(self.teacher.errors)
        truth = self.model.sample(self.teacher.op_set(number, watched, per_step), prompt)
        if self.store:
            errors = [dataclasses.asdict(error) for error in self.teacher.errors[before:]]
            self.store.put(name, _Taught(truth, errors), measured=["errors"])
        return truth

    def _band(self, prompt: P, truth: Sequence[Tensor]) -> tuple[dict[Kind, band.Distances], band.Distances, int]:
        identity = {**self.model.identity, "model": self.model.name, "prompt": dataclasses.asdict(prompt)}
        kept = PromptBand(self.cache, identity, self.progress)
        if not kept.begin(truth):
            self.progress(f"the cached band {kept.path} is of another truth than this machine makes, making it again")
        from_cache, found, beside = 0, {}, []
        for kind in KINDS:
            rows = []
            for number in range(self.replays):
                row = kept.get(kind, number)
                if row is None or len(row) < len(truth):
                    self.progress(f"{kind} replay {number + 1} of {self.replays}")
                    latents = self.model.sample(Replay(kind, f"{prompt.name} {prompt.seed} {number}").op_set(), prompt)
                    row = band.distances(latents, truth)
                    if kind == "lossless":
                        row += self.model.beside(prompt, truth, latents)
                    kept.put(kind, number, row)
                else:
                    from_cache += 1
                rows.append(row[: len(truth)])
                if kind == "lossless":
                    beside.append(row[len(truth) :])
            found[kind] = np.asarray(rows, dtype=np.float64).reshape(len(rows), len(truth))
        return found, np.asarray(beside, dtype=np.float64).reshape(len(beside), -1 if beside else 0), from_cache

    @property
    def bit_exact(self) -> bool:
        """True if the candidate's latents are the reference's on every prompt so far."""
        return all(found.bit_exact for found in self.measured.values())

    def rows(self, arm: str) -> band.Distances:
        """Distances ``[P, S]`` of an arm, or ``[P, K, S]`` of a kind of replays, up to the shortest prompt's end."""
        steps = min(len(found.candidate) for found in self.measured.values())
        rows = [found.replays[arm] if arm in found.replays else getattr(found, arm) for found in self.measured.values()]
        return np.stack([np.asarray(row)[..., :steps] for row in rows])
