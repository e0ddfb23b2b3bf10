"""Op sets and frames of Helios that are wrong on purpose, and the check that must catch each.

What is wrong here is what a fused kernel gets wrong in a model: small enough to leave the picture alone in some
cases, and then only the drift shows it. Some are wrong in one block, which they know from `running_call`.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

import reference_ops
from reference_ops.contract import Modulation, expand_modulation
from validation.ops import OpSet
from validation.samples import planted
from validation.samples.planted import Normalise, Planted, with_ops
from validation.samples.rung import Sample

Frames = npt.NDArray[np.float32]

BLOCK_ROWS = 100  # of a kernel whose last, ragged block goes wrong
LATENT_FRAMES = 9  # that Helios denoises at once


def _modulated(normalise: Normalise) -> OpSet:
    """`layer_norm_scale_shift` around another way to normalise float32 rows."""

    def layer_norm_scale_shift(x: Tensor, shift: Modulation, scale: Modulation, eps: float = 1e-6) -> Tensor:
        scale, shift = expand_modulation(scale, x), expand_modulation(shift, x)
        return (normalise(x, eps).float() * (1 + scale) + shift).to(x.dtype)

    return with_ops(layer_norm_scale_shift=layer_norm_scale_shift)


def undeclared_rounding() -> OpSet:
    """The normalised value rounded to the working dtype before the modulation."""
    return _modulated(lambda x, eps: functional.layer_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype))


def truncating_store() -> OpSet:
    """The gated residual stored by cutting its bits off instead of rounding."""

    def residual_gate_add(residual: Tensor, x: Tensor, gate: Modulation) -> Tensor:
        return planted.truncated(residual.float() + x.float() * expand_modulation(gate, x).float(), x.dtype)

    return with_ops(residual_gate_add=residual_gate_add)


def swapped_scale_shift_in_one_block() -> OpSet:
    """Scale and shift taken for each other in block 1, before self-attention."""
    return planted.swapped_scale_shift_at("norm1", 1)


def rope_halves_swapped() -> OpSet:
    """The two halves of a head paired instead of neighbours."""

    def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        y: Tensor = reference_ops.rotary_embedding(x, cos, sin, interleaved=False)
        return y

    return with_ops(rotary_embedding=rotary_embedding)


def frame_modulation_shifted() -> OpSet:
    """The first current frame takes the modulation of the frame before it, the history's last."""

    def layer_norm_scale_shift(x: Tensor, shift: Modulation, scale: Modulation, eps: float = 1e-6) -> Tensor:
        rows = [expand_modulation(m, x) for m in (shift, scale)]
        if rows[0].shape[1] > 1:
            differs = (rows[0][:, 1:] != rows[0][:, :-1]).any(dim=-1).any(dim=0)
            if differs.any():
                first = int(differs.nonzero()[0]) + 1
                end = first + (x.shape[1] - first) // LATENT_FRAMES
                taken = torch.arange(x.shape[1], device=x.device)
                taken[first:end] = first - 1
                rows = [m[:, taken] for m in rows]
        y: Tensor = reference_ops.layer_norm_scale_shift(x, rows[0], rows[1], eps=eps)
        return y

    return with_ops(layer_norm_scale_shift=layer_norm_scale_shift)


def _black_frame(frames: Frames) -> Frames:
    frames[len(frames) // 2] = 0
    return frames


def _grey_tile(frames: Frames) -> Frames:
    frames[len(frames) // 2, :32, :32] = 0.5
    return frames


def _frames_fault(bug: str, gate: str, change: Callable[[Frames], Frames]) -> Planted:
    def spoil(sample: Sample, _model: object) -> Sample:
        return dataclasses.replace(sample, made={"frames": change(sample.made["frames"].copy())})

    return Planted(bug, frozenset({gate}), spoil=spoil)


FAULTS: dict[str, Planted] = {
    **planted.faults_of_norms(_modulated, planted.ragged_rows(BLOCK_ROWS), "teacher-forced"),
    **planted.faults_of(
        (
            undeclared_rounding,
            truncating_store,
            swapped_scale_shift_in_one_block,
            rope_halves_swapped,
            planted.gate_dropped_in_the_last_block,
            frame_modulation_shifted,
        ),
        "teacher-forced",
    ),
    "black_frame": _frames_fault("One black frame.", "floors", _black_frame),
    "dropped_frame": _frames_fault("One frame left out.", "frames", lambda frames: np.delete(frames, 5, axis=0)),
    "grey_tile": _frames_fault("One tile of 32 x 32 pixels grey in one frame.", "floors", _grey_tile),
}

SHOWN: dict[str, Planted] = planted.shown(_modulated)

MEASURE = "psnr_worst_frame"


def op_set(name: str) -> OpSet:
    """A fault as an op set: see `planted.op_set_of`."""
    return planted.op_set_of(name, {**FAULTS, **SHOWN}, __name__)
