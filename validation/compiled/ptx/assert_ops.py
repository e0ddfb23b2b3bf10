"""Assertions in a kernel: PTX ISA, "Control Flow Instructions: call", "Miscellaneous Instructions: trap".

A failed one calls ``__assertfail`` (CUDA's, of the message, file, line, function and size of a character) and traps.
"""

from functools import partial
from typing import Any

import numpy as np

from validation.compiled.ptx.bits import DTYPES, read_as
from validation.compiled.ptx.parse import Instruction
from validation.compiled.ptx.table import Bound, Step, add, elementwise

# A generic address of global memory is its own, so both directions are a move.
elementwise("Data Movement and Conversion Instructions: cvta", ("cvta.global.u64", "cvta.to.global.u64"), "u64 u64",
            lambda x: x)  # fmt: skip


def _argument(instruction: Instruction, binder: Any, type_: str) -> Step:
    target, source = instruction.operands
    name, get, dtype = target.strip("[] "), binder.get(source, type_), DTYPES[type_]

    def step(run: Any) -> None:
        run.passed[name] = read_as(get(run), dtype)

    return step


for _type in ("b32", "b64"):
    add(
        f"st.param.{_type}",
        Bound("Data Movement and Conversion Instructions: st", partial(_argument, type_=_type), writes=0),
    )


def _call(instruction: Instruction, binder: Any) -> Step:
    function, arguments = instruction.operands
    if function != "__assertfail":
        raise ValueError(f"a call of {function}")
    message = arguments.strip("() ").split(",")[0]
    mask_of = binder.mask(instruction)

    def step(run: Any) -> None:
        mask = mask_of(run)
        lanes = np.broadcast_to(np.True_ if mask is None else mask, run.shape)
        if lanes.any():
            cta, thread = np.argwhere(lanes)[0]
            text = run.memory.text(int(np.broadcast_to(run.passed[message], run.shape)[cta, thread]))
            where = f"the assertion {text!r} does not hold"
            run.found.add("ASSERTION_FAILED", instruction, int(run.ctas[cta]), int(thread), int(lanes.sum()), where)

    return step


add("call.uni", Bound("Control Flow Instructions: call", _call, writes=0))


class TrapError(Exception):
    """A thread trapped: the launch ends."""


def _trap(instruction: Instruction, binder: Any) -> Step:
    mask_of = binder.mask(instruction)

    def step(run: Any) -> None:
        mask = mask_of(run)
        if mask is None or mask.any():
            raise TrapError

    return step


add("trap", Bound("Miscellaneous Instructions: trap", _trap, writes=0))
