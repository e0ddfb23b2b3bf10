import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import trimesh

from validation.errors import UsageError
from validation.media import render as renderer
from validation.media.grid import BOX
from validation.media.mesh import extract
from validation.media.metrics import psnr
from validation.media.render import KINDS, Camera, Views, render, turntable
from validation.media.video import read_video, to_uint8, write_video
from validation.meta_tests.shape_fields import BOX_AND_SPHERE, field_of

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures"
CAMERAS = Camera.read(FIXTURES / "cameras" / "views.json")
RADIUS = 0.8
REACH = math.sqrt(3) * BOX
FRONT = Camera("front", 0, 0, distance=5, field_of_view=30, height=128, width=128, supersample=1)


def ball(centre: Sequence[float] = (0, 0, 0), radius: float = RADIUS) -> trimesh.Trimesh:
    mesh = trimesh.creation.icosphere(subdivisions=5, radius=radius)
    mesh.apply_translation(centre)
    return mesh


def box_and_sphere() -> trimesh.Trimesh:
    return extract(field_of("box-and-sphere", BOX_AND_SPHERE, 40))


def one(mesh: trimesh.Trimesh, camera: Camera) -> dict[str, npt.NDArray[np.float32]]:
    views = render(mesh, [camera])
    return {kind: getattr(views, kind)[0] for kind in KINDS}


def slopes(camera: Camera) -> npt.NDArray[np.float64]:
    """The tangent of the angle between the line of sight and each pixel's centre."""
    pixel = 2 * math.tan(math.radians(camera.field_of_view / 2)) / camera.height
    y, x = np.mgrid[: camera.height, : camera.width] + 0.5
    radii: npt.NDArray[np.float64] = pixel * np.hypot(x - camera.width / 2, y - camera.height / 2)
    return radii


@pytest.mark.parametrize(("azimuth", "elevation"), [(0, 0), (125, -40)])
def test_a_sphere_is_where_geometry_puts_it(azimuth: float, elevation: float) -> None:
    view = one(ball(), dataclasses.replace(FRONT, azimuth=azimuth, elevation=elevation))
    # The sphere's outline is where a line from the camera touches it; its facets lie inside by at most 4e-4.
    slope, edge = slopes(FRONT), math.tan(math.asin(RADIUS / FRONT.distance))
    covered = view["silhouette"][..., 0]
    assert set(np.unique(covered)) == {0.0, 1.0}
    assert (covered[slope < edge * 0.999] == 1).all()
    assert (covered[slope > edge] == 0).all()

    inner = slope < 0.9 * edge
    cosine = 1 / np.hypot(1, slope[inner])
    along = FRONT.distance * cosine - np.sqrt(RADIUS**2 - FRONT.distance**2 * (1 - cosine**2))
    depth = view["depth"][..., 0]
    assert depth[inner] == pytest.approx((along * cosine - FRONT.distance + REACH) / (2 * REACH), abs=5e-4)
    assert (depth[slope > edge] == 1).all()

    normals = 2 * view["normal"].astype(np.float64) - 1
    # On a sphere around the origin the normal has the position's direction; checks its part towards the camera first.
    toward = (FRONT.distance - along * cosine) / RADIUS
    assert normals[inner][:, 2] == pytest.approx(toward, abs=3e-3)
    assert np.linalg.norm(normals[inner], axis=1) == pytest.approx(1, abs=1e-6)
    assert (normals[slope > edge] == 0).all()


@pytest.mark.parametrize("azimuth", [0.0, 90.0, 215.0])
def test_no_ray_slips_through_between_triangles(azimuth: float) -> None:
    camera = dataclasses.replace(FRONT, azimuth=azimuth, elevation=31.0, height=512, width=512)
    view = one(extract(field_of("sphere", {"radius": RADIUS}, 96)), camera)
    inside = slopes(camera) < 0.95 * math.tan(math.asin(RADIUS / camera.distance))
    assert inside.sum() > 60_000
    assert (view["silhouette"][inside] == 1).all()


