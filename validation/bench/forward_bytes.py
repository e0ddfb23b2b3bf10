"""The byte model of a whole step: what each site, matrix product and other kernel must read and write.

A step runs on fake tensors, which have shapes, dtypes and strides but no memory, so any size can be counted without
a GPU. Each PyTorch operator that is no view counts as one kernel: its distinct input bytes are read, its output bytes
written. What a compiler would fuse, and what the last-level cache saves, is not known to it. A fused op at a site
counts as `validation.bench.traffic.traffic` says.
"""

import contextlib
import dataclasses
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import reference_ops
from validation.bench.traffic import traffic
from validation.cases.case import Case, TensorSpec
from validation.models.mount import running_call
from validation.ops import Op, OpSet

PRODUCTS, ATTENTION, REST = "matrix products", "attention", "other kernels"

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution")
_PAIRS = ("qk_norm", "qk_norm_rope", "scale_residual_layer_norm_scale_shift", "scale_residual_rms_norm_scale_shift")


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    """Make new tensors fake, until the end of the ``with`` block.

    On the CPU, since a PyTorch without CUDA cannot compute with fake tensors on a GPU; the operators that a GPU has
    one kernel for and the CPU has not are counted as such (`_WholeKernels`).
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        yield


@dataclasses.dataclass
class StepBytes:
    """Bytes of a step.

    Attributes:
        by_place: bytes by site, and `PRODUCTS`, `ATTENTION` and `REST` for what is at no site.
        by_operator: of `REST`, bytes by PyTorch's operator.
        calls: of each site.
    """

    by_place: Counter[str] = dataclasses.field(default_factory=Counter)
    by_operator: Counter[str] = dataclasses.field(default_factory=Counter)
    calls: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def total(self) -> int:
        """All of them."""
        return self.by_place.total()

    def add(self, place: str, moved: int, operator: str) -> None:
        """Count a kernel that is at no site."""
        self.by_place[place] += moved
        if place == REST:
            self.by_operator[operator] += moved


def count(step: Callable[[], object]) -> StepBytes:
    """Count what a step moves; to be called, and its arguments made, inside `fake_tensors`.

    Sites are told apart where the mounted op set is one of `fused`.
    """
    found = StepBytes()
    with _Kernels(found), _WholeKernels(found):
        step()
    return found


def fused(functions: OpSet) -> OpSet:
    """The ops of a set as their byte model: each is one kernel that reads and writes what `traffic` says."""

    def make(op: str) -> Op:
        def call(*arguments: Any, **options: Any) -> Any:
            counter = _Kernels.running
            if counter is not None:
                counter.site(traffic(_case(op, arguments, options)).total)
            firsts = arguments[: 2 if op in _PAIRS else 1]
            outputs = firsts if options.get("inplace") else tuple(torch.empty_like(x) for x in firsts)
            return outputs if len(outputs) > 1 else outputs[0]

        return call

    return OpSet(f"bytes of {functions.name}", {op: make(op) for op in functions.functions}, functions.origin)


def _case(op: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Case:
    """The call as `traffic` takes it."""
    bound = inspect.signature(getattr(reference_ops, op)).bind(*arguments, **options).arguments
    tensors: dict[str, TensorSpec] = {}
    for name, value in bound.items():
        parts = {name: value}
        if hasattr(value, "table"):
            parts = {f"{name}.table": value.table, f"{name}.index": value.index}
        tensors |= {part: _spec(t) for part, t in parts.items() if isinstance(t, Tensor)}
    return Case(op, tensors, {}, "normal", 0)


def _spec(t: Tensor) -> TensorSpec:
    dtype = str(t.dtype).removeprefix("torch.")
    return TensorSpec(tuple(t.shape), dtype, t.stride(), int(t.storage_offset()), str(t.untyped_storage()._cdata))


def distinct_bytes(t: Tensor) -> int:
    """Bytes of a tensor's distinct elements: those of an expanded dimension count once."""
    sizes = (size for size, stride in zip(t.shape, t.stride(), strict=True) if stride or size == 0)
    return math.prod(sizes) * t.element_size()


class _Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts each operator that is no view."""

    running: "_Kernels | None" = None

    def __init__(self, found: StepBytes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found

    def __enter__(self) -> Any:
        _Kernels.running = self
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: object) -> None:
        _Kernels.running = None
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def site(self, moved: int) -> None:
        """Count a fused kernel at the site that is running."""
        name = running_call().site
        self.found.by_place[name] += moved
        self.found.calls[name] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        name = func._schema.name.removeprefix("aten::")
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if view or not outputs or name.startswith(("empty", "new_empty", "_unsafe_view")):
            return result
        # What is overwritten is not read, where the operator only copies into it.
        read = inputs[1:] if name in ("copy_", "fill_", "zero_") else inputs
        # The fused norms of PyTorch return statistics too, a few bytes a row.
        moved = sum(map(distinct_bytes, read)) + sum(t.numel() * t.element_size() for t in outputs)
        self.found.add(PRODUCTS if name in _PRODUCTS else REST, moved, name)
        return result


class _WholeKernels(TorchFunctionMode):
    """Counts attention, which keeps its scores to itself, and PyTorch's RMSNorm as the single kernels they are."""

    def __init__(self, found: StepBytes) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        attention = func is functional.scaled_dot_product_attention
        if not attention and func is not functional.rms_norm:
            return func(*args, **kwargs)
        inputs = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        if len({t.dtype for t in inputs}) > 1:  # then a GPU takes several kernels too
            return func(*args, **kwargs)
        moved = sum(map(distinct_bytes, inputs)) + inputs[0].numel() * inputs[0].element_size()
        self.found.add(ATTENTION if attention else REST, moved, func.__name__)
        return torch.empty_like(inputs[0])
