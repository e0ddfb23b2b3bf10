"""Op sets and shapes for the sampled shape model whose verdict is known beforehand: as `sampled` has them for videos.

Ops declare their roundings here (``casting_mode="input"``): the faults round once more, or otherwise.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
import trimesh
from torch import Tensor
from torch.nn import functional

import reference_ops
from reference_ops._contract import Modulation, expand_modulation
from validation import controls
from validation.errors import UsageError
from validation.media.render import Camera, render
from validation.models.mount import running_call
from validation.models.shape_pipeline import Shape
from validation.ops import Op, OpSet, op_set_from

BLOCK_ROWS = 20  # of a kernel whose last, ragged block goes wrong: 64 and 72 rows are none of its multiples


@dataclasses.dataclass(frozen=True)
class ShapeFault:
    """A planted fault of the sampled shape model.

    Attributes:
        bug: in one sentence.
        gates: checks of which at least one must fail: ``teacher-forced``, ``band``, ``field``, ``mesh``, ``views``.
        ops: makes the op set; None where the fault is in the shape.
        spoil: changes the candidate's shape, given the cameras; None where the fault is in an op.
        packed: shows only where the q/k norm works on the packed projection.
    """

    bug: str
    gates: frozenset[str]
    ops: Callable[[], OpSet] | None = None
    spoil: Callable[[Shape, Sequence[Camera]], Shape] | None = None
    packed: bool = False


def _with(**replaced: Op) -> OpSet:
    """The reference ops with some replaced."""
    functions = {name: getattr(reference_ops, name) for name in reference_ops.OP_NAMES}
    return op_set_from(functions | replaced, "planted", "planted")


def _modulated(normalise: Callable[[Tensor, float], Tensor]) -> OpSet:
    """`layer_norm_scale_shift` around another way to normalise rows; the rest is the eager chain."""

    def layer_norm_scale_shift(x: Tensor, shift: Modulation, scale: Modulation, *, eps: float, **_: str) -> Tensor:
        scale, shift = expand_modulation(scale, x), expand_modulation(shift, x)
        return normalise(x, eps).to(x.dtype) * (1 + scale) + shift

    return _with(layer_norm_scale_shift=layer_norm_scale_shift)


def n_minus_1_variance() -> OpSet:
    """The unbiased variance."""

    def normalise(x: Tensor, eps: float) -> Tensor:
        variance, mean = torch.var_mean(x.float(), dim=-1, correction=1, keepdim=True)
        normalised: Tensor = (x.float() - mean) * torch.rsqrt(variance + eps)
        return normalised

    return _modulated(normalise)


def bf16_statistics() -> OpSet:
    """Mean and variance held in bfloat16."""

    def normalise(x: Tensor, eps: float) -> Tensor:
        mean = x.float().mean(dim=-1, keepdim=True).bfloat16().float()
        variance = (x.float() - mean).square().mean(dim=-1, keepdim=True).bfloat16().float()
        return (x.float() - mean) * torch.rsqrt(variance + eps)

    return _modulated(normalise)


def undeclared_rounding() -> OpSet:
    """The deviation from the mean rounded to the working dtype before it is divided."""

    def normalise(x: Tensor, eps: float) -> Tensor:
        variance, mean = torch.var_mean(x.float(), dim=-1, correction=0, keepdim=True)
        normalised: Tensor = (x.float() - mean).to(x.dtype).float() * torch.rsqrt(variance + eps)
        return normalised

    return _modulated(normalise)


def eps_times_10() -> OpSet:
    """Eps ten times too big."""
    return _modulated(lambda x, eps: functional.layer_norm(x.float(), x.shape[-1:], eps=10 * eps))


def truncating_store() -> OpSet:
    """The gated residual stored by cutting its bits off instead of rounding."""

    def residual_gate_add(residual: Tensor, x: Tensor, gate: Modulation, **_: str) -> Tensor:
        total = residual.float() + (x * expand_modulation(gate, x)).float()
        nearest = total.to(x.dtype)
        away = nearest.float().abs() > total.abs()
        return torch.where(away, torch.nextafter(nearest, torch.zeros_like(nearest)), nearest)

    return _with(residual_gate_add=residual_gate_add)


def swapped_scale_shift_in_one_block() -> OpSet:
    """Scale and shift taken for each other in double block 1, before the image's attention."""

    def layer_norm_scale_shift(x: Tensor, shift: Modulation, scale: Modulation, **options: Any) -> Tensor:
        call = running_call()
        if call.site == "norm1" and call.index == 2:
            shift, scale = scale, shift
        y: Tensor = reference_ops.layer_norm_scale_shift(x, shift, scale, **options)
        return y

    return _with(layer_norm_scale_shift=layer_norm_scale_shift)


