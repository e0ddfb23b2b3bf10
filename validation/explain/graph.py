"""The arithmetic of one output element, as a graph: nodes are instructions, leaves are elements and constants."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from validation.compiled.ptx.bits import DTYPES, Array
from validation.compiled.ptx.opcodes import OPCODES
from validation.compiled.ptx.parse import Instruction
from validation.compiled.ptx.table import Elementwise
from validation.errors import NotExecutedError
from validation.explain.trace import Record, Trace, from_planes

# They widen exactly.
WIDENS = ("cvt.f32.bf16", "cvt.f32.f16", "cvt.f64.f32", "widen")

# Numbers of threads of neighbouring CTAs are so far apart.
CTA = 1 << 12


@dataclasses.dataclass(eq=False)
class Node:
    """A value.

    Attributes:
        op: the opcode, that of one number where the instruction has pairs; ``element``, ``constant``,
            ``part.4`` for the bytes from 4 on of an integer, or ``widen`` for bfloat16 in the upper half of float32.
        type_: the PTX type of the value. size: its bytes.
        operands: what it is computed from.
        bits: of the value, as the kernel had it.
        name: of an element, ``x[0, 3, 17]``, or of a constant that has one, such as a parameter.
        instruction: what computed it. thread: which thread did, `CTA` times its CTA's number and its own.
    """

    op: str
    type_: str
    size: int
    operands: tuple["Node", ...] = ()
    bits: int = 0
    name: str = ""
    instruction: Instruction | None = None
    thread: int = 0

    @property
    def short(self) -> str:
        """Its operation without modes and types: ``add``."""
        return self.op.partition(".")[0]

    @property
    def place(self) -> str:
        """``file:line`` of the Python code; "" for a leaf."""
        one = self.instruction
        return f"{one.path.rpartition('/')[2]}:{one.line}" if one is not None and one.path else ""


# A value that is wanted: the trace, its origins, and the type as which it is read; or the bits of a constant.
Wanted = tuple[Trace | None, tuple[int, ...], str]
Resolve = Callable[[Trace, int, int], "tuple[Trace, tuple[int, ...]] | str"]


class Builder:
    """Builds graphs from traces.

    Args:
        resolve: takes a trace, an offset in its memory and a size, and gives the name of the element there, or the
            trace of an earlier launch and the origins of what that wrote there.
    """

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._made: dict[Wanted, Node] = {}
        # By the planes that they came from, the origins of all threads.
        self._origins: dict[int, list[list[int]]] = {}

    def build(self, trace: Trace, origins: tuple[int, ...], type_: str) -> Node:
        """The graph of a value.

        Raises:
            NotExecutedError: part of it cannot be followed.
        """
        wanted: Wanted = (trace, origins, type_)
        waiting = [wanted]
        plans: dict[Wanted, tuple[Callable[[tuple[Node, ...]], Node], list[Wanted]]] = {}
        while waiting:
            one = waiting[-1]
            if one in self._made:
                waiting.pop()
                continue
            make, needs = plans.pop(one) if one in plans else self._plan(one)
            missing = [need for need in needs if need not in self._made]
            if missing:
                plans[one] = make, needs
                waiting += missing
            else:
                self._made[one] = make(tuple(self._made[need] for need in needs))
                waiting.pop()
        return self._made[wanted]

    def _plan(self, wanted: Wanted) -> tuple[Callable[[tuple[Node, ...]], Node], list[Wanted]]:
        """How to make a value, and from which others."""
        trace, origins, type_ = wanted
        size = len(origins)
        if trace is None:  # the origins are the bytes of a constant
            return lambda _: Node("constant", type_, size, bits=int.from_bytes(bytes(origins), "little")), []
        if not any(origins):
            return lambda _: Node("constant", type_, size), []
        consecutive = all(n == origins[0] + k for k, n in enumerate(origins))
        if consecutive and origins[-1] < trace.base:
            return self._of_memory(trace, origins[0] - 1, size, type_)
        if consecutive and origins[0] >= trace.base:
            record, thread, byte = trace.origin_of(origins[0])
            if byte == 0 and size == record.result.dtype.itemsize:
                return self._of_record(trace, record, thread, type_)
            return self._of_part(trace, record, thread, origins, type_)
        if size == 4 and not any(origins[:2]):
            needs: list[Wanted] = [(trace, origins[2:], "bf16")]
            return lambda made: Node("widen", "f32", 4, made, made[0].bits << 16, thread=made[0].thread), needs
        raise NotExecutedError(f"{size} bytes of several values, read as {type_}, are not followed")

    def _of_memory(
        self, trace: Trace, offset: int, size: int, type_: str
    ) -> tuple[Callable[[tuple[Node, ...]], Node], list[Wanted]]:
        found = self._resolve(trace, offset, size)
        if not isinstance(found, str):
            return lambda made: made[0], [(*found, type_)]
        raw = int.from_bytes(trace.initial[offset : offset + size].tobytes(), "little")
        return lambda _: Node("element", type_, size, bits=raw, name=found), []

    def _of_record(
        self, trace: Trace, record: Record, thread: int, type_: str
    ) -> tuple[Callable[[tuple[Node, ...]], Node], list[Wanted]]:
        instruction = record.instruction
        name, bits = instruction.opcode.partition(".")[0], _at(record.result, thread)
        size = record.result.dtype.itemsize
        if name == "selp":
            condition = record.values[2]
            taken = 0 if condition is not None and bool(_at(condition, thread)) else 1
            return lambda made: made[0], [self._operand(trace, record, thread, taken, type_, size)]
        if (moved := self._gathered(record, thread, range(size))) is not None:
            return lambda made: made[0], [(trace, moved, type_)]
        entry = OPCODES[instruction.opcode]
        if not isinstance(entry, Elementwise):
            if any(planes is not None for planes in record.operands):
                raise instruction.refuse("its result is not followed")
            named = _parameter_name(trace, instruction)
            return lambda _: Node("constant", type_, size, bits=bits, name=named, instruction=instruction), []
        types = _types(entry, instruction)
        needs = [self._operand(trace, record, thread, n, t, DTYPES[t].itemsize) for n, t in enumerate(types)]
        result = _result(instruction.opcode, entry)
        return lambda made: Node(
            instruction.opcode, result, size, made, bits, instruction=instruction, thread=trace.cta * CTA + thread
        ), needs

    def _of_part(
        self, trace: Trace, record: Record, thread: int, origins: tuple[int, ...], type_: str
    ) -> tuple[Callable[[tuple[Node, ...]], Node], list[Wanted]]:
        """A part of a result: a half of a pair, or bytes that were packed."""
        first, size = origins[0], len(origins)
        byte = trace.origin_of(first)[2]
        instruction = record.instruction
        if (moved := self._gathered(record, thread, range(byte, byte + size))) is not None:
            return lambda made: made[0], [(trace, moved, type_)]
        if all(planes is None for planes in record.operands):
            part = (_at(record.result, thread) >> (8 * byte)) & ((1 << 8 * size) - 1)
            return lambda _: Node("constant", type_, size, bits=part, instruction=instruction), []
        opcode = instruction.opcode.replace("x2", "")
        entry, whole = OPCODES.get(opcode), record.result.dtype.itemsize
        of_pair = OPCODES[instruction.opcode]
        if isinstance(of_pair, Elementwise) and instruction.opcode.rpartition(".")[2][0] in "bsu":
            all_bytes = tuple(range(first - byte, first - byte + whole))
            return lambda made: Node(
                f"part.{byte}", type_, size, made, (made[0].bits >> 8 * byte) & ((1 << 8 * size) - 1)
            ), [(trace, all_bytes, of_pair.result)]
        if "x2" not in instruction.opcode or not isinstance(entry, Elementwise) or size * 2 != whole:
            raise instruction.refuse("a part of its result is not followed")
        half, shift = byte // size, 8 * byte
        if len(_types(OPCODES[instruction.opcode], instruction)) > len(entry.operands):
            # cvt of two numbers: the first goes into the upper half.
            needs = [
                self._operand(trace, record, thread, 1 - half, entry.operands[0], DTYPES[entry.operands[0]].itemsize)
            ]
        else:
            needs = [self._operand(trace, record, thread, n, t, size, first=byte) for n, t in enumerate(entry.operands)]
        bits = (_at(record.result, thread) >> shift) & ((1 << 8 * size) - 1)
        result = _result(opcode, entry)
        return lambda made: Node(
            opcode, result, size, made, bits, instruction=instruction, thread=trace.cta * CTA + thread
        ), needs

    def _operand(
        self, trace: Trace, record: Record, thread: int, n: int, type_: str, size: int, *, first: int = 0
    ) -> Wanted:
        """Bytes of an operand of a record: their origins, or those of an immediate or a special register."""
        planes = record.operands[n]
        if planes is not None:
            origins = self._of_thread(planes, thread)[first : first + size]
            if any(origins):
                return trace, tuple(origins), type_
        value = record.values[n]
        raw = _immediate(record.instruction.operands[n + 1], type_) if value is None else _at(value, thread)
        return None, tuple((raw >> 8 * first).to_bytes(16, "little")[:size]), type_

    def _of_thread(self, planes: Array, thread: int) -> list[int]:
        """The origins of a thread's bytes."""
        key = id(planes)  # a record keeps them
        if key not in self._origins:
            self._origins[key] = from_planes(planes).tolist()
        of_threads = self._origins[key]
        return of_threads[min(thread, len(of_threads) - 1)]

    def _gathered(self, record: Record, thread: int, bytes_: range) -> tuple[int, ...] | None:
        """The origins of bytes that ``or`` or ``prmt`` only gather; None if the instruction computes."""
        name, _, kind = record.instruction.opcode.partition(".")
        if kind != "b32" or name not in ("or", "prmt") or record.operands[0] is None:
            return None
        parts = [[0] * 4 if p is None else self._of_thread(p, thread) for p in record.operands[:2]]
        if name == "prmt":
            selector = record.instruction.operands[3].removesuffix("U")
            if record.values[2] is not None or len(selector) > 6:
                return None
            chosen = [(int(selector, 0) >> (4 * k)) & 15 for k in bytes_]
            return None if any(c > 7 for c in chosen) else tuple((parts[0] + parts[1])[c] for c in chosen)
        both = [(parts[0][k], parts[1][k]) for k in bytes_]
        if record.operands[1] is None or any(a and b for a, b in both) or not any(a or b for a, b in both):
            return None
        return tuple(a or b for a, b in both)


