"""One call of an op with every launch kept, and the graph of an element of its outputs."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from validation.bench.results import one_line
from validation.cases.case import Case
from validation.cases.tensors import materialise
from validation.compiled.ptx import executing
from validation.compiled.ptx.bits import Array
from validation.compiled.ptx.launch import Launch, bound_launch
from validation.compiled.ptx.machine import run
from validation.compiled.ptx.memory import BASE, Memory
from validation.compiled.ptx.parse import Instruction
from validation.compiled.ptx.program import Program
from validation.device import Device
from validation.errors import CannotExpress, NotExecutedError
from validation.explain.graph import Builder, Node
from validation.explain.trace import Trace
from validation.judge.expected import absent, outputs_of
from validation.ops import OpSet
from validation.predictions.calls import Computed

TYPES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32", torch.float64: "f64"}


class _Writers:
    """Which CTA writes each byte of memory: 1 + its number."""

    def __init__(self, size: int) -> None:
        self.of_byte = np.zeros(size, np.int32)

    def block(self, _number: int, _active: Array | None, _shape: tuple[int, int], _ctas: Array) -> None:
        """Nothing is noted of blocks."""

    def access(
        self, _instruction: Instruction, space: str, address: Array, mask: Array | None, size: int, *, write: bool,
        shape: tuple[int, int], ctas: Array,
    ) -> None:  # fmt: skip
        """Note who writes global memory."""
        if space != "global" or not write:
            return
        offset = (np.broadcast_to(address, shape) - np.uint64(BASE)).astype(np.int64)
        lanes = np.ones(shape, bool) if mask is None else np.broadcast_to(mask, shape)
        lanes = lanes & (offset >= 0) & (offset <= len(self.of_byte) - size)
        who = np.broadcast_to(ctas[:, None] + 1, shape)[lanes]
        for n in range(size):
            self.of_byte[offset[lanes] + n] = who


@dataclasses.dataclass
class Kept:
    """A launch, with memory as it was before it."""

    launch: Launch
    program: Program
    parameters: list[Any]
    memory: Memory
    traces: dict[int, Trace] = dataclasses.field(default_factory=dict)

    @cached_property
    def writers(self) -> Array:
        """By byte of memory, 1 + the CTA that writes it."""
        before = self.memory.bytes.copy()
        watch = _Writers(len(before) + sum(len(c) + (1 << 17) for c in self.program.kernel.constants.values()))
        run(
            self.program, self.launch.grid, self.parameters, self.memory, shared_bytes=self.launch.shared_bytes,
            counting=watch,
        )  # fmt: skip
        self.memory.bytes[: len(before)] = before
        return watch.of_byte

    def trace(self, cta: int) -> Trace:
        """The trace of a CTA."""
        if cta not in self.traces:
            self.traces[cta] = Trace(self.program, self.launch, self.parameters, self.memory, cta)
        return self.traces[cta]

    def offset(self, t: Tensor) -> int | None:
        """The offset in memory of a tensor's first element; None if it is in no storage of the launch."""
        try:
            return self.memory.address(t) - BASE
        except KeyError:
            return None


