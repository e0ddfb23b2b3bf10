"""The distance between two shapes, rung by rung: field, mesh, views.

Fields are compared in their logits' units, meshes in shares of the reference's bounding-box diagonal, views by
`validation.media.metrics`. Shapes that are equal bit for bit have distances of exactly 0 and infinite PSNR,
which is never averaged; a NaN makes the numbers that it touches NaN, which is below every floor and above every
ceiling when a gate is written as ``not value <= ceiling``.

**Why point to surface.** If points are drawn on each surface separately, their Chamfer distance is mostly the gap
between the points: 10 000 on the same torus twice are 6.3e-5 apart (squared, over the squared diagonal, both ways).
With its field shifted by a tenth of a voxel of a 97^3 grid they are 6.2e-5 apart, by a whole voxel 9.6e-5. The mean
distance from the points to the other *surface* goes from 0 to 3.3e-4 and 3.4e-3 of the diagonal: the shift,
times the mean cosine between it and the normals. Chamfer distance is reported because others quote it.
"""

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import trimesh
from scipy.spatial import KDTree

from validation.media import metrics
from validation.media.field import Field
from validation.media.render import KINDS, Views

SAMPLES = 10_000
"""Points drawn on each surface."""

# Points times faces per batch: about 100 MB.
_PAIRS = 2**17

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class FieldDistance:
    """The distance of a candidate's field from a reference's.

    Attributes:
        rms: RMS of the logits' difference, in logits.
        max: maximum of its absolute value, in logits. worst: index x, y, z of the maximum.
        flips: share of the grid's points that are inside in one field and outside in the other, 0 to 1. A
            point where either is NaN or infinite counts as flipped.
        iou: points inside in both over points inside in either, 0 to 1; NaN if no point is inside.
    """

    rms: float
    max: float
    worst: tuple[int, int, int]
    flips: float
    iou: float


@dataclasses.dataclass(frozen=True)
class MeshDistance:
    """The distance of a candidate's mesh from a reference's.

    Distances are from points drawn evenly over the area of one mesh to the surface of the other, in shares of
    the diagonal of the reference's bounding box.

    Attributes:
        candidate_mean, candidate_rms, candidate_max: from the candidate's points to the reference: surplus
            surface.
        reference_mean, reference_rms, reference_max: from the reference's points to the candidate: missing
            surface.
        chamfer: mean squared distance to the nearest of the other mesh's points, summed over both directions,
            over the squared diagonal: the normalised Chamfer distance, no lower than about 5e-5 unless the
            meshes are equal.
        euler_number_reference, euler_number_candidate: vertices - edges + faces; 2 for a ball, 0 for a torus.
        volume_reference, volume_candidate: signed, in the cube's units; only a formal sum if the mesh is not
            watertight.
        watertight_reference, watertight_candidate: whether each edge has two faces.
        faces_reference, faces_candidate: their number.
    """

    candidate_mean: float
    candidate_rms: float
    candidate_max: float
    reference_mean: float
    reference_rms: float
    reference_max: float
    chamfer: float
    euler_number_reference: int
    euler_number_candidate: int
    volume_reference: float
    volume_candidate: float
    watertight_reference: bool
    watertight_candidate: bool
    faces_reference: int
    faces_candidate: int


@dataclasses.dataclass(frozen=True)
class ViewDistance:
    """The distance of a candidate's views from a reference's.

    Attributes:
        names: the views'.
        shaded, normal, depth, silhouette: result of `metrics.compare` for each kind, with views as frames; its
            temporal number means nothing here.
        silhouette_iou: per view, the area covered in both over that covered in either, 0 to 1; NaN if neither
            covers anything.
        silhouette_iou_worst_view: the lowest (NaN counts as lowest). worst_silhouette: its index.
    """

    names: tuple[str, ...]
    shaded: metrics.Comparison
    normal: metrics.Comparison
    depth: metrics.Comparison
    silhouette: metrics.Comparison
    silhouette_iou: list[float]
    silhouette_iou_worst_view: float
    worst_silhouette: int

    def numbers(self) -> dict[str, float | int | str | None]:
        """The worst numbers of each kind by name, for `Record.numbers`: ``shaded_psnr_worst_view``, ..."""
        numbers: dict[str, float | int | str | None] = {}
        for kind in KINDS:
            found: metrics.Comparison = getattr(self, kind)
            view, row, column = found.worst_tile
            numbers |= {
                f"{kind}_psnr_worst_view": found.psnr_worst_frame,
                f"{kind}_worst_view": self.names[found.worst_frame],
                f"{kind}_psnr_worst_tile": found.psnr_worst_tile,
                f"{kind}_worst_tile": f"{self.names[view]}, row {row}, column {column}",
                f"{kind}_ssim_worst_view": found.ssim_worst_frame,
            }
        return numbers | {"silhouette_iou_worst_view": self.silhouette_iou_worst_view}


