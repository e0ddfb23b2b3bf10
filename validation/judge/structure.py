"""What a call did to memory: guards around its allocations, and checks of its inputs afterwards."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from validation.cases.case import extent
from validation.cases.tensors import Arguments, as_bits, guard_elements, poison
from validation.chains import tape
from validation.device import launches, private
from validation.device.private import DispatchKey, DispatchKeySet, DispatchMode, tree_leaves
from validation.device.private import storage_identity as identity
from validation.errors import NotExecutedError
from validation.judge import reads
from validation.ops import surroundings

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
# These fill what they allocate; a kernel may still write to it.
_FILLED = frozenset(
    {aten.zeros, aten.zeros_like, aten.ones, aten.ones_like, aten.full, aten.full_like, aten.clone, aten._to_copy}
    | {aten.new_zeros, aten.new_ones, aten.new_full}
)
_RESIZING = frozenset({aten.resize_, aten.resize_as_})
# Torch implements no fill for these dtypes: their memory is filled as bytes.
_WITHOUT_FILL = frozenset({torch.float4_e2m1fn_x2})

# Namespaces of PyTorch's own operations: each C++ kernel counts as one step of arithmetic.
_OWN = frozenset({"aten", "prims", "prim"})
# The dispatch keys that are left after a mode has seen an operation.
_BELOW_PYTHON = private.keys_after(DispatchKey.Python)
# Registered operations in which Dynamo compiled something in this process. They run without guards from then on: under
# a mode it would recompile at each call (torch 2.13), and the compiled code allocates past the guards anyway.
_COMPILING: set[Any] = set()
# Keys to look under for a kernel, in this order, if none is registered for the device itself.
_COMPOSITES = ("CompositeExplicitAutograd", "CompositeImplicitAutograd")

# Operations with one correct result: a vector body, a scalar tail and a strided loop all give it.
_BASIC = frozenset(
    {aten.add, aten.add_, aten.sub, aten.sub_, aten.rsub, aten.mul, aten.mul_, aten.div, aten.div_, aten.sqrt}
    | {aten.rsqrt, aten.reciprocal, aten.square, aten.pow, aten.addcmul, aten.addcmul_, aten.nextafter}
    | {aten.native_layer_norm, aten._fused_rms_norm}
)
# They add in the order of the elements if a row is contiguous. Over strided rows the CPU adds several at a time, and
# the remainder in another order.
_REDUCTIONS = frozenset({aten.sum, aten.mean, aten.var, aten.var_mean, aten.linalg_vector_norm})


# On CUDA a sum is split over blocks and threads by the number of rows, and a norm's vector width follows the alignment
# of its memory.
_UNEVEN_ON_CUDA = _REDUCTIONS | {aten.native_layer_norm, aten._fused_rms_norm}


def _is_basic(func: Any, args: Sequence[Any], out: Any) -> bool:
    """Whether the bits of a result cannot depend on an element's position in its tensor."""
    if isinstance(out, Tensor) and not (out.is_floating_point() or out.is_complex()):
        return True  # a comparison
    tensors = [t for t in args if isinstance(t, Tensor)]
    if any(t.is_complex() for t in tensors):
        return False
    if func.overloadpacket in _REDUCTIONS:
        return tensors[0].dim() == 0 or tensors[0].shape[-1] == 1 or tensors[0].stride(-1) == 1
    return func.overloadpacket in _BASIC


def _has_kernel(func: Any, key: DispatchKey | str) -> bool:
    return private.has_kernel(func.name(), key)


@functools.cache
def _is_made_of_others(func: Any) -> bool:
    """Whether the guards continue inside an operation: one that a library registered, or a composition.

    PyTorch's own compositions (``layer_norm``, ``contiguous``) are decomposed above the guards; under
    ``torch.inference_mode`` they reach the guards whole.
    """
    return func.namespace not in _OWN or (func.namespace == "aten" and _has_kernel(func, _COMPOSITES[-1]))


