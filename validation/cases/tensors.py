"""The tensors of a case: guarded memory full of poison, and the values in their places."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reference_ops.contract import IndexedRows
from validation.cases import values
from validation.cases.case import Case, TensorSpec

# Every storage lies between two guards of this many elements and more, filled like its holes: a multiple of
# 128 elements, so that the first element after a guard stays 256-byte aligned.
MIN_GUARD = 16384
MAX_GUARD = 262144

# Holes and guards of inputs hold NaN of the first bits, so that a stray read shows; fresh outputs hold NaN of
# the second. They must differ: a NaN copied from a hole is no element that was never written. They are signalling:
# arithmetic sets the quiet bit, and so what is read, multiplied and written back outside shows (of a quiet NaN
# x86 hands all bits on: a rotation in place past the end of a float32 tensor left its guard as it was).
POISON_BITS = {
    torch.bfloat16: (torch.int16, 0x7FAD, 0x7F9B),
    torch.float16: (torch.int16, 0x7DED, 0x7CDB),
    torch.float32: (torch.int32, 0x7FADFEED, 0x7F9BBDDB),
    torch.float64: (torch.int64, 0x7FF5FEEDFEEDFEED, 0x7FF4BDDBBDDBBDDB),
}
COMPLEX_DTYPES = (torch.complex32, torch.complex64, torch.complex128)


@dataclasses.dataclass
class Storage:
    """One piece of memory with guards at both ends.

    Attributes:
        memory: the whole of it, one-dimensional.
        before: a copy of its bits from before the call, as integers.
        start: index of the first element after the first guard.
        size: elements between the guards.
    """

    memory: Tensor
    before: Tensor
    start: int
    size: int


@dataclasses.dataclass
class Arguments:
    """The tensors of a case, ready for a call.

    Attributes:
        kwargs: what the op is called with.
        tensors: the tensors by name, as in `Case.tensors`.
        storages: the memory they lie in, by storage name.
    """

    kwargs: dict[str, Any]
    tensors: dict[str, Tensor]
    storages: dict[str, Storage]


def guard_elements(width: int) -> int:
    """Guard for rows of that width: 64 rows, which covers a tile of rows written without a mask."""
    return -(-min(max(64 * width, MIN_GUARD), MAX_GUARD) // 128) * 128


def poison(memory: Tensor, index_limit: int = 0, *, output: bool = False) -> None:
    """Fill memory with NaN of `POISON_BITS`.

    Integers of an input with index_limit, which is out of range by one; of an output with garbage, so that
    a semaphore or a counter that nobody set to 0 is not 0 by luck.
    """
    if memory.dtype in POISON_BITS:
        bits_dtype, of_input, of_output = POISON_BITS[memory.dtype]
        memory.view(bits_dtype).fill_(of_output if output else of_input)
    elif output and memory.dtype not in (torch.bool, *COMPLEX_DTYPES):
        memory.fill_(0x5B if memory.element_size() == 1 else 0x5BDB)
    else:
        memory.fill_(output or index_limit)


def as_bits(t: Tensor) -> Tensor:
    """The same memory as integers, so that NaN compares."""
    return t.view(POISON_BITS[t.dtype][0]) if t.dtype in POISON_BITS else t


def generator_for(seed: int, name: str) -> torch.Generator:
    """A generator of its own for each seed and tensor name."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def materialise(case: Case, device: str = "cpu") -> Arguments:
    """Make the tensors of a case: guarded storages full of poison, and the values in their places."""
    storages = _make_storages(case, device)
    tensors = {}
    for name, spec in case.tensors.items():
        storage = storages[spec.storage]
        view = storage.memory.as_strided(spec.shape, spec.strides, storage.start + spec.offset)
        tensors[name] = view
        if spec.numel == 0:
            continue
        made = _make_values(case, name, spec)
        # An expanded view cannot be copied into: write its one distinct row.
        distinct = tuple(1 if stride == 0 else size for size, stride in zip(spec.shape, spec.strides, strict=True))
        slices = tuple(slice(0, n) for n in distinct)
        storage.memory.as_strided(distinct, spec.strides, storage.start + spec.offset).copy_(made[slices])
    for storage in storages.values():
        storage.before = as_bits(storage.memory).clone()
    return Arguments(keyword_arguments(case, tensors), tensors, storages)


def keyword_arguments(case: Case, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the op is called with, from the case's tensors by name."""
    kwargs: dict[str, Any] = dict(case.flags)
    for name, view in tensors.items():
        argument, _, part = name.partition(".")
        if part == "table":
            kwargs[argument] = IndexedRows(view, tensors[f"{argument}.index"])
        elif not part:
            kwargs[name] = view
    return kwargs


def _make_storages(case: Case, device: str) -> dict[str, Storage]:
    extents: dict[str, tuple[int, int, torch.dtype, int]] = {}
    for name, spec in case.tensors.items():
        extent, width, _, limit = extents.get(spec.storage, (0, 1, spec.torch_dtype, 0))
        if name.endswith(".index"):
            limit = case.tensors[name.replace(".index", ".table")].shape[-2]
        row = spec.shape[-1] if spec.shape else 1
        extents[spec.storage] = (max(extent, spec.extent), max(width, row), spec.torch_dtype, limit)
    storages = {}
    for name, (extent, width, dtype, limit) in extents.items():
        guard = guard_elements(width)
        memory = torch.empty(extent + 2 * guard, dtype=dtype, device=device)
        poison(memory, limit)
        storages[name] = Storage(memory, memory, guard, extent)
    return storages


def _make_values(case: Case, name: str, spec: TensorSpec) -> Tensor:
    if name in case.literals:
        return torch.tensor(case.literals[name], dtype=torch.float64).reshape(spec.shape).to(spec.torch_dtype)
    generator = generator_for(case.seed, name)
    if name.endswith(".index"):
        rows = case.tensors[name.replace(".index", ".table")].shape[-2]
        return torch.randint(0, rows, spec.shape, generator=generator).to(spec.torch_dtype)
    eps = float(case.flags.get("eps", 1e-6))
    return values.draw(case.values, name, spec.shape, spec.torch_dtype, eps, generator)
