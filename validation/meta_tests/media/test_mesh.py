import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from validation.errors import UsageError
from validation.media.field import Field, ShapeError
from validation.media.grid import BOX
from validation.media.mesh import SUFFIXES, extract, require_solid, write_mesh
from validation.meta_tests import plain_hunyuan3d as plain
from validation.meta_tests.shape_fields import BOX_AND_SPHERE, SPHERE, TORUS, field_of, step
from validation.models.hunyuan3d.field import sample_field
from validation.models.hunyuan3d.shape_vae import ShapeVAE
from validation.models.hunyuan3d.shapes import signed_distance
from validation.verdict import Status

GOLDEN = plain.read_golden("hunyuan3d-shape-vae-tiny")
RESOLUTION = 48


def true_places(mesh: trimesh.Trimesh, resolution: int) -> Any:
    """Vertices in the field's own coordinates: upstream divides by one more than there are cells."""
    return (mesh.vertices + BOX) * (resolution + 1) / resolution - BOX


def refused(field: Field) -> ShapeError:
    with pytest.raises(ShapeError) as error:
        extract(field)
    return error.value


def constant(value: float, n: int = 9) -> Field:
    return np.full((n, n, n), value, np.float32)


# Field to mesh


@pytest.mark.parametrize(
    ("kind", "parameters", "volume", "area", "curvature", "euler_number"),
    [
        ("sphere", SPHERE, 4 / 3 * math.pi * 0.7**3, 4 * math.pi * 0.7**2, 1 / 0.7, 2),
        ("torus", TORUS, 2 * math.pi**2 * 0.6 * 0.22**2, 4 * math.pi**2 * 0.6 * 0.22, 1 / 0.22, 0),
    ],
    ids=["sphere", "torus"],
)
@pytest.mark.parametrize("resolution", [32, 64])
def test_known_volume_area_and_euler_number(
    kind: str,
    parameters: dict[str, float],
    volume: float,
    area: float,
    curvature: float,
    euler_number: int,
    resolution: int,
) -> None:
    mesh = extract(field_of(kind, parameters, resolution))
    h = step(resolution)
    # Linear interpolation along an edge errs by h^2 / 8 times the field's second derivative, which near the surface
    # of a distance function is its curvature; a chord of sqrt(3) h, a cell's diagonal, errs by three times as much.
    off_vertices = h**2 / 8 * curvature * 1.1
    off_faces = off_vertices * 4
    places = torch.from_numpy(true_places(mesh, resolution))
    assert float(signed_distance(kind, parameters, places).abs().max()) < off_vertices
    shrunk = resolution / (resolution + 1)
    assert mesh.volume == pytest.approx(volume * shrunk**3, abs=area * off_faces)
    # A surface at distance d has an area greater by at most 2 d times the greatest curvature.
    assert mesh.area == pytest.approx(area * shrunk**2, rel=2 * off_faces * curvature)
    assert mesh.euler_number == euler_number
    assert mesh.is_watertight
    assert mesh.is_winding_consistent


def test_vertices_are_scaled_as_upstream_does() -> None:
    """A centred sphere becomes smaller, and off-centre by BOX / (resolution + 1)."""
    centre = extract(field_of("sphere", SPHERE, 32)).bounds.mean(axis=0)
    assert centre == pytest.approx([-BOX / 33] * 3, abs=1e-6)
    mesh = extract(field_of("sphere", SPHERE, 32), box=2 * BOX)
    assert mesh.bounds.mean(axis=0) == pytest.approx([-2 * BOX / 33] * 3, abs=1e-6)


def test_axes_are_x_y_z_and_inside_is_above_the_level() -> None:
    field = constant(-1.0, 21)
    field[3:8, 8:11, 15:17] = 1.0
    mesh = extract(field)
    assert true_places(mesh, 20).mean(axis=0) == pytest.approx([-0.505, -0.101, 0.5555], abs=0.01)
    assert mesh.volume > 0
    inside_out = extract(-field)
    assert inside_out.volume == pytest.approx(-mesh.volume)


def test_a_surface_that_the_cube_cuts_off_stays_open() -> None:
    field = field_of("sphere", SPHERE, 32, shift=0.6)
    mesh = extract(field)
    assert not mesh.is_watertight
    assert mesh.euler_number == 1


def test_vertices_on_grid_points_keep_the_surface_closed() -> None:
    """Logits of exactly 0 make triangles without area; leaving them out or merging vertices would tear the surface."""
    distance = np.abs(np.indices((17, 17, 17)) - 8).sum(axis=0)
    mesh = extract((5 - distance).astype(np.float32))
    assert (mesh.area_faces == 0).any()
    assert mesh.is_watertight
    assert mesh.euler_number == 2


