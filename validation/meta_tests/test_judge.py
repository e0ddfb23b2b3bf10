"""The judge's parts: memory, NaN and inf, the budget, bias, and the words for what is wrong."""

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

import reference_ops
from validation.cases.case import Case, TensorSpec, materialise
from validation.judge import structure, where
from validation.judge.bounds import bound
from validation.judge.stats import Budget, Errors, bias_threshold
from validation.judge.ulp import ulp
from validation.judge.verdict import judge_call
from validation.record import Status

OP = "layer_norm_scale_shift"


def a_case(
    shape: tuple[int, ...] = (2, 3, 16), dtype: str = "float32", values: str = "normal", mode: str = "float32"
) -> Case:
    strides = (shape[1] * (shape[2] + 4), shape[2] + 4, 1)
    row = TensorSpec(shape[2:], dtype, (1,), 0, "shift")
    return Case(
        OP,
        {
            "x": TensorSpec(shape, dtype, strides, 0, "x"),
            "shift": row,
            "scale": TensorSpec(shape[2:], dtype, (1,), 0, "scale"),
        },
        {"eps": 1e-6, "casting_mode": mode},
        values,
        5,
    )


def right(x: Tensor, shift: Tensor, scale: Tensor, **kwargs: Any) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype)
    y.copy_(reference_ops.layer_norm_scale_shift(x, shift, scale, **kwargs))
    return y


def status_of(candidate: Callable[..., Any], case: Case | None = None) -> Status:
    return judge_call(case or a_case(), candidate, "cpu").status


def test_a_right_candidate_passes() -> None:
    judgement = judge_call(a_case(), right, "cpu")
    assert judgement.status is Status.PASSED
    assert judgement.tier == "bit-exact"


def test_structure_verdicts() -> None:
    assert status_of(lambda **_: None) is Status.INCORRECT_STRUCTURE
    assert status_of(lambda **k: (right(**k), right(**k))) is Status.INCORRECT_STRUCTURE
    assert status_of(lambda **k: right(**k).double()) is Status.INCORRECT_DTYPE
    assert status_of(lambda **k: right(**k)[:1]) is Status.INCORRECT_SHAPE
    assert status_of(lambda **k: right(**k).to("meta")) is Status.INCORRECT_DEVICE

    def raises(**_: Any) -> Tensor:
        raise RuntimeError("no kernel image")

    judgement = judge_call(a_case(), raises, "cpu")
    assert judgement.status is Status.RUNTIME_ERROR
    assert "no kernel image" in judgement.reason


def test_memory_verdicts() -> None:
    def writes_an_input(**k: Any) -> Tensor:
        y = right(**k)
        k["x"][0, 0, 0] += 1
        return y

    def writes_a_hole_of_an_input(**k: Any) -> Tensor:
        y = right(**k)
        x = k["x"]
        x.as_strided((1,), (1,), x.storage_offset() + 17).fill_(1.0)
        return y

    def returns_its_input(**k: Any) -> Tensor:
        x: Tensor = k["x"]
        return x

    def writes_before(**k: Any) -> Tensor:
        y = right(**k)
        y.as_strided((1,), (1,), y.storage_offset() - 3).fill_(1.0)
        return y

    def writes_after(**k: Any) -> Tensor:
        y = right(**k)
        y.as_strided((1,), (1,), y.storage_offset() + y.numel()).fill_(1.0)
        return y

    def leaves_one_out(**k: Any) -> Tensor:
        y, values = torch.empty(k["x"].shape, dtype=k["x"].dtype), right(**k)
        y.view(-1)[:-1] = values.view(-1)[:-1]
        return y

    assert status_of(writes_an_input) is Status.INPUT_MODIFIED
    assert status_of(writes_a_hole_of_an_input) is Status.OUT_OF_BOUNDS_WRITE
    assert status_of(returns_its_input) is Status.OUTPUT_ALIASES_INPUT
    assert status_of(writes_before) is Status.OUT_OF_BOUNDS_WRITE
    assert status_of(writes_after) is Status.OUT_OF_BOUNDS_WRITE
    assert status_of(leaves_one_out) is Status.NOT_WRITTEN


def test_a_stray_read_of_a_hole_shows() -> None:
    def reads_rows_as_if_they_were_packed(**k: Any) -> Tensor:
        x = k["x"]
        return right(**{**k, "x": x.as_strided(x.shape, (48, 16, 1), x.storage_offset())})

    judgement = judge_call(a_case(), reads_rows_as_if_they_were_packed, "cpu")
    assert judgement.status is Status.INCORRECT_NONFINITE, judgement


def test_nan_and_inf_must_stay_where_they_are() -> None:
    case = a_case(shape=(4, 16, 32), values="nonfinite")

    def swallows(**k: Any) -> Tensor:
        return right(**k).nan_to_num()

    def spreads(**k: Any) -> Tensor:
        y = right(**k)
        return torch.where(y.isnan().any(-1).any(-1)[:, None, None], math.nan, y)

    assert status_of(right, case) is Status.PASSED
    assert status_of(swallows, case) is Status.INCORRECT_NONFINITE
    assert status_of(spreads, case) is Status.INCORRECT_NONFINITE


