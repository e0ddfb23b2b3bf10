"""Loads and stores of global and shared memory, ldmatrix and stmatrix: PTX ISA, "Data Movement", "Warp Level"."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from validation.compiled.ptx.bits import DTYPES, MOVED_AS, UNSIGNED, Array, bits, halves, joined
from validation.compiled.ptx.parse import Instruction
from validation.compiled.ptx.table import Bound, Step, add

_MOVEMENT = "Data Movement and Conversion Instructions: "
_MATRIX = "Warp Level Matrix Instructions: "


def _needs_a_depot(binder: Any, space: str) -> None:
    if space == "local" and not binder.kernel.local_bytes:
        raise ValueError("the kernel declares no local memory")


def _load(instruction: Instruction, binder: Any, space: str, type_: str, count: int) -> Step:
    target, source = instruction.operands
    names = binder.vector(target, count)
    _needs_a_depot(binder, space)
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
    _needs_a_depot(binder, space)
    address, mask_of = binder.address(target), binder.mask(instruction)
    gets = [binder.get(name, type_, loose=True) for name in names]
    dtype = UNSIGNED[DTYPES[type_].itemsize]

    def step(run: Any) -> None:
        mask = mask_of(run)
        if mask is not None and not mask.any():
            return
        run.store(instruction, space, address(run), mask, dtype, [bits(get(run)) for get in gets])

    return step


def _hinted(bind: Callable[..., Step]) -> Callable[..., Step]:
    """A load or store with a cache policy as its last operand, which changes no value."""

    def bound(instruction: Instruction, binder: Any, **arguments: Any) -> Step:
        *operands, policy = instruction.operands
        binder.get(policy, "b64")
        return bind(dataclasses.replace(instruction, operands=tuple(operands)), binder, **arguments)

    return bound


def _policy(instruction: Instruction, binder: Any) -> Step:
    """A cache policy: its bits are opaque, and only hints take them."""
    put = binder.put(instruction, instruction.operands[0], "b64")
    return lambda run: put(run, np.zeros((1, 1), np.uint64))


_PRIORITIES = ("evict_first", "evict_last")
for _priority in _PRIORITIES:
    add(f"createpolicy.fractional.L2::{_priority}.b64", Bound(_MOVEMENT + "createpolicy", _policy))
# Cache operators change no value ("Cache Operators"): .ca, .cg, .cs, .lu, .cv of loads, .wb, .cg, .cs, .wt of stores.
# Nor do priorities of eviction, or .nc, whose memory is read alone.
_EVICTED = tuple(f".L1::{priority}" for priority in _PRIORITIES)
_CACHED = {
    "ld": ("", ".ca", ".cg", ".cs", ".lu", ".cv", ".nc", *_EVICTED),
    "st": ("", ".wb", ".cg", ".cs", ".wt", *_EVICTED),
}
for _space in ("global", "shared", "local"):
    for _vector, _count in (("", 1), (".v2", 2), (".v4", 4), (".v8", 8)):
        for _type, _kind in MOVED_AS.items():
            # 32 bytes at once came with sm_100, of global memory and 32 or 64 bits alone.
            _size = DTYPES[_type].itemsize
            if _size * _count > (32 if _space == "global" and _size >= 4 else 16) or (_count == 8 and _size < 4):
                continue
            _arguments: dict[str, Any] = {"space": _space, "type_": _kind, "count": _count}
            _step: Callable[..., Step]
            for _name, _step, _writes in (("ld", _load, 1), ("st", _store, 0)):
                _entry = Bound(_MOVEMENT + _name, partial(_step, **_arguments), writes=_writes)
                for _cache in _CACHED[_name] if _space == "global" else ("",):
                    add(f"{_name}.{_space}{_cache}{_vector}.{_type}", _entry)
                if _space != "local":
                    add(f"{_name}.volatile.{_space}{_vector}.{_type}", _entry)
                if _space == "global":
                    _with = Bound(_MOVEMENT + _name, partial(_hinted(_step), **_arguments), writes=_writes)
                    for _evicted in ("", *_EVICTED):
                        add(f"{_name}.global{_evicted}.L2::cache_hint{_vector}.{_type}", _with)

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


def _load_matrix(instruction: Instruction, binder: Any, count: int, *, transposed: bool) -> Step:
    target, source = instruction.operands
    names = _fragments(instruction, binder, target, count)
    address = binder.address(source)
    puts = [binder.put(instruction, name, "b32") for name in names]

    def step(run: Any) -> None:
        rows = _rows(run, instruction, address(run), run.active, count)
        for n, put in enumerate(puts):
            if transposed:
                # Lane l holds elements l // 4 of rows 2 (l % 4) and 2 (l % 4) + 1.
                parts = []
                for odd in (0, 1):
                    row = rows[:, :, n][:, :, 8 * (_LANE % 4) + 4 * odd].reshape(run.shape)
                    run.misaligned(instruction, "shared", row, run.active, 16)
                    at = row + (2 * (np.arange(run.shape[1]) % 32 // 4)).astype(np.uint64)
                    parts += run.load(instruction, "shared", at, run.active, UNSIGNED[2], 1)
                put(run, joined(*parts))
                continue
            row = rows[:, :, n].reshape(run.shape)
            parts = run.load(instruction, "shared", row, run.active, UNSIGNED[4], 4)
            chosen = np.stack(parts).reshape(4, -1, 32)[_LANE % 4, :, _LANE].T
            put(run, np.ascontiguousarray(chosen).reshape(run.shape))

    return step


def _store_matrix(instruction: Instruction, binder: Any, count: int, *, transposed: bool) -> Step:
    target, source = instruction.operands
    names = _fragments(instruction, binder, source, count)
    address = binder.address(target)
    gets = [binder.get(name, "b32") for name in names]

    def step(run: Any) -> None:
        rows = _rows(run, instruction, address(run), run.active, count)
        for n, get in enumerate(gets):
            if transposed:
                value = bits(get(run))
                for odd, half in enumerate(halves(np.broadcast_to(value, run.shape))):
                    row = rows[:, :, n][:, :, 8 * (_LANE % 4) + 4 * odd].reshape(run.shape)
                    run.misaligned(instruction, "shared", row, run.active, 16)
                    at = row + (2 * (np.arange(run.shape[1]) % 32 // 4)).astype(np.uint64)
                    run.store(instruction, "shared", at, run.active, UNSIGNED[2], [half])
                continue
            row = rows[:, :, n].reshape(run.shape)
            run.misaligned(instruction, "shared", row, run.active, 16)
            at = row + (4 * (np.arange(run.shape[1]) % 4)).astype(np.uint64)
            run.store(instruction, "shared", at, run.active, UNSIGNED[4], [bits(get(run))])

    return step


for _count in (1, 2, 4):
    for _trans in ("", ".trans"):
        _how: dict[str, Any] = {"count": _count, "transposed": bool(_trans)}
        add(
            f"ldmatrix.sync.aligned.m8n8.x{_count}{_trans}.shared.b16",
            Bound(_MATRIX + "ldmatrix", partial(_load_matrix, **_how)),
        )
        add(
            f"stmatrix.sync.aligned.m8n8.x{_count}{_trans}.shared.b16",
            Bound(_MATRIX + "stmatrix", partial(_store_matrix, **_how), writes=0),
        )
