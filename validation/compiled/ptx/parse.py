"""PTX text to instructions, registers and basic blocks. Nothing is guessed: a line of unknown form is an error."""

import dataclasses
import math
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from validation.compiled.ptx.errors import NotExecutedError
from validation.compiled.ptx.shared import Variable, laid_out


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        opcode: its exact spelling, ``ld.global.v4.b32``.
        operands: as written; ``{%r1, %r2}`` and ``[%rd1+4]`` are one each.
        guard: the predicate register before it, if any. negated: whether it is ``@!``.
        path, line: the line of Python or CUDA C++ that it was compiled from; "" and 0 if the PTX does not say.
        callers: the lines that the compiler inlined it into.
    """

    opcode: str
    operands: tuple[str, ...]
    guard: str | None
    negated: bool
    path: str
    line: int
    callers: str = ""

    @property
    def source(self) -> str:
        """``path:line``, and the lines that it was inlined into."""
        return f"{self.path or '?'}:{self.line}" + (f" in {self.callers}" if self.callers else "")

    def refuse(self, why: str) -> NotExecutedError:
        """The error that this instruction is not executed."""
        return NotExecutedError(f"{self.opcode} at {self.source} is not executed: {why}")


# Opcodes that end a basic block.
BRANCHES = ("bra", "bra.uni")
RETURNS = ("ret", "exit")
ENDS = (*RETURNS, "trap")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel.

    Attributes:
        name: its name.
        parameters: type (``u64``) and name of each, in order.
        block: threads of a CTA in x, y and z.
        registers: bits of each register, 1 for a predicate.
        instructions: in order. labels: index of the instruction after each label.
        shared: the variables of shared memory that its instructions name.
        constants: bytes of each variable in global memory that an instruction names.
        depot: the name of its local memory, which starts at address 0; "" if it has none. local_bytes: of a thread.
    """

    name: str
    parameters: tuple[tuple[str, str], ...]
    block: tuple[int, int, int]
    registers: dict[str, int]
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    shared: tuple[Variable, ...]
    constants: dict[str, bytes] = dataclasses.field(default_factory=dict)
    depot: str = ""
    local_bytes: int = 0

    @cached_property
    def threads(self) -> int:
        """Of a CTA."""
        return math.prod(self.block)

    @cached_property
    def loops(self) -> bool:
        """Whether a branch goes back."""
        return any(
            self.labels.get(one.operands[0], len(self.instructions)) <= n
            for n, one in enumerate(self.instructions)
            if one.opcode in BRANCHES
        )

    @cached_property
    def blocks(self) -> tuple[range, ...]:
        """Basic blocks as ranges of instructions, in order."""
        starts = {0, *self.labels.values()}
        starts |= {n + 1 for n, i in enumerate(self.instructions) if i.opcode in (*BRANCHES, *ENDS)}
        ordered = [n for n in sorted(starts) if n < len(self.instructions)]
        return tuple(map(range, ordered, [*ordered[1:], len(self.instructions)]))


