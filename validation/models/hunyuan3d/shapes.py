"""Shapes with a formula: the prompts of the small trained shape model, and the truth for its results.

A shape is a kind and a few lengths, inside the cube ``[-1, 1]^3``, y up. `signed_distance` gives its surface as a
signed distance function, `embed_shape` the context that a denoiser gets instead of an image's tokens.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from validation.errors import UsageError
from validation.media.grid import grid_axis
from validation.models.prompts import embed_key
from validation.samples.prompts import read_prompts

CONTEXT_TOKENS = 4

Length = float | Tensor
Distance = Callable[..., Tensor]


# Signed distances. Lengths are numbers, or tensors that broadcast to the points' leading dimensions.


def _length(*components: Tensor) -> Tensor:
    return torch.stack(components).square().sum(dim=0).sqrt()


def _sphere(p: Tensor, radius: Length, height: Length = 0.0) -> Tensor:
    x, y, z = p.unbind(-1)
    return _length(x, y - height, z) - radius


def _box(p: Tensor, half_x: Length, half_y: Length, half_z: Length, height: Length = 0.0) -> Tensor:
    x, y, z = p.unbind(-1)
    over = torch.stack([x.abs() - half_x, (y - height).abs() - half_y, z.abs() - half_z])
    return _length(*over.clamp(min=0)) + over.amax(dim=0).clamp(max=0)


def _torus(p: Tensor, ring: Length, tube: Length, axis: int = 2) -> Tensor:
    components = list(p.unbind(-1))
    along = components.pop(axis)
    return _length(_length(*components) - ring, along) - tube


def _capsule(p: Tensor, half_height: Length, radius: Length) -> Tensor:
    x, y, z = p.unbind(-1)
    return _length(x, (y.abs() - half_height).clamp(min=0), z) - radius


def _sphere_with_hole(p: Tensor, radius: Length, hole: Length) -> Tensor:
    x, y, _ = p.unbind(-1)
    return torch.maximum(_sphere(p, radius), hole - _length(x, y))


def _box_and_sphere(p: Tensor, half: Length, radius: Length) -> Tensor:
    """A low cube with a sphere on top, sunk in by 0.4 of the sphere's radius."""
    return torch.minimum(_box(p, half, half, half, -0.35), _sphere(p, radius, half - 0.35 + 0.6 * radius))


def _box_without_sphere(p: Tensor, half: Length, cut: Length) -> Tensor:
    """A cube minus a sphere of radius ``half * cut`` at its centre, which opens all six faces."""
    return torch.maximum(_box(p, half, half, half), -_sphere(p, half * cut))


def _planet(p: Tensor, radius: Length, ring: Length, tube: Length) -> Tensor:
    """A sphere inside a horizontal ring that it does not touch."""
    return torch.minimum(_sphere(p, radius), _torus(p, ring, tube, axis=1))


@dataclasses.dataclass(frozen=True)
class Kind:
    """A family of shapes.

    Attributes:
        ranges: least and greatest value by parameter name, in the order of `distance`.
        distance: ``(points [..., 3], *parameters) -> [...]``, negative inside: the exact distance for a
            single body; inside a union and around a cut a lower bound of its size, with the right sign.
    """

    ranges: Mapping[str, tuple[float, float]]
    distance: Distance


KINDS: Mapping[str, Kind] = {
    "sphere": Kind({"radius": (0.4, 0.9)}, _sphere),
    "box": Kind({"half-x": (0.3, 0.8), "half-y": (0.3, 0.8), "half-z": (0.3, 0.8)}, _box),
    "torus": Kind({"ring": (0.5, 0.65), "tube": (0.15, 0.3)}, _torus),
    "capsule": Kind({"half-height": (0.25, 0.55), "radius": (0.2, 0.4)}, _capsule),
    "sphere-with-hole": Kind({"radius": (0.6, 0.85), "hole": (0.2, 0.4)}, _sphere_with_hole),
    "box-and-sphere": Kind({"half": (0.3, 0.5), "radius": (0.25, 0.4)}, _box_and_sphere),
    "box-without-sphere": Kind({"half": (0.5, 0.75), "cut": (1.05, 1.2)}, _box_without_sphere),
    "planet": Kind({"radius": (0.3, 0.45), "ring": (0.7, 0.8), "tube": (0.1, 0.16)}, _planet),
}
"""Every kind of shape, by name."""