def test_the_same_field_gives_the_same_bits() -> None:
    field = field_of("box-and-sphere", BOX_AND_SPHERE, RESOLUTION)
    first, second = extract(field), extract(field.copy())
    assert first.vertices.tobytes() == second.vertices.tobytes()
    assert first.faces.tobytes() == second.faces.tobytes()
    assert np.array_equal(first.vertices, first.vertices.astype(np.float32))


# Fields without a surface


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_named(bad: float) -> None:
    field = field_of("sphere", SPHERE, 16)
    field[2, 3, 4] = field[5, 5, 5] = bad
    error = refused(field)
    assert (error.status, error.check) == (Status.INCORRECT_NONFINITE, "field")
    assert error.numbers == {"nonfinite_logits": 2, "nan_logits": 2 * math.isnan(bad)}
    assert "2 of 4913 logits" in str(error)
    assert "[2, 3, 4]" in str(error)


@pytest.mark.parametrize(("value", "inside", "words"), [(-0.25, 0, "none of 729"), (0.0, 0, "none"), (2.0, 729, "all")])
def test_a_field_of_one_sign_has_no_surface(value: float, inside: int, words: str) -> None:
    error = refused(constant(value))
    assert (error.status, error.check) == (Status.NO_SURFACE, "field")
    assert error.numbers == {"inside_logits": inside, "least_logit": value, "greatest_logit": value}
    assert words in str(error)


def plane(*normal: float) -> Field:
    axis = np.linspace(-1, 1, 9, dtype=np.float32)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    field: Field = (normal[0] * x + normal[1] * y + normal[2] * z + 0.05).astype(np.float32)
    return field


def touched() -> Field:
    field = constant(1.0)
    field[4, 4, 4] = 0.0
    return field


def tiny_peak() -> Field:
    field = constant(-1.0)
    field[4, 4, 4] = 1e-30
    return field


@pytest.mark.parametrize(
    "field",
    [plane(1, 0, 0), plane(0, 1, 0), plane(0.3, 0.5, -0.7), touched(), tiny_peak()],
    ids=["x-plane", "y-plane", "tilted plane", "a zero in a full cube", "a point"],
)
def test_degenerate_meshes_are_named(field: Field) -> None:
    error = refused(field)
    assert (error.status, error.check) == (Status.DEGENERATE_MESH, "mesh")
    assert error.numbers["faces"] > 0
    assert error.numbers["thickness"] < 1e-6 or error.numbers["area"] == 0


def test_one_voxel_is_a_small_shape_and_no_degenerate_one() -> None:
    field = constant(-1.0, 129)
    field[64, 64, 64] = 1e-2
    assert extract(field).euler_number == 2


def test_meshes_without_faces_or_with_nan_are_degenerate() -> None:
    empty = trimesh.Trimesh(np.zeros((4, 3)), np.zeros((0, 3), np.int64), process=False)
    with pytest.raises(ShapeError, match="4 vertices and no faces") as error:
        require_solid(empty)
    assert error.value.numbers == {"vertices": 4, "faces": 0}
    mesh = trimesh.creation.box()
    require_solid(mesh)
    vertices = mesh.vertices.copy()
    vertices[3, 1] = math.nan
    with pytest.raises(ShapeError) as error:
        require_solid(trimesh.Trimesh(vertices, mesh.faces, process=False))
    assert error.value.status == Status.DEGENERATE_MESH


def test_triangles_without_area_are_no_solid_wherever_they_are() -> None:
    corners = np.random.default_rng(0).normal(size=(6, 3))
    with pytest.raises(ShapeError, match="an area of 0") as error:
        require_solid(trimesh.Trimesh(corners, [[0, 1, 1], [2, 3, 3], [4, 5, 5]], process=False))
    assert error.value.numbers["thickness"] > 0.1


@pytest.mark.parametrize(
    "field", [np.zeros((4, 4, 4)), np.zeros((4, 4, 5), np.float32), np.zeros((1, 1, 1), np.float32)]
)
def test_arrays_that_are_no_field_are_refused(field: Any) -> None:
    with pytest.raises(ValueError, match=r"expected float32 \[n, n, n\]"):
        extract(field)


