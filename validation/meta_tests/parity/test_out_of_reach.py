"""Corners of far offsets, made to fit; those that this device has no time for are named."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

import reference_ops
from validation.cases import corners, layouts, strategies
from validation.cases.corners import sizes
from validation.cases.pool import draw_cases
from validation.device import Device, select
from validation.executor import InProcess
from validation.faults.right import RightOps
from validation.judge.signature import signature_of
from validation.meta_tests.op_arguments import tuple_of
from validation.ops import OpSet, load_op_set, reference_op_names
from validation.parity.one_case import judge_case
from validation.parity.plan import Plan
from validation.parity.profiles import PROFILES
from validation.parity.sweep import Sweep
from validation.verdict import Status

QUICK = PROFILES["quick"]
OPS = reference_op_names()


def wrapped(x: Tensor, axis: int, far: int) -> Tensor:
    """x as a kernel reads it whose offsets along one dimension are integers of so many numbers, of both signs."""
    offsets = [i * x.stride(axis) for i in range(x.shape[axis])]
    wraps = [(offset + far) % (2 * far) - far for offset in offsets]
    shape, strides = x.shape, x.stride()
    parts = [
        x.as_strided((*shape[:axis], 1, *shape[axis + 1 :]), strides, x.storage_offset() + offset) for offset in wraps
    ]
    return torch.cat(parts, axis)


@pytest.mark.parametrize("op", OPS)
def test_corners_of_far_offsets(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # With 2^20 in place of 2^31 they fit here: the same layouts, 2048 times smaller.
    for module in (layouts, sizes):
        monkeypatch.setattr(module, "FAR", 2**20)
    signature, device = signature_of(op), select(gpu=False)
    name = "q" if "q" in signature else "x"
    found = [corner for corner in corners.declared_corners(signature) if "past 2^31" in corner.name]
    assert len(found) == (4 if signature.family in ("qk", "rotary") else 3)
    assert [c.name for c in corners.declared_corners(signature, gpu=True)[-len(found) - 1 :]][:-1] == [
        c.name for c in found
    ]
    for corner in found:
        (case,) = draw_cases(strategies.cases(signature, {"values": "normal", **corner.forced}), seed=0, count=1)
        record = judge_case(case, InProcess(load_op_set("fused_ops"), device), (corner,))
        assert record.status is Status.PASSED, record.message
        assert record.corners == [corner.name]
        spec = case.tensors[name]
        (axis,) = (a for a, (n, s) in enumerate(zip(spec.shape, spec.strides, strict=True)) if (n - 1) * s > 2**20)

        # A 32-bit offset along that dimension reads poison, inside the tensor's memory.
        def narrow(*given: Any, axis: int = axis, **named: Any) -> Any:
            arguments = dict(inspect.signature(getattr(reference_ops, op)).bind(*given, **named).arguments)
            targets = [arguments[key] for key in ("x", "q", "k") if key in arguments]
            inplace = arguments.pop("inplace", False)
            arguments[name] = wrapped(arguments[name], axis, 2**20)
            result = getattr(RightOps(), op)(**arguments)
            results = tuple_of(result)
            if inplace:
                results = tuple(target.copy_(made) for target, made in zip(targets, results, strict=True))
            return results if isinstance(result, tuple) else results[0]

        wrong = judge_case(case, InProcess(OpSet("narrow", {op: narrow}, "narrow"), device))
        assert wrong.status in (Status.INCORRECT_NONFINITE, Status.INCORRECT_NUMERICAL), (
            f"{corner.name}: {wrong.reason}"
        )


def test_a_far_tensor_is_restored_between_calls_in_place() -> None:
    signature = signature_of("rotary_embedding")
    (corner,) = [c for c in corners.declared_corners(signature) if c.name == "x: heads past 2^31"]
    forced = {"values": "normal", "inplace": True, **corner.forced}
    (case,) = draw_cases(strategies.cases(signature, forced), seed=0, count=1)
    assert case.flags["inplace"]
    executor = InProcess(load_op_set("fused_ops"), select(gpu=False))
    # Rotated again, x has other bits.
    assert executor.repeated(case, 3).status is Status.PASSED


def test_corners_out_of_reach_are_named_and_fail_nothing() -> None:
    records = list(Sweep(InProcess(load_op_set("fused_ops"), select(gpu=False)), QUICK, 0).of_op("rotary_embedding"))
    summary = records[-1]
    assert summary.status is Status.PASSED
    assert summary.numbers["corners_out_of_reach"] == 1
    assert "corners not reached on this device: rows>2^23" in summary.reason
    reached = {corner for record in records for corner in record.corners}
    assert reached >= {f"x: {what} past 2^31" for what in ("items", "rows", "heads", "columns")}
    on_gpu = Plan.of("rotary_embedding", Device("a GPU", "cuda"), QUICK, 0)
    assert on_gpu.out_of_reach == ()
    assert {corner.name for corner in on_gpu.corners} >= {"x: heads past 2^31", "rows>2^23"}
