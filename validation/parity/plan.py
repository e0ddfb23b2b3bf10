"""The cases of a sweep: regressions, workloads, declared corners, free draws."""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from validation.cases.case import Case
from validation.cases.corners import Corner, all_rows, declared_corners, out_of_reach
from validation.cases.pool import Pool, draw_cases
from validation.cases.signature import Signature
from validation.cases.strategies import cases
from validation.cases.workloads import Workload
from validation.device import Device
from validation.judge import same_bits, settings
from validation.judge.signature import signature_of
from validation.parity.profiles import Profile
from validation.parity.regressions import regressions
from validation.parity.workloads import workloads

# Drawn cases of more rows come last: a kernel of one row a program may be too slow for the interpreter there, which
# takes up to 360 s of processor time a case, and no other verdict need wait for that.
LAST_ROWS = 16_384


@dataclasses.dataclass(frozen=True)
class Planned:
    """A case of a sweep, and how to draw others like it.

    Attributes:
        case: the case.
        forced: the choices that its corner asks for.
        key: its compile key, `forced` included; empty for cases that are not drawn.
    """

    case: Case
    forced: Mapping[str, Any]
    key: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All cases that a sweep feeds an op.

    Attributes:
        signature: the op's signature.
        corners: the corners that must be reached.
        out_of_reach: the names of those that only another device can reach.
        pool: the compile keys of all drawn cases.
        device, profile, seed: as in `sweep`.
    """

    signature: Signature
    corners: tuple[Corner, ...]
    out_of_reach: tuple[str, ...]
    pool: Pool
    device: Device
    profile: Profile
    seed: int

    @classmethod
    def of(cls, op: str, device: Device, profile: Profile, seed: int) -> "Plan":
        """The plan for an op."""
        signature, bfloat16 = signature_of(op), not device.bfloat16_problems
        corners = declared_corners(signature, bfloat16=bfloat16, gpu=device.gpu)
        corners += tuple(
            Corner(w.name, {}, lambda case, whole=whole: case == whole)  # type: ignore[misc]
            for w, whole in _real(op, device, profile)
        )
        corners += _same_bits_corners(signature, device)
        left_out = tuple(corner.name for corner in out_of_reach(signature, gpu=device.gpu))
        pool = _pool(signature, corners, bfloat16, seed, profile.free)
        return cls(signature, corners, left_out, pool, device, profile, seed)

    @property
    def bfloat16(self) -> bool:
        """Whether bfloat16 can be judged."""
        return not self.device.bfloat16_problems

    def count(self) -> int:
        """How many cases there are; none is drawn."""
        shared = (shares(corner, self.profile, self.signature) for corner in self.corners if corner.forced)
        return len(self.kept()) + sum(count for pairs in shared for _, count in pairs) + self.profile.free

    def kept(self) -> list[Case]:
        """The cases that are not drawn: past failures, and the real models' workloads."""
        op = self.signature.op
        kept = [c for c in regressions(op) if self.bfloat16 or all(s.dtype != "bfloat16" for s in c.tensors.values())]
        # With few tokens, the stages of a pyramid give equal cases.
        return kept + list({case.to_json(): case for _, case in _real(op, self.device, self.profile)}.values())

    def cases(self) -> Iterator[Planned]:
        """All cases; made lazily, but for drawn ones of more than `LAST_ROWS` rows, which come last."""
        for case in self.kept():
            yield Planned(case, {}, {})
        last = []
        for planned in self._in_order():
            if all_rows(planned.case) > LAST_ROWS:
                last.append(planned)
            else:
                yield planned
        yield from last

    def _in_order(self) -> Iterator[Planned]:
        """The drawn cases: corners, then free ones."""
        for corner in self.corners:
            if corner.forced:
                for turn, (forced, count) in enumerate(shares(corner, self.profile, self.signature)):
                    key = self.pool.of_corner(corner, forced, turn)
                    for case in self._drawn(corner.name, {**key, **forced}, count):
                        yield Planned(_made_due(case, corner, self.device), forced, key)
        # Equally many cases of each key; the remainder goes to the first keys.
        keys = tuple(itertools.islice(self.pool.open(), self.profile.free))
        for i, key in enumerate(keys):
            for case in self._drawn(f"free {i}", key, (self.profile.free + len(keys) - 1 - i) // len(keys)):
                yield Planned(_made_due(case, None, self.device), {}, key)

    def _drawn(self, label: str, forced: Mapping[str, Any], count: int) -> tuple[Case, ...]:
        seed = zlib.crc32(f"{self.seed}/{self.signature.op}/{label}".encode())
        return _drawn(self.signature, tuple(forced.items()), self.bfloat16, seed, count)


def _real(op: str, device: Device, profile: Profile) -> list[tuple[Workload, Case]]:
    """The workloads of an op: whole on a GPU, with few tokens elsewhere but where the profile has them whole.

    There is no bfloat16 if it cannot be judged.
    """
    whole = device.gpu or (profile.whole and device.kind == "compiled")
    made = [(workload, workload.make(whole)) for workload in workloads(op)]
    return [(w, case) for w, case in made if not device.bfloat16_problems or case.dtype != "bfloat16"]


@functools.lru_cache(maxsize=16)  # the planted faults of an op share it
def _cached_pool(
    signature: Signature,
    wanted: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...],
    bfloat16: bool,
    seed: int,
    free: int,
) -> Pool:
    asked = [(name, dict(forced)) for name, forced in wanted]
    return Pool.draw(signature, asked, seed, bfloat16=bfloat16, cases=free)


