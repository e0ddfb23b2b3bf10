"""The byte model of a whole step: the bytes that each site, matrix product and other kernel must read and write.

A step runs on fake tensors, which have shapes, dtypes and strides but no memory, so any size can be counted without
a GPU. Each PyTorch operator that is not a view counts as one kernel: its distinct input bytes are read, its output
bytes are written. The model ignores fusions by a compiler and savings by the last-level cache. A fused op at a site
counts as `validation.bench.traffic.traffic` says.
"""

import contextlib
import dataclasses
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from validation.bench.results import aligned
from validation.bench.traffic import distinct, outputs, traffic
from validation.cases.case import Case, TensorSpec
from validation.device.private import DispatchMode, fake_tensor_mode, tree_leaves
from validation.models.mount import running_call
from validation.ops import Op, OpSet, reference_op
from validation.samples.denoiser import Arm, Denoiser

PRODUCTS, ATTENTION, REST = "matrix products", "attention", "other kernels"

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution")


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    """Make new tensors fake, until the end of the ``with`` block.

    They are on the CPU, since a PyTorch without CUDA cannot compute with fake tensors on a GPU; operators for which
    only a GPU has a single kernel are counted as one (`_WholeKernels`).
    """
    with fake_tensor_mode(), torch.no_grad():
        yield


@dataclasses.dataclass
class StepBytes:
    """Bytes of a step.

    Attributes:
        by_place: bytes by site, and `PRODUCTS`, `ATTENTION` and `REST` for kernels that are at no site.
        by_operator: the bytes of `REST` by PyTorch operator.
        calls: number of calls by site.
        kernels: number of kernels that are at no site, by PyTorch operator.
    """

    by_place: Counter[str] = dataclasses.field(default_factory=Counter)
    by_operator: Counter[str] = dataclasses.field(default_factory=Counter)
    calls: Counter[str] = dataclasses.field(default_factory=Counter)
    kernels: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Bytes of all places."""
        return self.by_place.total()

    def add(self, place: str, moved: int, operator: str) -> None:
        """Count a kernel that is at no site."""
        self.by_place[place] += moved
        self.kernels[operator] += 1
        if place == REST:
            self.by_operator[operator] += moved


def of_arms(denoiser: Denoiser, arms: Sequence[Arm]) -> dict[str, StepBytes]:
    """The bytes of a step by arm, without compiled arms and arms that the model leaves out.

    Args:
        denoiser: made inside `fake_tensors`, without weights.
        arms: from `arms_of`.
    """
    found: dict[str, StepBytes] = {}
    for arm in arms:
        if arm.compiled or (arm.left_out and not arm.graph):
            continue
        same = (a.name for a in arms if (a.ops, a.sites, a.variant) == (arm.ops, arm.sites, arm.variant))
        known = next((name for name in same if name in found), None)
        if known is not None:
            found[arm.name] = found[known]
            continue
        # Mounted before tensors are fake: mounting checks itself on a small real model.
        with denoiser.entered(dataclasses.replace(arm, ops=arm.ops and fused(arm.ops))), fake_tensors():
            found[arm.name] = count(lambda: next(denoiser.sample(denoiser.model, 0, 1)))
    return found


def byte_table(found: dict[str, StepBytes]) -> str:
    """The byte model as text: a line for each place, a column for each arm."""
    before = next(iter(found.values()))
    unit, scale = ("GB", 1e9) if before.total >= 1e9 else ("MB", 1e6)
    places = list(dict.fromkeys(place for of in found.values() for place in of.by_place))

    def line(name: str, numbers: Sequence[int]) -> Sequence[str]:
        return (name, *(f"{number / scale:.2f}" if number else "-" for number in numbers))

    cells: list[Sequence[str]] = [(f"{unit} a step", *found)]
    places.sort(key=lambda place: -max(of.by_place[place] for of in found.values()))
    cells += [line(place, [of.by_place[place] for of in found.values()]) for place in places]
    cells.append(line("in all", [of.total for of in found.values()]))
    cells.append(line("below the first", [before.total - of.total for of in found.values()]))
    operators = ", ".join(f"{name} {moved / scale:.2f}" for name, moved in before.by_operator.most_common(6))
    return "\n".join([*aligned(cells), f'  "{REST}" of the first arm, {unit} by operator: {operators}'])


def count(step: Callable[[], object]) -> StepBytes:
    """Count the bytes that a step moves; call it, and make its arguments, inside `fake_tensors`.

    Sites are counted separately if the mounted op set comes from `fused`.
    """
    found = StepBytes()
    with _Kernels(found), _WholeKernels(found):
        step()
    return found


def fused(functions: OpSet) -> OpSet:
    """A set's ops as their byte model: each is one kernel that reads and writes what `traffic` says."""

    def make(op: str) -> Op:
        signature = inspect.signature(reference_op(op))

        def call(*positional: Any, **named: Any) -> Any:
            arguments = signature.bind(*positional, **named).arguments
            if _Kernels.running is not None:
                _Kernels.running.site(traffic(_case(op, arguments)).total)
            firsts = outputs(op, arguments)
            made = firsts if arguments.get("inplace") else [torch.empty_like(x) for x in firsts]
            return tuple(made) if len(made) > 1 else made[0]

        return call

    return OpSet(f"bytes of {functions.name}", {op: make(op) for op in functions.functions}, functions.origin)


def _case(op: str, arguments: dict[str, Any]) -> Case:
    """The call as a case for `traffic`."""
    tensors: dict[str, TensorSpec] = {}
    for name, value in arguments.items():
        parts = {name: value}
        if hasattr(value, "table"):
            parts = {f"{name}.table": value.table, f"{name}.index": value.index}
        tensors |= {part: _spec(t) for part, t in parts.items() if isinstance(t, Tensor)}
    return Case(op, tensors, {}, "normal", 0)


def _spec(t: Tensor) -> TensorSpec:
    dtype = str(t.dtype).removeprefix("torch.")
    return TensorSpec(tuple(t.shape), dtype, t.stride(), int(t.storage_offset()), str(t.untyped_storage()._cdata))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(distinct(t.shape, t.stride()) * t.element_size() for t in tensors)


class _Kernels(DispatchMode):
    """Counts each operator that is not a view."""

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
        # An operator that only copies into a tensor does not read it.
        read = inputs[1:] if name in ("copy_", "fill_", "zero_") else inputs
        # PyTorch's fused norms return statistics too, a few bytes per row.
        moved = _bytes(read) + sum(t.numel() * t.element_size() for t in outputs)
        self.found.add(PRODUCTS if name in _PRODUCTS else REST, moved, name)
        return result


class _WholeKernels(TorchFunctionMode):
    """Counts attention, which does not write its scores, and PyTorch's RMSNorm as the single kernels that they are."""

    def __init__(self, found: StepBytes) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        attention = func is functional.scaled_dot_product_attention
        if not attention and func is not functional.rms_norm:
            return func(*args, **kwargs)
        inputs = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        if len({t.dtype for t in inputs}) > 1:  # then a GPU runs several kernels too
            return func(*args, **kwargs)
        moved = _bytes(inputs) + inputs[0].numel() * inputs[0].element_size()
        self.found.add(ATTENTION if attention else REST, moved, func.__name__)
        return torch.empty_like(inputs[0])
