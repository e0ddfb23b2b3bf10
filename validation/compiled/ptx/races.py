"""Races: two threads at one byte, one of them writing, with nothing between that orders them.

Within a CTA a barrier orders all that is before it with all that is after. Between CTAs of a launch nothing does. The
machine runs threads in lock step, in which many races change no result: so each byte remembers who wrote and who read
it last, and in which interval between barriers. Shared memory that a thread reads and none has written is reported too.

Atomics are ordered with one another; an atomic and a plain access are not. Where one thread of a CTA acquires an
address that a thread of another CTA released, as in a lock or a count of CTAs that are done, what the other one did
comes before.

A plain read beside a plain write is no fault if the result does not depend on what it reads: `harmless` tries that,
with `Races.poison` in launches of their own. Two writes, or an atomic and a plain access, are always one.
"""

from typing import Any

import numpy as np

from validation.compiled.ptx.bits import Array
from validation.compiled.ptx.harmless import SEVERAL, AstrayError, Poison, RacingWrites, byte_of, time_of
from validation.compiled.ptx.memory import BASE
from validation.compiled.ptx.parse import Instruction


class _Shadow:
    """For each byte its last writer and reader, and the interval in which they accessed it.

    0: none, so that memory which nobody touches costs nothing. In place of a thread or a CTA `SEVERAL`: several have
    read the byte (threads: in this interval).
    """

    def __init__(self, size: int) -> None:
        self.writer, self.reader = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.written, self.read = np.zeros(size, np.int32), np.zeros(size, np.int32)
        self.reader_cta = np.zeros(size, np.int64)
        # Made by the first atomic.
        self.atomic: Array | None = None

    def note_atomic(self, at: Array, who: Array, cta: Array, now: Array) -> None:
        """Note who changed bytes atomically."""
        if self.atomic is None:
            size = len(self.writer)
            self.atomic, self.atomic_cta = np.zeros(size, np.int64), np.zeros(size, np.int64)
            self.atomically = np.zeros(size, np.int32)
        known, same = self.atomic[at], self.atomically[at] == now
        _note(self.atomic, at, np.where(same & (known != 0) & (known != who), SEVERAL, who))
        self.atomically[at] = now
        known = self.atomic_cta[at]
        _note(self.atomic_cta, at, np.where((known == 0) | (known == cta), cta, SEVERAL))

    def beside_atomics(self, at: Array, who: Array, cta: Array, now: Array) -> Array:
        """Which plain accesses nothing orders with an atomic of another thread."""
        if self.atomic is None:
            return np.zeros(len(at), bool)
        other, group = self.atomic[at], self.atomic_cta[at]
        of_cta = (other != 0) & (other != who) & (self.atomically[at] == now)
        return of_cta | ((group != 0) & (group != cta))


