"""A reference op that computes another function than its formula is not the truth, and no candidate is called wrong."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import reference_ops
from reference_ops.contract import compute_dtype, expand_modulation
from validation.cases.tensors import materialise
from validation.device import select
from validation.executor import InProcess
from validation.faults.right import RightOps
from validation.judge import oracle
from validation.judge.expected import absent, expect
from validation.judge.verdict import WRONG_TRUTH, WRONG_VALUES
from validation.meta_tests.op_records import summary_of
from validation.ops import OpSet, reference_op_names
from validation.parity.plan import Plan
from validation.parity.profiles import Profile
from validation.parity.sweep import Sweep
from validation.record import Level, Record
from validation.verdict import DEFAULT_TIER, Status

SHORT = Profile("short", 1, 20)
RIGHT = {op: getattr(reference_ops, op) for op in reference_op_names()}


def unbiased(x: Tensor, weight: Any = None, bias: Any = None, eps: float = 1e-6) -> Tensor:
    """The variance over N - 1."""
    values = x.to(compute_dtype(x))
    variance = values.var(-1, keepdim=True, correction=min(1, x.shape[-1] - 1))
    y = (values - values.mean(-1, keepdim=True)) * torch.rsqrt(variance + eps)
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias).to(x.dtype)


def eps_outside(x: Tensor, weight: Any = None, eps: float = 1e-6, *, casting_mode: str = "float32") -> Tensor:
    del casting_mode
    values = x.to(compute_dtype(x))
    y = values / (values.square().mean(-1, keepdim=True).sqrt() + eps)
    return (y if weight is None else y * weight).to(x.dtype)


def neighbours_always(
    x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = True, inplace: bool = False
) -> Tensor:
    """Pairs 2i and 2i + 1, where the halves were asked for."""
    del interleaved
    y: Tensor = RIGHT["rotary_embedding"](x, cos, sin, interleaved=True, inplace=inplace)
    return y


def without_one(
    x: Tensor,
    shift: Any,
    scale: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "",
) -> Tensor:
    """The norm times scale, not times 1 + scale."""
    del casting_mode
    wide = compute_dtype(x)
    weight, bias = (None if t is None else t.to(wide) for t in (weight, bias))
    y = functional.layer_norm(x.to(wide), x.shape[-1:], weight, bias, eps)
    return (y * expand_modulation(scale, x).to(wide) + expand_modulation(shift, x).to(wide)).to(x.dtype)


def wrong_in_float64(x: Tensor, shift: Any, scale: Any, scale_constant: float = 1.0, **flags: Any) -> Tensor:
    """Right in every working dtype; the truth is off by a millionth."""
    y: Tensor = RIGHT["scale_shift"](x, shift, scale, scale_constant, **flags)
    return y * (1 + 1e-6) if x.dtype is torch.float64 else y


def ungated(residual: Tensor, x: Tensor, gate: Any, shift: Any, scale: Any, *rest: Any, **flags: Any) -> Any:
    """The whole op, of which only the baseline is made: its truth is that of its two parts."""
    del gate
    return RIGHT["scale_residual_rms_norm_scale_shift"](residual, x, None, shift, scale, *rest, **flags)


PLANTED: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "variance over N - 1": ("layer_norm", "layer_norm", unbiased),
    "eps outside the root": ("rms_norm", "rms_norm", eps_outside),
    "another pairing": ("rotary_embedding", "rotary_embedding", neighbours_always),
    "modulation without its 1": ("layer_norm_scale_shift", "layer_norm_scale_shift", without_one),
    "in float64 alone": ("scale_shift", "scale_shift", wrong_in_float64),
    "in a part": ("scale_residual_layer_norm_scale_shift", "layer_norm_scale_shift", without_one),
    "in the whole, not in its parts": (
        "scale_residual_rms_norm_scale_shift",
        "scale_residual_rms_norm_scale_shift",
        ungated,
    ),
}


def swept(op: str, profile: Profile = SHORT) -> list[Record]:
    # Kernels under the interpreter would take half the time of these tests, which are not about them.
    executor = InProcess(OpSet("right", {op: getattr(RightOps(), op)}, "right"), select(gpu=False))
    return list(Sweep(executor, profile, 0, DEFAULT_TIER, shrink=False).of_op(op))


@pytest.mark.parametrize("name", PLANTED)
def test_a_wrong_reference_is_named_and_no_candidate_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, wrong, function = PLANTED[name]
    # With the signature of the op, which decides the cases.
    monkeypatch.setattr(function, "__signature__", inspect.signature(RIGHT[wrong]), raising=False)
    monkeypatch.setattr(reference_ops, wrong, function)
    records = swept(op)
    assert {record.status for record in records} & WRONG_VALUES == set()
    caught = [r for r in records if r.status is Status.REFERENCE_ERROR and r.level is Level.OP]
    assert {record.check for record in caught} == {WRONG_TRUTH}
    assert len(caught) > 5
    assert f"the reference op is wrong: {wrong} in float64 gives " in caught[0].reason
    assert " digits is " in caught[0].reason
    summary = summary_of(records)
    assert (summary.status, summary.check, summary.tier) == (Status.REFERENCE_ERROR, WRONG_TRUTH, None)


@pytest.mark.parametrize("op", reference_op_names())
def test_the_references_are_their_formulas_in_every_case(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "SHARE", 1)
    compared = 0
    for planned in Plan.of(op, select(gpu=False), SHORT, 3).cases():
        arguments = materialise(planned.case)
        arguments.kwargs |= absent(planned.case, arguments.kwargs)
        expected = expect(planned.case, arguments)
        compared += sum(target.compared for _, target in expected.target(expected.baseline))
    assert compared > 500


def test_a_sweep_compares_some_hundred_elements() -> None:
    summary = summary_of(swept("residual_gate_add"))
    assert 100 < int(summary.numbers["formula_elements"] or 0) < 1000


def test_an_op_without_a_formula_has_the_reference_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(oracle.FORMULAS, "residual_gate_add")
    summary = summary_of(swept("residual_gate_add"))
    assert summary.status is Status.PASSED
    assert summary.reason.endswith(
        "; the reference op alone stands for the truth: there is no formula to compare it with"
    )
    assert summary.numbers["formula_elements"] == 0
