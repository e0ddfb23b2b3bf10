"""Fields of shapes with a formula, on the grid on which a decoder is queried."""

import torch

from validation.media.field import Field
from validation.media.grid import BOX, grid_axis
from validation.models.hunyuan3d.shapes import signed_distance

SPHERE = {"radius": 0.7}
TORUS = {"ring": 0.6, "tube": 0.22}
BOX_AND_SPHERE = {"half": 0.45, "radius": 0.35}


def step(resolution: int) -> float:
    """The width of a voxel."""
    return 2 * BOX / resolution


def field_of(kind: str, parameters: dict[str, float], resolution: int, shift: float = 0.0) -> Field:
    """The distance to a shape's surface, positive inside; the shape shifted along x."""
    axis = grid_axis(resolution).double()
    points = torch.stack(torch.meshgrid(axis - shift, axis, axis, indexing="ij"), dim=-1)
    field: Field = -signed_distance(kind, parameters, points).float().numpy()
    return field
