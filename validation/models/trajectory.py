"""What one sampling leaves behind."""

import dataclasses

import numpy as np
import numpy.typing as npt
from torch import Tensor

Frames = npt.NDArray[np.float32]  # [T, H, W, 3]


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One sampled video.

    Attributes:
        latents: after each denoising step, float32 on the CPU, ``[1, C, T, H, W]``; steps of one chunk
            follow those of the chunk before.
        frames: as they leave the VAE, float32 RGB in [0, 1], ``[T, H, W, 3]``; empty where nothing was decoded.
        seconds: wall-clock seconds of the stages ``encode`` (prompt), ``denoise``, ``decode``.
        peak_bytes: the greatest memory held meanwhile: allocated on the GPU, resident on the CPU.
        calls: calls of each mounted site.
        forwards: forwards of the denoiser.
    """

    latents: list[Tensor]
    frames: Frames
    seconds: dict[str, float]
    peak_bytes: int
    calls: dict[str, int]
    forwards: int
