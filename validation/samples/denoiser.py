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
        name: short. about: in a line.
        ops: the op set that is mounted; None is the path before the fusions.
        sites: where; None is wherever the set has the op.
        variant: of the mount, by a word that the model knows; "" is its default.
        graph: replay a CUDA graph of a forward. compiled: by ``torch.compile``.
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
    """What is aimed at: an arm's step so much below the first arm's (shares of 1), and whether in less memory."""

    arm: str
    least: float
    aim: float
    less_memory: bool


class Denoiser(ABC):
    """A denoiser with its inputs.

    Attributes:
        name: of the model.
        goal: of its fastest arm that needs no graph; a graph is captured of the same arm.
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
        """Make or load it.

        Args:
            size: of the inputs, and without a checkpoint of the model; "embedded" suits the checkpoint among the
                fixtures.
            device: where the weights are made.
            checkpoint: its folder.
            seed: of weights and inputs.
            weights: False leaves weights and inputs as they are and makes no decoder; with a checkpoint its
                configuration alone is read.

        Raises:
            UsageError: the checkpoint cannot be loaded.
        """

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    @property
    @abstractmethod
    def size(self) -> str:
        """Tokens and dtype, in words."""

    @abstractmethod
    def arms(self, ops: OpSet) -> tuple[Arm, ...]:
        """The path before the fusions, which is first, and the ways to mount an op set; neither graph nor compiled."""

    @abstractmethod
    def path_before(self) -> contextlib.AbstractContextManager[None]:
        """The model as it was before any fusion, until the end of the ``with`` block."""

    @abstractmethod
    def mount(
        self, ops: OpSet, sites: Iterable[str] | None, variant: str = ""
    ) -> contextlib.AbstractContextManager[Mount]:
        """Mount an op set; the other sites stay as they were before. The arguments are those of `Arm`.

        Raises:
            UsageError: the sites cannot be mounted.
        """

    def entered(self, arm: Arm) -> contextlib.AbstractContextManager[object]:
        """The model with what an arm mounts, until the end of the ``with`` block."""
        return self.path_before() if arm.ops is None else self.mount(arm.ops, arm.sites, arm.variant)

    @abstractmethod
    def sample(self, forward: Forward, seed: int, steps: int) -> Iterator[Tensor]:
        """Yield the latents after each step; ``forward`` is the model, or what computes the same."""

    @abstractmethod
    def decode(self, latents: Tensor, *, warm_up: bool = False) -> None:
        """Decode latents to what is looked at, and drop it; to warm up, as little as runs the same code."""

    @abstractmethod
    def place_of(self, call: SiteCall) -> str:
        """Where in the model a site call is."""


def allocate(model: nn.Module, device: str, dtype: torch.dtype | None = None) -> None:
    """Give the parameters of a model that was made on the meta device memory on another; they hold anything.

    ``Module.to_empty`` does the same, but not for fake tensors (PyTorch 2.13).
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            memory = torch.empty(parameter.shape, dtype=dtype or parameter.dtype, device=device)
            module.register_parameter(name, nn.Parameter(memory, requires_grad=False))


def draw_weights(model: nn.Module, seed: int) -> None:
    """Fill a model's parameters where they lie, from one seed; no copy is made anywhere.

    Matrices are normal with variance 1 / fan-in, so that activations stay near unit size; rows 0.1 times normal,
    weights of norms 1 more.
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
