"""Make the tensors of a case: guarded memory full of poison, with the values in their places."""

import dataclasses
import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference_ops.contract import IndexedRows
from validation.cases import exact, values
from validation.cases.case import Case, TensorSpec

# Every storage lies between two guards of at least this many elements, filled like its holes: a multiple of 128
# elements, so that the first element after a guard stays 256-byte aligned.
MIN_GUARD = 16384
MAX_GUARD = 262144

# On the CPU a storage of more elements is sparse. The largest of other corners have 2^25.
SPARSE = 2**28

# The integer dtype, then two NaN patterns. Holes and guards of inputs hold the first, so that a stray read shows; fresh
# outputs hold the second. They must differ: an element with a NaN copied from a hole was written. They are signalling:
# arithmetic sets the quiet bit, so an element outside that is read, multiplied and written back shows (x86 passes on
# all bits of a quiet NaN: a rotation in place past the end of a float32 tensor left its guard unchanged).
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
        memory: all of it, guards included; one-dimensional.
        start: index of the first element after the first guard.
        size: number of elements between the guards.
        before: a copy of its bits from before the call, as integers; None of a sparse one.
        elements: of a sparse one, copies of the bits of its tensors from before the call, by name.

    A sparse storage is far larger than its tensors' elements: it holds zeros in place of poison, and has no memory
    where nothing was written.
    """

    memory: Tensor
    start: int
    size: int
    before: Tensor | None = None
    elements: dict[str, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Arguments:
    """The tensors of a case, ready for a call.

    Attributes:
        kwargs: the op's keyword arguments.
        tensors: the tensors by name, as in `Case.tensors`.
        storages: the memory they lie in, by storage name.
    """

    kwargs: dict[str, Any]
    tensors: dict[str, Tensor]
    storages: dict[str, Storage]

    def restore(self, written: Collection[str]) -> None:
        """Undo what a call wrote to its tensors of these names, and around them."""
        for storage in self.storages.values():
            if storage.before is not None:
                as_bits(storage.memory).copy_(storage.before)
            for name in storage.elements.keys() & written:
                as_bits(self.tensors[name]).copy_(storage.elements[name])


def guard_elements(width: int) -> int:
    """Elements of a guard for rows of that width: 64 rows, which cover a tile of rows written without a mask."""
    return -(-min(max(64 * width, MIN_GUARD), MAX_GUARD) // 128) * 128


def poison(memory: Tensor, index_limit: int = 0, *, output: bool = False) -> None:
    """Fill memory with the NaN of `POISON_BITS`.

    Integer inputs get index_limit, which is out of range by one; integer outputs get garbage, so that a
    semaphore or a counter that nobody set to 0 is not 0 by luck.
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
    """A generator keyed by seed and tensor name, so that each pair has its own values."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def materialise(case: Case, device: str = "cpu") -> Arguments:
    """Make the tensors of a case: guarded storages full of poison, with the values in their places."""
    storages = _make_storages(case, device)
    tensors = {}
    for name, spec in case.tensors.items():
        storage = storages[spec.storage]
        view = storage.memory.as_strided(spec.shape, spec.strides, storage.start + spec.offset)
        tensors[name] = view
        if spec.numel == 0:
            continue
        made = _make_values(case, name, spec)
        # An expanded view cannot be copied into: write only its distinct elements.
        distinct = tuple(1 if stride == 0 else size for size, stride in zip(spec.shape, spec.strides, strict=True))
        slices = tuple(slice(0, n) for n in distinct)
        storage.memory.as_strided(distinct, spec.strides, storage.start + spec.offset).copy_(made[slices])
    for name, storage in storages.items():
        if _is_sparse(storage.memory):
            mine = [n for n, spec in case.tensors.items() if spec.storage == name]
            storage.elements = {n: as_bits(tensors[n]).clone() for n in mine}
        else:
            storage.before = as_bits(storage.memory).clone()
    return Arguments(keyword_arguments(case, tensors), tensors, storages)


def keyword_arguments(case: Case, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The op's keyword arguments, made from the case's tensors by name."""
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
        size = extent + 2 * guard
        if size > SPARSE and device == "cpu":
            # calloc'ed, which PyTorch's zeros are not: Linux gives memory to a page that is written to.
            memory = torch.from_numpy(np.zeros(size * dtype.itemsize, np.uint8)).view(dtype)
        else:
            memory = torch.empty(size, dtype=dtype, device=device)
            poison(memory, limit)
        storages[name] = Storage(memory, guard, extent)
    return storages


def _is_sparse(memory: Tensor) -> bool:
    return memory.device.type == "cpu" and memory.numel() > SPARSE


def _make_values(case: Case, name: str, spec: TensorSpec) -> Tensor:
    if name in case.literals:
        return torch.tensor(case.literals[name], dtype=torch.float64).reshape(spec.shape).to(spec.torch_dtype)
    generator = generator_for(case.seed, name)
    if name.endswith(".index"):
        rows = case.tensors[name.replace(".index", ".table")].shape[-2]
        return torch.randint(0, rows, spec.shape, generator=generator).to(spec.torch_dtype)
    if case.values == values.EXACT:
        made = exact.draw(
            name,
            spec.shape,
            eps=case.flags.get("eps"),
            rounds=case.casting_mode == "input",
            chained="residual" in case.tensors and "eps" in case.flags,
            centred="q" not in case.tensors,
            generator=generator,
            shared=generator_for(case.seed, "rows that residual and x share"),
        )
        return made.to(spec.torch_dtype)
    eps = float(case.flags.get("eps", 1e-6))
    return values.draw(case.values, name, spec.shape, spec.torch_dtype, eps, generator)
