"""Exact inputs: every right order of operations gives the same bits, and nothing else passes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import reference_ops
from validation.cases import exact as values
from validation.cases.case import Case, TensorSpec
from validation.cases.tensors import materialise
from validation.chains import exact
from validation.judge.verdict import judge_call
from validation.verdict import Status, Tier, Verdict


def case_of(op: str, width: int, dtype: str = "float32", rows: int = 6, **flags: Any) -> Case:
    spec = TensorSpec((2, rows, width), dtype, (rows * width, width, 1), 0, "x")
    tensors = {"x": spec}
    if op == "scale_shift":
        tensors |= {name: dataclasses.replace(spec, storage=name) for name in ("shift", "scale")}
    return Case(op, tensors, flags, "exact", 3)


def judged(case: Case, function: Callable[..., Tensor]) -> Verdict:
    def called(*args: Any, **kwargs: Any) -> Tensor:
        y = function(*args, **kwargs)
        return torch.empty(y.shape, dtype=y.dtype).copy_(y)

    return judge_call(case, called, "cpu")


def rms_norm(x: Tensor, *, eps: float, root: float = 1.0, mean: float = 1.0) -> Tensor:
    wide = x.float()
    return (wide * (torch.rsqrt((wide * wide).mean(-1, keepdim=True) * mean + eps) * root)).to(x.dtype)


@pytest.mark.parametrize("eps", values.EPS)
@pytest.mark.parametrize("width", [12, 64, 100, 257, 1024, 5120, 8193, 65536])
def test_rows_sum_exactly_in_any_order(width: int, eps: float) -> None:
    x = materialise(case_of("rms_norm", width, eps=eps)).tensors["x"].reshape(-1, width)
    for centred in (False, True):
        rows = x[::2] if not centred else x  # every other row has a mean
        deviation = rows - rows.mean(-1, keepdim=True) if centred else rows
        squares = deviation * deviation
        sums = [s.flip(-1).cumsum(-1)[:, -1] for s in (squares, squares.flip(-1), squares[:, torch.randperm(width)])]
        assert all(torch.equal(s, squares.double().sum(-1).float()) for s in sums)
        roots = (squares.double().mean(-1) + eps).rsqrt().log2()
        assert torch.equal(roots, roots.round())
        (slack,) = exact.slack("layer_norm" if centred else "rms_norm", {"x": rows, "eps": eps})
        assert bool(slack.isfinite().all())
    assert float(x.abs().min()) > 0.0 or width % 2 or width & (width - 1) == 0


def test_what_has_no_norm_leaves_no_slack() -> None:
    for mode in ("float32", "input"):
        case = case_of("scale_shift", 64, "bfloat16", casting_mode=mode)
        made = materialise(case).kwargs
        (slack,) = exact.slack("scale_shift", made)
        assert bool((slack == 0).all())
        factors = torch.full_like(made["scale"], 3 / 128)  # 1 + 3 / 128 has 8 bits, products with x up to 12
        (slack,) = exact.slack("scale_shift", {**made, "scale": factors})
        assert bool(slack.isinf().any()) == (mode == "input")


def test_one_bit_is_wrong_and_the_sign_of_zero_is_not() -> None:
    case = case_of("scale_shift", 64, casting_mode="input")

    def next_number(**kwargs: Any) -> Tensor:
        y: Tensor = reference_ops.scale_shift(**kwargs)
        y.view(torch.int32)[1, 2, 3] += 1
        return y

    def negative_zero(**kwargs: Any) -> Tensor:
        y = reference_ops.scale_shift(**kwargs)
        return torch.where(y == 0, -torch.zeros_like(y), y)

    assert bool((reference_ops.scale_shift(**materialise(case).kwargs) == 0).any())
    assert judged(case, negative_zero).status is Status.PASSED
    verdict = judged(case, next_number)
    assert (verdict.status, verdict.check) == (Status.INCORRECT_NUMERICAL, "exact")
    assert "exact inputs: every right order of operations gives these bits; 1 of 768 elements of y" in verdict.reason
    assert "[1, 2, 3]" in verdict.reason


def test_a_norm_may_round_its_root_and_nothing_more() -> None:
    case = case_of("rms_norm", 1000, eps=0.25)
    for right in (2.0**-23, -(2.0**-23), 2.0**-22):  # as rsqrt.approx may be off
        verdict = judged(case, lambda x, eps, right=right: rms_norm(x, eps=eps, root=1.0 + right))
        assert verdict.status is Status.PASSED
        assert verdict.tier is Tier.LOSSLESS
        assert verdict.numbers["rms_ratio"] is None  # the reference path has no error to compare with
    for wrong in ({"root": 1.0 + 2.0**-20}, {"mean": 1000 / 999}, {"mean": 1.0 - 2.0**-19}):
        verdict = judged(case, lambda x, eps, wrong=wrong: rms_norm(x, eps=eps, **wrong))
        assert verdict.status in (Status.INCORRECT_NUMERICAL, Status.BIASED)
    verdict = judged(case, lambda x, eps: rms_norm(x, eps=eps, root=1.0 + 2.0**-20))
    assert verdict.check == "exact"
    assert "rounding in 1/sqrt" in verdict.reason


def welford(x: Tensor, lanes: int) -> tuple[Tensor, Tensor]:
    """Mean and variance by Welford's update in so many lanes, merged by halves; a power of two divides the width."""
    mean, squares = torch.zeros(2, len(x), lanes)
    for n, column in enumerate(x.reshape(len(x), -1, lanes).unbind(1), 1):
        step = column - mean
        mean = mean + step * torch.tensor(1.0 / n)
        squares = squares + step * (column - mean)
    count = x.shape[-1] // lanes
    while mean.shape[-1] > 1:
        half = mean.shape[-1] // 2
        step = mean[:, half:] - mean[:, :half]
        squares = squares[:, :half] + squares[:, half:] + step * step * (count / 2)
        mean, count = mean[:, :half] + step / 2, 2 * count
    return mean, squares / x.shape[-1]


@pytest.mark.parametrize("lanes", [8, 32, 128])
@pytest.mark.parametrize("width", [128, 3072, 24576])
def test_welfords_update_is_right(width: int, lanes: int) -> None:
    def layer_norm(x: Tensor, *, eps: float) -> Tensor:
        mean, variance = welford(x.reshape(-1, width), lanes)
        return ((x.reshape(-1, width) - mean) * torch.rsqrt(variance + eps)).reshape(x.shape)

    for eps in values.EPS:
        assert judged(case_of("layer_norm", width, eps=eps), layer_norm).status is Status.PASSED


def test_rows_without_an_exact_sum_are_judged_as_any_other() -> None:
    case = case_of("rms_norm", 3, eps=0.25)  # no such three squares
    verdict = judged(case, rms_norm)
    assert verdict.status is Status.PASSED
    assert verdict.numbers["exact_share"] == 0.0
    assert verdict.numbers["rms_ratio"] is not None
