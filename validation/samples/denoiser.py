"""A model's denoiser as it is timed: at full size with random weights, tiny, or from a checkpoint.

A model's folder implements `Denoiser` in ``denoiser.py``. A step is what sampling does between two latents: the
forward, both halves of a guidance at once, and the update. Text and image conditions are random.
"""

import contextlib
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from validation.models.mount import Mount, Site, SiteCall
from validation.ops import OpSet

BEFORE, ALL, COMPACT = "before", "all sites", "compact"

Size = Literal["full", "tiny", "embedded"]
Forward = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to run a denoiser.

    Attributes:
        name: short. about: one line of description.
        ops: the op set that is mounted; None is the path before the fusions.
        sites: where to mount it; None is every site whose op the set has.
        variant: a mount variant that the model knows by name; "" is its default.
        graph: replay a CUDA graph of a forward. compiled: use ``torch.compile``.
        left_out: why it cannot be run here; "" where it can.
    """

    name: str
    about: str
    ops: OpSet | None = None
    sites: tuple[str, ...] | None = None
    variant: str = ""
    graph: bool = False
    compiled: bool = False
    left_out: str = ""


@dataclasses.dataclass(frozen=True)
class Goal:
    """A speed goal: how far an arm's step is below the first arm's (shares of 1), and whether it uses less memory."""

    arm: str
    least: float
    aim: float
    less_memory: bool


class Denoiser(ABC):
    """A denoiser with its inputs.

    Attributes:
        name: the model's.
        goal: for its fastest arm that needs no graph; the graph is captured from the same arm.
        weights: where they come from, in words.
        model: the module.
        sites: its sites.
    """

    name: str
    goal: Goal
    weights: str
    model: Any
    sites: tuple[Site, ...]

    @abstractmethod
    def __init__(
        self, size: Size, device: str, *, checkpoint: Path | None = None, seed: int = 0, weights: bool = True
    ) -> None:
        """Make or load the denoiser.

        Args:
            size: size of the inputs, and of the model if there is no checkpoint; "embedded" suits the checkpoint
                among the fixtures.
            device: where the weights are made.
            checkpoint: its folder.
            seed: seed of weights and inputs.
            weights: False leaves weights and inputs uninitialised and makes no decoder; only the configuration of
                a checkpoint is read then.

        Raises:
            UsageError: the checkpoint cannot be loaded.
        """

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    @property
    @abstractmethod
    def size(self) -> str:
        """Tokens and dtype, in words."""

    @abstractmethod
    def arms(self, ops: OpSet) -> tuple[Arm, ...]:
        """The path before the fusions, then the ways to mount an op set; none is a graph or compiled."""

    @abstractmethod
    def path_before(self) -> contextlib.AbstractContextManager[None]:
        """Restore the model's state before any fusion until the end of the ``with`` block."""

    @abstractmethod
    def mount(
        self, ops: OpSet, sites: Iterable[str] | None, variant: str = ""
    ) -> contextlib.AbstractContextManager[Mount]:
        """Mount an op set; other sites stay unchanged. See `Arm` for the arguments.

        Raises:
            UsageError: the sites cannot be mounted.
        """

    def entered(self, arm: Arm) -> contextlib.AbstractContextManager[object]:
        """Mount what an arm mounts until the end of the ``with`` block."""
        return self.path_before() if arm.ops is None else self.mount(arm.ops, arm.sites, arm.variant)

    @abstractmethod
    def sample(self, forward: Forward, seed: int, steps: int) -> Iterator[Tensor]:
        """Yield the latents after each step; ``forward`` is the model or its equivalent."""

    @abstractmethod
    def decode(self, latents: Tensor, *, warm_up: bool = False) -> None:
        """Decode latents to viewable output and drop it; a warm-up decodes as little as runs the same code."""

    @abstractmethod
    def place_of(self, call: SiteCall) -> str:
        """Name the place of a site call in the model."""


def allocate(model: nn.Module, device: str, dtype: torch.dtype | None = None) -> None:
    """Allocate the parameters of a model made on the meta device on another device, uninitialised.

    ``Module.to_empty`` does the same, but not for fake tensors (PyTorch 2.13).
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            memory = torch.empty(parameter.shape, dtype=dtype or parameter.dtype, device=device)
            module.register_parameter(name, nn.Parameter(memory, requires_grad=False))


def draw_weights(model: nn.Module, seed: int) -> None:
    """Fill a model's parameters in place from one seed, without a copy.

    Matrices are normal with variance 1 / fan-in, so that activations stay near unit size; vectors are 0.1 times
    normal, and weights of norms 1 more.
    """
    generator: torch.Generator | None = None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if generator is None:
                generator = torch.Generator(parameter.device).manual_seed(seed)
            parameter.normal_(generator=generator)
            matrix = parameter.ndim > 1 and not name.endswith("scale_shift_table")
            parameter.mul_(math.prod(parameter.shape[1:]) ** -0.5 if matrix else 0.1)
            if parameter.ndim == 1 and not name.endswith("bias"):
                parameter.add_(1)
