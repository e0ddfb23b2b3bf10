"""Global memory: the storages of a launch's tensors with guards between them, and which of their bytes are elements."""

import ctypes
import dataclasses
import itertools
from collections.abc import Iterable

import numpy as np
from numpy.lib.stride_tricks import as_strided
from torch import Tensor, UntypedStorage

from validation.cases.case import extent
from validation.compiled.ptx.bits import U8, UNSIGNED, Array
from validation.compiled.ptx.errors import NotExecutedError
from validation.device.private import storage_identity

# Addresses of the first byte; beyond VIRTUAL lie storages of addresses alone.
BASE, VIRTUAL = 1 << 46, 1 << 45
GUARD = 1 << 16
# A storage of more bytes has addresses but no memory: what is stored there is lost, and every load reads NaN.
MOST_BYTES = 1 << 30
_ONES = np.uint64(0x0101010101010101)
# Storages lie at the same distance from a multiple of this as torch's own do.
_ALIGNED = 512


@dataclasses.dataclass
class _Region:
    """A storage: where it starts, behind `BASE`, and the arguments that lie in it."""

    start: int
    memory: Array
    arguments: list[tuple[str, Tensor]]

    @property
    def nbytes(self) -> int:
        return len(self.memory)

    def first_of(self, t: Tensor) -> int:
        """The offset of its first element."""
        return self.start + int(t.storage_offset()) * t.element_size()

    def end_of(self, t: Tensor) -> int:
        """The offset behind its last element."""
        return self.first_of(t) + extent(t.shape, t.stride()) * t.element_size()


