"""Code shared by the planted faults of sampled models.

A model's own faults are in its folder's module ``faults``, which has

``FAULTS``, ``SHOWN``  `Planted` by name: faults that must be caught; faults that 16 bits hide, shown without a verdict.
``MEASURE``            the most telling number of a record: the least over all prompts is printed.
``op_set(name)``       one fault as an op set, for ``--ops MODULE:NAME``: see `op_set_of`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import reference_ops
from reference_ops.contract import Modulation
from validation.errors import UsageError
from validation.models.mount import running_call
from validation.ops import Op, OpSet, op_set_from
from validation.samples.rung import Sample

Normalise = Callable[[Tensor, float], Tensor]
"""Rows and eps to normalised rows in float32."""


Spoil = Callable[[Sample, Any], Sample]
"""What the candidate sampled, and the model, to what is judged in its place."""


@dataclasses.dataclass(frozen=True)
class Planted:
    """A planted fault of a sampled model.

    Attributes:
        bug: one sentence.
        gates: checks of which at least one must fail; empty where no verdict is required.
        ops: makes the op set; None if the fault is in the sample.
        spoil: changes the candidate's sample; None if the fault is in an op.
        sites: where it shows, if not where the reference's ops are mounted by default.
    """

    bug: str
    gates: frozenset[str]
    ops: Callable[[], OpSet] | None = None
    spoil: Spoil | None = None
    sites: tuple[str, ...] | None = None


def bug_of(make: Callable[..., Any]) -> str:
    """The first line of a fault's docstring, which describes the bug."""
    return (make.__doc__ or "").splitlines()[0]


def faults_of(makes: Iterable[Callable[[], OpSet]], gate: str) -> dict[str, Planted]:
    """Faulty op sets, named after the functions that make them."""
    return {make.__name__: Planted(bug_of(make), frozenset({gate}), make) for make in makes}


def faults_of_norms(modulated: Callable[[Normalise], OpSet], ragged: Normalise, gate: str) -> dict[str, Planted]:
    """Faults in the normalisation, in front of a model's own modulation."""
    return {
        normalise.__name__: Planted(bug_of(normalise), frozenset({gate}), functools.partial(modulated, normalise))
        for normalise in (n_minus_1_variance, bf16_statistics, ragged)
    }


def shown(modulated: Callable[[Normalise], OpSet]) -> dict[str, Planted]:
    """Faults that 16 bits hide in a model at unit variance and that the op level shows: no verdict is required."""
    return {
        eps_times_10.__name__: Planted(bug_of(eps_times_10), frozenset(), functools.partial(modulated, eps_times_10))
    }


def op_set_of(name: str, faults: Mapping[str, Planted], module: str) -> OpSet:
    """A planted fault as an op set: ``--ops MODULE:NAME``.

    Raises:
        UsageError: there is no such fault, or it is in the sample.
    """
    fault = faults.get(name)
    if fault is None or fault.ops is None:
        names = ", ".join(name for name, fault in faults.items() if fault.ops is not None)
        raise UsageError(f"unknown control {name!r}, expected one of: {names}")
    return OpSet(f"fault:{name}", fault.ops().functions, f"{module}:{name}")


def with_ops(**replaced: Op) -> OpSet:
    """The reference ops with some replaced."""
    functions = {name: getattr(reference_ops, name) for name in reference_ops.OP_NAMES}
    return op_set_from(functions | replaced, "planted", "planted")


# Ways to normalise


def n_minus_1_variance(x: Tensor, eps: float) -> Tensor:
    """The unbiased variance."""
    variance, mean = torch.var_mean(x.float(), dim=-1, correction=1, keepdim=True)
    normalised: Tensor = (x.float() - mean) * torch.rsqrt(variance + eps)
    return normalised


def bf16_statistics(x: Tensor, eps: float) -> Tensor:
    """Mean and variance held in bfloat16."""
    mean = x.float().mean(dim=-1, keepdim=True).bfloat16().float()
    variance = (x.float() - mean).square().mean(dim=-1, keepdim=True).bfloat16().float()
    return (x.float() - mean) * torch.rsqrt(variance + eps)


def eps_times_10(x: Tensor, eps: float) -> Tensor:
    """Eps ten times too big."""
    return functional.layer_norm(x.float(), x.shape[-1:], eps=10 * eps)


def ragged_rows(block_rows: int) -> Normalise:
    """What goes wrong past the last full block of so many rows."""

    def ragged_rows_wrong(x: Tensor, eps: float) -> Tensor:
        """Rows past the last full block take the statistics of the row before them."""
        rows = x.float().reshape(-1, x.shape[-1])
        full = len(rows) // block_rows * block_rows
        source = torch.arange(len(rows), device=x.device)
        source[full:] = (source[full:] - 1).clamp(min=0)
        variance, mean = torch.var_mean(rows[source], dim=-1, correction=0, keepdim=True)
        return ((rows - mean) * torch.rsqrt(variance + eps)).reshape(x.shape)

    return ragged_rows_wrong


# Whole ops


def truncated(total: Tensor, dtype: torch.dtype) -> Tensor:
    """A float32 sum stored by cutting its bits off instead of rounding."""
    nearest = total.to(dtype)
    away = nearest.float().abs() > total.abs()
    return torch.where(away, torch.nextafter(nearest, torch.zeros_like(nearest)), nearest)


def swapped_scale_shift_at(site: str, index: int) -> OpSet:
    """Scale and shift taken for each other in one call of a site."""

    def layer_norm_scale_shift(x: Tensor, shift: Modulation, scale: Modulation, **options: Any) -> Tensor:
        call = running_call()
        if (call.site, call.index) == (site, index):
            shift, scale = scale, shift
        y: Tensor = reference_ops.layer_norm_scale_shift(x, shift, scale, **options)
        return y

    return with_ops(layer_norm_scale_shift=layer_norm_scale_shift)


def gate_dropped_in_the_last_block() -> OpSet:
    """``residual + x`` where the last block ends."""

    def residual_gate_add(residual: Tensor, x: Tensor, gate: Modulation | None, **options: Any) -> Tensor:
        call = running_call()
        last = call.index == call.calls - 1
        y: Tensor = reference_ops.residual_gate_add(residual, x, None if last else gate, **options)
        return y

    return with_ops(residual_gate_add=residual_gate_add)
