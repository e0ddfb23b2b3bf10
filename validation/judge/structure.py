"""What a call did to memory: guards around what it allocates, and what it left of its inputs."""

import dataclasses
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from validation.cases.case import Arguments, as_bits, guard_elements, poison
from validation.judge import perturbed

aten = torch.ops.aten

_ALLOCATIONS: frozenset[Any] = frozenset(
    {
        aten.empty.memory_format,
        aten.empty_strided.default,
        aten.empty_like.default,
        aten.new_empty.default,
        aten.new_empty_strided.default,
        aten.empty_permuted.default,
    }
)
# These fill what they allocate; a kernel may be given it to write to all the same.
_FILLED = frozenset(
    {aten.zeros, aten.zeros_like, aten.ones, aten.ones_like, aten.full, aten.full_like, aten.clone, aten._to_copy}
    | {aten.new_zeros, aten.new_ones, aten.new_full}
)


# Operations with one correct result, which is what a vector body, a scalar tail and a strided loop all give.
_BASIC = frozenset(
    {aten.add, aten.add_, aten.sub, aten.sub_, aten.rsub, aten.mul, aten.mul_, aten.div, aten.div_, aten.sqrt}
    | {aten.rsqrt, aten.reciprocal, aten.square, aten.pow, aten.addcmul, aten.addcmul_, aten.nextafter}
    | {aten.native_layer_norm, aten._fused_rms_norm}
)
# Their order is that of the elements where a row lies in one piece. Over rows apart the CPU adds several at a time,
# and those left over in another order.
_REDUCTIONS = frozenset({aten.sum, aten.mean, aten.var, aten.var_mean, aten.linalg_vector_norm})


# On CUDA the blocks and threads that a sum is shared out to follow the number of rows, and a norm's vectors follow the
# alignment of its memory.
_UNEVEN_ON_CUDA = _REDUCTIONS | {aten.native_layer_norm, aten._fused_rms_norm}


def _is_basic(func: Any, args: Sequence[Any], out: Any) -> bool:
    """Whether the bits of a result cannot depend on where in its tensor an element stands."""
    if isinstance(out, Tensor) and not (out.is_floating_point() or out.is_complex()):
        return True  # a comparison
    tensors = [t for t in args if isinstance(t, Tensor)]
    if any(t.is_complex() for t in tensors):
        return False
    if func.overloadpacket in _REDUCTIONS:
        return tensors[0].dim() == 0 or tensors[0].shape[-1] == 1 or tensors[0].stride(-1) == 1
    return func.overloadpacket in _BASIC


@dataclasses.dataclass
class _Allocation:
    memory: Tensor  # one-dimensional, guards included
    start: int
    size: int


