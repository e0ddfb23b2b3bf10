"""Counts what warps ask of memory, and which blocks they run, while a chunk of CTAs is executed.

A warp's access is one request; that of a transposed matrix in shared memory counts as several. Global memory moves in
sectors of 32 bytes, and shared memory gives 32 banks of 4 bytes a cycle (CUDA C++ Programming Guide, "Device Memory
Accesses" and "Shared Memory").
"""

import dataclasses
from collections import Counter

import numpy as np

from validation.compiled.ptx.bits import Array
from validation.compiled.ptx.parse import Instruction

WARP, SECTOR, BANKS, BANK = 32, 32, 32, 4
# Above the sectors of every address: the number of the CTA.
CTA_SHIFT = 44


@dataclasses.dataclass
class Site:
    """What one load or store asked for, of all warps together.

    Attributes:
        space: ``global``, ``shared`` or ``local``. write: whether it stores. size: bytes of a thread.
        requests: one for each warp with an active thread.
        moved: sectors of global memory; wavefronts, of one cycle each, of shared memory.
        needed: the fewest of those that hold as many different bytes.
    """

    space: str
    write: bool
    size: int
    requests: int = 0
    moved: int = 0
    needed: int = 0


class Watch:
    """Counts of a run.

    Attributes:
        sites: by instruction.
        warps: by block of the program, how many warps ran it.
        trace: the blocks that the first warp ran, in order.
        work: by CTA, how often its warps ran a block or made a request of global memory.
        read, written: sectors of global memory by CTA, ``CTA << CTA_SHIFT | sector``, each once.
    """

    def __init__(self) -> None:
        self.sites: dict[Instruction, Site] = {}
        self.warps: Counter[int] = Counter()
        self.trace: list[int] = []
        self.work: Counter[int] = Counter()
        self._first: int | None = None
        self._read: list[Array] = []
        self._written: list[Array] = []

    @property
    def read(self) -> Array:
        """Sectors that were read, by CTA."""
        return _distinct(self._read)

    @property
    def written(self) -> Array:
        """Sectors that were written, by CTA."""
        return _distinct(self._written)

    def block(self, number: int, active: Array | None, shape: tuple[int, int], ctas: Array) -> None:
        """Threads of some CTAs run a block; None: all of them."""
        if self._first is None:
            self._first = int(ctas[0])
        whole = np.ones(shape, bool) if active is None else np.broadcast_to(active, shape)
        warps = whole.reshape(shape[0], -1, WARP).max(axis=2)
        self.warps[number] += int(warps.sum())
        runs = bool(warps[0, 0])
        self.work.update(dict(zip(ctas.tolist(), warps.sum(1).tolist(), strict=True)))
        if runs and ctas[0] == self._first:
            self.trace.append(number)

    def access(
        self, instruction: Instruction, space: str, address: Array, mask: Array | None, size: int, *, write: bool,
        shape: tuple[int, int], ctas: Array,
    ) -> None:  # fmt: skip
        """Warps access memory, each thread `size` bytes at its address, which is a multiple of that."""
        site = self.sites.setdefault(instruction, Site(space, write, size))
        lanes = np.broadcast_to(address, shape).reshape(-1, WARP).astype(np.int64)
        active = None if mask is None else np.broadcast_to(mask, shape).reshape(-1, WARP)
        if active is not None:
            lanes = np.where(active, lanes, -1)
            lanes = lanes[active.any(1)]
        if not len(lanes):
            return
        site.requests += len(lanes)
        if space == "shared":
            matrix = instruction.opcode.startswith(("ldmatrix", "stmatrix"))
            moved, needed = wavefronts(lanes, size, whole=matrix)
            site.moved += moved
            site.needed += needed
            return
        if space == "local":
            # Of neighbouring threads it lies side by side, whatever their addresses.
            whole = (-(-(lanes >= 0).sum(1) * size // SECTOR)).sum()
            site.moved += int(whole)
            site.needed += int(whole)
            return
        sectors = np.where(lanes < 0, -1, lanes // SECTOR)
        site.moved += int(_distinct_of_rows(sectors).sum())
        site.needed += int((-(-_distinct_of_rows(lanes) * size // SECTOR)).sum())
        if space == "global":
            of_cta = np.repeat(ctas, shape[1] // WARP)
            if active is not None:
                of_cta = of_cta[active.any(1)]
            self.work.update(of_cta.tolist())
            keys = (of_cta[:, None].astype(np.int64) << CTA_SHIFT) | sectors
            (self._written if write else self._read).append(np.unique(keys[sectors >= 0]))


def wavefronts(lanes: Array, size: int, *, whole: bool = False) -> tuple[int, int]:
    """The cycles that requests to shared memory take, and the fewest for as many different words.

    A cycle gives each bank one word. Accesses of 8 bytes are made by half a warp at a time, those of 16 by a quarter.

    Args:
        lanes: address of each lane, [requests, 32], negative where it is inactive.
        size: bytes of a lane.
        whole: make them with the whole warp at a time.
    """
    words = max(1, size // BANK)
    at_once = WARP if whole else WARP // words
    groups = lanes.reshape(-1, at_once)
    wanted = (groups // BANK)[:, :, None] + np.arange(words)
    wanted = np.where((groups >= 0)[:, :, None], wanted, -1).reshape(len(groups), -1)
    wanted.sort(axis=1)
    new = np.ones(wanted.shape, bool)
    new[:, 1:] = wanted[:, 1:] != wanted[:, :-1]
    new &= wanted >= 0
    row = np.broadcast_to(np.arange(len(wanted))[:, None], wanted.shape)
    banks = np.bincount((row * BANKS + wanted % BANKS)[new], minlength=len(wanted) * BANKS).reshape(-1, BANKS)
    return int(banks.max(1).sum()), int((-(-new.sum(1) // BANKS)).sum())


def _distinct_of_rows(values: Array) -> Array:
    """How many different values, none of them negative, each row has."""
    ordered = np.sort(values, axis=1)
    new = np.ones(ordered.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return (new & (ordered >= 0)).sum(1)


def _distinct(parts: list[Array]) -> Array:
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int64)