def _keys_below(func: Any, tensors: Sequence[Tensor]) -> DispatchKeySet | None:
    """The keys with which the dispatcher continues such an operation; None if it is not to be taken apart.

    The layers above a mode (autograd, autocast, conjugation) have run by then.
    """
    keys = [private.dispatch_keys(t) & _BELOW_PYTHON for t in tensors]
    if any(private.dispatch_keys(t).has(DispatchKey.Python) for t in tensors):
        return None  # a tensor class with a handler of its own
    if _has_kernel(func, DispatchKey.BackendSelect):
        keys.append(DispatchKeySet(DispatchKey.BackendSelect))  # a factory: its device is an argument
    below = functools.reduce(lambda a, b: a | b, keys, DispatchKeySet(DispatchKey.Undefined))
    # A kernel of PyTorch's own that is written for the device is no composition.
    return None if func.namespace in _OWN and _has_kernel(func, below.highestPriorityTypeId()) else below


def _is_python(func: Any, device: str) -> bool:
    """Whether the kernel that a library registered is a Python function, so that all its calls are seen."""
    registered: Collection[str] = private.library_impls
    for key in (private.dispatch_key_for_device(device), *_COMPOSITES):
        if _has_kernel(func, key):
            entry = f"{func.namespace}/{func.name().split('::')[-1]}"
            # An entry without a key, which means the last of `_COMPOSITES`, ends in the slash.
            return f"{entry}/{key}" in registered or (key == _COMPOSITES[-1] and f"{entry}/" in registered)
    return False


@functools.cache
def _may_resize(func: Any) -> tuple[tuple[int, str], ...]:
    """Positions and names of the arguments that one of PyTorch's own operations may resize."""
    if func.namespace != "aten":
        return ()
    arguments = enumerate(private.schema_of(func).arguments)
    return tuple((i, a.name) for i, a in arguments if a.is_out or (func.overloadpacket in _RESIZING and i == 0))