@pytest.mark.parametrize(
    ("azimuth", "elevation", "centre", "place"),
    [
        (0, 0, (0.7, 0, 0), "right"),
        (0, 0, (0, 0.7, 0), "top"),
        (90, 0, (0, 0, 0.7), "left"),
        (180, 0, (0.7, 0, 0), "left"),
        (0, 80, (0, 0, 0.7), "bottom"),
        (0, -80, (0, 0, 0.7), "top"),
    ],
)
def test_cameras_look_from_where_they_say(
    azimuth: float, elevation: float, centre: tuple[float, float, float], place: str
) -> None:
    camera = dataclasses.replace(FRONT, azimuth=azimuth, elevation=elevation)
    y, x = np.nonzero(one(ball(centre, 0.2), camera)["silhouette"][..., 0])
    across, down = x.mean() / 128 - 0.5, y.mean() / 128 - 0.5
    found = {"right": across, "left": -across, "bottom": down, "top": -down}
    assert max(found, key=lambda key: found[key]) == place
    assert found[place] > 0.2
    assert min(abs(across), abs(down)) < 0.01


@pytest.mark.parametrize("yaw", [10.0, -10.0])
def test_a_camera_turned_right_sees_the_origin_left(yaw: float) -> None:
    camera = dataclasses.replace(FRONT, azimuth=70.0, yaw=yaw)
    view = one(ball(radius=0.1), camera)
    y, x = np.nonzero(view["silhouette"][..., 0])
    pixel = 2 * math.tan(math.radians(15)) / 128
    # A sphere off the line of sight appears as an ellipse, whose centre lies a little beside the sphere's.
    assert (x.mean() + 0.5 - 64) * pixel == pytest.approx(-math.tan(math.radians(yaw)), abs=0.2 * pixel)
    assert y.mean() + 0.5 == pytest.approx(64, abs=0.01)
    normals = 2 * view["normal"][y, x].astype(np.float64) - 1
    assert np.linalg.norm(normals, axis=1) == pytest.approx(1, abs=1e-6)


def test_pixels_are_square_in_images_that_are_not() -> None:
    wide = one(ball(), dataclasses.replace(FRONT, width=192))
    narrow = one(ball(), FRONT)
    for kind in KINDS:
        assert np.array_equal(wide[kind][:, 32:160], narrow[kind])


def test_a_camera_turned_by_a_pixel_moves_the_image_by_a_pixel() -> None:
    mesh, camera = box_and_sphere(), dataclasses.replace(CAMERAS[0], supersample=4)
    view, turned = one(mesh, camera)["silhouette"], one(mesh, camera.turned(1))["silhouette"]
    assert psnr(np.roll(view, -1, axis=1), turned, 1.0) > psnr(view, turned, 1.0) + 15
    back = one(mesh, camera.turned(1).turned(-1))["silhouette"]
    assert psnr(view, back, 1.0) > 60


def test_supersampling_measures_how_much_of_a_pixel_is_covered() -> None:
    fine = one(ball(), dataclasses.replace(FRONT, supersample=4))
    covered = fine["silhouette"][..., 0]
    assert set(np.unique(covered * 16)) <= set(range(17))
    assert len(np.unique(covered)) > 10
    pixel = 2 * math.tan(math.radians(15)) / 128
    area = math.pi * (math.tan(math.asin(RADIUS / FRONT.distance)) / pixel) ** 2
    # 16 x 260 samples lie along the outline; the error is some tens of samples.
    assert covered.sum() == pytest.approx(area, abs=5)
    # Samples of the four quarters are the rays of an image of twice the size.
    double = one(ball(), dataclasses.replace(FRONT, height=256, width=256))
    pairs = one(ball(), dataclasses.replace(FRONT, supersample=2))
    for kind in KINDS:
        quarters = double[kind].reshape(128, 2, 128, 2, -1).mean(axis=(1, 3))
        np.testing.assert_allclose(pairs[kind], quarters, atol=1e-6)


def test_shading_is_lit_from_the_upper_left_and_stays_in_range() -> None:
    shaded = one(ball(), FRONT)["shaded"]
    luminance = shaded.mean(axis=2)
    assert luminance[44, 44] > luminance[84, 84] + 0.1
    assert 0.2 < luminance[60, 60] < 0.9
    assert np.ptp(shaded[0, 0]) < 0.03  # a neutral background
    assert shaded[0, 0].mean() > 0.9
    for camera in CAMERAS:
        views = render(box_and_sphere(), [camera])
        for kind in KINDS:
            image = getattr(views, kind)
            assert image.dtype == np.float32
            assert 0 <= image.min() <= image.max() <= 1


def test_the_same_view_has_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def bits(views: Views) -> list[bytes]:
        return [getattr(views, kind).tobytes() for kind in KINDS]

    first = bits(render(box_and_sphere(), CAMERAS))
    assert bits(render(box_and_sphere(), CAMERAS)) == first
    assert len(set(first)) == 4
    monkeypatch.setattr(renderer, "_BAND", 5000)  # bands of four rows
    assert bits(render(box_and_sphere(), CAMERAS)) == first


