"""Comparisons of pairs of 16 bits: PTX ISA, "Half Precision Comparison Instructions: setp"."""

from collections.abc import Callable
from functools import partial
from typing import Any

from validation.compiled.ptx.bits import Array, halves
from validation.compiled.ptx.comparisons import OF_FLOATS
from validation.compiled.ptx.parse import Instruction
from validation.compiled.ptx.rounding import from_bf16
from validation.compiled.ptx.table import Bound, Step, add

Widen = Callable[[Array], Array]


def _compare(instruction: Instruction, binder: Any, relation: str, widen: Widen) -> Step:
    """The lower halves' comparison goes into the first predicate, the upper halves' into the second."""
    target, first, second = instruction.operands
    low, high = target.split("|")
    get_a, get_b = binder.get(first, "b32"), binder.get(second, "b32")
    puts = [binder.put(instruction, name, "pred") for name in (low, high)]

    def step(run: Any) -> None:
        results = [
            OF_FLOATS[relation](widen(a), widen(b)) for a, b in zip(halves(get_a(run)), halves(get_b(run)), strict=True)
        ]
        for put, result in zip(puts, results, strict=True):
            put(run, result)

    return step


_FORMATS: tuple[tuple[str, Widen], ...] = (("f16x2", lambda x: x.view("f2")), ("bf16x2", from_bf16))
for _type, _widen in _FORMATS:
    for _relation in OF_FLOATS:
        add(
            f"setp.{_relation}.{_type}",
            Bound("Half Precision Comparison Instructions: setp", partial(_compare, relation=_relation, widen=_widen)),
        )
