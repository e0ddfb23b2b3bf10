"""Binds instructions to registers: each becomes a step, a function of the running chunk. What is unknown fails here."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from validation.compiled.ptx.bits import DTYPES, UNSIGNED, Array, bits, read_as
from validation.compiled.ptx.opcodes import OPCODES
from validation.compiled.ptx.parse import Instruction, Kernel
from validation.compiled.ptx.table import Elementwise, Step

Get = Callable[[Any], Array]
_SPECIAL = re.compile(r"%(?:tid|ctaid|ntid|nctaid)\.[xyz]|%laneid")
_ADDRESS = re.compile(r"\[\s*([%$\w.]+)\s*(?:\+\s*(-?\d+))?\s*\]")
_REGISTER = re.compile(r"%[\w$]+(?![\w.$])")
_FLOAT: dict[str, Any] = {"0f": np.uint32, "0F": np.uint32, "0d": np.uint64, "0D": np.uint64}


class Binder:
    """Binds the instructions of one kernel; registers are numbered in the order of their declaration."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.shared = {one.name: one.start for one in kernel.shared}
        self.number = {name: n for n, name in enumerate(kernel.registers)}

    def step(self, instruction: Instruction) -> Step:
        """The step of an instruction.

        Raises:
            NotExecutedError: its opcode is not in the table, or its operands have an unknown form.
        """
        entry = OPCODES.get(instruction.opcode)
        if entry is None:
            raise instruction.refuse("no such spelling in the table of opcodes")
        try:
            if isinstance(entry, Elementwise):
                return self._elementwise(instruction, entry)
            return entry.bind(instruction, self)
        except (ValueError, KeyError, IndexError) as error:
            raise instruction.refuse(f"operands {', '.join(instruction.operands)!r}: {error}") from error

    def reads_and_writes(self, instruction: Instruction) -> tuple[set[int], set[int]]:
        """Numbers of the registers that it reads and writes; a guarded one reads what it writes."""
        entry = OPCODES[instruction.opcode]
        writes = 1 if isinstance(entry, Elementwise) else entry.writes
        found = [{self.number[r] for r in _REGISTER.findall(o) if r in self.number} for o in instruction.operands]
        written = set[int]().union(*found[:writes])
        read = set[int]().union(*found[writes:])
        if instruction.guard:
            read |= {self.number[instruction.guard]} | written
        return read, written

    def _elementwise(self, instruction: Instruction, entry: Elementwise) -> Step:
        target, *sources = instruction.operands
        types = entry.operands
        if entry.third and len(sources) == len(types) + 1:
            types = (*types, types[-1])
        if len(sources) != len(types):
            raise ValueError(f"expected {len(types)} operands")
        gets = [self.get(text, type_, loose=entry.loose) for text, type_ in zip(sources, types, strict=True)]
        put = self.put(instruction, target, entry.result, loose=entry.loose)
        function = entry.function
        if entry.approximate:
            return lambda run: put(run, function(run.approximation, *[get(run) for get in gets]))
        if len(gets) == 2:
            first, second = gets
            return lambda run: put(run, function(first(run), second(run)))
        return lambda run: put(run, function(*[get(run) for get in gets]))

    def get(self, text: str, type_: str, *, loose: bool = False) -> Get:
        """A function that reads an operand as an array of a PTX type.

        Args:
            text: a register, an immediate, a special register or a symbol.
            type_: the PTX type.
            loose: the register may be wider; its lower bits are taken.
        """
        dtype = DTYPES[type_]
        if text in self.number:
            n, size = self.number[text], self.kernel.registers[text]
            wanted = 1 if type_ == "pred" else 8 * dtype.itemsize
            if size == wanted:
                return lambda run: read_as(run.registers[n], dtype)
            if loose and size > wanted:
                narrow = UNSIGNED[dtype.itemsize]
                return lambda run: bits(run.registers[n]).astype(narrow).view(dtype)
            raise ValueError(f"{text} has {size} bits, {type_} has {wanted}")
        if text.startswith("!") and type_ == "pred":
            inner = self.get(text[1:], "pred")
            return lambda run: ~inner(run)
        if _SPECIAL.fullmatch(text):
            if dtype.itemsize != 4:
                raise ValueError(f"{text} has 32 bits, {type_} has not")
            return lambda run: read_as(run.special[text], dtype)
        if text in self.kernel.constants:
            if dtype.itemsize != 8:
                raise ValueError(f"an address has 64 bits, {type_} has not")
            return lambda run: read_as(run.symbols[text], dtype)
        constant = np.full((1, 1), self._constant(text, dtype))
        return lambda _: constant

    def _constant(self, text: str, dtype: np.dtype[Any]) -> Any:
        if text in self.shared:
            return dtype.type(self.shared[text])
        if text and text == self.kernel.depot:
            return dtype.type(0)  # local memory starts at 0
        if text[:2] in _FLOAT:
            raw: Any = _FLOAT[text[:2]](int("0x" + text[2:], 0))
            if raw.dtype.itemsize != dtype.itemsize:
                raise ValueError(f"{text} is not of {8 * dtype.itemsize} bits")
            return raw.view(dtype)
        if dtype.kind == "b":
            return np.bool_(int(text) != 0)
        if dtype.kind == "f":
            raise ValueError(f"{text} is no number of {dtype}")
        try:
            value = int(text.removesuffix("U"), 0)
        except ValueError:
            raise ValueError(f"{text} is no register, no number and no variable of a kind that is executed") from None
        if not -(1 << (8 * dtype.itemsize - 1)) <= value < 1 << (8 * dtype.itemsize):
            raise ValueError(f"{text} does not fit {8 * dtype.itemsize} bits")
        return np.uint64(value & 0xFFFFFFFFFFFFFFFF).astype(UNSIGNED[dtype.itemsize]).view(dtype)

    def put(self, instruction: Instruction, text: str, type_: str, *, loose: bool = False) -> Callable[..., None]:
        """A function of (run, value) that writes a result where the instruction's mask holds.

        Args:
            instruction: the instruction, for its guard.
            text: a register, or ``_`` for nothing.
            type_: the result's PTX type; the value is an array of its size.
            loose: the register may be wider: signed types are extended with their sign, others with zeros.
        """
        if text == "_":
            return lambda _run, _value: None
        if text not in self.number:
            raise ValueError(f"{text} is no register")
        n, size = self.number[text], self.kernel.registers[text]
        dtype = DTYPES[type_]
        wanted = 1 if type_ == "pred" else 8 * dtype.itemsize
        wide = None
        if size != wanted:
            if not (loose and size > wanted and dtype.kind != "f"):
                raise ValueError(f"{text} has {size} bits, {type_} has {wanted}")
            wide = np.dtype(f"{dtype.kind}{size // 8}")
        mask_of = self.mask(instruction)

        def put(run: Any, value: Array) -> None:
            if wide is not None:
                value = read_as(value, dtype).astype(wide)
            mask = mask_of(run)
            if mask is not None:
                value = np.where(mask, value, read_as(run.registers[n], value.dtype))
            run.registers[n] = value

        return put

    def mask(self, instruction: Instruction) -> Callable[[Any], Array | None]:
        """A function that gives the threads that execute an instruction; None: all."""
        if instruction.guard is None:
            return lambda run: run.active
        guard = self.get(instruction.guard, "pred")
        negated = instruction.negated

        def mask(run: Any) -> Array | None:
            holds = ~guard(run) if negated else guard(run)
            if run.active is not None:
                holds = holds & run.active
            return None if holds.all() else holds

        return mask

    def vector(self, text: str, count: int | None = None) -> list[str]:
        """The registers of ``{%r1, %r2}``, or the one that is written alone; ValueError unless they are `count`."""
        names = [one.strip() for one in text.strip("{} ").split(",")]
        if count not in (None, len(names)):
            raise ValueError(f"expected {count} registers")
        return names

    def address(self, text: str) -> Get:
        """A function that gives an address as uint64; a register of 32 bits is extended with zeros."""
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise ValueError(f"{text} is no address of a known form")
        base, offset = match[1], np.uint64(int(match[2] or 0) & 0xFFFFFFFFFFFFFFFF)
        narrow = self.kernel.registers.get(base) == 32
        get = self.get(base, "u32" if narrow else "u64")
        if narrow:  # shared addresses of 32 bits wrap there
            small = np.uint32(int(offset) & 0xFFFFFFFF)
            return lambda run: (get(run) + small).astype(np.uint64)
        return lambda run: get(run) + offset