def test_views_are_stacked_in_the_order_of_the_cameras() -> None:
    mesh = box_and_sphere()
    views = render(mesh, CAMERAS)
    assert views.names == ("three-quarter", "front", "right", "back", "above", "below")
    assert [getattr(views, kind).shape for kind in KINDS] == [
        (6, 256, 256, 3), (6, 256, 256, 3), (6, 256, 256, 1), (6, 256, 256, 1),
    ]  # fmt: skip
    alone = render(mesh, CAMERAS[4:5])
    assert np.array_equal(alone.shaded[0], views.shaded[4])


def test_the_cameras_of_the_fixture_see_a_large_shape_whole() -> None:
    views = render(trimesh.creation.box((1.7, 1.7, 1.7)), CAMERAS)
    for silhouette in views.silhouette[..., 0]:
        border = np.concatenate([silhouette[0], silhouette[-1], silhouette[:, 0], silhouette[:, -1]])
        assert (border == 0).all()
        assert silhouette.mean() > 0.25


def test_faces_turned_inside_out_show_in_normals_and_shading_only() -> None:
    mesh = box_and_sphere()
    right, inverted = one(mesh, CAMERAS[0]), mesh.copy()
    inverted.invert()
    wrong = one(inverted, CAMERAS[0])
    assert np.array_equal(wrong["silhouette"], right["silhouette"])
    assert psnr(right["depth"], wrong["depth"], 1.0) > 100
    assert psnr(right["normal"], wrong["normal"], 1.0) < 15
    assert psnr(right["shaded"], wrong["shaded"], 1.0) < 20


# Turntable


def test_a_turntable_goes_once_around(tmp_path: Path) -> None:
    mesh, camera = box_and_sphere(), dataclasses.replace(CAMERAS[0], height=64, width=64)
    frames = turntable(mesh, camera, 12)
    assert frames.shape == (12, 64, 64, 3)
    for i in (0, 1, 7):
        expected = one(mesh, dataclasses.replace(camera, azimuth=camera.azimuth + 30 * i))["shaded"]
        assert np.array_equal(frames[i], expected)
    assert frames.tobytes() == turntable(mesh, camera, 12).tobytes()
    assert all(psnr(frames[i], frames[i - 1], 1.0) < 40 for i in range(12))
    write_video(tmp_path / "turntable.mp4", to_uint8(frames), fps=12)
    assert psnr(to_uint8(frames), read_video(tmp_path / "turntable.mp4", (12, 64, 64)), 255) > 30


# Bad input


def test_what_cannot_be_rendered_is_refused() -> None:
    empty = trimesh.Trimesh(np.zeros((4, 3)), np.zeros((0, 3), np.int64), process=False)
    with pytest.raises(ValueError, match="mesh has no faces"):
        render(empty, CAMERAS)
    with pytest.raises(ValueError, match="mesh has no faces"):
        turntable(empty, FRONT)
    with pytest.raises(ValueError, match="expected at least one"):
        render(ball(), [])
    with pytest.raises(ValueError, match="all of one size"):
        render(ball(), [FRONT, CAMERAS[0]])
    with pytest.raises(ValueError, match="frames is 0"):
        turntable(ball(), FRONT, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("azimuth", "left"),
        ("azimuth", math.nan),
        ("elevation", 90),
        ("distance", 1.5),
        ("field_of_view", 180),
        ("yaw", True),
        ("height", 0),
        ("width", 2.0),
        ("supersample", True),
    ],
)
def test_cameras_that_cannot_be_are_refused(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{field} is {value!r}, expected"):
        dataclasses.replace(FRONT, **{field: value})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cameras": []}, "no list of cameras"),
        ({"cameras": [{"name": "a", "azimuth": 0}]}, "elevation"),
        ({"zoom": 2}, "zoom"),
        ({"cameras": [{"name": "a", "azimuth": i, "elevation": 0} for i in range(2)]}, "expected each name once"),
        ({"cameras": [{"name": n, "azimuth": 0, "elevation": 0, "width": len(n)} for n in ("a", "bb")]}, "one height"),
    ],
)
def test_camera_files_that_are_wrong_are_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    data = json.loads((FIXTURES / "cameras" / "views.json").read_text())
    (tmp_path / "cameras.json").write_text(json.dumps(data | change))
    with pytest.raises(UsageError, match=reason):
        Camera.read(tmp_path / "cameras.json")
