"""Flow matching: the noise levels, the guidance and the Euler steps that sample Hunyuan3D-2's shape latents.

A latent moves along a straight line from noise at sigma = 0 to data at sigma = 1; the model gives the
velocity. Sigmas are float32, as the official scheduler keeps them, for any dtype of the model.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""``(latents [B, L, C], t [B]) -> velocity [B, L, C]``, all of one dtype; t in [0, 1]."""

Denoiser = Callable[..., Tensor]
"""A model called as ``model(latents, timestep, context, guidance=None)``."""


class Schedule(Protocol):
    """Noise levels for a number of steps."""

    @property
    def num_train_timesteps(self) -> int:
        """Number of timesteps from noise to data in training."""

    def sigmas(self, steps: int) -> Tensor:
        """float32 ``[steps + 1]`` on the CPU, from 0 up to 1."""


@dataclasses.dataclass(frozen=True)
class FlowMatchEuler:
    """Evenly spaced sigmas from 0 to 1, and 1 once more: the last step has no width.

    The official ``FlowMatchEulerDiscreteScheduler``, of the v2-0, fast and mini checkpoints.
    """

    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        """Raise ValueError unless there is at least one timestep."""
        _require("num_train_timesteps", self.num_train_timesteps, 1)

    def sigmas(self, steps: int) -> Tensor:
        """``linspace(0, 1, steps)``, then 1: float32 ``[steps + 1]``. ValueError for fewer than one step."""
        _require("steps", steps, 1)
        return _append_one(np.linspace(0, 1, steps))


@dataclasses.dataclass(frozen=True)
class ConsistencyFlowMatchEuler:
    """The few sigmas on which a turbo model was distilled, and 1.

    The official ``ConsistencyFlowMatchEulerDiscreteScheduler``. With T = num_train_timesteps and
    P = pcm_timesteps, the distilled levels are ``linspace(0, 1, T)`` at the indices 0 and
    ``i * (T // P) - 1`` for i from 1 to P - 1; n steps take every P / n-th of them, rounded down. The turbo
    checkpoints have T = 1000 and P = 100.
    """

    num_train_timesteps: int = 1000
    pcm_timesteps: int = 50

    def __post_init__(self) -> None:
        """Raise ValueError unless the levels fit into the timesteps."""
        _require("pcm_timesteps", self.pcm_timesteps, 1)
        _require("num_train_timesteps", self.num_train_timesteps, self.pcm_timesteps)

    def sigmas(self, steps: int) -> Tensor:
        """float32 ``[steps + 1]``. ValueError unless ``1 <= steps <= pcm_timesteps``."""
        _require("steps", steps, 1)
        if steps > self.pcm_timesteps:
            raise ValueError(f"steps is {steps}, expected at most {self.pcm_timesteps}, the distilled noise levels")
        stride = self.num_train_timesteps // self.pcm_timesteps
        distilled = np.concatenate([[0], np.arange(1, self.pcm_timesteps) * stride - 1])
        taken = np.floor(np.linspace(0, self.pcm_timesteps, steps, endpoint=False)).astype(np.int64)
        return _append_one(np.linspace(0, 1, self.num_train_timesteps)[distilled[taken]])


def _append_one(sigmas: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Tensor:
    return torch.from_numpy(np.append(sigmas, 1.0).astype(np.float32))


def _require(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}, expected an integer of at least {least}")


def guided(model: Denoiser, context: Tensor, scale: float, unconditional: Tensor | None = None) -> Velocity:
    """Classifier-free guidance: one batch of two, conditional first; ``u + scale * (c - u)``.

    Args:
        model: the denoiser.
        context: ``[B, T, C]``, what to sample.
        scale: 5.0 in production; 1 is the conditional velocity, apart from roundings.
        unconditional: of context's shape and dtype; None is zeros, the official condition of no image.
    """
    if unconditional is None:
        unconditional = torch.zeros_like(context)
    if unconditional.shape != context.shape:
        raise ValueError(f"unconditional has shape {list(unconditional.shape)}, expected {list(context.shape)}")
    both = torch.cat([context, unconditional])

    def velocity(latents: Tensor, t: Tensor) -> Tensor:
        conditional, without = model(latents.repeat(2, 1, 1), t.repeat(2), both).chunk(2)
        return without + scale * (conditional - without)

    return velocity


def guidance_embedded(model: Denoiser, context: Tensor, scale: float) -> Velocity:
    """For models distilled with their guidance (turbo, fast): one batch, the scale is an input."""

    def velocity(latents: Tensor, t: Tensor) -> Tensor:
        return model(latents, t, context, guidance=torch.full_like(t, scale))

    return velocity


def denoise(velocity: Velocity, noise: Tensor, sigmas: Tensor, num_train_timesteps: int = 1000) -> Iterator[Tensor]:
    """Yield the latents after each Euler step ``x + (s_next - s) * v(x, t = s)``; stop iterating to cancel.

    Each step depends only on its latents: to continue after step n, start again with these and ``sigmas[n:]``.

    As in the official pipeline, t reaches the model as a timestep in the latents' dtype,
    ``(s * num_train_timesteps).to(dtype) / num_train_timesteps``; the sum is taken in float32 (float64 for
    float64 latents) and rounded to the latents' dtype after each step.

    Args:
        velocity: from `guided` or `guidance_embedded`.
        noise: ``[B, L, C]``, the latents at ``sigmas[0]``, in the model's dtype.
        sigmas: from a `Schedule`.
        num_train_timesteps: the schedule's.
    """
    latents = noise
    wide = torch.promote_types(noise.dtype, torch.float32)
    for sigma, sigma_next in itertools.pairwise(sigmas):
        # Otherwise each step would wait until the device has finished the previous one.
        timestep = (sigma * num_train_timesteps).to(latents, non_blocking=True).expand(len(latents))
        v = velocity(latents, timestep / num_train_timesteps)
        # The step is a 0-d tensor, which does not promote: the product is rounded to v's dtype.
        latents = (latents.to(wide) + (sigma_next - sigma) * v).to(v.dtype)
        yield latents