class Memory:
    """The memory that one launch sees; `write_back` copies it into the tensors.

    Args:
        arguments: the name and tensor of each pointer that the launch passes. A byte may be accessed if it belongs to
            an element of one of them.
        known: further names and tensors. Those that lie in a storage of an argument count as arguments: a kernel may
            reach k from the address of q where both are views of one buffer.
    """

    def __init__(self, arguments: Iterable[tuple[str, Tensor]], known: Iterable[tuple[str, Tensor]] = ()) -> None:
        self._regions: dict[int, _Region] = {}
        top, virtual = GUARD, VIRTUAL
        for name, t in arguments:
            storage = t.untyped_storage()
            key = storage_identity(storage)
            if key not in self._regions:
                whole = _bytes_of(storage)
                if storage.nbytes() > MOST_BYTES:
                    start = virtual + storage.data_ptr() % _ALIGNED
                    virtual += 1 << 42
                else:
                    start = -(-top // _ALIGNED) * _ALIGNED + storage.data_ptr() % _ALIGNED
                    top = start + storage.nbytes() + GUARD
                self._regions[key] = _Region(start, whole, [])
            self._regions[key].arguments.append((name, t))
        for name, t in known:
            region = self._regions.get(storage_identity(t.untyped_storage()))
            if region is not None:
                region.arguments.append((name, t))
        self._refuse_overlaps()
        size = -(-top // _ALIGNED) * _ALIGNED
        self.bytes: Array = np.full(size, 0xFF, np.uint8)
        self._elements = np.zeros(size, np.uint8)
        for region in self._real():
            for _, t in region.arguments:
                _mark(self._elements[region.start : region.start + region.nbytes], t)
        self.reset()

    def _refuse_overlaps(self) -> None:
        """Two storages may be views of one memory (`torch.from_numpy` twice): a copy of each would part them."""
        spans = sorted(
            (r.memory.ctypes.data, r.memory.ctypes.data + r.nbytes) for r in self._regions.values() if r.nbytes
        )
        if any(start < end for (_, end), (start, _) in itertools.pairwise(spans)):
            raise NotExecutedError("two storages of a launch overlap")

    def _real(self) -> list[_Region]:
        return [region for region in self._regions.values() if region.start < VIRTUAL]

    def address(self, t: Tensor) -> int:
        """The address of an argument's first element."""
        return BASE + self._regions[storage_identity(t.untyped_storage())].first_of(t)

    def place(self, content: bytes) -> int:
        """Append a variable that belongs to the module, not to an argument; returns its address."""
        start = len(self.bytes)
        size = -(-(len(content) + GUARD) // _ALIGNED) * _ALIGNED
        self.bytes = np.concatenate([self.bytes, np.full(size, 0xFF, np.uint8)])
        self._elements = np.concatenate([self._elements, np.zeros(size, np.uint8)])
        self.bytes[start : start + len(content)] = np.frombuffer(content, np.uint8)
        self._elements[start : start + len(content)] = 1
        return BASE + start

    def text(self, address: int) -> str:
        """The text at an address, up to its first zero."""
        return self.bytes[address - BASE :].tobytes().partition(b"\0")[0].decode(errors="replace")

    def reset(self) -> None:
        """Copy the tensors' storages into it."""
        for region in self._real():
            self.bytes[region.start : region.start + region.nbytes] = region.memory

    def write_back(self) -> None:
        """Copy what the kernel left behind into the tensors' storages."""
        for region in self._real():
            region.memory[:] = self.bytes[region.start : region.start + region.nbytes]

    def check(self, address: Array, mask: Array | None, size: int) -> tuple[Array, Array]:
        """Check accesses of `size` bytes.

        Args:
            address: of each lane, uint64; of those that access memory a multiple of `size`.
            mask: the lanes that access memory; None: all.

        Returns:
            The offset in `bytes` of each lane, and which lanes lie outside of all elements. What the offset of a lane
            is that may access nothing is not defined, but it lies in `bytes`.
        """
        offset = address - U8.type(BASE)
        if mask is not None:
            offset = np.where(mask, offset, U8.type(0))
        far = offset >= U8.type(len(self.bytes) - size)
        allowed = None
        if far.any():
            allowed = self._allowed_far(offset, size)
            offset = np.where(far, U8.type(0), offset)
        word = min(size, 8)
        pattern = _ONES.astype(UNSIGNED[word])
        words = self._elements.view(UNSIGNED[word])
        index = (offset // U8.type(word)).astype(np.int64)
        ok = words[index] == pattern
        for n in range(1, size // word):
            ok = ok & (words[index + n] == pattern)
        if allowed is not None:
            ok = np.where(far, allowed, ok)
        return offset, ~ok if mask is None else ~ok & mask

    def _allowed_far(self, offset: Array, size: int) -> Array:
        allowed = np.zeros(offset.shape, bool)
        for region in self._regions.values():
            if region.start >= VIRTUAL:
                for _, t in region.arguments:
                    first = region.first_of(t)
                    allowed |= (offset >= U8.type(first)) & (offset + U8.type(size) <= U8.type(region.end_of(t)))
        return allowed

    def where(self, address: int) -> str:
        """An address in words: its distance from the nearest argument."""
        offset = (address - BASE + (1 << 63)) % (1 << 64) - (1 << 63)  # an address below BASE too
        best = (1 << 64, "no argument's memory")
        for region in self._regions.values():
            for name, t in region.arguments:
                first, end = region.first_of(t), region.end_of(t)
                if first <= offset < end:
                    real = region.start < VIRTUAL and not self._elements[offset]
                    found = (0, f"{offset - first} bytes into {name}{', between its elements' if real else ''}")
                elif offset < first:
                    found = (first - offset, f"{first - offset} bytes before {name}")
                else:
                    found = (offset - end + 1, f"{offset - end} bytes behind the end of {name}")
                best = min(best, (found[0], f"{found[1]} {tuple(t.shape)}"))
        return best[1]


def _bytes_of(storage: UntypedStorage) -> Array:
    """A storage's memory. Through its address: torch's operations would be seen by a judge's guards."""
    if not storage.nbytes():
        return np.zeros(0, np.uint8)
    return np.ctypeslib.as_array((ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr()))


def _mark(elements: Array, t: Tensor) -> None:
    """Set the bytes of a tensor's elements to 1, in the bytes of its storage."""
    if t.numel() == 0:
        return
    size = t.element_size()
    whole = elements[: len(elements) // size * size].view(UNSIGNED[size])
    # Of an expanded dimension one element is enough.
    shape = [1 if stride == 0 else n for n, stride in zip(t.shape, t.stride(), strict=True)]
    strides = [size * stride for stride in t.stride()]
    as_strided(whole[t.storage_offset() :], shape, strides).fill(_ONES.astype(UNSIGNED[size]))