class Made:
    """A call that was made.

    Attributes:
        outputs: what it returned. unknown: why it cannot be followed; "" if it can, as far as is known.
        launches: in order. torch_ops: names of PyTorch's operators that computed in it.
    """

    def __init__(self, case: Case, ops: OpSet, device: Device) -> None:
        arguments = materialise(case, device.torch)
        self.arguments: Mapping[str, Tensor] = arguments.tensors
        self.given = {name: t.detach().clone() for name, t in arguments.tensors.items()}
        self.case = case
        self.name = ops.name
        self.outputs: tuple[Tensor, ...] = ()
        self.unknown = ""
        self.launches: list[Kept] = []
        self._copies: dict[tuple[int, int], str] = {}
        known = [*arguments.tensors.items()]

        def begun(launch: Launch) -> None:
            program, parameters, memory = bound_launch(launch, known)
            self.launches.append(Kept(launch, program, parameters, memory))

        executing.begun.append(begun)
        try:
            with executing.watched(arguments.tensors) as runs, torch.no_grad(), Computed() as computed:
                result = ops[case.op](**arguments.kwargs | absent(case, arguments.kwargs))
            self.outputs = tuple(t for t in outputs_of(result) if isinstance(t, Tensor))
            if runs.violations:
                self.unknown = str(runs.violations[0])
        except (CannotExpress, NotExecutedError) as error:
            self.unknown = str(error)
        except Exception as error:  # of any kind: another case may do
            self.unknown = f"it raised {one_line(error)}"
        finally:
            executing.begun.remove(begun)
        self.torch_ops = tuple(sorted(computed.names))
        if not self.unknown and not self.outputs:
            self.unknown = "it returned no tensor"

    def element(self, output: int, index: tuple[int, ...]) -> Node:
        """The graph of an element of an output.

        Raises:
            NotExecutedError: it cannot be followed; the message says why.
        """
        t = self.outputs[output]
        if t.dtype not in TYPES:
            raise NotExecutedError(f"an output of {t.dtype} is not followed")
        byte = sum(i * s for i, s in zip(index, t.stride(), strict=True)) * t.element_size()
        for kept in reversed(self.launches):
            first = kept.offset(t)
            if first is not None and (writer := int(kept.writers[first + byte])):
                trace = kept.trace(writer - 1)
                origins = tuple(map(int, trace.written[first + byte : first + byte + t.element_size()]))
                return Builder(self._resolve).build(trace, origins, TYPES[t.dtype])
        if not self.launches:
            raise NotExecutedError("it launches no kernel")
        by = f" ({', '.join(self.torch_ops)})" if self.torch_ops else ""
        raise NotExecutedError(f"PyTorch's own operators{by} make this output, after the last kernel")

    def _resolve(self, trace: Trace, offset: int, size: int) -> tuple[Trace, tuple[int, ...]] | str:
        """The element at an offset of a launch's memory, or what an earlier launch wrote there."""
        at = next(n for n, kept in enumerate(self.launches) if trace in kept.traces.values())
        here = self.launches[at]
        for name, t, ours in [
            *((name, t, True) for name, t in self.arguments.items()),
            *((name, t, False) for name, t in here.launch.tensors.items()),
        ]:
            first = here.offset(t)
            if first is None:
                continue
            start = first - int(t.storage_offset()) * t.element_size()
            if not start <= offset < start + t.untyped_storage().nbytes():
                continue
            for kept in reversed(self.launches[:at]):
                there = kept.offset(t)
                if there is not None and (writer := int(kept.writers[there + offset - first])):
                    earlier = kept.trace(writer - 1)
                    cell = there + offset - first
                    return earlier, tuple(map(int, earlier.written[cell : cell + size]))
            index = index_of(t, (offset - first) // t.element_size())
            if index is None:
                continue
            if ours:
                return _element(name, index)
            flat = int(np.ravel_multi_index(index, tuple(t.shape))) if index else 0
            if (at, first) not in self._copies:
                self._copies[at, first] = self._copied(here, t, first)
            copied = self._copies[at, first]
            if copied:
                shape = tuple(self.given[copied].shape)
                return _element(copied, tuple(map(int, np.unravel_index(flat, shape))))
            return _element(f"{name} (made by PyTorch)", index)
        return f"byte {offset}"

    def _copied(self, kept: Kept, t: Tensor, first: int) -> str:
        """The argument whose values a tensor holds in the same order, whatever its dtype; "" if there is none."""
        if not t.is_contiguous() or t.dtype not in TYPES:
            return ""
        raw = kept.memory.bytes[first : first + t.numel() * t.element_size()].copy()
        values = torch.from_numpy(raw).view(t.dtype).double()
        for name, given in self.given.items():
            if given.numel() == t.numel() and torch.equal(given.double().reshape(-1), values):
                return name
        return ""


def index_of(t: Tensor, position: int) -> tuple[int, ...] | None:
    """The index of the element so many elements behind a tensor's first one; None if it is none of its elements."""
    index = [0] * t.dim()
    for dim in sorted(range(t.dim()), key=t.stride, reverse=True):
        if t.stride(dim) > 0 and t.shape[dim] > 1:
            index[dim] = min(position // t.stride(dim), t.shape[dim] - 1)
            position -= index[dim] * t.stride(dim)
    return None if position else tuple(index)


def _element(name: str, index: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(map(str, index))}]"