class Races:
    """What a launch's threads have accessed so far. Threads and CTAs are numbered from 1 here.

    Args:
        size: bytes of global memory.
        guesses: loads that are looked at no more: a compare-and-swap follows that refuses what they gave too early.
        poison: what racing reads give; None: what is there.
        most_blocks: basic blocks that may be run; None: any number.

    Attributes:
        racing: plain writes with which plain reads race.
        decisive: whether there is a race of another kind.
        blocks: basic blocks that were run.
    """

    def __init__(
        self,
        size: int,
        guesses: frozenset[Instruction],
        *,
        poison: Poison | None = None,
        most_blocks: int | None = None,
    ) -> None:
        self.racing, self.decisive, self.blocks = RacingWrites(), False, 0
        self._poison, self._most_blocks = poison, most_blocks
        self._guesses = guesses
        self._global = _Shadow(size)
        self._interval, self._phase = np.zeros(0, np.int32), np.zeros(0, np.int64)
        self._shared = _Shadow(0)
        # Bytes of shared memory that an asynchronous copy will write; made by the first one.
        self._flying: Array | None = None
        self._next = 1
        # Racing writes that are yet to be made.
        self._pending: list[tuple[str, Array, Array, Array, Array, Array]] = []
        # How often all lanes of a warp have met; made by the first time.
        self._met: Array | None = None
        # By address: the CTAs that released it, and up to which of their intervals. By CTA: the same of those it saw.
        self._released: dict[int, dict[int, int]] = {}
        self._seen: dict[int, dict[int, int]] = {}

    def begin(self, ctas: int, stride: int) -> None:
        """A new chunk of CTAs, each with `stride` bytes of shared memory: new shared memory, new intervals."""
        self._next += 1
        self._stride = stride
        self._shared = _Shadow(ctas * self._stride)
        self._interval, self._phase = np.full(ctas, self._next, np.int32), np.zeros(ctas, np.int64)
        self._flying = self._met = None

    def meet(self, which: Array) -> None:
        """All lanes of some warps, of those of the chunk's CTAs, execute an instruction together."""
        if self._met is None:
            self._met = np.zeros(len(which), np.int64)
        self._met += which

    def _meetings(self, chunk: Any, row: Array, thread: Array, size: int) -> Array:
        """How often the warp of each byte's thread has met."""
        if self._met is None:
            return np.zeros(len(row) * size, np.int64)
        return np.repeat(self._met[row * (chunk.shape[1] // 32) + thread // 32], size)

    def block(self) -> None:
        """A basic block is run.

        Raises:
            AstrayError: there were too many.
        """
        self.blocks += 1
        if self._most_blocks is not None and self.blocks > self._most_blocks:
            raise AstrayError

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
            cta = 1 + int(chunk.ctas[n])
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
        return (when <= until[which.reshape(-1)]) & (other > 0)

    def barrier(self, chunk: Any) -> None:
        """The active CTAs' threads meet."""
        reached = slice(None) if chunk.active is None else chunk.active.any(1)
        self._next += 1
        self._interval[reached] = self._next
        self._phase[reached] += 1

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
        at, cta, who = self._bytes(chunk, space, offset, row, thread, size)
        shadow = self._shared if space == "shared" else self._global
        now, phase, threads = np.repeat(self._interval[row], size), np.repeat(self._phase[row], size), chunk.shape[1]
        if self._poison is not None and write:
            byte, when = self._names(space, at, cta, phase)
            self._poison.before_write(byte, when, _content(chunk, space)[at])
        writer, reader = shadow.writer[at], shadow.reader[at]
        of_writer = (writer - 1) // threads + 1
        wrong = (writer != 0) & (writer != who) & ((of_writer != cta) | (shadow.written[at] == now))
        wrong &= ~self._before(of_writer, shadow.written[at], cta)
        what = "changes atomically" if atomic else "writes" if write else "reads", "wrote"
        changed = np.zeros(len(at), bool) if shadow.atomic is None else shadow.atomic[at] != 0
        beside = np.zeros(len(at), bool) if atomic else shadow.beside_atomics(at, who, cta, now)
        self.decisive |= bool(beside.any()) or (write and bool(wrong.any()))
        if not write and wrong.any():
            # Of another CTA's write the phase is not known, and needed by its own threads' reads alone.
            unknown = np.full(len(at), -1)
            self._note_racing(space, at, of_writer, np.where(of_writer == cta, phase, -1), writer, unknown, wrong)
            self.written(chunk)
        if not wrong.any():
            wrong, what = beside, (what[0], "changed atomically")
        if write:
            if not wrong.any():
                before = self._before(shadow.reader_cta[at], shadow.read[at], cta)
                of_cta = (reader != 0) & (reader != who) & (shadow.read[at] == now)
                others = (shadow.reader_cta[at] != 0) & (shadow.reader_cta[at] != cta)
                wrong, what = of_cta | (others & ~before), (what[0], "read")
                if atomic:
                    self.decisive |= bool(wrong.any())
                else:
                    self._note_racing(space, at, cta, phase, who, self._meetings(chunk, row, thread, size), wrong)
            # Lanes of one instruction at one byte: `chunk.Chunk.store` compares what they write. Where a layout holds
            # an element in several threads they all write it.
            if atomic:
                shadow.note_atomic(at, who, cta, now)
            else:
                shadow.writer[at], shadow.written[at] = who, now
        else:
            _note(shadow.reader, at, np.where((shadow.read[at] == now) & (reader != 0) & (reader != who), SEVERAL, who))
            known = shadow.reader_cta[at]
            before = self._before(known, shadow.read[at], cta)
            shadow.read[at] = now
            _note(shadow.reader_cta, at, np.where((known == 0) | (known == cta) | before, cta, SEVERAL))
        kind, how = "RACE", f"{what[0]} what another thread {what[1]} with no barrier between"
        if space == "shared" and self._flying is not None and self._flying[at].any():
            how, wrong = f"{what[0]} what an asynchronous copy is still to write", self._flying[at]
            self.decisive = True
        if space == "shared" and (atomic or not write) and not wrong.any():
            kind, how, wrong = "UNINITIALISED_READ", "reads what no thread has written", (writer == 0) & ~changed
        if wrong.any():
            n = int(np.argmax(wrong))
            place = f"byte {int(at[n]) % self._stride} of shared memory"
            if space == "global":
                place = chunk.memory.where(BASE + int(at[n]))
            count = len(np.unique(who[wrong]))
            first = int(who[n] - 1) % threads
            chunk.found.add(kind, instruction, int(cta[n]) - 1, first, count, f"{how}, {place}")

    def _bytes(
        self, chunk: Any, space: str, offset: Array, row: Array, thread: Array, size: int
    ) -> tuple[Array, Array, Array]:
        """Of an access of some threads: each byte in all of the space's memory, its CTA and its thread."""
        at = np.broadcast_to(offset, chunk.shape)[row, thread].astype(np.int64)
        if space == "shared":
            at = at + row * self._stride
        cta = np.repeat(chunk.ctas[row].astype(np.int64) + 1, size)
        return (at[:, None] + np.arange(size)).ravel(), cta, (cta - 1) * chunk.shape[1] + np.repeat(thread, size) + 1

    def _names(self, space: str, at: Array, cta: Array, phase: Array) -> tuple[Array, Array]:
        """The numbers that `harmless` gives bytes, and CTAs and phases."""
        return byte_of(space, at % self._stride if space == "shared" else at), time_of(cta, phase)

    def _note_racing(
        self, space: str, at: Array, cta: Array, phase: Array, writer: Array, met: Array, which: Array
    ) -> None:
        if which.any():
            byte, when = self._names(space, at[which], cta[which], phase[which])
            self._pending.append((space, at[which], byte, when, writer[which], met[which]))

    def written(self, chunk: Any) -> None:
        """The write that was noted last is in memory."""
        for space, at, byte, when, writer, met in self._pending:
            self.racing.add(byte, when, writer, met, _content(chunk, space)[at])
        self._pending.clear()

    def read(
        self, chunk: Any, instruction: Instruction, space: str, offset: Array, mask: Array | None, values: list[Array]
    ) -> list[Array]:
        """What a load of neighbouring elements gives: `values`, but for racing reads the poison."""
        if self._poison is None or space == "local" or instruction in self._guesses:
            return values
        row, thread = np.nonzero(np.broadcast_to(True if mask is None else mask, chunk.shape))
        size = values[0].dtype.itemsize * len(values)
        at, cta, who = self._bytes(chunk, space, offset, row, thread, size)
        byte, when = self._names(space, at, cta, np.repeat(self._phase[row], size))
        whole = np.stack([np.broadcast_to(value, chunk.shape) for value in values], axis=-1)
        content = np.ascontiguousarray(whole[row, thread]).view(np.uint8).ravel()
        given = self._poison.read(byte, when, who, self._meetings(chunk, row, thread, size), cta, content)
        if (given == content).all():
            return values
        whole[row, thread] = given.view(whole.dtype).reshape(len(row), len(values))
        return [np.ascontiguousarray(whole[..., n]) for n in range(len(values))]


def _content(chunk: Any, space: str) -> Array:
    """The bytes of a space's memory, of all CTAs."""
    content: Array = chunk.memory.bytes if space == "global" else chunk.shared.reshape(-1)
    return content


def _merge(into: dict[int, int], more: dict[int, int]) -> None:
    """Keep the later interval of each CTA."""
    for cta, interval in more.items():
        into[cta] = max(interval, into.get(cta, -1))


def _note(shadow: Array, at: Array, what: Array) -> None:
    """Write to a shadow, `SEVERAL` where lanes at one byte differ."""
    shadow[at] = what
    shadow[at[shadow[at] != what]] = SEVERAL