def swapped_scale_shift() -> OpSet:
    """Scale and shift taken for each other, everywhere."""

    def layer_norm_scale_shift(x: Tensor, shift: Modulation, scale: Modulation, **options: Any) -> Tensor:
        y: Tensor = reference_ops.layer_norm_scale_shift(x, scale, shift, **options)
        return y

    return _with(layer_norm_scale_shift=layer_norm_scale_shift)


def one_plus_dropped() -> OpSet:
    """``norm * scale + shift`` without the 1."""

    def layer_norm_scale_shift(x: Tensor, shift: Modulation, scale: Modulation, *, eps: float, **_: str) -> Tensor:
        normalised = functional.layer_norm(x, x.shape[-1:], eps=eps)
        return normalised * expand_modulation(scale, x) + expand_modulation(shift, x)

    return _with(layer_norm_scale_shift=layer_norm_scale_shift)


def gate_dropped() -> OpSet:
    """``residual + x`` without the gate, everywhere."""

    def residual_gate_add(residual: Tensor, x: Tensor, _gate: Modulation | None, **_: str) -> Tensor:
        return residual + x

    return _with(residual_gate_add=residual_gate_add)


def gate_dropped_in_the_last_block() -> OpSet:
    """``residual + x`` after the last block."""

    def residual_gate_add(residual: Tensor, x: Tensor, gate: Modulation | None, **options: Any) -> Tensor:
        call = running_call()
        last = call.index == call.calls - 1
        y: Tensor = reference_ops.residual_gate_add(residual, x, None if last else gate, **options)
        return y

    return _with(residual_gate_add=residual_gate_add)


def gate_batch_stride_assumed() -> OpSet:
    """The gate read as if its rows were contiguous: batch item 1 takes what comes after item 0's gate."""

    def residual_gate_add(residual: Tensor, x: Tensor, gate: Tensor, **options: Any) -> Tensor:
        wrong = gate.as_strided(gate.shape, (gate.shape[-1], gate.shape[-1], 1))
        y: Tensor = reference_ops.residual_gate_add(residual, x, wrong, **options)
        return y

    return _with(residual_gate_add=residual_gate_add)


def ragged_rows_wrong() -> OpSet:
    """Rows past the last full block of `BLOCK_ROWS` take the statistics of the row before them."""

    def normalise(x: Tensor, eps: float) -> Tensor:
        rows = x.float().reshape(-1, x.shape[-1])
        full = len(rows) // BLOCK_ROWS * BLOCK_ROWS
        source = torch.arange(len(rows), device=x.device)
        source[full:] = (source[full:] - 1).clamp(min=0)
        variance, mean = torch.var_mean(rows[source], dim=-1, correction=0, keepdim=True)
        return ((rows - mean) * torch.rsqrt(variance + eps)).reshape(x.shape)

    return _modulated(normalise)


def rms_weight_dropped() -> OpSet:
    """Queries and keys normalised without their weights."""

    def qk_norm(q: Tensor, k: Tensor, _q: Tensor | None, _k: Tensor | None, **options: Any) -> Any:
        return reference_ops.qk_norm(q, k, None, None, **options)

    return _with(qk_norm=qk_norm)


def qk_norm_through_a_packed_view() -> OpSet:
    """Results written one after another from the first element of q and of k, as if these were contiguous."""

    def qk_norm(q: Tensor, k: Tensor, *weights: Tensor | None, **options: Any) -> tuple[Tensor, Tensor]:
        results = reference_ops.qk_norm(q, k, *weights, **{**options, "inplace": False})
        for t, result in zip((q, k), results, strict=True):
            t.as_strided(t.shape, torch.empty(t.shape, device="meta").stride(), t.storage_offset()).copy_(result)
        return q, k

    return _with(qk_norm=qk_norm)


