"""Views of a mesh from fixed cameras: shaded, normals, depth, silhouette; and a turntable.

Embree (trimesh, embreex) casts one primary ray for each sample of a pixel. Embree finds the triangle in float32;
the hit point is computed in float64. No randomness: the same mesh and camera give the same bits.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import trimesh
from trimesh.ray.ray_pyembree import RayMeshIntersector

from validation.errors import UsageError
from validation.files import read_json
from validation.media.grid import BOX

KINDS = ("shaded", "normal", "depth", "silhouette")

Floats = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]

# Directions to the lights and up, in the camera's frame (right, up, towards the viewer), and linear intensities.
_KEY, _KEY_LIGHT = (-0.45, 0.65, 0.62), 0.62
_FILL, _FILL_LIGHT = (0.8, 0.1, 0.6), 0.16
_SKY_LIGHT, _GROUND_LIGHT = 0.22, 0.06

_ALBEDO = (0.80, 0.78, 0.75)
_BACKGROUND = (0.86, 0.87, 0.88)

# Rays per batch: about 8 MB. A view of 1024 x 1024 pixels with 4 samples each would take 2 GB in one piece. With 2**16,
# OpenBLAS takes several threads for a product of 3 columns, which wait for each other: three times the processor time.
_BAND = 2**14


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera on a sphere around the origin, looking at it, y up.

    Attributes:
        name: the view's.
        azimuth: degrees around y; 0 looks from +z, 90 from +x.
        elevation: degrees above the xz plane, between -90 and 90, both excluded.
        distance: from the origin, in the mesh's units; more than `sqrt(3) * BOX`, outside the cube.
        field_of_view: vertical, degrees.
        height, width: pixels. supersample: samples along a pixel's edge, averaged.
        yaw: degrees by which the camera is turned to its right, away from the origin.
    """

    name: str
    azimuth: float
    elevation: float
    distance: float
    field_of_view: float
    height: int
    width: int
    supersample: int
    yaw: float = 0.0

    def __post_init__(self) -> None:
        """Raise a UsageError naming the first field with a wrong type or value."""
        if not isinstance(self.name, str) or not self.name:
            raise UsageError(f"camera: name is {self.name!r}, expected a word")
        reach = math.sqrt(3) * BOX
        for name, low, high in (
            ("azimuth", -math.inf, math.inf),
            ("elevation", -90, 90),
            ("distance", reach, math.inf),
            ("field_of_view", 0, 180),
            ("yaw", -90, 90),
        ):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not low < value < high:
                raise UsageError(
                    f"camera {self.name}: {name} is {value!r}, expected a number between {low:.4g} and {high:.4g}"
                )
        for name in ("height", "width", "supersample"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"camera {self.name}: {name} is {value!r}, expected an integer of at least 1")

    @classmethod
    def read(cls, path: Path) -> tuple[Self, ...]:
        """Read a JSON file: fields for all cameras at the top, each camera's own under ``cameras``.

        Raises:
            UsageError: no such file, no JSON, an unknown or missing field, a duplicate name, images of two sizes.
        """
        shared = read_json(path)
        shared.pop("about", None)
        cameras = shared.pop("cameras", None)
        if not isinstance(cameras, list) or not cameras or not all(isinstance(c, dict) for c in cameras):
            raise UsageError(f"{path} has no list of cameras, expected at least one under 'cameras'")
        try:
            read = tuple(cls(**{**shared, **camera}) for camera in cameras)
        except TypeError as error:
            fields = ", ".join(field.name for field in dataclasses.fields(cls))
            raise UsageError(f"{path}: {str(error).partition(' ')[2]}, expected the fields {fields}") from error
        names = [camera.name for camera in read]
        if len(set(names)) < len(names):
            raise UsageError(f"{path} has cameras named {json.dumps(names)}, expected each name once")
        if len({(camera.height, camera.width) for camera in read}) > 1:
            raise UsageError(f"{path} has cameras of several sizes, expected one height and width")
        return read

    def turned(self, pixels: float) -> Self:
        """The camera turned about its own axis so that the centre of the image moves this many pixels to the left."""
        pixel = 2 * math.tan(math.radians(self.field_of_view) / 2) / self.height
        return dataclasses.replace(self, yaw=self.yaw + math.degrees(math.atan(pixels * pixel)))