def _pool(signature: Signature, corners: tuple[Corner, ...], bfloat16: bool, seed: int, free: int) -> Pool:
    """The pool of a sweep; each corner's key must have the choices forced on the corner's first case."""
    wanted = tuple((c.name, tuple({**telling(signature), **c.forced}.items())) for c in corners if c.forced)
    return _cached_pool(signature, wanted, bfloat16, seed, free)


def telling(signature: Signature) -> dict[str, Any]:
    """Choices that make every row distinguishable.

    In zeros, modulated by zeros or by a row expanded over the batch, all rows look alike: with these choices free in
    both of a corner's two cases, 7 of 60 sweeps missed a ``[B, D]`` row mistaken for a token's.
    """
    return {"values": "normal", **{f"{name}.layout": "contiguous" for name in signature.modulations}}


def shares(corner: Corner, profile: Profile, signature: Signature) -> tuple[tuple[Mapping[str, Any], int], ...]:
    """Pairs of the choices to force in a corner's cases, and in how many cases; the first case is `telling`."""
    first, count = {**telling(signature), **corner.forced}, profile.per_corner // (1 + corner.sparse)
    return ((first, 1), (corner.forced, count - 1)) if count > 1 else ((first, 1),)


@functools.lru_cache(maxsize=512)  # an op's corners and its free draws: the planted faults of an op share them
def _drawn(
    signature: Signature, forced: tuple[tuple[str, Any], ...], bfloat16: bool, seed: int, count: int
) -> tuple[Case, ...]:
    """The cases of a compile key."""
    return tuple(draw_cases(cases(signature, dict(forced), bfloat16=bfloat16), seed=seed, count=count))


# Choices in which the last bit of a sum shows: float32, and several rows, long enough for two orders of summation to
# differ.
LAST_BIT: Mapping[str, Any] = {
    "dtype": "float32",
    "values": "normal",
    "literals": False,
    "size": "frames",
    "width": "model",
    "rank": 3,
    "heads": 2,
    "k.shape": "same",
}


# Choices in which the next call shows that a casting mode was kept: it rounds intermediates where it must not. This
# needs a weight if nothing else follows a norm, and a shape that no earlier call had.
FLAG_SHOWS: Mapping[str, Any] = {
    **LAST_BIT,
    "size": "ragged",
    "dtype": "float16",
    "casting_mode": "input",
    "affine": "weight",
    "qk.weights": "both",
}


# Choices in which a number that is rounded to another default dtype shows: sums as above, and eps.
SETTING_SHOWS: Mapping[str, Any] = {**LAST_BIT, "values": "variance_eps"}


def _same_bits_corners(signature: Signature, device: Device) -> tuple[Corner, ...]:
    """One corner for each check that compares two calls: `same_bits.due` gives each check to few cases."""

    def corner(check: str) -> Corner:
        forced = {"other flags": FLAG_SHOWS, "other settings": SETTING_SHOWS}.get(check, LAST_BIT)

        def reached(case: Case) -> bool:
            telling = check != "other settings" or settings.default_dtype(case) is torch.bfloat16
            return case.dtype == forced["dtype"] and telling and check in same_bits.due(case, device.torch)

        return Corner(f"{same_bits.CORNER}{check}", forced, reached)

    (example,) = draw_cases(cases(signature, LAST_BIT), seed=0, count=1)
    return tuple(corner(check) for check in same_bits.CHECKS if same_bits.applies(check, example, device.torch))


def _made_due(case: Case, corner: Corner | None, device: Device) -> Case:
    """The case with the next seed for which the right checks are due.

    For a corner of `same_bits`, the corner's check is due; for other cases, only checks that cost few kernels
    (`same_bits.affordable`).
    """
    seeds = (dataclasses.replace(case, seed=case.seed + n) for n in range(10_000))
    if corner is not None and corner.name.startswith(same_bits.CORNER):
        return next(c for c in seeds if corner.reached(c))
    affordable = same_bits.affordable(case)
    return next(c for c in seeds if affordable.issuperset(same_bits.due(c, device.torch)))
