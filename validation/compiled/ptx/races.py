"""Races: two threads at one byte, one of them writing, with nothing between that orders them.

Within a CTA a barrier orders all that is before it with all that is after. Between CTAs of a launch nothing does. The
machine runs threads in lock step, in which many races change no result: so each byte remembers who wrote and who read
it last, and in which interval between barriers. Shared memory that a thread reads and none has written is reported too.
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


class Races:
    """What a launch's threads have accessed so far.

    Args:
        size: bytes of global memory.
    """

    def __init__(self, size: int) -> None:
        self._global = _Shadow(size)
        self._interval = np.zeros(0, np.int32)
        self._shared = _Shadow(0)
        self._next = 1

    def begin(self, ctas: int, stride: int) -> None:
        """A new chunk of CTAs, each with `stride` bytes of shared memory: new shared memory, new intervals."""
        self._next += 1
        self._stride = stride
        self._shared = _Shadow(ctas * self._stride)
        self._interval = np.full(ctas, self._next, np.int32)

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
    ) -> None:
        """Note an access of some lanes, and report a race with an earlier one."""
        lanes = np.broadcast_to(True if mask is None else mask, chunk.shape)
        row, thread = np.nonzero(lanes)
        if not len(row):
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
        what = "writes" if write else "reads", "wrote"
        if write:
            if not wrong.any():
                of_cta = (reader != -1) & (reader != who) & (shadow.read[at] == now)
                others = (shadow.reader_cta[at] != -1) & (shadow.reader_cta[at] != cta)
                wrong, what = of_cta | others, ("writes", "read")
            # Lanes of one instruction at one byte: `machine.Chunk.store` compares what they write. Where a layout holds
            # an element in several threads they all write it.
            shadow.writer[at], shadow.written[at] = who, now
        else:
            _note(
                shadow.reader, at, np.where((shadow.read[at] == now) & (reader != -1) & (reader != who), _SEVERAL, who)
            )
            shadow.read[at] = now
            known = shadow.reader_cta[at]
            _note(shadow.reader_cta, at, np.where((known == -1) | (known == cta), cta, _SEVERAL))
        kind, how = "RACE", f"{what[0]} what another thread {what[1]} with no barrier between"
        if space == "shared" and not write and not wrong.any():
            kind, how, wrong = "UNINITIALISED_READ", "reads what no thread has written", writer == -1
        if wrong.any():
            n = int(np.argmax(wrong))
            place = f"byte {int(at[n]) % self._stride} of shared memory"
            if space == "global":
                place = chunk.memory.where(BASE + int(at[n]))
            count = len(np.unique(who[wrong]))
            chunk.found.add(kind, instruction, int(cta[n]), int(who[n] % chunk.shape[1]), count, f"{how}, {place}")


def _note(shadow: Array, at: Array, what: Array) -> None:
    """Write to a shadow, `_SEVERAL` where lanes at one byte differ."""
    shadow[at] = what
    shadow[at[shadow[at] != what]] = _SEVERAL
