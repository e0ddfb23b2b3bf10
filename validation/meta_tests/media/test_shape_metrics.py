import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from validation.media.mesh import extract
from validation.media.render import KINDS, Camera, Views, render
from validation.media.shape_metrics import compare_fields, compare_meshes, compare_views, point_to_surface
from validation.meta_tests.shape_fields import BOX_AND_SPHERE, TORUS, field_of, step

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures"
CAMERAS = tuple(
    dataclasses.replace(camera, height=128, width=128)
    for camera in Camera.read(FIXTURES / "cameras" / "views.json")[:3]
)
RESOLUTION = 64


@functools.cache
def shape(shift: float = 0.0, kind: str = "box-and-sphere") -> trimesh.Trimesh:
    """A shape moved along x by a share of a voxel."""
    parameters = {"box-and-sphere": BOX_AND_SPHERE, "torus": TORUS}[kind]
    return extract(field_of(kind, parameters, RESOLUTION, shift * step(RESOLUTION)))


@functools.cache
def views(shift: float = 0.0) -> Views:
    return render(shape(shift), CAMERAS)


def mirrored(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The mesh upside down; its faces are still counter-clockwise from outside."""
    return trimesh.Trimesh(mesh.vertices * [1, -1, 1], mesh.faces[:, ::-1], process=False)


def with_hole(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The mesh without the faces around the vertex nearest to the first camera."""
    nearest = mesh.vertices[np.argmax(mesh.vertices @ [0.5, 0.4, 0.75])]
    kept = np.linalg.norm(mesh.triangles_center - nearest, axis=1) > 0.1
    return trimesh.Trimesh(mesh.vertices, mesh.faces[kept], process=False)


def diagonal(mesh: trimesh.Trimesh) -> float:
    return float(np.linalg.norm(mesh.extents))


# Equal shapes


def test_equal_shapes_have_no_distance() -> None:
    field = field_of("torus", TORUS, 24)
    found = compare_fields(field, field.copy())
    assert dataclasses.astuple(found) == (0.0, 0.0, (0, 0, 0), 0.0, 1.0)

    mesh = compare_meshes(shape(), extract(field_of("box-and-sphere", BOX_AND_SPHERE, RESOLUTION)))
    distances = dataclasses.astuple(mesh)[:7]
    assert distances == (0.0,) * 7
    assert mesh.volume_reference == mesh.volume_candidate
    assert mesh.euler_number_reference == mesh.euler_number_candidate == 2
    assert mesh.watertight_reference
    assert mesh.watertight_candidate

    view = compare_views(views(), render(shape(), CAMERAS))
    for kind in KINDS:
        found_view = getattr(view, kind)
        assert found_view.psnr_per_frame == [math.inf] * 3
        assert found_view.psnr == found_view.psnr_worst_frame == found_view.psnr_worst_tile == math.inf
        assert found_view.ssim_worst_frame == pytest.approx(1)
    assert view.silhouette_iou == [1.0, 1.0, 1.0]


# Planted differences, and the metric that names each


def test_a_tenth_of_a_voxel_is_seen_on_every_rung() -> None:
    h = step(RESOLUTION)
    still, moved = (field_of("torus", TORUS, RESOLUTION, shift) for shift in (0.0, h / 10))
    field = compare_fields(still, moved)
    assert 0.3 * h / 10 < field.rms < h / 10
    assert field.max == pytest.approx(h / 10, rel=0.02)  # along x, a distance changes by the shift
    assert 0 < field.flips < 2e-3
    assert 0.97 < field.iou < 1

    reference, candidate = shape(kind="torus"), shape(0.1, "torus")
    mesh = compare_meshes(reference, candidate)
    share = h / 10 / diagonal(reference)
    # The shift times |cos| of the angle between normal and x: around the ring and around the tube it averages 2 / pi.
    for direction in ("candidate", "reference"):
        assert getattr(mesh, f"{direction}_mean") == pytest.approx((2 / math.pi) ** 2 * share, rel=0.05)
        assert getattr(mesh, f"{direction}_max") == pytest.approx(share, rel=0.1)
    # Samples on both surfaces do not see it at all.
    assert mesh.chamfer == pytest.approx(chamfer_of_two_draws(reference), rel=0.03)

    view = compare_views(views(), views(0.1))
    assert 30 < view.normal.psnr_worst_frame < 70
    assert view.shaded.psnr_worst_tile < view.shaded.psnr_worst_frame < 70
    assert 0.99 < view.silhouette_iou_worst_view < 1


def chamfer_of_two_draws(mesh: trimesh.Trimesh) -> float:
    """The chamfer distance of a surface to itself: with triangles in another order the meshes differ, so both are
    sampled.
    """
    same = trimesh.Trimesh(mesh.vertices, mesh.faces[::-1], process=False)
    found = compare_meshes(mesh, same)
    assert found.candidate_max < 1e-12
    assert 4e-5 < found.chamfer < 8e-5
    return found.chamfer


def test_a_mirrored_mesh_is_seen() -> None:
    found = compare_meshes(shape(), mirrored(shape()))
    assert found.candidate_mean > 0.02
    assert found.reference_mean > 0.02
    assert found.chamfer > 1e-3
    assert found.volume_candidate == pytest.approx(found.volume_reference)
    assert found.euler_number_candidate == found.euler_number_reference
    view = compare_views(views(), render(mirrored(shape()), CAMERAS))
    assert view.silhouette_iou_worst_view < 0.9
    assert view.normal.psnr_worst_frame < 20


def test_a_hole_is_seen() -> None:
    found = compare_meshes(shape(), with_hole(shape()))
    assert found.candidate_max < 1e-12  # all of the candidate lies on the reference
    assert found.reference_max == pytest.approx(0.1 / diagonal(shape()), rel=0.3)
    assert found.reference_mean < 1e-3
    assert found.watertight_reference
    assert not found.watertight_candidate
    assert found.euler_number_candidate == 1
    view = compare_views(views(), render(with_hole(shape()), CAMERAS))
    for kind in ("shaded", "normal", "depth"):
        assert getattr(view, kind).psnr_worst_tile < getattr(view, kind).psnr_worst_frame - 10
    a_tenth_of_a_voxel = compare_views(views(), views(0.1))
    assert view.normal.psnr_worst_tile < a_tenth_of_a_voxel.normal.psnr_worst_tile - 5
    assert view.silhouette_iou_worst_view > 0.999  # its far side is still there


def test_a_camera_turned_by_a_pixel_is_seen() -> None:
    view = compare_views(views(), render(shape(), [camera.turned(1) for camera in CAMERAS]))
    assert view.silhouette_iou_worst_view < 0.98
    for kind in KINDS:
        assert 15 < getattr(view, kind).psnr_worst_frame < 35


def test_a_handle_is_seen_by_the_euler_number() -> None:
    field = field_of("box-and-sphere", BOX_AND_SPHERE, RESOLUTION)
    pierced = field.copy()
    pierced[31:33, :, 20] = -1.0
    pierced[31:33, :, 21] = -1.0
    found = compare_meshes(extract(field), extract(pierced))
    assert (found.euler_number_reference, found.euler_number_candidate) == (2, 0)
    assert found.watertight_candidate


# Fields


def test_field_distances_by_hand() -> None:
    reference = np.full((2, 2, 2), -1, np.float32)
    reference[0] = 2
    candidate = reference.copy()
    candidate[0, 1, 1] = -1  # 3 off, flipped
    candidate[1, 0, 1] = 0  # 1 off, still not inside
    found = compare_fields(reference, candidate)
    assert found.rms == pytest.approx(math.sqrt(10 / 8))
    assert (found.max, found.worst) == (3.0, (0, 1, 1))
    assert (found.flips, found.iou) == (1 / 8, 3 / 4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("in_both", [False, True])
def test_a_logit_that_is_not_finite_is_never_close(bad: float, in_both: bool) -> None:
    reference = field_of("torus", TORUS, 12)
    candidate = reference.copy()
    candidate[6, 10, 6] = bad
    if in_both:
        reference[6, 10, 6] = bad
    found = compare_fields(reference, candidate)
    assert math.isnan(found.rms)
    assert math.isnan(found.max)
    assert found.worst == (6, 10, 6)
    assert found.flips == 1 / 13**3
    assert found.iou < 1


def test_nothing_inside_has_no_iou() -> None:
    outside = np.full((3, 3, 3), -1, np.float32)
    assert math.isnan(compare_fields(outside, outside).iou)


def test_fields_of_other_shapes_are_refused() -> None:
    for a, b in ((3, 4), (0, 0)):
        with pytest.raises(ValueError, match="candidate field is"):
            compare_fields(np.zeros((a,) * 3, np.float32), np.zeros((b,) * 3, np.float32))


# Meshes


def test_distances_between_spheres_are_the_difference_of_their_radii() -> None:
    small, large = (trimesh.creation.icosphere(subdivisions=5, radius=r) for r in (0.7, 0.77))
    found = compare_meshes(small, large)
    # The facets of both lie inside their sphere by at most 4e-4.
    expected = 0.07 / diagonal(small)
    for name in ("candidate_mean", "candidate_rms", "candidate_max", "reference_mean", "reference_max"):
        assert getattr(found, name) == pytest.approx(expected, abs=4e-4)
    assert found.chamfer == pytest.approx(2 * expected**2, rel=0.06)
    assert found.volume_candidate / found.volume_reference == pytest.approx(1.1**3)


def test_each_direction_sees_what_the_other_cannot() -> None:
    more = trimesh.util.concatenate([shape(), trimesh.creation.icosphere(radius=0.1).apply_translation([0.9, 0, 0])])
    found = compare_meshes(shape(), more)
    assert found.candidate_max > found.candidate_rms > found.candidate_mean > 1e-3
    assert max(found.reference_max, found.reference_rms, found.reference_mean) < 1e-12


def test_point_to_surface_is_exact() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-3, 3, (2000, 3))
    half = np.array([0.5, 1.0, 1.5])
    over = np.abs(points) - half
    exact = np.abs(np.linalg.norm(over.clip(0), axis=1) + over.max(axis=1).clip(max=0))
    box = trimesh.creation.box(2 * half)
    np.testing.assert_allclose(point_to_surface(points, box), exact, atol=1e-14)
    # Twelve large faces among many small ones, to which all the nearest corners belong.
    small = trimesh.creation.icosphere(subdivisions=3, radius=0.4)
    both = trimesh.util.concatenate([box, small])
    outside = over.max(axis=1) > 0
    np.testing.assert_allclose(point_to_surface(points[outside][:300], both), exact[outside][:300], atol=1e-14)


def test_point_to_surface_is_trimeshs_where_that_is_exact() -> None:
    mesh = shape()
    points = np.random.default_rng(1).uniform(-1, 1, (50, 3))
    triangles = np.broadcast_to(mesh.triangles, (50, *mesh.triangles.shape)).reshape(-1, 3, 3)
    repeated = np.repeat(points, len(mesh.faces), axis=0)
    # Scaled up, since trimesh treats products of four edges below 1e-13 as zero.
    nearest = trimesh.triangles.closest_point(triangles * 4096.0, repeated * 4096.0) / 4096.0
    expected = np.linalg.norm(nearest - repeated, axis=1).reshape(50, -1).min(axis=1)
    np.testing.assert_allclose(point_to_surface(points, mesh), expected, atol=1e-14)


@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_points_on_the_surface_have_no_distance_at_any_size(size: float) -> None:
    mesh = shape().copy().apply_scale(size)
    points, _ = trimesh.sample.sample_surface(mesh, 2000, seed=3)
    assert point_to_surface(points, mesh).max() < 1e-15 * size


@pytest.mark.parametrize(
    "faces",
    [[[0, 1, 1]], [[0, 0, 1]], [[0, 1, 0]], [[0, 2, 1]]],
    ids=["bc", "ab", "ca", "on a line"],
)
def test_triangles_without_area_are_their_edges(faces: list[list[int]]) -> None:
    mesh = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0.25, 0, 0]], faces, process=False)
    points = np.array([[0.5, 0.3, 0.0], [2.0, 0, 0], [-3, 4, 0]])
    np.testing.assert_allclose(point_to_surface(points, mesh), [0.3, 1, 5], atol=1e-15)