def compare_fields(reference: Field, candidate: Field) -> FieldDistance:
    """Compare two fields point by point; the level is 0.

    Raises:
        ValueError: the shapes differ or are empty.
    """
    if reference.shape != candidate.shape or reference.ndim != 3 or not reference.size:
        raise ValueError(f"candidate field is {list(candidate.shape)}, expected {list(reference.shape)}, [n, n, n]")
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(candidate.astype(np.float64) - reference)
    bad = ~(np.isfinite(reference) & np.isfinite(candidate))
    distance[bad] = np.nan
    # argmax counts NaN as the greatest.
    x, y, z = (int(i) for i in np.unravel_index(np.argmax(distance), distance.shape))
    inside, inside_candidate = reference > 0, candidate > 0
    either = int(np.count_nonzero(inside | inside_candidate | bad))
    both = int(np.count_nonzero(inside & inside_candidate & ~bad))
    greatest = float(distance[x, y, z])
    np.square(distance, out=distance)  # in place: 385^3 of them are 456 MB
    return FieldDistance(
        rms=math.sqrt(float(np.mean(distance))),
        max=greatest,
        worst=(x, y, z),
        flips=float(np.mean((inside != inside_candidate) | bad)),
        iou=both / either if either else math.nan,
    )


def compare_meshes(reference: trimesh.Trimesh, candidate: trimesh.Trimesh, *, samples: int = SAMPLES) -> MeshDistance:
    """Compare two meshes that `mesh.require_solid` accepts.

    Args:
        reference, candidate: the meshes.
        samples: points drawn on each; the seeds are fixed, one for each mesh.

    Raises:
        ValueError: fewer than one sample, or a mesh without faces.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples is {samples!r}, expected an integer of at least 1")
    for name, mesh in (("reference", reference), ("candidate", candidate)):
        if not len(mesh.faces):
            raise ValueError(f"{name} has no faces, expected a surface to measure")
    diagonal = float(np.linalg.norm(np.ptp(reference.vertices[reference.faces].reshape(-1, 3), axis=0)))
    if _same(reference, candidate):
        # A drawn point misses its own triangle by about 1e-17.
        to_reference = to_candidate = np.zeros(1)
        chamfer = 0.0
    else:
        points = _draw(reference, samples, seed=0)
        points_candidate = _draw(candidate, samples, seed=1)
        to_reference = point_to_surface(points_candidate, reference) / diagonal
        to_candidate = point_to_surface(points, candidate) / diagonal
        squared = [KDTree(a).query(b)[0] ** 2 for a, b in ((points, points_candidate), (points_candidate, points))]
        chamfer = float(sum(distances.mean() for distances in squared)) / diagonal**2
    return MeshDistance(
        candidate_mean=float(to_reference.mean()),
        candidate_rms=math.sqrt(float(np.mean(to_reference**2))),
        candidate_max=float(to_reference.max()),
        reference_mean=float(to_candidate.mean()),
        reference_rms=math.sqrt(float(np.mean(to_candidate**2))),
        reference_max=float(to_candidate.max()),
        chamfer=chamfer,
        euler_number_reference=int(reference.euler_number),
        euler_number_candidate=int(candidate.euler_number),
        volume_reference=float(reference.volume),
        volume_candidate=float(candidate.volume),
        watertight_reference=bool(reference.is_watertight),
        watertight_candidate=bool(candidate.is_watertight),
        faces_reference=len(reference.faces),
        faces_candidate=len(candidate.faces),
    )


def compare_views(reference: Views, candidate: Views) -> ViewDistance:
    """Compare the views of two meshes from the same cameras.

    Raises:
        ValueError: the cameras' names differ, or images smaller than 11 pixels.
        FramesDifferError: the images' sizes differ.
    """
    if reference.names != candidate.names:
        raise ValueError(f"candidate has the views {list(candidate.names)}, expected {list(reference.names)}")
    compared = {kind: metrics.compare(getattr(reference, kind), getattr(candidate, kind), 1.0) for kind in KINDS}
    iou = [_soft_iou(a, b) for a, b in zip(reference.silhouette, candidate.silhouette, strict=True)]
    worst = min(range(len(iou)), key=lambda i: (not math.isnan(iou[i]), iou[i]))
    return ViewDistance(
        names=reference.names,
        **compared,
        silhouette_iou=iou,
        silhouette_iou_worst_view=iou[worst],
        worst_silhouette=worst,
    )


def point_to_surface(points: Floats, mesh: trimesh.Trimesh) -> Floats:
    """The exact distance of each point ``[P, 3]`` to the nearest point of the mesh's faces, float64 ``[P]``.

    The point q of a face that is nearest to p is a mean of those corners v for which v - q is perpendicular to
    p - q, and one of these is within rho = longest edge / sqrt(3) of q. So a face at distance d has a corner
    within ``sqrt(d^2 + rho^2)`` of p, and the faces around the nearest vertices are tried up to that distance.
    Fast if edges have similar lengths, as from marching cubes.
    """
    triangles: Floats = np.asarray(mesh.triangles)
    around = mesh.vertex_faces  # padded with -1: the last face, which does no harm
    rho_squared = ((triangles - np.roll(triangles, 1, axis=1)) ** 2).sum(axis=-1).max() / 3
    tree = KDTree(mesh.vertices)
    distances = np.full(len(points), np.inf)
    left, tried, k = np.arange(len(points)), 0, 8
    while len(left) and tried < tree.n:
        k = min(k, tree.n)
        further = []
        for part in np.array_split(left, -(-len(left) * (k - tried) * around.shape[1] // _PAIRS)):
            reach, vertices = tree.query(points[part], k=np.arange(tried + 1, k + 1))
            faces = around[vertices].reshape(len(part), -1)
            squared = _squared_distance(points[part, None], triangles[faces])
            distances[part] = np.minimum(distances[part], np.sqrt(squared.min(axis=1)))
            further.append(part[reach[:, -1] ** 2 < distances[part] ** 2 + rho_squared])
        left, tried, k = np.concatenate(further), k, 2 * k
    return distances


def _squared_distance(points: Floats, triangles: Floats) -> Floats:
    """Squared distances of points ``[..., 3]`` to triangles ``[..., 3, 3]``, which may be degenerate.

    `trimesh.triangles.closest_point` treats products of four edges below 1e-13 as zero: on 387 000 faces of a
    257^3 grid it puts points of the surface 1e-4 beside it.
    """
    a, b, c = (points - triangles[..., i, :] for i in range(3))
    ab, ac = a - b, a - c
    normal = np.cross(ab, ac)
    area_squared = _dot(normal, normal)
    # Barycentric coordinates times area_squared.
    v = _dot(ac, ac) * _dot(a, ab) - _dot(ab, ac) * _dot(a, ac)
    w = _dot(ab, ab) * _dot(a, ac) - _dot(ab, ac) * _dot(a, ab)
    inside = (v >= 0) & (w >= 0) & (v + w <= area_squared) & (area_squared > 0)
    to_edges = np.minimum(np.minimum(_to_segment(a, ab), _to_segment(a, ac)), _to_segment(b, ac - ab))
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Floats = np.where(inside, _dot(a, normal) ** 2 / area_squared, to_edges)
    return result


def _to_segment(to_point: Floats, edge: Floats) -> Floats:
    """Squared distance from a point, given relative to a segment's start, to the segment."""
    with np.errstate(divide="ignore", invalid="ignore"):
        along = np.nan_to_num(_dot(to_point, edge) / _dot(edge, edge)).clip(0, 1)
    beside = to_point - along[..., None] * edge
    return _dot(beside, beside)


def _dot(a: Floats, b: Floats) -> Floats:
    products: Floats = np.einsum("...i,...i->...", a, b)
    return products


def _draw(mesh: trimesh.Trimesh, count: int, seed: int) -> Floats:
    points: Floats = np.asarray(trimesh.sample.sample_surface(mesh, count, seed=seed)[0])
    return points


def _same(reference: trimesh.Trimesh, candidate: trimesh.Trimesh) -> bool:
    return np.array_equal(reference.vertices, candidate.vertices) and np.array_equal(reference.faces, candidate.faces)


def _soft_iou(reference: npt.NDArray[np.float32], candidate: npt.NDArray[np.float32]) -> float:
    either = float(np.maximum(reference, candidate).sum(dtype=np.float64))
    return float(np.minimum(reference, candidate).sum(dtype=np.float64)) / either if either else math.nan
