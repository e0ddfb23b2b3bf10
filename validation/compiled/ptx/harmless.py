"""Whether the result of a launch depends on its racing reads.

Where a tile is smaller than a CTA, Triton lets several threads load an element, and one of them stores it: a late
thread reads what the other one has written, and its value is discarded. That is a race by the letter, and no fault.

So a launch whose races are all plain reads beside plain writes is run again from the same memory, and each racing read
gives something else (`PATTERNS`). Where all of memory ends as before, each time, nothing depends on what they read.

Left as it is: what a lane read before all lanes of its warp met, in a shuffle or a ``bar.warp.sync``, and one of them
writes after that. Triton turns a tile round by shuffles where it can: a lane's store then waits for the values that the
others loaded. (PTX promises an order of memory to ``bar.warp.sync`` alone; a shuffle waits for its operands.)
"""

from collections.abc import Callable

import numpy as np

from validation.compiled.ptx.bits import Array

# In place of a thread or a CTA: there are several.
SEVERAL = -1

# What a racing read gives: all bits flipped; bits at random, other ones to each thread; and what it would read if it
# came on the other side of the write, since a maximum may swallow the first two and not that.
PATTERNS = ("flipped", "random", "other side")


class AstrayError(Exception):
    """A launch that was given wrong values does not come to its end."""


class RacingWrites:
    """The plain writes with which plain reads of a launch race. Threads and CTAs are numbered from 1."""

    def __init__(self) -> None:
        self._parts: list[tuple[Array, Array, Array, Array, Array]] = []

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, byte: Array, when: Array, writer: Array, met: Array, left: Array) -> None:
        """Note writes, arrays of one length.

        Args:
            byte: `byte_of` each. when: `time_of` each.
            writer: the thread. met: how often its warp had met; -1 where that is not known.
            left: the value of the byte after it.
        """
        self._parts.append((byte, when, writer, met, left))

    def gathered(self) -> tuple[Array, Array, Array, Array, Array]:
        """All of them: byte, when, writer, meetings and value left."""
        byte, when, writer, met, left = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        return byte, when, writer, met, left


def byte_of(space: str, offset: Array) -> Array:
    """A number for each byte of memory, odd in ``shared`` memory, where the offset is that in the CTA's own."""
    return 2 * offset + (space == "shared")


def time_of(cta: Array, phase: Array | int) -> Array:
    """A number for each CTA and phase, which is how many barriers it has passed; -1 for no phase of it."""
    return (cta << 32) + phase + 1


class _Written:
    """By key: who writes it, or `SEVERAL`, after how many meetings, and what a read on its other side gives."""

    def __init__(self, keys: Array, who: Array, met: Array, left: Array) -> None:
        order = np.argsort(keys, kind="stable")
        keys, who, met, left = keys[order], who[order], met[order], left[order]
        self._keys, starts = np.unique(keys, return_index=True)
        alone = np.zeros(0, bool)
        if len(keys):
            alone = np.minimum.reduceat(who, starts) == np.maximum.reduceat(who, starts)
            met = np.minimum.reduceat(met, starts)
        self._who = np.where(alone, who[starts], SEVERAL)
        self._other, self._met = left[starts], met

    def find(self, keys: Array) -> tuple[Array, Array]:
        """Which keys are written, and the place of each of these."""
        if not len(self._keys):
            return np.zeros(len(keys), bool), np.zeros(0, np.int64)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        known = self._keys[at] == keys
        return known, at[known]

    def before_write(self, keys: Array, content: Array) -> None:
        """A write follows: what it overwrites is on its other side from then on."""
        known, at = self.find(keys)
        self._other[at] = content[known]

    def on_the_other_side(
        self, keys: Array, reader: Array, content: Array, met: Array | None = None
    ) -> tuple[Array, Array]:
        """Which reads race with another one's write, and the content with theirs replaced.

        Args:
            keys, content: of each byte. reader: the thread, or the CTA.
            met: how often the thread's warp has met.
        """
        known, at = self.find(keys)
        racing, other = known.copy(), content.copy()
        racing[known] = self._who[at] != reader[known]
        if met is not None:
            of_warp = (self._who[at] > 0) & ((self._who[at] - 1) // 32 == (reader[known] - 1) // 32)
            racing[known] &= ~(of_warp & (met[known] < self._met[at]))
        other[known] = np.where(racing[known], self._other[at], content[known])
        return racing, other


class Poison:
    """Wrong values for racing reads.

    Args:
        writes: with which they race. pattern: one of `PATTERNS`.
    """

    def __init__(self, writes: RacingWrites, pattern: str) -> None:
        self._pattern, self._random = pattern, np.random.default_rng(0)
        byte, when, writer, met, left = writes.gathered()
        self._span = int(byte.max()) + 1
        self._times, which = np.unique(when, return_inverse=True)
        self._in_phase = _Written(which * self._span + byte, writer, met, left)
        is_global = byte % 2 == 0
        self._between = _Written(byte[is_global], when[is_global] >> 32, met[is_global], left[is_global])

    def _keys(self, byte: Array, when: Array) -> Array:
        """The key of a byte in a phase; -1 where none of them is written."""
        which = np.minimum(np.searchsorted(self._times, when), len(self._times) - 1)
        return np.where((self._times[which] == when) & (byte < self._span), which * self._span + byte, -1)

    def before_write(self, byte: Array, when: Array, content: Array) -> None:
        """Bytes are overwritten next.

        Args:
            byte, when: as in `RacingWrites`. content: what is there, uint8.
        """
        self._in_phase.before_write(self._keys(byte, when), content)
        self._between.before_write(byte, content)

    def read(self, byte: Array, when: Array, reader: Array, met: Array, cta: Array, content: Array) -> Array:
        """What reads give, an element for each byte and thread.

        Args:
            byte, when: as in `RacingWrites`. reader: the thread. met: how often its warp has met. cta: its CTA.
            content: what they should give, uint8.
        """
        racing, other = self._in_phase.on_the_other_side(self._keys(byte, when), reader, content, met)
        beside, other = self._between.on_the_other_side(byte, cta, other)
        if self._pattern == "other side":
            return other
        wrong = ~content if self._pattern == "flipped" else self._random.integers(0, 256, content.shape, np.uint8)
        return np.where(racing | beside, wrong, content)


def are_harmless(writes: RacingWrites, again: Callable[[Poison], bool]) -> bool:
    """Whether nothing depends on the reads that race with some writes.

    Args:
        writes: of a launch.
        again: runs the launch with wrong values; whether it did then what it did before.
    """
    return all(again(Poison(writes, pattern)) for pattern in PATTERNS)
