"""How ``validate bench denoise`` switches an arm on: mounted, compiled, or captured in a CUDA graph."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from validation.device.private import tree_map
from validation.ops import OpSet
from validation.samples.denoiser import Arm, Denoiser

GRAPH, COMPILED = "CUDA graph", "torch.compile"

WARM_UPS = 3
"""Steps before a graph is captured: kernels are compiled, libraries have their workspaces."""


def arms_of(denoiser: Denoiser, ops: OpSet) -> tuple[Arm, ...]:
    """The denoiser's arms, then a CUDA graph of the arm that has its goal, then the path before, compiled."""
    arms = denoiser.arms(ops)
    captured = dataclasses.replace(
        next(arm for arm in arms if arm.name == denoiser.goal.arm),
        name=GRAPH,
        about=f"{denoiser.goal.arm}, a forward replayed from a CUDA graph",
        graph=True,
        left_out="" if denoiser.device.type == "cuda" else "a graph needs a GPU",
    )
    return (*arms, captured, Arm(COMPILED, "torch.compile of the path before, its default mode", compiled=True))


class Running:
    """An arm of a denoiser: ``with running.entered(): running.forward(...)``.

    Attributes:
        forward: takes the model's arguments.
    """

    def __init__(self, denoiser: Denoiser, arm: Arm) -> None:
        self.denoiser, self.arm = denoiser, arm
        self.forward: Callable[..., Any] = denoiser.model
        if arm.graph:
            self.forward = Graph(denoiser.model, lambda: denoiser.entered(arm))
        elif arm.compiled:
            self.forward = torch.compile(denoiser.model, dynamic=False)

    def entered(self) -> contextlib.AbstractContextManager[object]:
        """The model, switched to this arm until the end of the ``with`` block."""
        # A captured graph is fixed: nothing is mounted for a replay.
        return contextlib.nullcontext() if self.arm.graph else self.denoiser.entered(self.arm)


class Graph:
    """A forward captured in a CUDA graph at its first call and replayed at every call.

    Later calls must have arguments of the same shapes; they return the same output tensors, overwritten.
    """

    def __init__(
        self, forward: Callable[..., Any], attached: Callable[[], contextlib.AbstractContextManager[object]]
    ) -> None:
        """forward: takes tensors. attached: makes a context in which it is captured."""
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
