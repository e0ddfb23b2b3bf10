"""A running chunk of CTAs, what its threads do to memory, and what of that they must not do."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from validation.compiled.ptx.approximate import Approximation
from validation.compiled.ptx.async_ops import Copies
from validation.compiled.ptx.atomic_ops import Atomic, perform
from validation.compiled.ptx.bits import DTYPES, U8, UNSIGNED, Array
from validation.compiled.ptx.errors import Violation
from validation.compiled.ptx.memory import Memory
from validation.compiled.ptx.parse import Instruction
from validation.compiled.ptx.program import Program
from validation.compiled.ptx.races import Races
from validation.compiled.ptx.shared import Variable, between
from validation.compiled.ptx.shared import where as place_of

# A loop that has tried an atomic so often, and changed nothing, waits for another CTA.
MOST_IDLE = 1 << 12


class Counting(Protocol):
    """Is told of each block and of each access to memory, as `validation.compiled.counters.watch.Watch`."""

    def block(self, number: int, active: Array | None, shape: tuple[int, int], ctas: Array) -> None:
        """Threads of some CTAs run a block; None: all of them."""

    def access(
        self, instruction: Instruction, space: str, address: Array, mask: Array | None, size: int, *, write: bool,
        shape: tuple[int, int], ctas: Array,
    ) -> None:  # fmt: skip
        """Threads access so many bytes each."""


@dataclasses.dataclass
class Found:
    """The violations of one launch, by instruction, and the instructions whose result depends on the threads' order."""

    kernel: str
    by_instruction: dict[tuple[str, int], Violation] = dataclasses.field(default_factory=dict)
    unordered: dict[str, None] = dataclasses.field(default_factory=dict)

    def add(self, kind: str, instruction: Instruction, cta: int, thread: int, count: int, where: str) -> None:
        """Note a violation, or count it where its instruction has one of that kind."""
        key = kind, id(instruction)
        known = self.by_instruction.get(key)
        if known is None:
            found = Violation(kind, self.kernel, instruction.opcode, instruction.source, cta, thread, count, where)
        else:
            found = dataclasses.replace(known, count=known.count + count)
        self.by_instruction[key] = found