def test_meshes_that_cannot_be_compared_are_refused() -> None:
    empty = trimesh.Trimesh(np.zeros((4, 3)), np.zeros((0, 3), np.int64), process=False)
    with pytest.raises(ValueError, match="candidate has no faces"):
        compare_meshes(shape(), empty)
    with pytest.raises(ValueError, match="reference has no faces"):
        compare_meshes(empty, shape())
    with pytest.raises(ValueError, match="samples is 0"):
        compare_meshes(shape(), shape(), samples=0)


# Views


def test_the_worst_view_and_tile_are_named() -> None:
    reference = views()
    silhouette, depth = reference.silhouette.copy(), reference.depth.copy()
    depth[2, 70:74, 5:9] = 0
    silhouette[1, :64] = 0
    found = compare_views(reference, dataclasses.replace(reference, silhouette=silhouette, depth=depth))
    covered = reference.silhouette[1].sum()
    assert found.silhouette_iou == [1.0, pytest.approx(silhouette[1].sum() / covered), 1.0]
    assert (found.worst_silhouette, found.silhouette_iou_worst_view) == (1, found.silhouette_iou[1])
    numbers = found.numbers()
    assert numbers["depth_worst_view"] == "right"
    assert numbers["depth_worst_tile"] == "right, row 64, column 0"
    assert numbers["depth_psnr_worst_tile"] == pytest.approx(-10 * math.log10(16 / 1024), abs=1e-3)
    assert numbers["shaded_psnr_worst_view"] == math.inf
    assert len(numbers) == 21


def test_an_empty_view_has_no_iou() -> None:
    reference = views()
    silhouette = reference.silhouette.copy()
    silhouette[2] = 0
    empty = dataclasses.replace(reference, silhouette=silhouette)
    found = compare_views(empty, empty)
    assert math.isnan(found.silhouette_iou_worst_view)
    assert found.worst_silhouette == 2
    assert compare_views(reference, empty).silhouette_iou_worst_view == 0


def test_a_view_with_nan_is_never_close() -> None:
    reference = views()
    changed: dict[str, Any] = {kind: getattr(reference, kind).copy() for kind in ("normal", "silhouette")}
    for image in changed.values():
        image[1, 60, 60] = math.nan
    found = compare_views(reference, dataclasses.replace(reference, **changed))
    assert math.isnan(found.normal.psnr_worst_frame)
    assert math.isnan(found.silhouette_iou_worst_view)
    assert found.worst_silhouette == 1


def test_views_of_other_cameras_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        compare_views(views(), render(shape(), CAMERAS[:2]))
