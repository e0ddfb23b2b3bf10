"""Op sets and shapes of Hunyuan3D-2 that are wrong on purpose, and the check that must catch each.

Ops declare their roundings here (``casting_mode="input"``): the faults round once more, or otherwise.
"""

import dataclasses
from typing import Any

import torch
import trimesh
from torch import Tensor
from torch.nn import functional

import reference_ops
from reference_ops.contract import Modulation, expand_modulation
from validation.media.render import render
from validation.models.hunyuan3d.sites import PACKED, SITE_NAMES
from validation.ops import OpSet
from validation.samples import planted
from validation.samples.planted import Normalise, Planted, bug_of, with_ops
from validation.samples.rung import Sample

BLOCK_ROWS = 20  # of a kernel whose last, ragged block goes wrong: 64 and 72 rows are none of its multiples


def _modulated(normalise: Normalise) -> OpSet:
    """`layer_norm_scale_shift` around another way to normalise rows; the rest is the eager chain."""

    def layer_norm_scale_shift(x: Tensor, shift: Modulation, scale: Modulation, *, eps: float, **_: str) -> Tensor:
        scale, shift = expand_modulation(scale, x), expand_modulation(shift, x)
        return normalise(x, eps).to(x.dtype) * (1 + scale) + shift

    return with_ops(layer_norm_scale_shift=layer_norm_scale_shift)


def undeclared_rounding() -> OpSet:
    """The deviation from the mean rounded to the working dtype before it is divided."""

    def normalise(x: Tensor, eps: float) -> Tensor:
        variance, mean = torch.var_mean(x.float(), dim=-1, correction=0, keepdim=True)
        normalised: Tensor = (x.float() - mean).to(x.dtype).float() * torch.rsqrt(variance + eps)
        return normalised

    return _modulated(normalise)


def truncating_store() -> OpSet:
    """The gated residual stored by cutting its bits off instead of rounding."""

    def residual_gate_add(residual: Tensor, x: Tensor, gate: Modulation, **_: str) -> Tensor:
        return planted.truncated(residual.float() + (x * expand_modulation(gate, x)).float(), x.dtype)

    return with_ops(residual_gate_add=residual_gate_add)


def swapped_scale_shift_in_one_block() -> OpSet:
    """Scale and shift taken for each other in double block 1, before the image's attention."""
    return planted.swapped_scale_shift_at("norm1", 2)


def swapped_scale_shift() -> OpSet:
    """Scale and shift taken for each other, everywhere."""

    def layer_norm_scale_shift(x: Tensor, shift: Modulation, scale: Modulation, **options: Any) -> Tensor:
        y: Tensor = reference_ops.layer_norm_scale_shift(x, scale, shift, **options)
        return y

    return with_ops(layer_norm_scale_shift=layer_norm_scale_shift)


def one_plus_dropped() -> OpSet:
    """``norm * scale + shift`` without the 1."""

    def layer_norm_scale_shift(x: Tensor, shift: Modulation, scale: Modulation, *, eps: float, **_: str) -> Tensor:
        normalised = functional.layer_norm(x, x.shape[-1:], eps=eps)
        return normalised * expand_modulation(scale, x) + expand_modulation(shift, x)

    return with_ops(layer_norm_scale_shift=layer_norm_scale_shift)


def gate_dropped() -> OpSet:
    """``residual + x`` without the gate, everywhere."""

    def residual_gate_add(residual: Tensor, x: Tensor, _gate: Modulation | None, **_: str) -> Tensor:
        return residual + x

    return with_ops(residual_gate_add=residual_gate_add)


def gate_batch_stride_assumed() -> OpSet:
    """The gate read as if its rows were contiguous: batch item 1 takes what comes after item 0's gate."""

    def residual_gate_add(residual: Tensor, x: Tensor, gate: Tensor, **options: Any) -> Tensor:
        wrong = gate.as_strided(gate.shape, (gate.shape[-1], gate.shape[-1], 1))
        y: Tensor = reference_ops.residual_gate_add(residual, x, wrong, **options)
        return y

    return with_ops(residual_gate_add=residual_gate_add)


