"""Races: two threads at one byte, one of them writing, with nothing between that orders them.

Within a CTA a barrier orders all that is before it with all that is after. Between CTAs of a launch nothing does. The
machine runs threads in lock step, in which many races change no result: so each byte remembers who wrote and who read
it last, and in which interval between barriers. Shared memory that a thread reads and none has written is reported too.

Atomics are ordered with one another; an atomic and a plain access are not. Where one thread of a CTA acquires an
address that a thread of another CTA released, as in a lock or a count of CTAs that are done, what the other one did
comes before.
"""

from typing import Any

import numpy as np

from validation.compiled.ptx.bits import Array
from validation.compiled.ptx.memory import BASE
from validation.compiled.ptx.parse import Instruction

# In place of a thread or a CTA: several have read the byte (threads: in this interval).
_SEVERAL = -2


class _Shadow:
    """For each byte its last writer and reader, and the interval in which they accessed it."""

    def __init__(self, size: int) -> None:
        self.writer, self.reader = np.full(size, -1, np.int64), np.full(size, -1, np.int64)
        self.written, self.read = np.full(size, -1, np.int32), np.full(size, -1, np.int32)
        self.reader_cta = np.full(size, -1, np.int64)
        # Made by the first atomic.
        self.atomic: Array | None = None

    def note_atomic(self, at: Array, who: Array, cta: Array, now: Array) -> None:
        """Note who changed bytes atomically."""
        if self.atomic is None:
            size = len(self.writer)
            self.atomic, self.atomic_cta = np.full(size, -1, np.int64), np.full(size, -1, np.int64)
            self.atomically = np.full(size, -1, np.int32)
        known, same = self.atomic[at], self.atomically[at] == now
        _note(self.atomic, at, np.where(same & (known != -1) & (known != who), _SEVERAL, who))
        self.atomically[at] = now
        known = self.atomic_cta[at]
        _note(self.atomic_cta, at, np.where((known == -1) | (known == cta), cta, _SEVERAL))

    def beside_atomics(self, at: Array, who: Array, cta: Array, now: Array) -> Array:
        """Which plain accesses nothing orders with an atomic of another thread."""
        assert self.atomic is not None
        other, group = self.atomic[at], self.atomic_cta[at]
        of_cta = (other != -1) & (other != who) & (self.atomically[at] == now)
        return of_cta | ((group != -1) & (group != cta))


