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
# More bytes of elements in one storage have addresses but no memory: what is stored there is lost, and every load reads
# NaN. In a larger storage of fewer elements, these alone have memory.
MOST_BYTES = 1 << 30
_ONES = np.uint64(0x0101010101010101)
# Storages lie at the same distance from a multiple of this as torch's own do.
_ALIGNED = 512


@dataclasses.dataclass
class _Region:
    """A storage: its memory, the arguments that lie in it, and where it starts, behind `BASE`."""

    memory: Array
    arguments: list[tuple[str, Tensor]] = dataclasses.field(default_factory=list)
    start: int = 0
    addresses_alone: bool = False

    @property
    def nbytes(self) -> int:
        return len(self.memory)

    @property
    def is_virtual(self) -> bool:
        """Whether it has addresses alone."""
        return self.addresses_alone or (self.nbytes > MOST_BYTES and self._element_bytes > MOST_BYTES)

    @property
    def is_sparse(self) -> bool:
        """Whether only its elements have memory."""
        return self.nbytes > MOST_BYTES and not self.is_virtual

    @property
    def _element_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for _, t in self.arguments)

    def copy(self, source: Array, target: Array) -> None:
        """Copy its bytes, of a sparse one those of elements alone."""
        if not self.is_sparse:
            target[:] = source
            return
        for _, t in self.arguments:
            _elements_of(target, t)[...] = _elements_of(source, t)

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
        addresses_alone: a storage of floating-point numbers has no memory, whatever its size. What they are must not
            matter then; integers may say what is accessed.
    """

    def __init__(
        self,
        arguments: Iterable[tuple[str, Tensor]],
        known: Iterable[tuple[str, Tensor]] = (),
        *,
        addresses_alone: bool = False,
    ) -> None:
        self._regions: dict[int, _Region] = {}
        for name, t in arguments:
            key = storage_identity(t.untyped_storage())
            self._regions.setdefault(key, _Region(_bytes_of(t.untyped_storage()))).arguments.append((name, t))
        for name, t in known:
            region = self._regions.get(storage_identity(t.untyped_storage()))
            if region is not None:
                region.arguments.append((name, t))
        for region in self._regions.values() if addresses_alone else ():
            region.addresses_alone = all(t.is_floating_point() for _, t in region.arguments)
        self._refuse_overlaps()
        # Sparse ones last: only what is before them is filled.
        top, filled, virtual = GUARD, GUARD, VIRTUAL
        for region in sorted(self._regions.values(), key=lambda region: region.is_sparse):
            beyond = region.memory.ctypes.data % _ALIGNED if region.nbytes else 0
            if region.is_virtual:
                region.start = virtual + beyond
                virtual += 1 << 42
            else:
                region.start = -(-top // _ALIGNED) * _ALIGNED + beyond
                top = region.start + region.nbytes + GUARD
                filled = filled if region.is_sparse else top
        size = -(-top // _ALIGNED) * _ALIGNED
        # Zeros have no memory where nothing is written.
        self.bytes: Array = np.zeros(size, np.uint8)
        self.bytes[:filled] = 0xFF
        self._elements = np.zeros(size, np.uint8)
        for region in self._real():
            for _, t in region.arguments:
                elements = _elements_of(self._elements[region.start : region.start + region.nbytes], t)
                elements.fill(_ONES.astype(elements.dtype))
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

    @property
    def sparse(self) -> bool:
        """Whether it has a storage so large that only its elements have memory."""
        return any(region.is_sparse for region in self._regions.values())

    def address(self, t: Tensor) -> int:
        """The address of an argument's first element."""
        return BASE + self._regions[storage_identity(t.untyped_storage())].first_of(t)

    def place(self, content: bytes) -> int:
        """Append a variable that belongs to the module, not to an argument; returns its address.

        Raises:
            NotExecutedError: a storage is sparse, and appending would give all of it memory.
        """
        if self.sparse:
            raise NotExecutedError("a kernel with variables of its own, on a tensor that spans gigabytes")
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
            region.copy(region.memory, self.bytes[region.start : region.start + region.nbytes])

    def write_back(self) -> None:
        """Copy what the kernel left behind into the tensors' storages."""
        for region in self._real():
            region.copy(self.bytes[region.start : region.start + region.nbytes], region.memory)

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


def _elements_of(storage: Array, t: Tensor) -> Array:
    """A view of a tensor's elements, as unsigned integers, in the bytes of its storage."""
    size = t.element_size()
    whole = storage[: len(storage) // size * size].view(UNSIGNED[size])
    if t.numel() == 0:
        return whole[:0]
    # Of an expanded dimension one element is enough.
    shape = [1 if stride == 0 else n for n, stride in zip(t.shape, t.stride(), strict=True)]
    strides = [size * stride for stride in t.stride()]
    return as_strided(whole[t.storage_offset() :], shape, strides)
