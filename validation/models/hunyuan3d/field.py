"""Decode the latents of a shape to its field."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from validation.device.threads import one_thread
from validation.media.field import Field, ShapeError
from validation.media.grid import RESOLUTION
from validation.models.hunyuan3d.shape_vae import MEMORY_LIMIT, ShapeVAE


def sample_field(
    vae: ShapeVAE,
    latents: Tensor,
    resolution: int = RESOLUTION,
    *,
    memory_limit: int = MEMORY_LIMIT,
    progress: Callable[[str], None] = lambda _text: None,
) -> Field:
    """Decode the latents of one shape and compute the logits of the dense grid.

    The bits are the same on any number of cores, and with any limit that has room for a whole chunk of points.

    Args:
        vae: the decoder; it computes in the dtype and on the device of its parameters.
        latents: ``[1, L, embed_dim]``, the denoiser's. One shape at a time: in a batch it would have other bits.
        resolution: cells along an edge of the grid, which has ``resolution + 1`` points per edge.
        memory_limit: bytes for the points in flight, see `ShapeVAE.latents_to_grid`.
        progress: called with a few words after each chunk; an exception that it raises ends the work.

    Returns:
        The field, ``n = resolution + 1``. Its logits may hold NaN: `validation.media.mesh.extract` refuses them.

    Raises:
        ShapeError: MISSING_LATENTS, fewer than the decoder was trained with. It would decode them to a
            coarser shape or to none.
        ValueError: latents of another shape, a resolution below 1, a limit too small for one point.
    """
    if latents.dim() != 3 or len(latents) != 1:
        raise ValueError(f"latents has shape {list(latents.shape)}, expected [1, L, embed_dim], one shape at a time")
    trained = vae.config.num_latents
    if latents.shape[1] < trained:
        raise ShapeError(
            "MISSING_LATENTS",
            "latents",
            f"{latents.shape[1]} latents came, expected {trained}, the number that the decoder was trained with",
            {"latents": latents.shape[1], "latents_expected": trained},
        )
    device = next(vae.parameters()).device
    # One thread, as in sampling: two gave equal bits where measured, which torch does not promise.
    with torch.no_grad(), one_thread() if device.type == "cpu" else nullcontext():
        decoded = vae.decode(latents.to(device))
        grid = vae.latents_to_grid(decoded, resolution, memory_limit=memory_limit, progress=progress)
    field: Field = grid[0].numpy()
    return field