class Races:
    """What a launch's threads have accessed so far.

    Args:
        size: bytes of global memory.
        guesses: loads that are looked at no more: a compare-and-swap follows that refuses what they gave too early.
    """

    def __init__(self, size: int, guesses: frozenset[Instruction]) -> None:
        self._guesses = guesses
        self._global = _Shadow(size)
        self._interval = np.zeros(0, np.int32)
        self._shared = _Shadow(0)
        # Bytes of shared memory that an asynchronous copy will write; made by the first one.
        self._flying: Array | None = None
        self._next = 1
        # By address: the CTAs that released it, and up to which of their intervals. By CTA: the same of those it saw.
        self._released: dict[int, dict[int, int]] = {}
        self._seen: dict[int, dict[int, int]] = {}

    def begin(self, ctas: int, stride: int) -> None:
        """A new chunk of CTAs, each with `stride` bytes of shared memory: new shared memory, new intervals."""
        self._next += 1
        self._stride = stride
        self._shared = _Shadow(ctas * self._stride)
        self._interval = np.full(ctas, self._next, np.int32)
        self._flying = None

    def fly(self, at: Array, *, away: bool) -> None:
        """Asynchronous copies to bytes of shared memory are issued, or have ended."""
        if self._flying is None:
            self._flying = np.zeros(len(self._shared.writer), bool)
        self._flying[at] = away

    def synchronise(self, chunk: Any, instruction: Instruction, row: Array, at: Array) -> None:
        """An atomic of one thread of each CTA, in their order: what a CTA did before it released an address comes
        before what another one does that acquires the address after it.

        What the CTA does between its release and its next barrier counts as done before.
        """
        parts = instruction.opcode.split(".")
        acquires, releases = ({one, "acq_rel"}.intersection(parts) for one in ("acquire", "release"))
        for n, address in zip(row.tolist(), at.tolist(), strict=True):
            cta = int(chunk.ctas[n])
            seen = self._seen.setdefault(cta, {})
            if acquires:
                _merge(seen, self._released.get(address, {}))
            if releases:
                mine = self._released.setdefault(address, {})
                _merge(mine, seen)
                _merge(mine, {cta: int(self._interval[n])})

    def _before(self, other: Array, when: Array, cta: Array) -> Array:
        """Which accesses of other CTAs, in their intervals, come before all that a CTA does now."""
        if not self._seen:
            return np.zeros(len(cta), bool)
        pairs, which = np.unique(np.stack([other, cta]), axis=1, return_inverse=True)
        until = np.array([self._seen.get(c, {}).get(o, -1) for o, c in pairs.T.tolist()])
        return (when <= until[which.reshape(-1)]) & (other >= 0)

    def barrier(self, chunk: Any) -> None:
        """The active CTAs' threads meet."""
        reached = slice(None) if chunk.active is None else chunk.active.any(1)
        self._next += 1
        self._interval[reached] = self._next

    def access(
        self,
        chunk: Any,
        instruction: Instruction,
        space: str,
        offset: Array,
        mask: Array | None,
        size: int,
        *,
        write: bool,
        atomic: bool = False,
    ) -> None:
        """Note an access of some lanes, and report a race with an earlier one."""
        lanes = np.broadcast_to(True if mask is None else mask, chunk.shape)
        row, thread = np.nonzero(lanes)
        if not len(row) or instruction in self._guesses:
            return
        at = np.broadcast_to(offset, chunk.shape)[row, thread].astype(np.int64)
        shadow = self._global
        if space == "shared":
            shadow, at = self._shared, at + row * self._stride
        at = (at[:, None] + np.arange(size)).ravel()
        cta = np.repeat(chunk.ctas[row].astype(np.int64), size)
        who, now = cta * chunk.shape[1] + np.repeat(thread, size), np.repeat(self._interval[row], size)
        writer, reader = shadow.writer[at], shadow.reader[at]
        wrong = (writer != -1) & (writer != who) & ((writer // chunk.shape[1] != cta) | (shadow.written[at] == now))
        wrong &= ~self._before(writer // chunk.shape[1], shadow.written[at], cta)
        what = "changes atomically" if atomic else "writes" if write else "reads", "wrote"
        changed = np.zeros(len(at), bool) if shadow.atomic is None else shadow.atomic[at] != -1
        if shadow.atomic is not None and not atomic and not wrong.any():
            wrong, what = shadow.beside_atomics(at, who, cta, now), (what[0], "changed atomically")
        if write:
            if not wrong.any():
                before = self._before(shadow.reader_cta[at], shadow.read[at], cta)
                of_cta = (reader != -1) & (reader != who) & (shadow.read[at] == now)
                others = (shadow.reader_cta[at] != -1) & (shadow.reader_cta[at] != cta)
                wrong, what = of_cta | (others & ~before), (what[0], "read")
            # Lanes of one instruction at one byte: `machine.Chunk.store` compares what they write. Where a layout holds
            # an element in several threads they all write it.
            if atomic:
                shadow.note_atomic(at, who, cta, now)
            else:
                shadow.writer[at], shadow.written[at] = who, now
        else:
            _note(
                shadow.reader, at, np.where((shadow.read[at] == now) & (reader != -1) & (reader != who), _SEVERAL, who)
            )
            known = shadow.reader_cta[at]
            before = self._before(known, shadow.read[at], cta)
            shadow.read[at] = now
            _note(shadow.reader_cta, at, np.where((known == -1) | (known == cta) | before, cta, _SEVERAL))
        kind, how = "RACE", f"{what[0]} what another thread {what[1]} with no barrier between"
        if space == "shared" and self._flying is not None and self._flying[at].any():
            how, wrong = f"{what[0]} what an asynchronous copy is still to write", self._flying[at]
        if space == "shared" and (atomic or not write) and not wrong.any():
            kind, how, wrong = "UNINITIALISED_READ", "reads what no thread has written", (writer == -1) & ~changed
        if wrong.any():
            n = int(np.argmax(wrong))
            place = f"byte {int(at[n]) % self._stride} of shared memory"
            if space == "global":
                place = chunk.memory.where(BASE + int(at[n]))
            count = len(np.unique(who[wrong]))
            chunk.found.add(kind, instruction, int(cta[n]), int(who[n] % chunk.shape[1]), count, f"{how}, {place}")


def _merge(into: dict[int, int], more: dict[int, int]) -> None:
    """Keep the later interval of each CTA."""
    for cta, interval in more.items():
        into[cta] = max(interval, into.get(cta, -1))


def _note(shadow: Array, at: Array, what: Array) -> None:
    """Write to a shadow, `_SEVERAL` where lanes at one byte differ."""
    shadow[at] = what
    shadow[at[shadow[at] != what]] = _SEVERAL
