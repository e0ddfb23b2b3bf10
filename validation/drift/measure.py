"""Measure the drift of a candidate over some prompts: teacher-forced, and free-running against the replays."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from validation.chains import replay
from validation.chains.replay import KINDS, Kind, Replay
from validation.drift import band
from validation.drift.cache import PromptBand
from validation.drift.teacher import CallErrors, TeacherForced, forwards_to_watch
from validation.models import mount
from validation.ops import OpSet
from validation.progress import Estimate
from validation.samples.model import Sampler
from validation.samples.prompts import P, Seeded
from validation.samples.request import REPLAYS, Progress, silent
from validation.samples.store import TAKEN, ArmStore

P_contra = TypeVar("P_contra", bound=Seeded, contravariant=True)


def sources() -> list[Path]:
    """Files whose code decides the truth and its legal replays."""
    return [*replay.sources(), Path(str(mount.__file__))]


class Beside(Protocol[P_contra]):
    """Further measures of the lossless replays, cached like the distances of their latents, but not judged."""

    @property
    def replays(self) -> int | None:
        """How many lossless replays to measure; None is all that the band has."""

    def identity(self, prompt: P_contra) -> Mapping[str, Any]:
        """Everything except the latents that decides the numbers, as JSON values."""

    def begin(self, prompt: P_contra, truth: Sequence[Tensor]) -> bool:
        """Take the truth's latents; False if there is nothing to measure against."""

    def row(self, prompt: P_contra, latents: Sequence[Tensor], what: str) -> list[float]:
        """The measures of a replay's latents; their number is fixed."""