_DECLARED = re.compile(r"\.reg\s*\.(pred|[bsuf]\d+)\s+(.*)")
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+\d+")
_GUARDED = re.compile(r"@(!?)([%\w$]+)\s+(.*)", re.DOTALL)
_NAME = re.compile(r"(?<![\w$.%])%?[A-Za-z_$][\w$]*")
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.MULTILINE)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{", re.DOTALL)
_PARAMETER = re.compile(r"\.param\s+\.(\w+)((?:\s+\.\w+(?:\s+\d+)?)*)\s+([\w$]+)(\[\d+\])?$")
_SHARED = r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.[bsuf](\d+)\s+([\w$]+)(\[\d*\])?"
_OF_MODULE = re.compile(rf"^\s*(?:\.(?:extern|visible|weak)\s+)*{_SHARED};", re.MULTILINE)
_OF_KERNEL = re.compile(_SHARED)
_CONSTANT = re.compile(
    r"^\s*\.global\s+(?:\.align\s+\d+\s+)?\.b8\s+([\w$]+)\[(\d+)\]\s*=\s*\{([\d,\s]*)\};", re.MULTILINE
)
_DEPOT = re.compile(r"\.local\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[(\d+)\]")
_PASSED = re.compile(r"\.param\s+\.\w+\s+[\w$]+")  # of a call
_FUNCTION = re.compile(r"(\.extern\s+)?\.func\b")
_INLINED = re.compile(r"inlined_at\s+(\d+)\s+(\d+)\s+(\d+)")
_THREADS = re.compile(r"\.(req|max)ntid\s+(\d+(?:\s*,\s*\d+)*)\s")
_IGNORED = (".pragma", ".file", ".section")


def parse(ptx: str, entry: str = "", block: tuple[int, int, int] | None = None) -> Kernel:
    """Read a kernel of a PTX module.

    Args:
        ptx: the module.
        entry: the kernel's name; "" for the only one.
        block: threads of a CTA in x, y and z as the launch says, of a kernel that does not declare them.

    Raises:
        NotExecutedError: the text has a form that is not known, or functions, or other than one kernel of that name.
        RuntimeError: the kernel declares another block.
    """
    entries = list(_ENTRY.finditer(ptx))
    chosen = [match for match in entries if entry in ("", match[1])]
    # A function that is only declared is refused where it is called.
    if len(chosen) != 1 or not all(match[1] for match in _FUNCTION.finditer(ptx)):
        raise NotExecutedError(f"a module of {len(entries)} kernels or with functions is not executed")
    name, declared, directives = chosen[0].groups()
    paths = {int(number): path for number, path in _FILE.findall(ptx)}
    before = ptx[: entries[0].start()]
    reader = _Reader(paths)
    reader.read(ptx[chosen[0].end() :])
    named = {word for one in reader.instructions for operand in one.operands for word in _NAME.findall(operand)}
    constants = {
        name: bytes(map(int, values.split(","))).ljust(int(size), b"\0")
        for name, size, values in _CONSTANT.findall(before)
        if name in named
    }
    shared = [*map(_variable, _OF_MODULE.finditer(before)), *reader.shared]
    return Kernel(
        name,
        tuple(_parameters(declared)),
        _block(name, directives, block),
        reader.registers,
        tuple(reader.instructions),
        reader.labels,
        laid_out(one for one in shared if one.name in named),
        constants,
        *reader.depot,
    )


def _block(name: str, directives: str, launched: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """The threads of a CTA, from a kernel's directives and its launch."""
    if "cluster" in directives:
        raise NotExecutedError(f"{name} is launched in clusters, which is not executed")
    match = _THREADS.search(directives + " ")
    sizes = [int(size) for size in match[2].split(",")] if match else []
    x, y, z = (*sizes, 1, 1, 1)[:3]
    if launched is None:
        if match is None or (y, z) != (1, 1):
            raise NotExecutedError(f"{name} declares no CTA of one dimension: {' '.join(directives.split())!r}")
        return x, y, z
    if match and (launched != (x, y, z) if match[1] == "req" else math.prod(launched) > x * y * z):
        most = "" if match[1] == "req" else "at most "
        raise RuntimeError(f"a block of {launched} threads, expected {most}{(x, y, z)}, as {name} declares")
    return launched


def _variable(match: re.Match[str]) -> Variable:
    """A declaration of shared memory; an array of unknown size is as large as the launch says."""
    align, bits, name, count = match.groups()
    size = int(bits) // 8
    number = None if count == "[]" else int(count.strip("[]")) if count else 1
    return Variable(name, int(align or size), None if number is None else number * size)


def _parameters(text: str) -> Iterator[tuple[str, str]]:
    for one in filter(None, map(str.strip, text.split(","))):
        match = _PARAMETER.fullmatch(one)
        if match is None or match[4]:
            raise NotExecutedError(f"a parameter of this form is not executed: {one}")
        yield match[1], match[3]


class _Reader:
    """Reads a kernel's body line by line."""

    def __init__(self, paths: dict[int, str]) -> None:
        self.paths = paths
        self.registers: dict[str, int] = {}
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.path, self.line, self.callers = "", 0, ""
        self.shared: list[Variable] = []
        # By file, line and column, the lines that this place was last inlined into.
        self._inlined: dict[tuple[str, ...], str] = {}
        self.depot = ("", 0)
        # Names that an open scope of inline assembly declared, and the registers that they are.
        self._scopes: list[dict[str, str]] = []
        self._opened = 0

    def read(self, text: str) -> None:
        depth, statement = 1, ""
        for raw in text.splitlines():
            line, _, comment = raw.partition("//")
            line = line.strip()
            if match := _LOC.match(line):
                self.path, self.line = self.paths.get(int(match[1]), ""), int(match[2])
                self.callers = _callers(comment) or self._callers(line)
                continue
            if not statement and line.startswith(_IGNORED):
                continue
            if not statement and (match := re.fullmatch(r"([$\w]+):", line)):
                self.labels[match[1]] = len(self.instructions)
                continue
            statement = f"{statement} {line}".strip()
            # Inline assembly opens scopes; an operand in braces has text before it.
            while statement and (statement[0] in "{}" or ";" in statement):
                if statement[0] in "{}":
                    depth += self._scope(statement[0])
                    statement = statement[1:].lstrip()
                    if depth == 0:
                        return
                else:
                    one, _, statement = statement.partition(";")
                    self._statement(one.strip())
                    statement = statement.lstrip()
        raise NotExecutedError("the kernel's body has no end")

    def _callers(self, line: str) -> str:
        """The lines that a place of ``.loc`` was inlined into: the attribute names the first, which has its own."""
        file, number, column = line.split()[1:4]
        match, callers = _INLINED.search(line), ""
        if match:
            outer = f"{Path(self.paths.get(int(match[1]), '?')).name}:{match[2]}"
            callers = ", ".join(filter(None, (outer, self._inlined.get(match.groups(), ""))))
        self._inlined[file, number, column.rstrip(",")] = callers
        return callers

    def _scope(self, brace: str) -> int:
        """Open or close a scope; what that adds to the depth."""
        if brace == "{":
            self._opened += 1
            self._scopes.append({})
            return 1
        if self._scopes:
            self._scopes.pop()
        return -1

    def _resolved(self, text: str) -> str:
        """Operands with the registers that their names are in the open scopes."""
        names = {name: register for scope in self._scopes for name, register in scope.items()}
        return _NAME.sub(lambda match: names.get(match[0], match[0]), text) if names else text

    def _statement(self, text: str) -> None:
        if not text:
            return
        if text.startswith("."):
            if not _PASSED.fullmatch(text.replace("\t", " ")):
                self._declare(text)
            return
        guard, negated = None, False
        if match := _GUARDED.fullmatch(text):
            negated, guard, text = match[1] == "!", self._resolved(match[2]), match[3]
        opcode, _, rest = text.replace("\t", " ").partition(" ")
        self.instructions.append(
            Instruction(opcode, tuple(_split(self._resolved(rest))), guard, negated, self.path, self.line, self.callers)
        )

    def _declare(self, text: str) -> None:
        if match := _DEPOT.fullmatch(text.replace("\t", " ")):
            if self.depot[0]:
                raise NotExecutedError("local memory of several names is not executed")
            self.depot = match[1], int(match[2])
            return
        if match := _OF_KERNEL.fullmatch(text.replace("\t", " ")):
            self.shared.append(_variable(match))
            return
        match = _DECLARED.fullmatch(text.replace("\t", " "))
        if match is None:
            raise NotExecutedError(f"a declaration of this form is not executed: {text}")
        bits = 1 if match[1] == "pred" else int(match[1][1:])
        for name in map(str.strip, match[2].split(",")):
            base, _, count = name.partition("<")
            names = [f"{base}{n}" for n in range(int(count.rstrip(">")))] if count else [name]
            for one in names:
                if self._scopes:
                    inner = f"%{one.removeprefix('%')}${self._opened}"
                    self._scopes[-1][one] = inner
                    self.registers[inner] = bits
                elif self.registers.setdefault(one, bits) != bits:
                    raise NotExecutedError(f"two registers of the name {one} differ in size")


def _callers(comment: str) -> str:
    """``a.py:1:2 @[ b.py:3:4 @[ c.py:5:6 ] ]`` to ``b.py:3, c.py:5``."""
    _, *outer = comment.replace("]", "").split("@[")
    return ", ".join(place.strip().rpartition(":")[0] for place in outer)


def _split(text: str) -> Iterator[str]:
    depth, start = 0, 0
    for n, character in enumerate(text):
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            yield text[start:n].strip()
            start = n + 1
    if text[start:].strip():
        yield text[start:].strip()