@dataclasses.dataclass(frozen=True)
class Views:
    """Images from V cameras: float32 in [0, 1], averaged over the samples of each pixel.

    Attributes:
        names: the cameras'.
        shaded: sRGB, ``[V, H, W, 3]``: Lambert with smooth normals, lit from the camera's upper left, on light grey.
        normal: smooth normals in the camera's frame (right, up, towards it), as ``(n + 1) / 2``; 0.5 is
            background. ``[V, H, W, 3]``.
        depth: along the line of sight, 0 at ``distance - sqrt(3) * BOX`` and 1 at ``distance + sqrt(3) * BOX``,
            which hold the cube between them; 1 is background. ``[V, H, W, 1]``.
        silhouette: the covered share of the pixel, ``[V, H, W, 1]``.
    """

    names: tuple[str, ...]
    shaded: Image
    normal: Image
    depth: Image
    silhouette: Image


def render(mesh: trimesh.Trimesh, cameras: Sequence[Camera]) -> Views:
    """Render views of a mesh, on one thread.

    Raises:
        ValueError: no cameras, cameras of several sizes, or a mesh without faces.
    """
    if not cameras or len({(camera.height, camera.width) for camera in cameras}) != 1:
        raise ValueError(f"cameras are {[c.name for c in cameras]}, expected at least one, all of one size")
    scene = _Scene(mesh)
    views = [scene.view(camera) for camera in cameras]
    buffers = (np.stack([view[..., channels] for view in views]) for channels in _CHANNELS.values())
    return Views(tuple(camera.name for camera in cameras), *buffers)


def turntable(mesh: trimesh.Trimesh, camera: Camera, frames: int = 48) -> Image:
    """Render one turn of the mesh around y: shaded frames ``[frames, H, W, 3]`` for `video.write_video`.

    In fact the camera and its lights go around the mesh; the first frame is the camera's own view.

    Raises:
        ValueError: fewer than one frame, or a mesh without faces.
    """
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
        raise ValueError(f"frames is {frames!r}, expected an integer of at least 1")
    scene = _Scene(mesh)
    around = (dataclasses.replace(camera, azimuth=camera.azimuth + 360 * i / frames) for i in range(frames))
    return np.stack([scene.view(c)[..., _CHANNELS["shaded"]] for c in around])


_CHANNELS = {"shaded": slice(0, 3), "normal": slice(3, 6), "depth": slice(6, 7), "silhouette": slice(7, 8)}


