"""Loads and stores of global and shared memory, ldmatrix and stmatrix: PTX ISA, "Data Movement", "Warp Level"."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from validation.compiled.ptx.bits import DTYPES, MOVED_AS, UNSIGNED, Array, bits
from validation.compiled.ptx.parse import Instruction
from validation.compiled.ptx.table import Bound, Step, add

_MOVEMENT = "Data Movement and Conversion Instructions: "
_MATRIX = "Warp Level Matrix Instructions: "


def _load(instruction: Instruction, binder: Any, space: str, type_: str, count: int) -> Step:
    target, source = instruction.operands
    names = binder.vector(target, count)
    address, mask_of = binder.address(source), binder.mask(instruction)
    puts = [binder.put(instruction, name, type_, loose=True) for name in names]
    dtype = DTYPES[type_]

    def step(run: Any) -> None:
        mask = mask_of(run)
        if mask is not None and not mask.any():
            return
        for put, value in zip(puts, run.load(instruction, space, address(run), mask, dtype, count), strict=True):
            put(run, value)

    return step


def _store(instruction: Instruction, binder: Any, space: str, type_: str, count: int) -> Step:
    target, source = instruction.operands
    names = binder.vector(source, count)
    address, mask_of = binder.address(target), binder.mask(instruction)
    gets = [binder.get(name, type_, loose=True) for name in names]
    dtype = UNSIGNED[DTYPES[type_].itemsize]

    def step(run: Any) -> None:
        mask = mask_of(run)
        if mask is not None and not mask.any():
            return
        run.store(instruction, space, address(run), mask, dtype, [bits(get(run)) for get in gets])

    return step


# Cache operators change no value ("Cache Operators"): .ca, .cg, .cs, .lu, .cv of loads, .wb, .cg, .cs, .wt of stores.
_CACHED = {"ld": ("", ".ca", ".cg", ".cs", ".lu", ".cv"), "st": ("", ".wb", ".cg", ".cs", ".wt")}
for _space in ("global", "shared"):
    for _vector, _count in (("", 1), (".v2", 2), (".v4", 4)):
        for _type, _kind in MOVED_AS.items():
            if DTYPES[_type].itemsize * _count <= 16:
                _arguments: dict[str, Any] = {"space": _space, "type_": _kind, "count": _count}
                _step: Callable[..., Step]
                for _name, _step, _writes in (("ld", _load, 1), ("st", _store, 0)):
                    for _cache in _CACHED[_name] if _space == "global" else ("",):
                        _entry = Bound(_MOVEMENT + _name, partial(_step, **_arguments), writes=_writes)
                        add(f"{_name}.{_space}{_cache}{_vector}.{_type}", _entry)

# In an 8 x 8 matrix of 16 bits lane l holds elements 2 (l % 4) and 2 (l % 4) + 1 of row l // 4; matrix n's row r lies
# at the address that lane 8 n + r gives.
_LANE = np.arange(32)


def _rows(run: Any, instruction: Instruction, address: Array, mask: Array | None, count: int) -> Array:
    """The address of each lane's row in each matrix, [CTAs, warps, count, 32]."""
    run.whole_warps(instruction, mask)
    at = np.broadcast_to(address, run.shape).reshape(len(run.ctas), -1, 32)
    return np.stack([at[:, :, 8 * n + _LANE // 4] for n in range(count)], axis=2)


def _fragments(instruction: Instruction, binder: Any, text: str, count: int) -> list[str]:
    """The registers of a lane's part of each matrix."""
    if instruction.guard:
        raise ValueError("only a matrix of all lanes is executed")
    names: list[str] = binder.vector(text, count)
    return names


def _load_matrix(instruction: Instruction, binder: Any, count: int) -> Step:
    target, source = instruction.operands
    names = _fragments(instruction, binder, target, count)
    address = binder.address(source)
    puts = [binder.put(instruction, name, "b32") for name in names]

    def step(run: Any) -> None:
        rows = _rows(run, instruction, address(run), run.active, count)
        for n, put in enumerate(puts):
            row = rows[:, :, n].reshape(run.shape)
            parts = run.load(instruction, "shared", row, run.active, UNSIGNED[4], 4)
            chosen = np.stack(parts).reshape(4, -1, 32)[_LANE % 4, :, _LANE].T
            put(run, np.ascontiguousarray(chosen).reshape(run.shape))

    return step


def _store_matrix(instruction: Instruction, binder: Any, count: int) -> Step:
    target, source = instruction.operands
    names = _fragments(instruction, binder, source, count)
    address = binder.address(target)
    gets = [binder.get(name, "b32") for name in names]

    def step(run: Any) -> None:
        rows = _rows(run, instruction, address(run), run.active, count)
        for n, get in enumerate(gets):
            row = rows[:, :, n].reshape(run.shape)
            run.misaligned(instruction, "shared", row, run.active, 16)
            at = row + (4 * (np.arange(run.shape[1]) % 4)).astype(np.uint64)
            run.store(instruction, "shared", at, run.active, UNSIGNED[4], [bits(get(run))])

    return step


for _count in (1, 2, 4):
    add(
        f"ldmatrix.sync.aligned.m8n8.x{_count}.shared.b16",
        Bound(_MATRIX + "ldmatrix", partial(_load_matrix, count=_count)),
    )
    add(
        f"stmatrix.sync.aligned.m8n8.x{_count}.shared.b16",
        Bound(_MATRIX + "stmatrix", partial(_store_matrix, count=_count), writes=0),
    )