# Faults of what is sampled


def _with_mesh(shape: Shape, mesh: trimesh.Trimesh, cameras: Sequence[Camera]) -> Shape:
    return dataclasses.replace(shape, mesh=mesh, views=render(mesh, cameras))


def _mesh_of(shape: Shape) -> trimesh.Trimesh:
    if shape.mesh is None:
        raise ValueError("the shape has no mesh, expected one to spoil")
    return shape.mesh


def hole_in_the_mesh(shape: Shape, cameras: Sequence[Camera]) -> Shape:
    """A hole cut in the mesh: the faces within 0.05 of one of its corners."""
    mesh = _mesh_of(shape)
    away = ((mesh.triangles_center - mesh.vertices[len(mesh.vertices) // 2]) ** 2).sum(axis=1) > 0.05**2
    cut = trimesh.Trimesh(mesh.vertices, mesh.faces[away], process=False)
    return _with_mesh(shape, cut, cameras)


def camera_turned_by_one_pixel(shape: Shape, cameras: Sequence[Camera]) -> Shape:
    """The cameras turned by one pixel."""
    return dataclasses.replace(shape, views=render(_mesh_of(shape), [camera.turned(1) for camera in cameras]))


def mesh_mirrored(shape: Shape, cameras: Sequence[Camera]) -> Shape:
    """The mesh mirrored left to right."""
    mesh = _mesh_of(shape)
    mirrored = trimesh.Trimesh(mesh.vertices * (-1, 1, 1), mesh.faces[:, ::-1], process=False)
    return _with_mesh(shape, mirrored, cameras)


_TEACHER = frozenset({"teacher-forced"})


def _bug(make: Callable[..., Any]) -> str:
    return (make.__doc__ or "").splitlines()[0]


FAULTS: dict[str, ShapeFault] = {
    **{
        make.__name__: ShapeFault(_bug(make), _TEACHER, make)
        for make in (
            n_minus_1_variance,
            bf16_statistics,
            undeclared_rounding,
            truncating_store,
            swapped_scale_shift_in_one_block,
            gate_dropped_in_the_last_block,
            gate_batch_stride_assumed,
            ragged_rows_wrong,
            rms_weight_dropped,
        )
    },
    **{
        make.__name__: ShapeFault(_bug(make), frozenset({"field"}), make)
        for make in (swapped_scale_shift, one_plus_dropped, gate_dropped)
    },
    "qk_norm_through_a_packed_view": ShapeFault(
        _bug(qk_norm_through_a_packed_view), _TEACHER, qk_norm_through_a_packed_view, packed=True
    ),
    "hole_in_the_mesh": ShapeFault(_bug(hole_in_the_mesh), frozenset({"mesh"}), spoil=hole_in_the_mesh),
    "camera_turned_by_one_pixel": ShapeFault(
        _bug(camera_turned_by_one_pixel), frozenset({"views"}), spoil=camera_turned_by_one_pixel
    ),
    "mesh_mirrored": ShapeFault(_bug(mesh_mirrored), frozenset({"mesh"}), spoil=mesh_mirrored),
}

# What 16 bits hide from a model at unit variance, and the op level shows: no verdict is asked for.
SHOWN: dict[str, ShapeFault] = {
    "eps_times_10": ShapeFault(_bug(eps_times_10), frozenset(), eps_times_10),
}

RIGHT = controls.NAMES


def op_set(name: str) -> OpSet:
    """A control as an op set, right or wrong: ``--ops validation.controls.shapes:NAME``.

    Raises:
        UsageError: there is no such control, or its fault is in the shape.
    """
    known = {**FAULTS, **SHOWN}
    if name in RIGHT:
        return controls.op_set(name)
    fault = known.get(name)
    if fault is None or fault.ops is None:
        names = ", ".join([*RIGHT, *(name for name, fault in known.items() if fault.ops is not None)])
        raise UsageError(f"unknown control {name!r}, expected one of: {names}")
    made = fault.ops()
    return OpSet(f"fault:{name}", made.functions, f"validation.controls.shapes:{name}")