class _Scene:
    """A mesh and its search tree."""

    def __init__(self, mesh: trimesh.Trimesh) -> None:
        if not len(mesh.faces):
            raise ValueError("mesh has no faces, expected a surface to render")
        self.rays = RayMeshIntersector(mesh)
        self.triangles = np.asarray(mesh.triangles)
        self.normals = np.asarray(mesh.vertex_normals)[mesh.faces]

    def view(self, camera: Camera) -> Image:
        """Render all kinds of image as channels, ``[H, W, 8]``."""
        n = camera.supersample
        rows = max(1, _BAND // (camera.width * n * n))
        image = np.empty((camera.height, camera.width, 8), np.float32)
        for top in range(0, camera.height, rows):
            band = slice(top, min(top + rows, camera.height))
            samples = self._samples(camera, band)
            image[band] = samples.reshape(-1, n, camera.width, n, 8).mean(axis=(1, 3))
        return image

    def _samples(self, camera: Camera, rows: slice) -> Floats:
        """Channels of each ray in some rows of pixels: one row per ray."""
        frame, position = _frame(camera)
        directions = _directions(camera, rows)  # in the camera's frame
        rays = directions @ frame
        hit_faces = self.rays.intersects_first(np.broadcast_to(position, rays.shape), rays)
        hit = hit_faces >= 0
        depth, normals = self._surface(hit_faces[hit], position, rays[hit])
        normals = normals @ frame.T
        reach = math.sqrt(3) * BOX
        # The third component of a direction is minus its component along the line of sight.
        depth = (-directions[hit, 2] * depth - (camera.distance - reach)) / (2 * reach)
        samples = np.empty((len(rays), 8))
        samples[:] = (*_srgb(np.array(_BACKGROUND)), 0.5, 0.5, 0.5, 1.0, 0.0)
        samples[hit, 0:3] = _srgb(_shade(normals))
        samples[hit, 3:6] = (normals + 1) / 2
        samples[hit, 6] = depth.clip(0, 1)
        samples[hit, 7] = 1.0
        return samples

    def _surface(self, faces: npt.NDArray[Any], origin: Floats, rays: Floats) -> tuple[Floats, Floats]:
        """Distances along the rays to the triangles that they hit, and the unit normals there.

        Möller and Trumbore 1997. If Embree's float32 reports a hit just outside a triangle's edge, the nearest
        barycentric coordinates inside it are used.
        """
        a, b, c = (self.triangles[faces, i] for i in range(3))
        ab, ac, oa = b - a, c - a, origin - a
        p, q = np.cross(rays, ac), np.cross(oa, ab)
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = 1 / _dot(ab, p)
            v = np.nan_to_num(_dot(oa, p) * scale).clip(0, 1)
            w = np.minimum(np.nan_to_num(_dot(rays, q) * scale).clip(0, 1), 1 - v)
        points = a + v[:, None] * ab + w[:, None] * ac
        na, nb, nc = (self.normals[faces, i] for i in range(3))
        normals = na * (1 - v - w)[:, None] + nb * v[:, None] + nc * w[:, None]
        length = np.sqrt(_dot(normals, normals))[:, None]
        return _dot(points - origin, rays), normals / np.maximum(length, 1e-12)


def _dot(a: Floats, b: Floats) -> Floats:
    products: Floats = np.einsum("ij,ij->i", a, b)
    return products


def _frame(camera: Camera) -> tuple[Floats, Floats]:
    """The camera's axes (right, up, towards the viewer) as rows, and its position."""
    azimuth, elevation, yaw = (math.radians(angle) for angle in (camera.azimuth, camera.elevation, camera.yaw))
    back = np.array(
        [math.cos(elevation) * math.sin(azimuth), math.sin(elevation), math.cos(elevation) * math.cos(azimuth)]
    )
    right = np.array([math.cos(azimuth), 0.0, -math.sin(azimuth)])
    up = np.cross(back, right)
    turned_right = math.cos(yaw) * right + math.sin(yaw) * back
    turned_back = math.cos(yaw) * back - math.sin(yaw) * right
    return np.stack([turned_right, up, turned_back]), camera.distance * back


def _directions(camera: Camera, rows: slice) -> Floats:
    """Unit directions of the samples of some rows of pixels, in the camera's frame, row by row."""
    n = camera.supersample
    pixel = 2 * math.tan(math.radians(camera.field_of_view) / 2) / camera.height
    x = ((np.arange(camera.width * n) + 0.5) / n - camera.width / 2) * pixel
    y = (camera.height / 2 - (np.arange(rows.start * n, rows.stop * n) + 0.5) / n) * pixel
    directions = np.stack([*np.broadcast_arrays(x[None, :], y[:, None], -1.0)], axis=-1).reshape(-1, 3)
    return directions / np.sqrt(_dot(directions, directions))[:, None]


def _shade(normals: Floats) -> Floats:
    """Linear colours: two directional lights and a sky above a ground."""
    key, fill = (np.array(light) / math.hypot(*light) for light in (_KEY, _FILL))
    light = _KEY_LIGHT * (normals @ key).clip(0) + _FILL_LIGHT * (normals @ fill).clip(0)
    light += _GROUND_LIGHT + (_SKY_LIGHT - _GROUND_LIGHT) * (normals[:, 1] + 1) / 2
    colours: Floats = light[:, None] * np.array(_ALBEDO)
    return colours


def _srgb(linear: Floats) -> Floats:
    """The transfer curve of IEC 61966-2-1."""
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
