"""Each case kept in fixtures/regressions/ still fails for the mistake it was kept for, and passes for a right op."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fused_ops
import reference_ops
from validation.chains.contract import checked
from validation.device import select
from validation.errors import UsageError
from validation.executor import InProcess
from validation.faults.heads_rotation import TheStrideOfOneToken
from validation.ops import OpSet, op_set_from
from validation.parity import regressions
from validation.parity.one_case import judge_case
from validation.verdict import Status


def normalised_value_rounded(x: Tensor, shift: Tensor, scale: Tensor, eps: float, **_: Any) -> Any:
    return (reference_ops.rms_norm(x, eps=eps).float() * (1 + scale) + shift).to(x.dtype)


def one_plus_scale_in_its_dtype(x: Tensor, shift: Tensor, scale: Tensor, eps: float, **_: Any) -> Any:
    return reference_ops.rms_norm(x, eps=eps) * (1 + scale) + shift


def no_batch(x: Tensor, **_: Any) -> Any:
    return x.reshape(x.shape[0], -1)


def no_heads(x: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> Any:
    heads = [reference_ops.rotary_embedding(head.unsqueeze(2), cos, sin, interleaved=False) for head in x.unbind(2)]
    return torch.cat(heads, 2)


def computed_in_the_angles_dtype(x: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> Any:
    return reference_ops.rotary_embedding(x.to(cos.dtype), cos, sin, interleaved=False).to(x.dtype)


def summed_in_one_chain(x: Tensor, weight: Tensor, eps: float, **_: Any) -> Any:
    wide = x.float()
    total = torch.zeros(x.shape[:-1])
    for square in (wide * wide).unbind(-1):
        total += square
    rstd = torch.rsqrt(total / x.shape[-1] + eps)
    return (wide * rstd.unsqueeze(-1) * weight.float()).to(x.dtype)


def one_row_in_another_order(x: Tensor, eps: float, **_: Any) -> Any:
    """As a compiled kernel does whose tile is laid out by strides that it does not get of a single row."""

    def mean(t: Tensor) -> Tensor:
        columns = t.unbind(-1)
        total = torch.zeros(t.shape[:-1])
        for column in columns if len(x) > 1 else reversed(columns):
            total += column
        return (total / t.shape[-1]).unsqueeze(-1)

    deviation = x - mean(x)
    return deviation * torch.rsqrt(mean(deviation * deviation) + eps)


def contracted_by_position(x: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> Any:
    """As a compiler does that contracts one product or the other of a sum, by where in the tile a row lies."""
    a, b = x.chunk(2, -1)
    c, s = (t.float().unsqueeze(2) for t in (cos, sin))
    apart = torch.cat([a * c - b * s, a * s + b * c], -1)
    contracted = torch.cat([torch.addcmul(a * c, b, s, value=-1), torch.addcmul(a * s, b, c)], -1)
    even = (torch.arange(x.shape[1]) % 2 == 0)[:, None, None]
    return x.copy_(torch.where(even, contracted, apart))


MISTAKES: dict[str, Callable[..., Any]] = {
    "layer_norm-one-row-in-another-order": one_row_in_another_order,
    "rms_norm-strided-row-summed-in-one-chain": summed_in_one_chain,
    "rms_norm_scale_shift-no-batch": no_batch,
    "rms_norm_scale_shift-normalised-value-rounded": normalised_value_rounded,
    "rms_norm_scale_shift-one-plus-scale-in-its-dtype": one_plus_scale_in_its_dtype,
    "rotary_embedding-computed-in-the-angles-dtype": computed_in_the_angles_dtype,
    "rotary_embedding-contracted-by-position": contracted_by_position,
    "rotary_embedding-no-batch": no_batch,
    "rotary_embedding-no-heads": no_heads,
    "rotary_embedding-stride-of-one-token": TheStrideOfOneToken().rotary_embedding,
}


def test_a_case_of_an_op_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = next(regressions.REGRESSIONS.glob("rms_norm_scale_shift-*.json")).read_text()
    (tmp_path / "gone.json").write_text(kept.replace('"op": "rms_norm_scale_shift"', '"op": "rms_norm_modulate"'))
    monkeypatch.setattr(regressions, "REGRESSIONS", tmp_path)
    with pytest.raises(UsageError, match=r"gone\.json: case: op: unknown op 'rms_norm_modulate', expected one of"):
        next(regressions.regressions("layer_norm"))


def test_every_mistake_has_its_case() -> None:
    assert sorted(MISTAKES) == sorted(path.stem for path in regressions.REGRESSIONS.glob("*.json"))


# Without elements a right result says nothing, though some kernels fail at it.
EMPTY = ("no-batch", "no-heads")


@pytest.mark.parametrize("name", MISTAKES)
def test_the_case_tells_the_mistake_from_a_right_op(name: str) -> None:
    device = select(gpu=False)
    path = regressions.REGRESSIONS / f"{name}.json"
    case = regressions.read_case(path)
    wrong = OpSet("wrong", {case.op: checked(case.op, MISTAKES[name])}, "wrong")
    assert judge_case(case, InProcess(wrong, device)).status is Status(json.loads(path.read_text())["status"])
    right = judge_case(case, InProcess(op_set_from(fused_ops, "fused_ops", "fused_ops"), device))
    assert right.status is (Status.MISTRUSTED if name.endswith(EMPTY) else Status.PASSED), right.message
