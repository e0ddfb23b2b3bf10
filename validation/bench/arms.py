"""The arms of ``validate bench denoise``: ways to run one model, and how each is switched on and off."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from validation.adapters import torch_native
from validation.bench.subjects import Subject
from validation.ops import OpSet

BEFORE, ALL, COMPACT, GRAPH, COMPILED = "before", "all sites", "compact", "CUDA graph", "torch.compile"

WARM_UPS = 3
"""Steps before a graph is captured: kernels are compiled, libraries have their workspaces."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to run the model.

    Attributes:
        name: short. about: in a line.
        ops: the op set that is mounted; None is the path before the fusions.
        sites: where; None is wherever the set has the op.
        compact, packed: see `Subject.mount`.
        graph: replay a CUDA graph of a forward. compiled: by ``torch.compile``.
        left_out: why it cannot be run here; "" where it can.
    """

    name: str
    about: str
    ops: OpSet | None = None
    sites: tuple[str, ...] | None = None
    compact: bool = False
    packed: bool = True
    graph: bool = False
    compiled: bool = False
    left_out: str = ""

    def mounted(self, subject: Subject) -> contextlib.AbstractContextManager[object]:
        """The model with what this arm mounts, until the end of the ``with`` block."""
        if self.ops is None:
            return subject.path_before()
        return subject.mount(self.ops, self.sites, compact=self.compact, packed=self.packed)


def arms_of(subject: Subject, ops: OpSet) -> tuple[Arm, ...]:
    """The arms, the path before first."""
    no_graph = "" if subject.device.type == "cuda" else "a graph needs a GPU"
    compiled = Arm(COMPILED, "torch.compile of the path before, its default mode", compiled=True)
    if subject.name == "helios":
        sites = ("norm1", "norm2", "norm3", "norm_out")
        return (
            Arm(BEFORE, "diffusers' code, untouched"),
            Arm("#24059", "the sites of sglang #24059: norm1, norm2, norm3, norm_out", ops, sites),
            Arm(ALL, "every site", ops),
            Arm(COMPACT, "every site, modulation as its two distinct rows", ops, compact=True),
            Arm(
                GRAPH,
                f"{COMPACT}, a forward replayed from a CUDA graph",
                ops,
                None,
                True,
                graph=True,
                left_out=no_graph,
            ),
            compiled,
        )
    # #24287 made contiguous copies of q and k, and torch.addcmul of the gated residual.
    functions = {**ops.functions, "residual_gate_add": torch_native.residual_gate_add}
    upstream = OpSet(f"{ops.name} with addcmul", functions, ops.origin)
    one_row = "modulation has one row a batch item already"
    return (
        Arm(BEFORE, "the eager code of the official model"),
        Arm("#24287", "sglang #24287: fused norms, q/k norm of contiguous copies, addcmul", upstream, packed=False),
        Arm(ALL, "every site, q and k normalised where they lie", ops),
        Arm(COMPACT, "modulation as distinct rows", ops, compact=True, left_out=one_row),
        Arm(GRAPH, f"{ALL}, a forward replayed from a CUDA graph", ops, graph=True, left_out=no_graph),
        compiled,
    )


class Running:
    """An arm on a subject: ``with running.entered(): running.forward(...)``.

    Attributes:
        forward: called as the model is.
    """

    def __init__(self, subject: Subject, arm: Arm) -> None:
        self.subject, self.arm = subject, arm
        self.forward: Callable[..., Any] = subject.model
        if arm.graph:
            self.forward = Graph(subject.model, lambda: arm.mounted(subject))
        elif arm.compiled:
            self.forward = torch.compile(subject.model, dynamic=False)

    def entered(self) -> contextlib.AbstractContextManager[object]:
        """The model, switched to this arm until the end of the ``with`` block."""
        # A captured graph is what it is: nothing is mounted for a replay.
        return contextlib.nullcontext() if self.arm.graph else self.arm.mounted(self.subject)


class Graph:
    """A forward captured in a CUDA graph at its first call, and replayed at each.

    Later calls must have arguments of the same shapes, and get the same output tensors, written over.
    """

    def __init__(
        self, forward: Callable[..., Any], attached: Callable[[], contextlib.AbstractContextManager[object]]
    ) -> None:
        """forward: of tensors. attached: what it needs while it is captured."""
        self.forward, self.attached = forward, attached
        self.graph: Any = None
        self.arguments: tuple[Any, Any] = ((), {})
        self.output: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The output for these arguments."""
        if self.graph is None:
            self._capture(args, kwargs)
        tree_map(_copy_into, self.arguments, (args, kwargs))
        self.graph.replay()
        return self.output

    def _capture(self, args: Any, kwargs: Any) -> None:
        own_args, own_kwargs = self.arguments = tree_map(_own, (args, kwargs))
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with self.attached(), torch.no_grad():
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    self.forward(*own_args, **own_kwargs)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.output = self.forward(*own_args, **own_kwargs)
        self.graph = graph


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _copy_into(target: Any, source: Any) -> Any:
    return target.copy_(source) if isinstance(target, Tensor) else target