def signed_distance(kind: str, parameters: Mapping[str, Length], points: Tensor) -> Tensor:
    """The signed distance of points to a shape's surface, negative inside; see `Kind`.

    Args:
        kind: a name in `KINDS`.
        parameters: a value for each of the kind's parameters: a number, or a tensor that broadcasts to the
            leading dimensions of `points` (many shapes of a kind at once).
        points: ``[..., 3]``, x, y, z.

    Returns:
        ``[...]`` in the dtype of the points.
    """
    return KINDS[kind].distance(points, *(parameters[name] for name in KINDS[kind].ranges))


def shape_iou(field: npt.NDArray[np.float32], kind: str, parameters: Mapping[str, float]) -> float:
    """Intersection over union of a decoded field and the shape, counted on the grid's points.

    Args:
        field: ``[n, n, n]``, above 0 inside, from `validation.media.field.sample_field`.
        kind, parameters: as in `signed_distance`.

    Returns:
        From 0 (apart, or no surface at all) to 1.
    """
    axis = grid_axis(len(field) - 1).double()
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    inside, shape = torch.from_numpy(field > 0), signed_distance(kind, parameters, points) < 0
    return int((inside & shape).sum()) / int((inside | shape).sum())


def embed_shape(kind: str, parameters: Mapping[str, float], width: int) -> Tensor:
    """Embed a shape as context, ``[1, CONTEXT_TOKENS, width]`` float32.

    The first token is the kind's `embed_key`. Each parameter adds a token: the mean of the embedding of its
    name and a Fourier embedding of its value v (cosine and sine of ``pi * f * v``, width / 2 frequencies f
    evenly from 1/4 to 4, each of mean square 1), times sqrt(2). The remaining tokens are zero.
    """
    rows = torch.zeros(1, CONTEXT_TOKENS, width)
    rows[0, 0] = embed_key(f"kind {kind}", width)
    frequencies = math.pi * torch.linspace(0.25, 4, width // 2)
    for i, name in enumerate(KINDS[kind].ranges, start=1):
        angles = frequencies * parameters[name]
        value = 2**0.5 * torch.cat([angles.cos(), angles.sin()])
        rows[0, i] = (embed_key(f"parameter {name}", width) + value) / 2**0.5
    return rows


@dataclasses.dataclass(frozen=True)
class ShapePrompt:
    """Which shape to sample, and how.

    Attributes:
        name: short, for file names: lower-case letters, digits and hyphens.
        kind: a name in `KINDS`. parameters: a value for each of its parameters, within its range.
        seed: of the noise.
        steps: denoising steps. guidance_scale: classifier-free guidance; 1 is no guidance.
        octree_resolution: cells along an edge of the grid on which the field is decoded.
    """

    name: str
    kind: str
    parameters: Mapping[str, float]
    seed: int
    steps: int
    guidance_scale: float
    octree_resolution: int

    def __post_init__(self) -> None:
        """Raise a UsageError naming the first field with a wrong type or value."""
        if not isinstance(self.name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise UsageError(f"shape: name is {self.name!r}, expected lower-case letters, digits and hyphens")
        if self.kind not in KINDS:
            raise UsageError(f"shape {self.name}: kind is {self.kind!r}, expected one of: {', '.join(KINDS)}")
        ranges = KINDS[self.kind].ranges
        if not isinstance(self.parameters, Mapping) or self.parameters.keys() != ranges.keys():
            raise UsageError(f"shape {self.name}: parameters are {self.parameters!r}, expected {', '.join(ranges)}")
        for parameter, (low, high) in ranges.items():
            value = self.parameters[parameter]
            if not _is_number(value) or not low <= value <= high:
                raise UsageError(f"shape {self.name}: {parameter} is {value!r}, expected a number in [{low}, {high}]")
        for field, least in {"seed": 0, "steps": 1, "octree_resolution": 1, "guidance_scale": 1}.items():
            value = getattr(self, field)
            if not (_is_number(value) and value >= least and (field == "guidance_scale" or isinstance(value, int))):
                number = "a number" if field == "guidance_scale" else "an integer"
                raise UsageError(f"shape {self.name}: {field} is {value!r}, expected {number} of at least {least}")

    @property
    def text(self) -> str:
        """The shape in words, such as ``torus, ring 0.55, tube 0.2``."""
        return ", ".join([self.kind, *(f"{name} {value:g}" for name, value in self.parameters.items())])

    @classmethod
    def read(cls, path: Path) -> tuple[Self, ...]:
        """Read a JSON file: fields for all shapes at the top, each shape's own under ``prompts``.

        Raises:
            UsageError: no such file, no JSON, an unknown or missing field, the same name and seed twice.
        """
        return read_prompts(cls, path)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