def walk(root: Node) -> Iterator[Node]:
    """The nodes of a graph, each once, operands first."""
    seen = set[int]()
    waiting: list[tuple[Node, bool]] = [(root, False)]
    while waiting:
        node, ready = waiting.pop()
        if ready:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            waiting.append((node, True))
            waiting += [(one, False) for one in node.operands if id(one) not in seen]


def _types(entry: Any, instruction: Instruction) -> tuple[str, ...]:
    types: tuple[str, ...] = entry.operands
    return (*types, types[-1]) if len(instruction.operands) - 1 > len(types) else types


def _result(opcode: str, entry: Elementwise) -> str:
    """The PTX type of a result; a conversion to float16 gives bits."""
    return "f16" if entry.result == "b16" and opcode.split(".")[2:3] == ["f16"] else entry.result


def _at(array: Any, thread: int) -> int:
    return int(array[0, min(thread, array.shape[1] - 1)])


def _immediate(text: str, type_: str) -> int:
    if text[:2].lower() in ("0f", "0d"):
        return int("0x" + text[2:], 0)
    size = DTYPES[type_].itemsize
    return int(text.removesuffix("U"), 0) & ((1 << 8 * size) - 1)


def _parameter_name(trace: Trace, instruction: Instruction) -> str:
    if not instruction.opcode.startswith("ld.param"):
        return ""
    names = [name for _, name in trace.kernel.parameters]
    at = names.index(instruction.operands[1].strip("[] "))
    return trace.launch.arguments[at][0] if at < len(trace.launch.arguments) else ""