def test_a_hidden_float16_overflow_shows() -> None:
    x = TensorSpec((2, 3, 8), "float16", (24, 8, 1), 0, "x")
    scalar = {name: TensorSpec((), "float32", (), 0, name) for name in ("shift", "scale")}
    big = {"shift": (0.0,), "scale": (60000.0,)}
    case = Case(OP, {"x": x, **scalar}, {"eps": 1e-6, "casting_mode": "float32"}, "normal", 2, big)

    def clamps(**k: Any) -> Tensor:
        return right(**k).clamp(-65504, 65504)

    assert bool(right(**materialise(case).kwargs).isinf().any())
    assert status_of(right, case) is Status.PASSED
    assert status_of(clamps, case) is Status.INCORRECT_NONFINITE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_ulp_is_the_spacing_of_the_dtype(dtype: torch.dtype) -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0)).mul(10).exp().to(dtype)
    values = torch.cat([values[values.isfinite()], torch.tensor([1.0, 2.0, 0.5, 0.0, 3e-40], dtype=dtype)])
    bits = values.view(torch.int32 if dtype is torch.float32 else torch.int16)
    above = (bits + 1).view(dtype).double()
    finite = above.isfinite()
    expected = (above - values.double())[finite]
    assert torch.equal(ulp(values.double()[finite], dtype), expected)


def test_the_bound_holds_the_float32_chain_and_is_not_slack() -> None:
    generator = torch.Generator().manual_seed(3)
    worst = []
    for width in (8, 128, 1024, 5120):
        x = 3.0 + torch.randn(4, 8, width, generator=generator)
        shift, scale = torch.randn(2, width, generator=generator)
        arguments = {"x": x, "shift": shift, "scale": scale, "eps": 1e-6, "casting_mode": "float32"}
        truth = reference_ops.layer_norm_scale_shift(x.double(), shift.double(), scale.double())
        error = (reference_ops.layer_norm_scale_shift(x, shift, scale).double() - truth).abs()
        noise = bound(OP, arguments)[0].noise
        worst.append(float((error / noise).max()))
    assert max(worst) < 1.5
    assert min(worst) > 0.05


def test_declared_roundings_are_a_hard_bound() -> None:
    generator = torch.Generator().manual_seed(4)
    x, shift, scale = (torch.randn(4, 64, 256, generator=generator).bfloat16() for _ in range(3))
    arguments = {"x": x, "shift": shift, "scale": scale, "eps": 1e-6, "casting_mode": "input"}
    truth = reference_ops.layer_norm_scale_shift(x.double(), shift.double(), scale.double())
    got = reference_ops.layer_norm_scale_shift(x, shift, scale, casting_mode="input")
    budget = Budget.of(bound(OP, arguments)[0], x.shape, x.dtype, flush=False)
    used = (got.double() - truth).abs() / budget.allowed
    assert 0.5 < float(used.max()) <= 1.0


def test_the_float64_truth_agrees_with_mpmath() -> None:
    rng = np.random.default_rng(0)
    x, shift, scale = rng.normal(30.0, 1.0, 33), rng.normal(size=33), rng.normal(size=33)
    as_tensors = (torch.from_numpy(x).view(1, 1, -1), torch.from_numpy(shift), torch.from_numpy(scale))
    truth = reference_ops.layer_norm_scale_shift(*as_tensors, eps=1e-6)
    with mpmath.workdps(40):
        values = [mpmath.mpf(v) for v in x]
        mean = sum(values) / 33
        variance = sum((v - mean) ** 2 for v in values) / 33
        exact = [
            (v - mean) / mpmath.sqrt(variance + mpmath.mpf(1e-6)) * (1 + mpmath.mpf(s)) + mpmath.mpf(t)
            for v, s, t in zip(values, scale, shift, strict=True)
        ]
    worst = max(abs(float(e) - float(y)) for e, y in zip(exact, truth.flatten(), strict=True))
    assert worst < 1e-13


def test_truncation_has_a_bias_and_rounding_has_none() -> None:
    truth = torch.randn(50_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 3.0
    unit, finite = ulp(truth, torch.bfloat16), torch.ones(50_000, dtype=torch.bool)
    rounded = truth.bfloat16().double()
    truncated = ((truth.float().view(torch.int32) >> 16) << 16).view(torch.float32).double()
    fair = Errors.of(rounded - truth, truth, unit, finite)
    cut = Errors.of(truncated - truth, truth, unit, finite)
    assert abs(fair.magnitude_bias_ulp) < bias_threshold(fair, 50_000)
    assert cut.magnitude_bias_ulp == pytest.approx(-0.5, abs=0.01)
    assert abs(cut.magnitude_bias_ulp) > bias_threshold(cut, 50_000)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (np.s_[..., 12:], "only columns >= 12 of 16 are wrong: a tail of 4"),
        (np.s_[1:], "only batch item 1 of 2 is wrong, the last"),
        (np.s_[..., ::4], "every 4th column is wrong, from 0"),
        (np.s_[:, 2], "only token 2 of 5 is wrong"),
        (np.s_[...], "every element is wrong"),
    ],
)
def test_patterns_in_words(index: Any, words: str) -> None:
    wrong = torch.zeros(2, 5, 16, dtype=torch.bool)
    wrong[index] = True
    assert words in where.describe(wrong)


def test_guards_survive_views_and_other_allocations() -> None:
    with structure.GuardedAllocations() as guards:
        a = torch.empty(3, 5)
        b = torch.empty_like(a.t())
        c = a.new_empty(7)
        a.zero_(), b.zero_(), c.zero_()
    assert len(guards.allocations) == 3
    assert guards.written_outside() == ""
    assert b.stride() == (1, 5)