@dataclasses.dataclass(frozen=True)
class PromptDrift:
    """The measurement of one prompt.

    Attributes:
        reference, candidate: distances to the truth, step by step.
        replays: distances ``[K, S]`` by kind.
        bit_exact: the candidate's latents have the reference's bits.
        seconds: of the stages ``teacher_forced``, ``band``.
        truth: the truth's latents, step by step.
        beside: rows of `Beside`, one per lossless replay.
    """

    reference: list[float]
    candidate: list[float]
    replays: dict[Kind, band.Distances]
    bit_exact: bool
    seconds: dict[str, float]
    truth: Sequence[Tensor] = ()
    beside: list[list[float]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Taught:
    """A truth's trajectory, and the errors measured along it, as dictionaries."""

    latents: Sequence[Tensor]
    errors: list[dict[str, Any]]

    @classmethod
    def read(cls, latents: Sequence[Tensor], _decoded: object, errors: list[dict[str, Any]]) -> Self:
        """Make one from a stored arm, for `ArmStore.get`."""
        return cls(latents, errors)


class Drift(Generic[P]):
    """The measurement, prompt by prompt.

    Attributes:
        replays: how many of each kind a prompt gets: those wanted, or more if there are few prompts
            (`band.replays_needed`); 0 if no number suffices: the band is then left out.
        measured: the results so far, by the prompt's number.
    """

    def __init__(
        self,
        model: Sampler[P],
        candidate: OpSet,
        prompts: Sequence[P],
        *,
        identity: Mapping[str, Any],
        cache: Path,
        replays: int = REPLAYS,
        store: ArmStore | None = None,
        beside: Beside[P] | None = None,
        estimate: Estimate | None = None,
        progress: Progress = silent,
    ) -> None:
        """Prepare; nothing is sampled yet.

        Args:
            model: samples the latents.
            candidate: the op set to measure.
            prompts: all that `add` will be called with.
            identity: everything that decides the latents except op set and prompt (checkpoint content, dtype, device,
                versions, sites, code), as JSON values: the cache's key.
            cache: folder of the bands.
            replays: number of each kind, at least 4.
            store: store of finished arms, which keeps the truths too.
            beside: further measures of the lossless replays.
            estimate: updated after each finished sample.
            progress: called with a line of text for each sample.
        """
        self.model, self.prompts, self.cache, self.progress = model, tuple(prompts), cache, progress
        self.identity = {**identity, "model": model.name}
        self.store, self.beside, self.estimate = store, beside, estimate or Estimate({})
        self.replays = band.replays_needed(len(self.prompts), replays)
        self.teacher = TeacherForced(candidate, model.place_of)
        self.measured: dict[int, PromptDrift] = {}
        self.estimate.plan({"truth": len(self.prompts), "replay": 2 * self.replays * len(self.prompts)})

    def add(self, prompt: P, reference: Sequence[Tensor], candidate: Sequence[Tensor]) -> PromptDrift:
        """Measure one of the prompts, given the free-running latents of both arms.

        Raises:
            SiteError: an op failed inside the model.
            UsageError: the cache cannot be written.
            ValueError: the number or the shape of the latents differs from the truth's.
        """
        number = self.prompts.index(prompt)
        start = time.perf_counter()
        truth = self._truth(number, prompt)
        taught = time.perf_counter()
        replays, beside = self._band(prompt, truth)
        found = PromptDrift(
            band.distances(reference, truth),
            band.distances(candidate, truth),
            replays,
            all(torch.equal(a, b) for a, b in zip(reference, candidate, strict=True)),
            {"teacher_forced": taught - start, "band": time.perf_counter() - taught},
            truth,
            beside,
        )
        self.measured[number] = found
        return found

    def _truth(self, number: int, prompt: P) -> Sequence[Tensor]:
        """The truth's latents, sampled under the teacher's watch or taken from the store."""
        name = f"{prompt.name}-{prompt.seed}-truth"
        kept = self.store.get(name, _Taught.read) if self.store else None
        self.progress("truth, teacher-forced" if kept is None else f"truth, {TAKEN}")
        if kept is not None:
            self.teacher.errors += [CallErrors(**error) for error in kept.errors]
            return kept.latents
        per_step = self.model.forwards_per_step(prompt)
        families = 2 * sum(site.calls for site in self.model.sites)  # at most: each site has at least one place
        watched = forwards_to_watch(self.model.steps(prompt) * per_step, len(self.prompts), families)
        before = len(self.teacher.errors)
        truth = self._latents("truth", self.teacher.op_set(number, watched, per_step), prompt)
        if self.store:
            errors = [dataclasses.asdict(error) for error in self.teacher.errors[before:]]
            self.store.put(name, _Taught(truth, errors), measured=["errors"])
        return truth

    def _latents(self, kind: str, ops: OpSet, prompt: P) -> list[Tensor]:
        start = time.perf_counter()
        latents = self.model.sample(ops, prompt).latents
        self.estimate.done(kind, time.perf_counter() - start)
        return latents

    def _band(self, prompt: P, truth: Sequence[Tensor]) -> tuple[dict[Kind, band.Distances], list[list[float]]]:
        identity = {**self.identity, "prompt": dataclasses.asdict(prompt)}
        kept = self._kept(identity, truth)
        beside, rows_beside, count = None, [], 0
        if self.beside is not None and self.beside.begin(prompt, truth):
            beside = self._kept({**identity, "beside": self.beside.identity(prompt)}, truth)
            count = self.replays if self.beside.replays is None else self.beside.replays
        found: dict[Kind, band.Distances] = {}
        for kind in KINDS:
            rows = []
            more = count if kind == "lossless" else 0
            for number in range(max(self.replays, more)):
                row = kept.get(kind, number)
                missing = number < self.replays and (row is None or len(row) != len(truth))
                row_beside = beside.get(kind, number) if beside is not None and number < more else None
                if missing or (number < more and row_beside is None):
                    self.progress(f"{kind} replay {number + 1} of {max(self.replays, more)}")
                    latents = self._latents(
                        "replay", Replay(kind, f"{prompt.name} {prompt.seed} {number}").op_set(), prompt
                    )
                    if missing:
                        row = band.distances(latents, truth)
                        kept.put(kind, number, row)
                    if beside is not None and self.beside is not None and number < more and row_beside is None:
                        row_beside = self.beside.row(prompt, latents, f"{kind} replay {number + 1}")
                        beside.put(kind, number, row_beside)
                else:
                    self.estimate.done("replay", 0.0)
                if number < self.replays and row is not None:
                    rows.append(row)
                if row_beside is not None:
                    rows_beside.append(row_beside)
            found[kind] = np.asarray(rows, dtype=np.float64).reshape(len(rows), len(truth))
        return found, rows_beside

    def _kept(self, identity: Mapping[str, Any], truth: Sequence[Tensor]) -> PromptBand:
        kept = PromptBand(self.cache, identity, self.progress)
        if not kept.begin(truth):
            self.progress(f"the cached band {kept.path} is of another truth than this machine makes, making it again")
        return kept

    @property
    def bit_exact(self) -> bool:
        """True if the candidate's latents are the reference's on every prompt so far."""
        return all(found.bit_exact for found in self.measured.values())

    def rows(self, arm: str) -> band.Distances:
        """Distances ``[P, S]`` of an arm, or ``[P, K, S]`` of a kind of replay, up to the shortest prompt's end."""
        steps = min(len(found.candidate) for found in self.measured.values())
        rows = [found.replays[arm] if arm in found.replays else getattr(found, arm) for found in self.measured.values()]
        return np.stack([np.asarray(row)[..., :steps] for row in rows])
