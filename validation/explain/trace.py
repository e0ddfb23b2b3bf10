"""Runs one CTA and records, for each byte of each register, which computation or which byte of memory it came from.

Instructions that move bytes (loads, stores, shuffles, moves, packing) are executed a second time on the bytes' origins:
an origin is a number, cut into planes of 8 bits, and a second chunk of CTAs executes the same step on one plane each,
with the same addresses, lanes and predicates. So every form of such an instruction that the table of opcodes knows is
followed, and none is written twice. All other instructions make a new origin for each thread.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from validation.compiled.ptx.approximate import Approximation
from validation.compiled.ptx.binding import Binder
from validation.compiled.ptx.bits import UNSIGNED, Array, bits
from validation.compiled.ptx.chunk import Chunk
from validation.compiled.ptx.launch import Launch
from validation.compiled.ptx.machine import run
from validation.compiled.ptx.memory import Memory
from validation.compiled.ptx.opcodes import OPCODES
from validation.compiled.ptx.parse import Instruction
from validation.compiled.ptx.program import Program
from validation.compiled.ptx.table import Elementwise, Step
from validation.errors import NotExecutedError

# Planes of 8 bits: origins below 2^40.
PLANES = 5
# Bytes of the widest register: origins of one result are so far apart.
WIDEST = 8
_SPACES = ("global", "shared", "local", "volatile")
_LOADS = ("ldmatrix.", *(f"ld.{space}" for space in _SPACES))
_STORES = ("stmatrix.", *(f"st.{space}" for space in _SPACES))


@dataclasses.dataclass(frozen=True)
class Record:
    """One execution of an instruction that computes.

    Attributes:
        instruction: what was executed.
        operands: of each operand but the result, planes of its origins; None for what is no register.
        values: bits of each operand's register; None for what is no register.
        result: bits of the result. Arrays broadcast to [1, threads], planes to [PLANES, threads].
    """

    instruction: Instruction
    operands: tuple[Array | None, ...]
    values: tuple[Array | None, ...]
    result: Array


class _Planes(Chunk):
    """A chunk whose data are planes of origins; its addresses, predicates and lanes are those of the real one."""

    origins: Array

    def load(
        self, instruction: Instruction, space: str, address: Array, mask: Array | None, dtype: np.dtype[Any], count: int
    ) -> list[Array]:
        """As `Chunk.load`; of global memory the origins of what lies there."""
        if space != "global":
            return super().load(instruction, space, address, mask, dtype, count)
        offset, outside = self.memory.check(address, mask, dtype.itemsize * count)
        whole = np.broadcast_to(np.where(outside, np.uint64(0), offset), self.shape)[:1].astype(np.int64)
        cells = whole[..., None] + np.arange(dtype.itemsize * count)
        known = self.origins[cells]
        planes = to_planes(np.where(known == 0, cells + 1, known)[0])
        parts = planes.reshape(PLANES, self.shape[1], count, -1)
        return [np.ascontiguousarray(parts[:, :, n]).view(dtype)[..., 0] for n in range(count)]

    def store(
        self,
        instruction: Instruction,
        space: str,
        address: Array,
        mask: Array | None,
        dtype: np.dtype[Any],
        values: Sequence[Array],
    ) -> None:
        """As `Chunk.store`; of global memory the origins of what is written there."""
        if space != "global":
            super().store(instruction, space, address, mask, dtype, values)
            return
        size = dtype.itemsize
        offset, outside = self.memory.check(address, mask, size * len(values))
        lanes = np.broadcast_to(~outside if mask is None else mask & ~outside, self.shape)[0]
        first = np.broadcast_to(offset, self.shape)[0].astype(np.int64)
        for n, value in enumerate(values):
            known = from_planes(np.broadcast_to(value, self.shape))
            cells = first[:, None] + n * size + np.arange(size)
            self.origins[cells[lanes]] = known[lanes]


def to_planes(origins: Array) -> Array:
    """Origins, [threads, bytes], as planes, [PLANES, threads, bytes] of uint8."""
    return np.stack([(origins >> (8 * k)).astype(np.uint8) for k in range(PLANES)])


def from_planes(planes: Array) -> Array:
    """Planes, [PLANES, threads] of unsigned integers, as origins, [threads, bytes]."""
    raw = np.ascontiguousarray(planes).view(np.uint8).reshape(PLANES, planes.shape[1], -1).astype(np.int64)
    shifts = np.arange(0, 8 * PLANES, 8, dtype=np.int64)[:, None, None]
    origins: Array = np.bitwise_or.reduce(raw << shifts, axis=0)
    return origins


class Trace:
    """What one CTA computed.

    Origins are 0 for bytes of unknown or no origin, 1 + the offset in memory for what was there before the launch, and
    above that `origin_of` says which record, thread and byte.

    Args:
        program, launch, memory: of the launch; memory is as it was before it, and is as it was afterwards.
        parameters: as `validation.compiled.ptx.machine.run` takes them.
        cta: its number.

    Raises:
        NotExecutedError: something in it is not executed, or is not followed.
    """

    def __init__(self, program: Program, launch: Launch, parameters: Sequence[Any], memory: Memory, cta: int) -> None:
        self.kernel = program.kernel
        self.launch = launch
        self.cta = cta
        self.threads = program.kernel.threads
        self.records: list[Record] = []
        if program.atomic:
            one = next(i for i in program.kernel.instructions if i.opcode.startswith(("atom.", "red.")))
            raise NotExecutedError(f"{one.opcode} at {one.source} is not followed: several CTAs may have a part in it")
        before = memory.bytes.copy()
        self._binder = Binder(program.kernel)
        self._steps = {
            (n, k): program.kernel.instructions[at]
            for n, block in enumerate(program.kernel.blocks)
            for k, at in enumerate(block)
        }
        self._planes: dict[int, Array] = {}
        self._second: _Planes | None = None
        # Constants of the module are appended to memory; nothing in it is copied a second time.
        room = len(memory.bytes) + sum(len(c) + (1 << 17) for c in program.kernel.constants.values())
        self.base = room + 1
        self.written = np.zeros(room, np.int64)
        found = run(
            self._watched(program),
            launch.grid,
            parameters,
            memory,
            shared_bytes=launch.shared_bytes,
            approximation=Approximation(),
            ctas=[cta],
        )
        memory.bytes[: len(before)] = before
        self.initial = memory.bytes.copy()
        if found:
            raise NotExecutedError(f"{found[0]}: not followed")

    def origin_of(self, origin: int) -> tuple[Record, int, int]:
        """The record of an origin above `base`, its thread and its byte."""
        number, byte = divmod(origin - self.base, WIDEST)
        record, thread = divmod(number, self.threads)
        return self.records[record], thread, byte

    def _watched(self, program: Program) -> Program:
        """The program with steps that are recorded."""
        blocks = tuple(
            dataclasses.replace(
                block,
                steps=tuple((self._step(self._steps[n, k], step), dead) for k, (step, dead) in enumerate(block.steps)),
            )
            for n, block in enumerate(program.blocks)
        )
        return dataclasses.replace(program, blocks=blocks)

    def _step(self, instruction: Instruction, step: Step) -> Step:
        data = _moved(instruction, self._binder)
        if data is not None:
            return lambda run: self._move(step, *data, run)
        entry = OPCODES[instruction.opcode]
        target = instruction.operands[0] if instruction.operands else ""
        number = self._binder.number.get(target)
        if number is None or self.kernel.registers[target] == 1 or not entry_writes(entry):
            return step
        mask_of = self._binder.mask(instruction)
        return lambda run: self._compute(instruction, step, number, mask_of, run)

    def _plane(self, number: int, real: Array) -> Array:
        """Planes of a register; zeros for one that nothing has written."""
        known = self._planes.get(number)
        return np.zeros((PLANES, self.threads), UNSIGNED[real.dtype.itemsize]) if known is None else known

    def _compute(
        self, instruction: Instruction, step: Step, number: int, mask_of: Callable[[Any], Array | None], run: Chunk
    ) -> None:
        numbers = [self._binder.number.get(text.lstrip("!")) for text in instruction.operands[1:]]
        values = tuple(None if n is None else bits(run.registers[n]) for n in numbers)
        operands = tuple(
            None if n is None or run.registers[n].dtype == bool else self._plane(n, run.registers[n]) for n in numbers
        )
        mask = mask_of(run)
        step(run)
        result = bits(run.registers[number])
        size = result.dtype.itemsize
        first = self.base + (len(self.records) * self.threads + np.arange(self.threads)) * WIDEST
        if self.base + (len(self.records) + 1) * self.threads * WIDEST >= 1 << (8 * PLANES):
            raise instruction.refuse("its CTA executes too many instructions to be followed")
        self.records.append(Record(instruction, operands, values, result))
        new = to_planes(first[:, None] + np.arange(size)).view(UNSIGNED[size])[..., 0]
        if mask is not None:
            new = np.where(np.broadcast_to(mask, run.shape), new, self._plane(number, result))
        self._planes[number] = new

    def _move(self, step: Step, sources: Sequence[int], targets: Sequence[int], run: Chunk) -> None:
        second = self._second or self._begin(run)
        second.registers = [*run.registers]
        second.active, second.gone = run.active, run.gone
        for n in sources:
            second.registers[n] = self._plane(n, run.registers[n])
        step(run)
        step(second)
        for n in targets:
            self._planes[n] = np.broadcast_to(bits(second.registers[n]), second.shape)

    def _begin(self, run: Chunk) -> _Planes:
        known = {field.name: getattr(run, field.name) for field in dataclasses.fields(Chunk)}
        shape = (PLANES, self.threads)
        known |= {
            "shape": shape,
            "ctas": np.repeat(run.ctas, PLANES),
            "shared": np.zeros((PLANES, run.shared.shape[1]), np.uint8),
            "local": np.zeros((PLANES * self.threads, run.local.shape[1]), np.uint8),
            "found": dataclasses.replace(run.found, by_instruction={}, unordered={}),
            "races": None,
            "counting": None,
            "copies": None,
        }
        self._second = _Planes(**known)
        self._second.origins = self.written
        return self._second


def entry_writes(entry: Any) -> bool:
    """Whether an opcode has a result."""
    return isinstance(entry, Elementwise) or entry.writes > 0


def _moved(instruction: Instruction, binder: Binder) -> tuple[list[int], list[int]] | None:
    """The registers whose bytes an instruction moves, those to read as origins and those written; None if it computes.

    What it writes is read too, where it has a guard.
    """
    opcode, operands = instruction.opcode, instruction.operands
    sizes = [*binder.kernel.registers.values()]
    registers = [
        [n for name in _names(o) if (n := binder.number.get(name)) is not None and sizes[n] > 1] for o in operands
    ]
    if opcode.startswith("mov.") and opcode != "mov.pred":
        if all(name in binder.number for name in _names(operands[1])):
            return [*registers[0], *registers[1]], registers[0]
        return None
    if opcode.startswith("shfl."):
        return [*registers[0], *registers[1]], registers[0]
    if opcode.startswith("cp.async."):
        return [], []
    if opcode.startswith(_STORES):
        return registers[1], []
    if opcode.startswith(_LOADS):
        # The address may lie in a register that the load writes.
        return [n for n in registers[0] if [*binder.number][n] not in operands[1]], registers[0]
    if _is_bytes(opcode, operands):
        return [n for of in registers for n in of], registers[0]
    return None


def _is_bytes(opcode: str, operands: Sequence[str]) -> bool:
    """Whether an integer instruction keeps whole bytes: shifts by bytes, masks of bytes, conversions of unsigned."""
    name, *types = opcode.split(".")
    if name == "cvt":
        return len(types) == 2 and types[0] in ("u16", "u32", "u64") and types[1] in ("u16", "u32", "u64")
    if name in ("shl", "shr"):
        return types[0][0] in "bu" and operands[2].isdigit() and int(operands[2]) % 8 == 0
    if name == "and" and types[0] == "b32":
        try:
            mask = int(operands[2], 0) & 0xFFFFFFFF
        except ValueError:
            return False
        return all(byte in (0, 0xFF) for byte in mask.to_bytes(4, "little"))
    return False


def _names(operand: str) -> list[str]:
    """The names in an operand that is a register, a pair ``value|predicate`` or a vector; none in an address."""
    return [] if operand.startswith("[") else [one.strip() for one in operand.strip("{} ").replace("|", ",").split(",")]
