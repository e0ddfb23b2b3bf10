"""Op sets for the sampled models whose verdict is known beforehand: what must fail, by which gate, and what must pass.

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
from reference_ops._contract import Modulation, expand_modulation
from validation import controls
from validation.errors import UsageError
from validation.models.mount import running_call
from validation.models.trajectory import Trajectory
from validation.ops import Op, OpSet, op_set_from

Frames = npt.NDArray[np.float32]

BLOCK_ROWS = 100  # of a kernel whose last, ragged block goes wrong
LATENT_FRAMES = 9  # that Helios denoises at once


@dataclasses.dataclass(frozen=True)
class SampledFault:
    """A planted fault of a sampled model.

    Attributes:
        bug: in one sentence.
        gates: checks of which at least one must fail: ``teacher-forced``, ``band``, ``floors``, ``frames``.
        ops: makes the op set; None where the fault is in the frames.
        spoil: changes the candidate's trajectory; None where the fault is in an op.
    """

    bug: str
    gates: frozenset[str]
    ops: Callable[[], OpSet] | None = None
    spoil: Callable[[Trajectory], Trajectory] | None = None


def _with(**replaced: Op) -> OpSet:
    """The reference ops with some replaced."""
    functions = {name: getattr(reference_ops, name) for name in reference_ops.OP_NAMES}
    return op_set_from(functions | replaced, "planted", "planted")


def _modulated(normalise: Callable[[Tensor, float], Tensor]) -> OpSet:
    """`layer_norm_scale_shift` around another way to normalise float32 rows."""

    def layer_norm_scale_shift(x: Tensor, shift: Modulation, scale: Modulation, eps: float = 1e-6) -> Tensor:
        scale, shift = expand_modulation(scale, x), expand_modulation(shift, x)
        return (normalise(x, eps).float() * (1 + scale) + shift).to(x.dtype)

    return _with(layer_norm_scale_shift=layer_norm_scale_shift)


def n_minus_1_variance() -> OpSet:
    """The unbiased variance."""

    def normalise(x: Tensor, eps: float) -> Tensor:
        variance, mean = torch.var_mean(x.float(), dim=-1, correction=1, keepdim=True)
        normalised: Tensor = (x.float() - mean) * torch.rsqrt(variance + eps)
        return normalised

    return _modulated(normalise)


def bf16_statistics() -> OpSet:
    """Mean and variance rounded to the working dtype."""

    def normalise(x: Tensor, eps: float) -> Tensor:
        mean = x.float().mean(dim=-1, keepdim=True).to(x.dtype).float()
        variance = (x.float() - mean).square().mean(dim=-1, keepdim=True).to(x.dtype).float()
        return (x.float() - mean) * torch.rsqrt(variance + eps)

    return _modulated(normalise)


def undeclared_rounding() -> OpSet:
    """The normalised value rounded to the working dtype before the modulation."""
    return _modulated(lambda x, eps: functional.layer_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype))


def eps_times_10() -> OpSet:
    """Eps ten times too big."""
    return _modulated(lambda x, eps: functional.layer_norm(x.float(), x.shape[-1:], eps=10 * eps))


def truncating_store() -> OpSet:
    """The gated residual stored by cutting its bits off instead of rounding."""

    def residual_gate_add(residual: Tensor, x: Tensor, gate: Modulation) -> Tensor:
        total = residual.float() + x.float() * expand_modulation(gate, x).float()
        nearest = total.to(x.dtype)
        away = nearest.float().abs() > total.abs()
        return torch.where(away, torch.nextafter(nearest, torch.zeros_like(nearest)), nearest)

    return _with(residual_gate_add=residual_gate_add)


def swapped_scale_shift_in_one_block() -> OpSet:
    """Scale and shift taken for each other in block 1, before self-attention."""

    def layer_norm_scale_shift(x: Tensor, shift: Modulation, scale: Modulation, eps: float = 1e-6) -> Tensor:
        call = running_call()
        if call.site == "norm1" and call.index == 1:
            shift, scale = scale, shift
        y: Tensor = reference_ops.layer_norm_scale_shift(x, shift, scale, eps=eps)
        return y

    return _with(layer_norm_scale_shift=layer_norm_scale_shift)


def rope_halves_swapped() -> OpSet:
    """The two halves of a head paired instead of neighbours."""

    def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        y: Tensor = reference_ops.rotary_embedding(x, cos, sin, interleaved=False)
        return y

    return _with(rotary_embedding=rotary_embedding)


def gate_dropped_in_the_last_block() -> OpSet:
    """``residual + x`` after the last block's feed-forward."""

    def residual_gate_add(residual: Tensor, x: Tensor, gate: Modulation | None) -> Tensor:
        call = running_call()
        y: Tensor = reference_ops.residual_gate_add(residual, x, None if call.index == call.calls - 1 else gate)
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

    return _with(layer_norm_scale_shift=layer_norm_scale_shift)


def _spoiled(change: Callable[[Frames], Frames]) -> Callable[[Trajectory], Trajectory]:
    return lambda sampled: dataclasses.replace(sampled, frames=change(sampled.frames.copy()))


def _black_frame(frames: Frames) -> Frames:
    frames[len(frames) // 2] = 0
    return frames


def _grey_tile(frames: Frames) -> Frames:
    frames[len(frames) // 2, :32, :32] = 0.5
    return frames


_DRIFT = frozenset({"teacher-forced"})

FAULTS: dict[str, SampledFault] = {
    **{
        make.__name__: SampledFault((make.__doc__ or "").splitlines()[0], _DRIFT, make)
        for make in (
            n_minus_1_variance,
            bf16_statistics,
            undeclared_rounding,
            truncating_store,
            swapped_scale_shift_in_one_block,
            rope_halves_swapped,
            gate_dropped_in_the_last_block,
            ragged_rows_wrong,
            frame_modulation_shifted,
        )
    },
    "black_frame": SampledFault("One black frame.", frozenset({"floors"}), spoil=_spoiled(_black_frame)),
    "dropped_frame": SampledFault(
        "One frame left out.", frozenset({"frames"}), spoil=_spoiled(lambda frames: np.delete(frames, 5, axis=0))
    ),
    "grey_tile": SampledFault(
        "One tile of 32 x 32 pixels grey in one frame.", frozenset({"floors"}), spoil=_spoiled(_grey_tile)
    ),
}

# What 16 bits hide from a model at unit variance, and the op level shows: no verdict is asked for.
SHOWN: dict[str, SampledFault] = {
    "eps_times_10": SampledFault("Eps ten times too big.", frozenset(), eps_times_10),
}

RIGHT = controls.NAMES


def op_set(name: str) -> OpSet:
    """A control as an op set, right or wrong: ``--ops validation.controls.sampled:NAME``.

    Raises:
        UsageError: there is no such control, or its fault is in the frames.
    """
    known = {**FAULTS, **SHOWN}
    if name in RIGHT:
        return controls.op_set(name)
    fault = known.get(name)
    if fault is None or fault.ops is None:
        names = ", ".join([*RIGHT, *(name for name, fault in known.items() if fault.ops is not None)])
        raise UsageError(f"unknown control {name!r}, expected one of: {names}")
    made = fault.ops()
    return OpSet(f"fault:{name}", made.functions, f"validation.controls.sampled:{name}")