def rms_weight_dropped() -> OpSet:
    """Queries and keys normalised without their weights."""

    def qk_norm(q: Tensor, k: Tensor, _q: Tensor | None, _k: Tensor | None, **options: Any) -> Any:
        return reference_ops.qk_norm(q, k, None, None, **options)

    return with_ops(qk_norm=qk_norm)


def qk_norm_through_a_packed_view() -> OpSet:
    """Results written one after another from the first element of q and of k, as if these were contiguous."""

    def qk_norm(q: Tensor, k: Tensor, *weights: Tensor | None, **options: Any) -> tuple[Tensor, Tensor]:
        results = reference_ops.qk_norm(q, k, *weights, **{**options, "inplace": False})
        for t, result in zip((q, k), results, strict=True):
            t.as_strided(t.shape, torch.empty(t.shape, device="meta").stride(), t.storage_offset()).copy_(result)
        return q, k

    return with_ops(qk_norm=qk_norm)


# Faults of what is sampled


def _with_mesh(shape: Sample, mesh: trimesh.Trimesh, model: Any) -> Sample:
    return dataclasses.replace(shape, made={**shape.made, "mesh": mesh, "views": render(mesh, model.cameras)})


def _mesh_of(shape: Sample) -> trimesh.Trimesh:
    if "mesh" not in shape.made:
        raise ValueError("the shape has no mesh, expected one to spoil")
    mesh: trimesh.Trimesh = shape.made["mesh"]
    return mesh


def hole_in_the_mesh(shape: Sample, model: Any) -> Sample:
    """A hole cut in the mesh: the faces within 0.05 of one of its corners."""
    mesh = _mesh_of(shape)
    away = ((mesh.triangles_center - mesh.vertices[len(mesh.vertices) // 2]) ** 2).sum(axis=1) > 0.05**2
    cut = trimesh.Trimesh(mesh.vertices, mesh.faces[away], process=False)
    return _with_mesh(shape, cut, model)


def camera_turned_by_one_pixel(shape: Sample, model: Any) -> Sample:
    """The cameras turned by one pixel."""
    views = render(_mesh_of(shape), [camera.turned(1) for camera in model.cameras])
    return dataclasses.replace(shape, made={**shape.made, "views": views})


def mesh_mirrored(shape: Sample, model: Any) -> Sample:
    """The mesh mirrored left to right."""
    mesh = _mesh_of(shape)
    mirrored = trimesh.Trimesh(mesh.vertices * (-1, 1, 1), mesh.faces[:, ::-1], process=False)
    return _with_mesh(shape, mirrored, model)


FAULTS: dict[str, Planted] = {
    **planted.faults_of_norms(_modulated, planted.ragged_rows(BLOCK_ROWS), "teacher-forced"),
    **planted.faults_of(
        (
            undeclared_rounding,
            truncating_store,
            swapped_scale_shift_in_one_block,
            planted.gate_dropped_in_the_last_block,
            gate_batch_stride_assumed,
            rms_weight_dropped,
        ),
        "teacher-forced",
    ),
    **planted.faults_of((swapped_scale_shift, one_plus_dropped, gate_dropped), "field"),
    "qk_norm_through_a_packed_view": Planted(
        bug_of(qk_norm_through_a_packed_view),
        frozenset({"teacher-forced"}),
        qk_norm_through_a_packed_view,
        sites=tuple(PACKED if name == "qk_norm" else name for name in SITE_NAMES),
    ),
    **{
        spoil.__name__: Planted(bug_of(spoil), frozenset({gate}), spoil=spoil)
        for spoil, gate in (
            (hole_in_the_mesh, "mesh"),
            (camera_turned_by_one_pixel, "views"),
            (mesh_mirrored, "mesh"),
        )
    },
}

SHOWN: dict[str, Planted] = planted.shown(_modulated)

MEASURE = "shaded_psnr_worst_view"


def op_set(name: str) -> OpSet:
    """A fault as an op set: see `planted.op_set_of`."""
    return planted.op_set_of(name, {**FAULTS, **SHOWN}, __name__)