@dataclasses.dataclass
class Chunk:
    """A running chunk of CTAs: what steps work on.

    Attributes:
        registers: by number; an array that broadcasts to `shape`.
        active: the threads that run; None: all.
        shape: CTAs and threads of a CTA.
        ctas: numbers of the CTAs in the grid.
        special: arrays of the special registers. parameters: bits of each parameter, by name.
        shared: shared memory, [CTAs, bytes]. shared_bytes: how many a CTA has. variables: those that lie there.
        between: which of the bytes of shared memory belong to none of them; None: all belong to one.
        symbols: addresses of the module's variables. local: local memory, [threads of all CTAs, bytes].
        gone: the threads that returned; None: none.
        carry: the condition code of extended-precision arithmetic.
        changed: by space and byte, 1 + the number of the thread that changed it by an atomic whose order matters.
        copies: asynchronous copies that have not been waited for. passed: arguments of the next call.
        backwards: threads that access one address at once come in the other order of their numbers.
        alone: other CTAs wait until this one has returned. idle: atomics in a row that changed nothing.
        counting: is told of accesses.
    """

    registers: list[Array]
    active: Array | None
    shape: tuple[int, int]
    ctas: Array
    special: Mapping[str, Array]
    parameters: Mapping[str, Any]
    memory: Memory
    shared: Array
    shared_bytes: int
    variables: tuple[Variable, ...]
    between: Array | None
    approximation: Approximation
    found: Found
    races: Races | None
    symbols: Mapping[str, Array]
    local: Array
    local_bytes: int
    alone: bool
    backwards: bool = False
    gone: Array | None = None
    carry: Array = dataclasses.field(default_factory=lambda: np.zeros((1, 1), bool))
    changed: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    copies: Copies | None = None
    passed: dict[str, Array] = dataclasses.field(default_factory=dict)
    idle: int = 0
    counting: Counting | None = None

    @classmethod
    def of(
        cls,
        program: Program,
        grid: tuple[int, int, int],
        ctas: Array,
        memory: Memory,
        *,
        approximation: Approximation,
        parameters: Mapping[str, Any] | None = None,
        shared_bytes: int = 0,
        found: Found | None = None,
        races: Races | None = None,
        symbols: Mapping[str, Array] | None = None,
        backwards: bool = False,
    ) -> "Chunk":
        """Some CTAs of a grid before their first instruction."""
        threads = program.kernel.threads
        sizes = {1: np.dtype(bool)} | {8 * n: dtype for n, dtype in UNSIGNED.items()}
        return cls(
            registers=[np.zeros((1, 1), sizes[size]) for size in program.kernel.registers.values()],
            active=None,
            shape=(len(ctas), threads),
            ctas=ctas,
            special=_special_registers(program.kernel.block, grid, ctas),
            parameters=parameters or {},
            memory=memory,
            shared=np.full((len(ctas), -(-max(shared_bytes, 16) // 16) * 16), 0xFF, np.uint8),
            shared_bytes=shared_bytes,
            variables=program.kernel.shared,
            between=between(program.kernel.shared, shared_bytes),
            approximation=approximation,
            found=found or Found(program.kernel.name),
            races=races,
            symbols=symbols or {},
            local=np.full((len(ctas) * threads, -(-program.kernel.local_bytes // 16) * 16), 0xFF, np.uint8),
            local_bytes=program.kernel.local_bytes,
            alone=program.waits,
            backwards=backwards,
        )

    def misaligned(
        self, instruction: Instruction, space: str, address: Array, mask: Array | None, size: int
    ) -> Array | None:
        """The lanes of an access whose address is no multiple of its size, once reported; None if there is none."""
        wrong = (address & U8.type(size - 1)) != 0
        if mask is not None:
            wrong = wrong & mask
        if not wrong.any():
            return None
        self._report("MISALIGNED", instruction, space, address, wrong, f" of {size} bytes")
        return wrong

    def _report(
        self, kind: str, instruction: Instruction, space: str, address: Array, lanes: Array, more: str = ""
    ) -> None:
        whole = np.broadcast_to(lanes, self.shape)
        cta, thread = np.argwhere(whole)[0]
        at = int(np.broadcast_to(address, self.shape)[cta, thread])
        where = f"byte {at} of {self.local_bytes} of local memory"
        if space == "global":
            where = self.memory.where(at)
        elif space == "shared":
            where = place_of(self.variables, at, self.shared_bytes)
        self.found.add(kind, instruction, int(self.ctas[cta]), int(thread), int(whole.sum()), where + more)

    def _offsets(
        self,
        instruction: Instruction,
        space: str,
        address: Array,
        mask: Array | None,
        size: int,
        *,
        write: bool,
        atomic: bool = False,
    ) -> tuple[Array, Array | None]:
        """Checked offsets of an access, and the lanes that make it; None: all. Other lanes' offsets are 0."""
        mask = _without(mask, self.misaligned(instruction, space, address, mask, size))
        if self.counting is not None:
            self.counting.access(instruction, space, address, mask, size, write=write, shape=self.shape, ctas=self.ctas)
        if space == "global":
            offset, outside = self.memory.check(address, mask, size)
        else:
            offset, end = address, U8.type(self.shared_bytes if space == "shared" else self.local_bytes)
            outside = (address >= end) | (address + U8.type(size) > end)
            if space == "shared" and self.between is not None:
                for n in (0, size - 1):
                    at = np.minimum(address + U8.type(n), end - U8.type(1))
                    outside = outside | self.between[at.astype(np.int64)]
            if mask is not None:
                outside = outside & mask
        if outside.any():
            kind = "OUT_OF_BOUNDS_WRITE" if write else "OUT_OF_BOUNDS_READ"
            self._report(kind, instruction, space, address, outside)
            mask = _without(mask, outside)
        if mask is not None:
            offset = np.where(mask, offset, U8.type(0))
        if self.races is not None and space != "local":
            self.races.access(self, instruction, space, offset, mask, size, write=write, atomic=atomic)
        return offset, mask

    def _elements(self, space: str, offset: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """A memory as elements of a type, and the index there of each lane's first one."""
        index = (offset // U8.type(dtype.itemsize)).astype(np.int64)
        if space == "global":
            return self.memory.bytes.view(dtype), index
        if space == "shared":
            row = np.arange(self.shape[0])[:, None] * (self.shared.shape[1] // dtype.itemsize)
            return self.shared.view(dtype).reshape(-1), row + index
        lane = np.arange(self.shape[0] * self.shape[1]).reshape(self.shape)
        return self.local.view(dtype).reshape(-1), lane * (self.local.shape[1] // dtype.itemsize) + index

    def load(
        self, instruction: Instruction, space: str, address: Array, mask: Array | None, dtype: np.dtype[Any], count: int
    ) -> list[Array]:
        """`count` arrays of neighbouring elements; what a lane reads that accesses nothing is not defined."""
        offset, mask = self._offsets(instruction, space, address, mask, dtype.itemsize * count, write=False)
        memory, index = self._elements(space, offset, dtype)
        values = [memory[index + n] for n in range(count)]
        if self.races is not None:
            values = self.races.read(self, instruction, space, offset, mask, values)
        return values

    def store(
        self,
        instruction: Instruction,
        space: str,
        address: Array,
        mask: Array | None,
        dtype: np.dtype[Any],
        values: Sequence[Array],
    ) -> None:
        """Store neighbouring elements, as unsigned integers."""
        offset, mask = self._offsets(instruction, space, address, mask, dtype.itemsize * len(values), write=True)
        memory, index = self._elements(space, offset, dtype)
        index = self._in_order(np.broadcast_to(index, self.shape))
        lanes = None if mask is None else self._in_order(np.broadcast_to(mask, self.shape))
        written = [self._in_order(np.broadcast_to(value, self.shape)) for value in values]
        for n, whole in enumerate(written):
            if lanes is None:
                memory[index + n] = whole
            else:
                memory[index[lanes] + n] = whole[lanes]
        if self.races is not None and space != "local":
            lost = np.zeros(self.shape, bool)
            for n, whole in enumerate(written):
                lost |= memory[index + n] != whole
            self.races.written(self)
            if (lost if lanes is None else lost & lanes).any():
                self._depends_on_the_order(instruction)

    def _in_order(self, of_threads: Array) -> Array:
        """An array of threads, [CTAs, threads], in the order in which they come."""
        return of_threads[:, ::-1] if self.backwards else of_threads

    def _depends_on_the_order(self, instruction: Instruction) -> None:
        self.found.unordered[f"{instruction.opcode} at {instruction.source}"] = None

    def atomic(
        self,
        instruction: Instruction,
        space: str,
        address: Array,
        mask: Array | None,
        atomic: Atomic,
        operands: Sequence[Sequence[Array]],
    ) -> list[Array]:
        """Read, combine and write neighbouring elements, lane after lane; what was there, as unsigned integers."""
        dtype = UNSIGNED[DTYPES[atomic.type_].itemsize]
        count = len(operands[0])
        offset, mask = self._offsets(instruction, space, address, mask, dtype.itemsize * count, write=True, atomic=True)
        memory, index = self._elements(space, offset, dtype)
        lanes = np.ones(self.shape, bool) if mask is None else np.broadcast_to(mask, self.shape)
        row, thread = np.nonzero(self._in_order(lanes))
        thread = self.shape[1] - 1 - thread if self.backwards else thread
        at = np.broadcast_to(index, self.shape)[row, thread]
        old = [np.zeros(self.shape, dtype) for _ in range(count)]
        if not len(at):
            return old
        if self.races is not None and space == "global" and len(np.unique(row)) == len(row):
            self.races.synchronise(self, instruction, row, at * dtype.itemsize)
        changed = False
        for n, result in enumerate(old):
            values = [np.broadcast_to(vector[n], self.shape)[row, thread] for vector in operands]
            before = memory[at + n]
            result[row, thread], together = perform(memory, at + n, atomic, values)
            changed = changed or bool((memory[at + n] != before).any())
            if atomic.ordered:
                who, cells = self.ctas[row] * self.shape[1] + thread, (at + n) * dtype.itemsize
                met = self.changed[space][cells]
                self.changed[space][cells] = who + 1
                if together or ((met != 0) & (met != who + 1)).any():
                    self._depends_on_the_order(instruction)
        self.idle = 0 if changed else self.idle + 1
        if self.alone and self.idle > MOST_IDLE:
            raise instruction.refuse("it waits for what another CTA has not done, and here one runs after the other")
        return old

    def begin_copy(
        self, instruction: Instruction, address: Array, mask: Array | None, size: int
    ) -> tuple[Array, Array]:
        """An asynchronous copy is issued: the threads that make it, and the offset of each in all shared memory.

        Until it ends, what lies there is not defined.
        """
        offset, mask = self._offsets(instruction, "shared", address, mask, size, write=True)
        memory, index = self._elements("shared", offset, UNSIGNED[1])
        whole = np.ones(self.shape, bool) if mask is None else np.broadcast_to(mask, self.shape)
        at = np.broadcast_to(index, self.shape)[whole]
        cells = at[:, None] + np.arange(size)
        memory[cells] = 0xFF
        if self.races is not None:
            self.races.written(self)
            self.races.fly(cells.ravel(), away=True)
        return np.flatnonzero(whole), at

    def end_copy(self, instruction: Instruction, lanes: Array, at: Array, content: Array) -> None:
        """An asynchronous copy has written `content` at offsets `at`, [lanes, bytes] each."""
        if not len(lanes):
            return
        self.shared.reshape(-1)[at] = content
        if self.races is not None:
            self.races.fly(at.ravel(), away=False)
            mask, offset = np.zeros(self.shape, bool), np.zeros(self.shape, np.uint64)
            mask.reshape(-1)[lanes] = True
            offset.reshape(-1)[lanes] = at[:, 0] % self.shared.shape[1]
            self.races.access(self, instruction, "shared", offset, mask, at.shape[1], write=True)
            self.races.written(self)

    def whole_warps(self, instruction: Instruction, mask: Array | None) -> None:
        """Refuse an instruction of a whole warp that only some of its lanes execute."""
        if mask is not None:
            warps = np.broadcast_to(mask, self.shape).reshape(-1, 32)
            if (warps.any(1) & ~warps.all(1)).any():
                raise instruction.refuse("some lanes of a warp are inactive")

    def barrier(self, instruction: Instruction) -> None:
        """All threads of a CTA meet."""
        if self.active is not None and (self.active.any(1) & ~self.active.all(1)).any():
            raise instruction.refuse("some threads of a CTA are inactive")
        if self.races is not None:
            self.races.barrier(self)


def _without(mask: Array | None, wrong: Array | None) -> Array | None:
    """The lanes of a mask (None: all) without some wrong ones (None: none)."""
    if wrong is None:
        return mask
    return ~wrong if mask is None else mask & ~wrong


def _special_registers(block: tuple[int, int, int], grid: tuple[int, int, int], ctas: Array) -> dict[str, Array]:
    one = np.ones((1, 1), np.uint32)
    thread = np.arange(math.prod(block))
    special = {"%laneid": (thread & 31).astype(np.uint32)[None, :]}
    for name, sizes, number in (("tid", block, thread[None, :]), ("ctaid", grid, ctas[:, None])):
        axes = (number % sizes[0], number // sizes[0] % sizes[1], number // (sizes[0] * sizes[1]))
        # One value where no thread differs.
        special |= {
            f"%{name}.{axis}": n.astype(np.uint32) if name == "ctaid" or size > 1 else 0 * one
            for axis, n, size in zip("xyz", axes, sizes, strict=True)
        }
        special |= {f"%n{name}.{axis}": one * np.uint32(n) for axis, n in zip("xyz", sizes, strict=True)}
    return special
