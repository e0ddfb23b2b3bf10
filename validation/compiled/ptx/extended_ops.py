"""Carries from one instruction to the next: PTX ISA, "Extended-Precision Integer Arithmetic Instructions".

libdevice reduces large angles with them. The condition code is a register of the machine, not of the kernel.
"""

from functools import partial
from typing import Any

import numpy as np

from validation.compiled.ptx.bits import Array
from validation.compiled.ptx.parse import Instruction
from validation.compiled.ptx.table import Bound, Step, add

_SECTION = "Extended-Precision Integer Arithmetic Instructions: "
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def _mad(instruction: Instruction, binder: Any, *, high: bool, carry_in: bool, carry_out: bool) -> Step:
    """A half of a product, plus c, plus the carry."""
    target, *sources = instruction.operands
    gets = [binder.get(source, "u32") for source in sources]
    put, mask_of = binder.put(instruction, target, "u32"), binder.mask(instruction)

    def step(run: Any) -> None:
        a, b, c = (get(run).astype(np.uint64) for get in gets)
        half = (a * b) >> _HALF if high else (a * b) & _LOW
        total: Array = half + c
        if carry_in:
            total = total + run.carry.astype(np.uint64)
        put(run, (total & _LOW).astype(np.uint32))
        if carry_out:
            mask = mask_of(run)
            carry = (total >> _HALF) != 0
            run.carry = carry if mask is None else np.where(mask, carry, run.carry)

    return step


for _half in ("lo", "hi"):
    for _in in ("", "c"):
        for _out in ("", ".cc"):
            if _in or _out:
                add(
                    f"mad{_in}.{_half}{_out}.u32",
                    Bound(
                        f"{_SECTION}mad{_in}",
                        partial(_mad, high=_half == "hi", carry_in=bool(_in), carry_out=bool(_out)),
                    ),
                )
