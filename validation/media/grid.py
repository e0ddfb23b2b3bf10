"""The cube in which the field of a shape is sampled, and its grid."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BOX = 1.01
"""Half the edge of the cube in which the field is sampled: ``[-1.01, 1.01]^3``."""

RESOLUTION = 384
"""Cells along an edge of the dense grid."""


def grid_axis(resolution: int = RESOLUTION, box: float = BOX) -> Tensor:
    """The coordinates of the grid along an axis: float32 ``[resolution + 1]`` from -box to box."""
    if isinstance(resolution, bool) or not isinstance(resolution, int) or resolution < 1:
        raise ValueError(f"resolution is {resolution!r}, expected an integer of at least 1")
    if not 0 < box < math.inf:
        raise ValueError(f"box is {box}, expected a positive number")
    return torch.from_numpy(np.linspace(-box, box, resolution + 1).astype(np.float32))


def grid_to_world(
    vertices: npt.NDArray[np.floating], resolution: int = RESOLUTION, box: float = BOX
) -> npt.NDArray[np.floating]:
    """Vertices ``[V, 3]`` in grid indices -> coordinates, as upstream scales them.

    ``v / (resolution + 1) * (2 * box) - box``. The grid has resolution + 1 points and resolution cells, so
    this shrinks a shape by resolution / (resolution + 1) towards the cube's lowest corner; it is kept because
    the comparison must be of the shape that upstream shows.
    """
    scaled: npt.NDArray[np.floating] = vertices / (resolution + 1) * (2 * box) - box
    return scaled