# Files


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_read_back_equal_and_are_written_alike(tmp_path: Path, suffix: str) -> None:
    field = field_of("box-and-sphere", BOX_AND_SPHERE, RESOLUTION)
    mesh, path = extract(field), tmp_path / "made" / f"first{suffix}"
    write_mesh(path, mesh)
    read = trimesh.load_mesh(path, process=False, maintain_order=True)
    vertices = read.vertices.astype(np.float32)
    if suffix == ".stl":
        assert np.array_equal(vertices[read.faces], mesh.triangles)
    else:
        assert np.array_equal(vertices, mesh.vertices)
        assert np.array_equal(read.faces, mesh.faces)
    again = extract(field)
    _ = again.vertex_normals, again.face_normals, again.edges_unique  # trimesh caches these
    write_mesh(tmp_path / f"second{suffix}", again)
    assert (tmp_path / f"second{suffix}").read_bytes() == path.read_bytes()


def test_coordinates_near_zero_survive_the_obj(tmp_path: Path) -> None:
    vertices = np.array([[1e-8, 0.1, -3e-7], [0.7, 1 / 3, 1e-9], [2e-5, -0.9, 0.5]], np.float32)
    write_mesh(tmp_path / "small.obj", trimesh.Trimesh(vertices, [[0, 1, 2]], process=False))
    read = trimesh.load_mesh(tmp_path / "small.obj", process=False, maintain_order=True)
    assert np.array_equal(read.vertices.astype(np.float32), vertices)


def test_files_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    mesh = trimesh.creation.box()
    with pytest.raises(ValueError, match=r"ends in '\.ply', expected one of: \.glb, \.obj, \.stl"):
        write_mesh(tmp_path / "made" / "mesh.ply", mesh)
    assert not (tmp_path / "made").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        write_mesh(tmp_path / "file" / "mesh.glb", mesh)


# Latents to field


def golden_vae() -> ShapeVAE:
    vae = ShapeVAE(**GOLDEN.config)
    vae.load_state_dict(GOLDEN.weights, strict=True)
    return vae


def golden_latents() -> torch.Tensor:
    return GOLDEN.inputs["latents"][:1]


def test_a_sampled_field_is_the_decoders_grid() -> None:
    vae, told = golden_vae(), list[str]()
    threads = torch.get_num_threads()
    field = sample_field(vae, golden_latents(), 12, progress=told.append)
    assert field.shape == (13, 13, 13)
    assert field.dtype == np.float32
    grid = vae.latents_to_grid(vae.decode(golden_latents()), 12)
    np.testing.assert_allclose(field, grid[0], rtol=1e-5, atol=1e-6)
    assert told == ["100 % of 2197 grid points decoded"]
    assert torch.get_num_threads() == threads


def test_any_limit_with_room_for_a_chunk_gives_the_same_bits() -> None:
    vae, sizes = golden_vae(), list[int]()
    vae.geo_decoder.register_forward_pre_hook(lambda _model, arguments: sizes.append(arguments[0].shape[1]))
    first = sample_field(vae, golden_latents(), 24)
    assert sizes == [8192, 7433]
    for limit in (2**24, 100_000_000, 2**31):
        sizes.clear()
        field = sample_field(vae, golden_latents(), 24, memory_limit=limit)
        assert sizes == [8192, 7433]
        assert field.tobytes() == first.tobytes()
    sizes.clear()
    sample_field(vae, golden_latents(), 24, memory_limit=3_000_000)
    assert set(sizes[:-1]) == {1024}


def test_fewer_latents_than_trained_are_named() -> None:
    with pytest.raises(ShapeError, match="11 latents came, expected 12") as error:
        sample_field(golden_vae(), golden_latents()[:, 1:], 4)
    assert (error.value.status, error.value.check) == (Status.MISSING_LATENTS, "latents")
    assert error.value.numbers == {"latents": 11, "latents_expected": 12}


def test_latents_with_nan_end_in_the_fields_verdict() -> None:
    latents = golden_latents().clone()
    latents[0, 3, 2] = math.nan
    error = refused(sample_field(golden_vae(), latents, 4))
    assert error.status == Status.INCORRECT_NONFINITE
    assert error.numbers["nan_logits"] == 125


@pytest.mark.parametrize(
    "call",
    [
        lambda vae: sample_field(vae, torch.zeros(2, 12, 8), 4),
        lambda vae: sample_field(vae, torch.zeros(12, 8), 4),
        lambda vae: sample_field(vae, torch.zeros(1, 12, 7), 4),
    ],
)
def test_latents_of_another_shape_are_refused(call: Callable[[ShapeVAE], Field]) -> None:
    with pytest.raises(ValueError, match=r"latents has shape .*, expected \["):
        call(golden_vae())
