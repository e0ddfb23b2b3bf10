"""PTX text to instructions, registers and basic blocks. Nothing is guessed: a line of unknown form is an error."""

import dataclasses
import re
from collections.abc import Iterator
from functools import cached_property

from validation.compiled.ptx.errors import NotExecutedError


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        opcode: its exact spelling, ``ld.global.v4.b32``.
        operands: as written; ``{%r1, %r2}`` and ``[%rd1+4]`` are one each.
        guard: the predicate register before it, if any. negated: whether it is ``@!``.
        path, line: the Python line that it was compiled from; "" and 0 if the PTX does not say.
        callers: the lines that the compiler inlined it into, as the compiler's comment lists them.
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
        threads: of a CTA.
        registers: bits of each register, 1 for a predicate.
        instructions: in order. labels: index of the instruction after each label.
        symbols: names of shared memory; each starts at address 0, so there is one at most.
        constants: bytes of each variable in global memory that an instruction names.
        depot: the name of its local memory, which starts at address 0; "" if it has none. local_bytes: of a thread.
    """

    name: str
    parameters: tuple[tuple[str, str], ...]
    threads: int
    registers: dict[str, int]
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    symbols: tuple[str, ...]
    constants: dict[str, bytes] = dataclasses.field(default_factory=dict)
    depot: str = ""
    local_bytes: int = 0

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


_DECLARED = re.compile(r"\.reg\s+\.(pred|[bsuf]\d+)\s+(.*)")
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+\d+")
_GUARDED = re.compile(r"@(!?)([%\w$]+)\s+(.*)", re.DOTALL)
_NAME = re.compile(r"(?<![\w$.%])%?[A-Za-z_$][\w$]*")
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.MULTILINE)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{", re.DOTALL)
_PARAMETER = re.compile(r"\.param\s+\.(\w+)((?:\s+\.\w+(?:\s+\d+)?)*)\s+([\w$]+)(\[\d+\])?$")
_SHARED = re.compile(
    r"^\s*(?:\.extern\s+|\.visible\s+)*\.shared\s+(?:\.align\s+\d+\s+)?\.b8\s+([\w$]+)\[\d*\];", re.MULTILINE
)
_CONSTANT = re.compile(
    r"^\s*\.global\s+(?:\.align\s+\d+\s+)?\.b8\s+([\w$]+)\[(\d+)\]\s*=\s*\{([\d,\s]*)\};", re.MULTILINE
)
_DEPOT = re.compile(r"\.local\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[(\d+)\]")
_PASSED = re.compile(r"\.param\s+\.\w+\s+[\w$]+")  # of a call
_FUNCTION = re.compile(r"(\.extern\s+)?\.func\b")
_IGNORED = (".pragma", ".file", ".section")


def parse(ptx: str) -> Kernel:
    """Read the one kernel of a PTX module.

    Raises:
        NotExecutedError: the text has a form that is not known, or other than one kernel without functions.
    """
    entries = list(_ENTRY.finditer(ptx))
    # A function that is only declared is refused where it is called.
    if len(entries) != 1 or not all(match[1] for match in _FUNCTION.finditer(ptx)):
        raise NotExecutedError(f"a module of {len(entries)} kernels or with functions is not executed")
    name, declared, directives = entries[0].groups()
    threads = re.search(r"\.(?:req|max)ntid\s+(\d+(?:\s*,\s*1)*)\s", directives)
    if threads is None:
        raise NotExecutedError(f"{name} declares no CTA of one dimension: {' '.join(directives.split())!r}")
    paths = {int(number): path for number, path in _FILE.findall(ptx)}
    symbols = tuple(_SHARED.findall(ptx[: entries[0].start()]))
    if len(symbols) > 1:
        raise NotExecutedError(f"{name} has shared memory of several names: {', '.join(symbols)}")
    reader = _Reader(paths)
    reader.read(ptx[entries[0].end() :])
    named = {operand for instruction in reader.instructions for operand in instruction.operands}
    constants = {
        name: bytes(map(int, values.split(","))).ljust(int(size), b"\0")
        for name, size, values in _CONSTANT.findall(ptx[: entries[0].start()])
        if name in named
    }
    return Kernel(
        name,
        tuple(_parameters(declared)),
        int(threads[1].split(",")[0]),
        reader.registers,
        tuple(reader.instructions),
        reader.labels,
        symbols,
        constants,
        *reader.depot,
    )


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
                self.callers = _callers(comment)
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
