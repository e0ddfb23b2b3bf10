"""Atomics of global and shared memory: PTX ISA, "Parallel Synchronization and Communication Instructions: atom, red".

The order in which threads reach an address is not defined; here it is that of their numbers, CTA by CTA. Where a result
depends on that order (`Atomic.ordered`), the run says so.
"""

import dataclasses
import itertools
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from validation.compiled.ptx import rounding
from validation.compiled.ptx.bits import DTYPES, Array, bits, halves, joined
from validation.compiled.ptx.parse import Instruction
from validation.compiled.ptx.table import Bound, Step, add

Update = Callable[..., Array]
_SECTION = "Parallel Synchronization and Communication Instructions: "


@dataclasses.dataclass(frozen=True)
class Atomic:
    """An operation on one element of memory.

    Attributes:
        type_: its PTX type.
        update: takes what is there and the operands, in arrays of the type; returns what is there after it.
        operands: how many.
        ordered: the final value depends on the order of the threads, rounding included.
    """

    type_: str
    update: Update
    operands: int = 1
    ordered: bool = False


def _step(instruction: Instruction, binder: Any, space: str, atomic: Atomic, count: int, *, returns: bool) -> Step:
    target, *operands = instruction.operands if returns else ("_", *instruction.operands)
    source, *operands = operands
    address, mask_of = binder.address(source), binder.mask(instruction)
    vectors = [binder.vector(operand) for operand in operands]
    names = binder.vector(target)
    if len(vectors) != atomic.operands or {len(v) for v in vectors} != {count} or len(names) not in (count, 1):
        raise ValueError(f"expected {atomic.operands} operands of {count} elements")
    names = names if len(names) == count else names * count
    puts = [binder.put(instruction, name, f"b{8 * DTYPES[atomic.type_].itemsize}") for name in names]
    gets = [[binder.get(name, atomic.type_) for name in vector] for vector in vectors]

    def step(run: Any) -> None:
        mask = mask_of(run)
        if mask is not None and not mask.any():
            return
        values = [[get(run) for get in vector] for vector in gets]
        old = run.atomic(instruction, space, address(run), mask, atomic, values)
        for put, value in zip(puts, old, strict=True):
            put(run, value)

    return step


def perform(memory: Array, index: Array, atomic: Atomic, operands: list[Array]) -> tuple[Array, bool]:
    """Perform one atomic of each lane, in their order.

    Args:
        memory: as unsigned integers. index: of each lane's element, one-dimensional.
        operands: one array of the operation's type each, a value for each lane.

    Returns:
        What each lane found, as unsigned integers, and whether two lanes had the same element.
    """
    dtype = DTYPES[atomic.type_]
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    starts = np.flatnonzero(first)
    turn = np.empty(len(index), np.int64)
    turn[order] = np.arange(len(index)) - np.repeat(starts, np.diff([*starts, len(index)]))
    found = np.empty(len(index), memory.dtype)
    by_turn = np.argsort(turn, kind="stable")
    bounds = np.searchsorted(turn[by_turn], np.arange(turn.max() + 2))
    for start, end in itertools.pairwise(bounds):
        lanes = by_turn[start:end]
        at = index[lanes]
        found[lanes] = memory[at]
        memory[at] = bits(np.asarray(atomic.update(memory[at].view(dtype), *(x[lanes] for x in operands))))
    return found, bool(turn.max() > 0)


def _exchange(_old: Array, new: Array) -> Array:
    return new


def _swap(old: Array, expected: Array, new: Array) -> Array:
    return np.where(old == expected, new, old)


def _flushed_sum(old: Array, x: Array) -> Array:
    """atom, red: on global memory .add.f32 flushes subnormal inputs and results to zero of the same sign."""
    return rounding.ftz(rounding.ftz(old) + rounding.ftz(x))


def _pair(function: Update, view: str) -> Update:
    def update(old: Array, x: Array) -> Array:
        parts = zip(halves(old), halves(x), strict=True)
        low, high = (bits(function(a.view(view), b.view(view))) for a, b in parts)
        return joined(low, high)

    return update


_f16_sum = partial(rounding.through_f32, operator.add)
# By the end of the spelling; .add.f32 differs between spaces.
_OPERATIONS: dict[str, Atomic] = {
    **{f"add.{t}": Atomic(t, operator.add) for t in ("u32", "s32", "u64")},
    **{f"min.{t}": Atomic(t, np.minimum) for t in ("u32", "s32", "u64", "s64")},
    **{f"max.{t}": Atomic(t, np.maximum) for t in ("u32", "s32", "u64", "s64")},
    **{f"and.{t}": Atomic(t, operator.and_) for t in ("b32", "b64")},
    **{f"or.{t}": Atomic(t, operator.or_) for t in ("b32", "b64")},
    **{f"xor.{t}": Atomic(t, operator.xor) for t in ("b32", "b64")},
    **{f"exch.{t}": Atomic(t, _exchange, ordered=True) for t in ("b32", "b64")},
    **{f"cas.{t}": Atomic(t, _swap, operands=2, ordered=True) for t in ("b16", "b32", "b64")},
    "add.f32": Atomic("f32", operator.add, ordered=True),
    "add.f64": Atomic("f64", operator.add, ordered=True),
    "add.noftz.f16": Atomic("f16", _f16_sum, ordered=True),
    "add.noftz.bf16": Atomic("bf16", rounding.sum_bf16, ordered=True),
    "add.noftz.f16x2": Atomic("b32", _pair(_f16_sum, "f2"), ordered=True),
    "add.noftz.bf16x2": Atomic("b32", _pair(rounding.sum_bf16, "u2"), ordered=True),
}
# Vectors, of global memory alone (sm_90): each element is an atomic of its own.
_VECTORS = {"add.f32": (2, 4), "add.noftz.f16": (2, 4, 8), "add.noftz.bf16": (2, 4, 8)}
_VECTORS |= {"add.noftz.f16x2": (2, 4), "add.noftz.bf16x2": (2, 4)}


def _spellings(name: str, space: str, operation: str) -> list[str]:
    """Triton's order of semantics, scope and space, LLVM's, the ISA's, and none."""
    semantics = ("relaxed", "acquire", "release", "acq_rel") if name == "atom" else ("relaxed", "release")
    both = list(itertools.product(semantics, ("cta", "gpu", "sys")))
    return [
        f"{name}.{space}.{operation}",
        *(f"{name}.{space}.{scope}.{sem}.{operation}" for sem, scope in both),
        *(f"{name}.{space}.{sem}.{scope}.{operation}" for sem, scope in both),
        *(f"{name}.{sem}.{scope}.{space}.{operation}" for sem, scope in both),
    ]


def _with_vector(operation: str, count: int) -> str:
    stem, _, type_ = operation.rpartition(".")
    return operation if count == 1 else f"{stem}.v{count}.{type_}"


for _space in ("global", "shared"):
    _flushing = {"add.f32": Atomic("f32", _flushed_sum, ordered=True)} if _space == "global" else {}
    for _operation, _atomic in (_OPERATIONS | _flushing).items():
        for _count in (1, *(_VECTORS.get(_operation, ()) if _space == "global" else ())):
            for _name in ("atom", "red"):
                if _name == "red" and _operation.startswith(("exch", "cas")):
                    continue
                _entry = Bound(
                    _SECTION + _name,
                    partial(_step, space=_space, atomic=_atomic, count=_count, returns=_name == "atom"),
                    writes=int(_name == "atom"),
                )
                for _spelling in _spellings(_name, _space, _with_vector(_operation, _count)):
                    add(_spelling, _entry)
