"""Extract a triangle mesh from a field, and write mesh files."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import trimesh
from skimage.measure import marching_cubes

from validation.errors import UsageError
from validation.media.field import Field, ShapeError
from validation.media.grid import BOX, grid_to_world

SUFFIXES = (".glb", ".obj", ".stl")

# 17 decimals distinguish all float32 above 1e-9; with trimesh's 8, one coordinate in ten comes back changed.
_OBJ_DECIMALS = 17


def extract(field: Field, *, box: float = BOX) -> trimesh.Trimesh:
    """Extract the surface of a field at logit 0 as upstream does: marching cubes with Lewiner's tables.

    Vertices are scaled by `grid_to_world` in float64 and rounded to float32, the precision of files. Faces
    wind counter-clockwise seen from outside (logits below 0), so that a closed surface has a positive volume;
    a surface that the cube cuts off stays open there. No vertex is merged and no face left out.

    Args:
        field: float32 ``[n, n, n]``, n at least 2, indices x, y, z; above 0 is inside.
        box: half the edge of the cube.

    Raises:
        ShapeError: INCORRECT_NONFINITE, a logit is NaN or infinite; NO_SURFACE, none or all are above 0;
            DEGENERATE_MESH, no faces, or all in one plane or point.
        ValueError: a wrong shape or dtype.
    """
    if field.dtype != np.float32 or field.ndim != 3 or len(set(field.shape)) != 1 or len(field) < 2:
        raise ValueError(f"field is {field.dtype} {list(field.shape)}, expected float32 [n, n, n] with n >= 2")
    require_surface(field)
    vertices, faces, _normals, _values = marching_cubes(field, 0.0, method="lewiner")
    vertices = grid_to_world(vertices.astype(np.float64), len(field) - 1, box).astype(np.float32)
    # scikit-image winds left-handed if the inside is above the level.
    mesh = trimesh.Trimesh(vertices, faces[:, ::-1], process=False)
    require_solid(mesh)
    return mesh


def require_surface(field: Field) -> None:
    """Raise ShapeError unless all logits are finite, and some but not all are above 0."""
    finite = np.isfinite(field)
    if not finite.all():
        count, nan = int((~finite).sum()), int(np.isnan(field).sum())
        first = [int(i) for i in np.unravel_index(np.argmin(finite), field.shape)]
        raise ShapeError(
            "INCORRECT_NONFINITE",
            "field",
            f"{count} of {field.size} logits are NaN or infinite ({nan} NaN), the first at {first}",
            {"nonfinite_logits": count, "nan_logits": nan},
        )
    inside = int((field > 0).sum())
    if inside in (0, field.size):
        least, most = float(field.min()), float(field.max())
        raise ShapeError(
            "NO_SURFACE",
            "field",
            f"{'all' if inside else 'none'} of {field.size} logits are above 0 (they go from {least:.4g} to "
            f"{most:.4g}): the field has no surface",
            {"inside_logits": inside, "least_logit": least, "greatest_logit": most},
        )


def require_solid(mesh: trimesh.Trimesh) -> None:
    """Raise ShapeError unless the mesh has faces, an area, and finite vertices that are not all in one plane."""
    numbers: dict[str, float | int] = {"vertices": len(mesh.vertices), "faces": len(mesh.faces)}
    if not len(mesh.faces):
        reason = f"the mesh has {len(mesh.vertices)} vertices and no faces"
        raise ShapeError("DEGENERATE_MESH", "mesh", reason, numbers)
    corners: npt.NDArray[np.float64] = mesh.vertices[mesh.faces].reshape(-1, 3)
    area = thickness = math.nan
    if np.isfinite(corners).all():
        area = float(mesh.area)
        # The RMS distance of the corners from their best-fitting plane.
        thickness = math.sqrt(max(np.linalg.eigvalsh(np.cov(corners.T, bias=True))[0], 0.0))
    # Written so that a NaN fails. Float32 coordinates are known to 6e-8; the surface of a single cell at
    # resolution 384 is 1e-3 thick.
    if not (area > 0 and thickness > 1e-6):
        raise ShapeError(
            "DEGENERATE_MESH",
            "mesh",
            f"{len(mesh.faces)} faces have an area of {area:.3g} and are {thickness:.3g} thick: "
            "the mesh is flat, a point, or not finite",
            {**numbers, "area": area, "thickness": thickness},
        )


def write_mesh(path: Path, mesh: trimesh.Trimesh) -> None:
    """Write a mesh to a file whose suffix is one of `SUFFIXES`; makes its folder.

    The same mesh gives the same bytes. All three formats keep float32 vertices, as `extract` makes them, exactly
    (OBJ after rounding back to float32); GLB and OBJ also keep the faces, while an STL stores each triangle
    separately. A GLB has smooth normals, for viewers.

    Raises:
        ValueError: an unknown suffix.
        UsageError: the file cannot be written.
    """
    # Otherwise trimesh's output depends on whether the normals were accessed before.
    options: dict[str, dict[str, Any]] = {
        ".glb": {"include_normals": True},
        ".obj": {"include_normals": False, "digits": _OBJ_DECIMALS, "header": None},
        ".stl": {},
    }
    if path.suffix not in options:
        raise ValueError(f"{path} ends in {path.suffix!r}, expected one of: {', '.join(SUFFIXES)}")
    data = mesh.export(file_type=path.suffix.removeprefix("."), **options[path.suffix])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}, expected a writable folder") from error