def _resizable(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    given = [args[i] if i < len(args) else kwargs.get(name) for i, name in _may_resize(func)]
    return [t for t in tree_leaves(given) if isinstance(t, Tensor)] if given else []


@dataclasses.dataclass
class _Allocation:
    memory: Tensor  # one-dimensional, guards included
    start: int
    size: int


class GuardedAllocations(DispatchMode):
    """While active, everything that ``torch.empty`` and its kin allocate is poisoned and lies between two guards.

    Allocations that are filled at once (``torch.zeros``, a copy) lie between guards too, and so do those of an op
    registered with ``torch.library``, which runs as if its code were called. A tensor that PyTorch resizes
    (``resize_``, ``out=torch.empty(0)``) gets guards for its new size.

    A kernel that stores past the end of its output then writes into a guard, where it shows, instead of
    into foreign memory; an element that it leaves out still holds the poison.

    Attributes:
        allocations: the guarded allocations.
        computed: whether PyTorch did arithmetic, apart from kernels.
        basic: whether all of that was basic operations, whose bits do not depend on an element's position.
        uneven_on_cuda: whether some of it was one of PyTorch's own sums or norms, whose bits on CUDA do.
        moved: describes the argument that the call turned into another tensor; "" if none.
        read_outside: describes what its interpreted kernels read outside of arguments and allocations; "" if nothing.
        changed: describes the process-wide state that the call left changed; "" if none.
        launched: the kernels that the call launched.
    """

    launched: launches.Launches

    def __init__(self) -> None:
        super().__init__()
        self.moved = self.read_outside = self.changed = ""
        self.allocations: list[_Allocation] = []
        self.computed: bool = False
        self.basic: bool = True
        self.uneven_on_cuda: bool = False
        self._running: list[Any] = []  # registered operations, one inside another
        self._entering = False

    def ignore_compile_internals(self) -> bool:  # type: ignore[override]  # torch has a method of the class
        """Whether Dynamo compiles under this mode: only inside a registered operation, whose body may insist on it.

        Dynamo asks for each frame that it has not compiled yet; torch itself asks when the mode is entered.
        """
        if not self._entering:
            _COMPILING.update(self._running)
        return bool(self._running)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation; put guards around what an allocating one returns."""
        del types
        if not private.torch_function_modes():
            return self._run(func, args, kwargs or {})
        # The candidate believes in a GPU, and some operations come here with the answers of that mode still on.
        with private.torch_function_off():
            return self._run(func, args, kwargs or {})

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _is_made_of_others(func) and func not in _COMPILING:
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            below = _keys_below(func, tensors)
            if below is not None:
                return self._inside(func, below, tensors, args, kwargs)
        resizable = _resizable(func, args, kwargs)
        shapes = [t.shape for t in resizable]
        out = func(*args, **kwargs)
        for t, shape in zip(resizable, shapes, strict=True):
            if t.shape != shape:
                self._follow(t, fresh=func.overloadpacket in _RESIZING)
        if isinstance(out, Tensor) and out.device.type in ("cpu", "cuda"):
            if func in _ALLOCATIONS:
                return self._guarded(out)
            if func.overloadpacket in _FILLED and out.layout is torch.strided:
                return self._guarded(out, filled=True)
        if not tape.is_exact(func) and func.overloadpacket not in _RESIZING:
            self.computed = True
            self.basic = self.basic and _is_basic(func, args, out)
            self.uneven_on_cuda |= func.overloadpacket in _UNEVEN_ON_CUDA
        return out

    def _inside(
        self, func: Any, keys: DispatchKeySet, tensors: Sequence[Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run the kernel of a registered operation, or the steps of a composition, with the guards on.

        A kernel in C++, or one that calls code made by ``torch.compile``, may also compute unseen, without PyTorch:
        it counts as arithmetic whose bits may depend on an element's position.
        """
        # An operation with an autograd formula of its own runs without autograd below it.
        without_grad = torch.is_grad_enabled() and _has_kernel(func, "Autograd")
        registered = [func] if func.namespace not in _OWN else []
        self._running += registered
        try:
            grad = torch.no_grad() if without_grad else contextlib.nullcontext()
            with private.torch_function_on(), grad, self:
                out = func.redispatch(keys, *args, **kwargs)
        finally:
            del self._running[len(self._running) - len(registered) :]
        if registered:
            touched = [*tensors, *(t for t in tree_leaves(out) if isinstance(t, Tensor))]
            if touched and (func in _COMPILING or not _is_python(func, touched[0].device.type)):
                self.computed, self.basic = True, False
        return out

    def _follow(self, t: Tensor, *, fresh: bool) -> None:
        """Move the end guard to where a resized tensor now ends, and make room for all of it there.

        The storage grows and is not replaced, so views of it stay views.

        Args:
            t: the tensor.
            fresh: nothing was written yet to the memory that it gained.
        """
        if t.layout is not torch.strided:
            return
        storage = t.untyped_storage()
        found = [a for a in self.allocations if identity(a.memory.untyped_storage()) == identity(storage)]
        if not found:
            return
        allocation, width = found[0], found[0].memory.element_size()
        end = -(-(t.storage_offset() + extent(t.shape, t.stride())) * t.element_size() // width)
        if end <= allocation.start + allocation.size:
            return
        allocation.size = end - allocation.start
        had, needed = allocation.memory.numel(), end + guard_elements(t.shape[-1] if t.dim() else 1)
        if needed > had:
            storage.resize_(needed * width)
            memory = allocation.memory.new_empty(0).set_(storage, 0, (needed,), (1,))
            poison(memory[had if fresh else max(had, end) :], output=True)
            allocation.memory = memory

    def _guarded(self, out: Tensor, *, filled: bool = False) -> Tensor:
        size = extent(out.shape, out.stride())
        guard = guard_elements(out.shape[-1] if out.dim() else 1)
        dtype = torch.uint8 if out.dtype in _WITHOUT_FILL else out.dtype
        memory = torch.empty(size + 2 * guard, dtype=dtype, device=out.device)
        poison(memory, output=True)
        if filled:
            memory.as_strided(out.shape, out.stride(), guard).copy_(out.view(dtype))
        self.allocations.append(_Allocation(memory, guard, size))
        # set_ rather than as_strided: the result must be no view, like torch.empty's.
        out.set_(memory.untyped_storage(), guard, out.shape, out.stride())
        return out

    def __enter__(self) -> Self:
        """Start guarding."""
        self._entering = True
        super().__enter__()
        self._entering = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop guarding."""
        super().__exit__(kind, error, trace)

    def written_outside(self) -> str:
        """Describe where a guard was written; "" if none was."""
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
    """Describe what a call did to its inputs' memory.

    Args:
        arguments: the call's arguments.
        written: names of the tensors that the call may write (q and k of an in-place op).

    Returns:
        Two texts, each "" if nothing changed: on an input's own elements; on memory outside them (holes
        between the elements, guards).
    """
    for name, storage in arguments.storages.items():
        if storage.before is None:
            words = _elements_changed(storage.elements, arguments, written)
            if words:
                return words, ""
            continue
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
                    return _changed_words(tensor_name, hit), ""
        outside = (changed & ~elements).nonzero()
        if len(outside):
            at = int(outside[0]) - storage.start
            place = "before its first element" if at < 0 else "after its last" if at >= storage.size else "in its holes"
            return "", f"memory of {name}: {len(outside)} elements written {place} (element {at} of its storage)"
    return "", ""


def _elements_changed(before: Mapping[str, Tensor], arguments: Arguments, written: Sequence[str]) -> str:
    for name, bits in before.items():
        hit = as_bits(arguments.tensors[name]) != bits
        if name not in written and bool(hit.any()):
            return _changed_words(name, hit)
    return ""


def _changed_words(name: str, hit: Tensor) -> str:
    return f"{name}: {int(hit.sum())} of {hit.numel()} elements changed, the first at {hit.nonzero()[0].tolist()}"


def _storage_of(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def aliased_input(outputs: Sequence[Tensor], arguments: Arguments, written: Sequence[str] = ()) -> str:
    """The name of an input that shares memory with an output, "" if none does (empty outputs share nothing)."""
    for output in outputs:
        for name, t in arguments.tensors.items():
            if name not in written and output.numel() and _storage_of(output) == _storage_of(t):
                return name
    return ""


def call_guarded(function: Callable[..., Any], arguments: Arguments) -> tuple[Any, GuardedAllocations]:
    """Call an op on a case's arguments under guards, without grad; wait for the GPU to finish.

    Raises:
        NotExecutedError: a launch was not executed; the result, if there is one, is not the op's.
    """
    before = {name: _whereabouts(t) for name, t in arguments.tensors.items()}
    # Watched inside: leaving `torch.no_grad` would put back the grad mode.
    with (
        torch.no_grad(),
        surroundings.kept() as around,
        GuardedAllocations() as guards,
        reads.watched(arguments, guards.allocations) as outside,
        launches.counted(arguments.tensors) as guards.launched,
    ):
        try:
            result = function(**arguments.kwargs)
        except Exception:
            _refuse_what_was_not_executed(guards)
            raise
        _refuse_what_was_not_executed(guards)
    guards.changed, guards.read_outside = around.changed, outside()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    for name, t in arguments.tensors.items():
        *place, shape, strides, grad = before[name]
        if _whereabouts(t)[:-1] != (*place, shape, strides):
            now = f"{list(t.shape)} {str(t.dtype)[6:]} strides {t.stride()}"
            guards.moved = f"{name} is {now} in other memory or form, it was {list(shape)} strides {strides}"
        elif t.requires_grad != grad:
            guards.moved = f"{name} has requires_grad={t.requires_grad}, it had {grad}"
    return result, guards


def _refuse_what_was_not_executed(guards: GuardedAllocations) -> None:
    """Whatever the candidate made of the error: another one, or a result by another way."""
    if guards.launched.executed.not_executed:
        raise NotExecutedError(guards.launched.executed.not_executed)


def _whereabouts(t: Tensor) -> tuple[Any, ...]:
    """All that ``t.data = ...``, ``t.set_``, ``t.unsqueeze_`` or ``t.requires_grad_`` can change, memory untouched."""
    return t.data_ptr(), t.dtype, t.shape, t.stride(), t.requires_grad


def shares_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors with elements lie in one storage."""
    return bool(a.numel() and b.numel()) and _storage_of(a) == _storage_of(b)
