"""The strict table of opcodes: by exact spelling, or not executed.

`Elementwise` entries compute each thread's result from its own operands; everything else (memory, shuffles, barriers,
branches) is a `Bound` entry, which makes its step from the instruction itself.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from validation.compiled.ptx.bits import DTYPES, Array
from validation.compiled.ptx.parse import Instruction

# What an instruction does to a running `validation.compiled.ptx.chunk.Chunk`.
Step = Callable[[Any], None]


@dataclasses.dataclass(frozen=True)
class Elementwise:
    """An opcode that computes each thread's result from its own operands.

    Attributes:
        section: of the PTX ISA document, where it is defined.
        result: PTX type of the result. operands: PTX types of the operands; an array of `bits.DTYPES` each.
        function: takes the operands' arrays, returns the result's.
        approximate: the function takes a `validation.compiled.ptx.approximate.Approximation` first.
        loose: registers may be wider than the types (cvt alone).
        third: a third operand of the same type may follow the two.
    """

    section: str
    result: str
    operands: tuple[str, ...]
    function: Callable[..., Array]
    approximate: bool = False
    loose: bool = False
    third: bool = False


@dataclasses.dataclass(frozen=True)
class Bound:
    """An opcode whose step is made from the instruction.

    Attributes:
        section: of the PTX ISA document.
        bind: takes the instruction and a `validation.compiled.ptx.binding.Binder`, and returns the step.
        writes: how many of the first operands are results.
    """

    section: str
    bind: Callable[[Instruction, Any], Step]
    writes: int = 1


OPCODES: dict[str, Elementwise | Bound] = {}


def add(spelling: str, entry: Elementwise | Bound) -> None:
    """Add an opcode; a second entry of one spelling is an error."""
    if spelling in OPCODES:
        raise ValueError(f"{spelling} has two entries")
    OPCODES[spelling] = entry


def elementwise(
    section: str,
    spellings: str | Iterable[str],
    types: str,
    function: Callable[..., Array],
    **flags: bool,
) -> None:
    """Add opcodes of one meaning; `types` is the result's type, then the operands', separated by blanks."""
    result, *operands = types.split()
    assert {result, *operands} <= DTYPES.keys()
    for spelling in [spellings] if isinstance(spellings, str) else spellings:
        add(spelling, Elementwise(section, result, tuple(operands), function, **flags))