class GuardedAllocations(TorchDispatchMode):
    """While active, every ``torch.empty`` and its kin comes poisoned and between two guards.

    What is filled at once (``torch.zeros``, a copy) comes between guards too.

    A kernel that stores past the end of its output then writes into a guard, where it shows, instead of
    into somebody else's memory; an element that it leaves out still holds the poison.

    Attributes:
        allocations: what was allocated.
        computed: whether PyTorch did arithmetic, beside what kernels did.
        basic: whether all of that was of basic operations, whose bits do not depend on where an element stands.
        uneven_on_cuda: whether some of it was one of PyTorch's own sums or norms, whose bits on CUDA do.
        moved: which argument the call made another tensor of, in words; "" if none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moved = ""
        self.allocations: list[_Allocation] = []
        self.computed: bool = False
        self.basic: bool = True
        self.uneven_on_cuda: bool = False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation; put guards around what an allocating one returns."""
        del types
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.device.type in ("cpu", "cuda"):
            if func in _ALLOCATIONS:
                return self._guarded(out)
            if func.overloadpacket in _FILLED and out.layout is torch.strided:
                return self._guarded(out, filled=True)
        if not perturbed.is_exact(func):
            self.computed = True
            self.basic = self.basic and _is_basic(func, args, out)
            self.uneven_on_cuda |= func.overloadpacket in _UNEVEN_ON_CUDA
        return out

    def _guarded(self, out: Tensor, *, filled: bool = False) -> Tensor:
        size = 1 + sum((n - 1) * s for n, s in zip(out.shape, out.stride(), strict=True)) if out.numel() else 0
        guard = guard_elements(out.shape[-1] if out.dim() else 1)
        memory = torch.empty(size + 2 * guard, dtype=out.dtype, device=out.device)
        poison(memory, output=True)
        if filled:
            memory.as_strided(out.shape, out.stride(), guard).copy_(out)
        self.allocations.append(_Allocation(memory, guard, size))
        # set_ rather than as_strided: the result is no view, as torch.empty's is none.
        out.set_(memory.untyped_storage(), guard, out.shape, out.stride())
        return out

    def __enter__(self) -> Self:
        """Start guarding."""
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop guarding."""
        super().__exit__(kind, error, trace)

    def written_outside(self) -> str:
        """Where a guard was written, in words; "" if none was."""
        for allocation in self.allocations:
            words = _guard_damage(allocation.memory, allocation.start, allocation.size)
            if words:
                return f"memory around an output: {words}"
        return ""


def _guard_damage(memory: Tensor, start: int, size: int) -> str:
    fresh = memory[:1].clone()
    poison(fresh, output=True)
    bits, value = as_bits(memory), as_bits(fresh)[0]
    before = (bits[:start] != value).nonzero()
    if len(before):
        return f"{len(before)} elements before its first (the nearest {start - int(before[-1])} before)"
    after = (bits[start + size :] != value).nonzero()
    if len(after):
        return f"{len(after)} elements after its last (from {int(after[0]) + 1} to {int(after[-1]) + 1} after)"
    return ""


def unwritten(output: Tensor) -> Tensor:
    """Which elements still hold the poison that `GuardedAllocations` put there."""
    fresh = torch.empty(1, dtype=output.dtype, device=output.device)
    poison(fresh, output=True)
    return as_bits(output) == as_bits(fresh)[0]


def inputs_changed(arguments: Arguments, written: Sequence[str] = ()) -> tuple[str, str]:
    """What a call did to its inputs' memory.

    Args:
        arguments: of the call.
        written: names of the tensors that the call may write (q and k of an in-place op).

    Returns:
        Two texts, "" where all is well: an input's own elements that changed; memory outside them (holes
        between the elements, guards) that changed.
    """
    for name, storage in arguments.storages.items():
        changed = as_bits(storage.memory) != storage.before
        if not bool(changed.any()):
            continue
        mine = {n: t for n, t in arguments.tensors.items() if _storage_of(t) == _storage_of(storage.memory)}
        elements = torch.zeros(changed.shape, dtype=torch.bool, device=changed.device)
        for tensor_name, t in mine.items():
            own = elements.as_strided(t.shape, t.stride(), t.storage_offset())
            own.fill_(True)
            if tensor_name not in written:
                hit = changed.as_strided(t.shape, t.stride(), t.storage_offset())
                if bool(hit.any()):
                    index = hit.nonzero()[0].tolist()
                    return f"{tensor_name}: {int(hit.sum())} of {t.numel()} elements changed, the first at {index}", ""
        outside = (changed & ~elements).nonzero()
        if len(outside):
            at = int(outside[0]) - storage.start
            place = "before its first element" if at < 0 else "after its last" if at >= storage.size else "in its holes"
            return "", f"memory of {name}: {len(outside)} elements written {place} (element {at} of its storage)"
    return "", ""


def _storage_of(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def aliased_input(outputs: Sequence[Tensor], arguments: Arguments, written: Sequence[str] = ()) -> str:
    """The name of an input whose memory an output shares, "" if none does (empty outputs share nothing)."""
    for output in outputs:
        for name, t in arguments.tensors.items():
            if name not in written and output.numel() and _storage_of(output) == _storage_of(t):
                return name
    return ""


def call_guarded(function: Callable[..., Any], arguments: Arguments) -> tuple[Any, GuardedAllocations]:
    """Call an op on a case's arguments under guards, without grad; wait for the GPU to finish."""
    before = {name: _whereabouts(t) for name, t in arguments.tensors.items()}
    with torch.no_grad(), GuardedAllocations() as guards:
        result = function(**arguments.kwargs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    for name, t in arguments.tensors.items():
        if _whereabouts(t) != before[name]:
            shape, strides = before[name][2:]
            now = f"{list(t.shape)} {str(t.dtype)[6:]} strides {t.stride()}"
            guards.moved = f"{name} is {now} in other memory or form, it was {list(shape)} strides {strides}"
    return result, guards


def _whereabouts(t: Tensor) -> tuple[Any, ...]:
    """What ``t.data = ...``, ``t.set_`` or ``t.unsqueeze_`` changes without a write to t's memory."""
    return t.data_ptr(), t.dtype, t.shape, t.stride()


def shares_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors with elements lie in one storage."""
    return bool(a.numel() and b.numel()) and _storage_of(a) == _storage_of(b)
