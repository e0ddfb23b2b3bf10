"""The field of a shape: from latents to the logits of a dense grid, and what can be wrong with a shape.

A field is float32 ``[n, n, n]``, indices x, y, z, over the cube of `validation.models.shape_vae`; above 0 is
inside the shape.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from validation.models.shape_vae import MEMORY_LIMIT, RESOLUTION, ShapeVAE
from validation.verdict import Status

Field = npt.NDArray[np.float32]


class ShapeError(Exception):
    """A sampled shape is none: what came is known, and there is nothing further to make of it.

    Attributes:
        status: what a `Record` says of it: MISSING_LATENTS, INCORRECT_NONFINITE, NO_SURFACE or DEGENERATE_MESH.
        check: the rung that it was found on: ``latents``, ``field`` or ``mesh``.
        numbers: what was found, by name, for `Record.numbers`.
    """

    def __init__(self, status: Status, check: str, reason: str, numbers: Mapping[str, float | int]) -> None:
        super().__init__(reason)
        self.status, self.check, self.numbers = status, check, dict(numbers)


def sample_field(
    vae: ShapeVAE,
    latents: Tensor,
    resolution: int = RESOLUTION,
    *,
    memory_limit: int = MEMORY_LIMIT,
    progress: Callable[[str], None] = lambda _text: None,
) -> Field:
    """Decode the latents of one shape and ask for the logits of the dense grid.

    The same bits on any number of cores, and with any limit that has room for a whole chunk of points.

    Args:
        vae: the decoder; it computes in the dtype and on the device of its parameters.
        latents: ``[1, L, embed_dim]``, the denoiser's. One shape at a time: in a batch it would have other bits.
        resolution: cells along an edge of the grid, which has ``resolution + 1`` points there.
        memory_limit: bytes for the points in flight, see `ShapeVAE.latents_to_grid`.
        progress: called with a few words after each chunk; an exception that it raises ends the work.

    Returns:
        The field, ``n = resolution + 1``. Its logits may hold NaN: `validation.media.mesh.extract` refuses them.

    Raises:
        ShapeError: MISSING_LATENTS, fewer than the decoder was trained with. It would decode them, to a
            coarser shape or to none.
        ValueError: another shape of latents, a resolution below 1, a limit too small for one point.
    """
    if latents.dim() != 3 or len(latents) != 1:
        raise ValueError(f"latents has shape {list(latents.shape)}, expected [1, L, embed_dim], one shape at a time")
    trained = vae.config.num_latents
    if latents.shape[1] < trained:
        raise ShapeError(
            Status.MISSING_LATENTS,
            "latents",
            f"{latents.shape[1]} latents came, expected {trained}, the number that the decoder was trained with",
            {"latents": latents.shape[1], "latents_expected": trained},
        )
    parameter = next(vae.parameters())
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if parameter.device.type == "cpu":
            # One thread, as in sampling: two gave equal bits where measured, which torch does not promise.
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        decoded = vae.decode(latents.to(parameter.device))
        grid = vae.latents_to_grid(decoded, resolution, memory_limit=memory_limit, progress=progress)
    field: Field = grid[0].numpy()
    return field
