"""Compiled kernels against Triton's interpreter, target against target, and the suite's own judge on them."""

import dataclasses
import functools
import json
import math
from collections.abc import Sequence

import pytest
import torch

import fused_ops
from validation.cases import strategies
from validation.cases.case import Case, TensorSpec
from validation.cases.pool import draw_cases
from validation.cases.roles import ACTIVATIONS
from validation.cases.tensors import as_bits, materialise
from validation.judge.expected import absent, outputs_of
from validation.judge.signature import signature_of
from validation.meta_tests.compiled.executed import Execution, execute_cases
from validation.meta_tests.compiled.without_interpreter import printed_by

ELEMENTWISE = ("scale_shift", "residual_gate_add", "rotary_embedding")
# Cases of more elements take seconds; the drawn widths go up to 16,400.
MOST_ELEMENTS = 1 << 17


@functools.cache
def drawn(op: str, count: int, seed: int = 0) -> tuple[Case, ...]:
    """Drawn cases of an op that launch a kernel; some three of them share one, but for values and sizes."""
    signature = signature_of(op)
    keys = draw_cases(strategies.compile_keys(signature), seed=seed, count=count)
    every = [
        case
        for n, key in enumerate(keys)
        for case in draw_cases(strategies.cases(signature, key), seed=1000 * seed + n, count=3)
        if all(0 < t.numel <= MOST_ELEMENTS for t in case.tensors.values())
    ]
    assert len(every) >= count
    return tuple(every[:count])


@functools.cache
def executed(op: str) -> tuple[Execution, ...]:
    return tuple(execute_cases(drawn(op, 24), "sm_90"))


def interpreted(case: Case) -> tuple[torch.Tensor, ...]:
    kwargs = materialise(case).kwargs
    return outputs_of(getattr(fused_ops, case.op)(**kwargs | absent(case, kwargs)))


def same(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Which elements are equal to the bit; every NaN is equal to every other."""
    return (as_bits(a) == as_bits(b)) | (a.isnan() & b.isnan())


@pytest.mark.parametrize("op", ELEMENTWISE)
def test_elementwise_ops_equal_the_interpreter_to_the_bit(op: str) -> None:
    elements = 0
    for case, run in zip(drawn(op, 24), executed(op), strict=True):
        assert not run.violations, run.violations
        for got, want in zip(run.outputs, interpreted(case), strict=True):
            assert same(got, want).all(), case.to_json()
            elements += got.numel()
    assert elements > 10_000


@pytest.mark.parametrize("target", ["sm_80", "sm_100"])
def test_targets_give_the_same_bits(target: str) -> None:
    for op in ELEMENTWISE:
        for first, other in zip(executed(op), execute_cases(drawn(op, 24)[:8], target), strict=False):
            assert not other.violations
            for a, b in zip(first.outputs, other.outputs, strict=True):
                assert same(a, b).all(), op


NORMS = ("layer_norm", "rms_norm", "layer_norm_scale_shift", "qk_norm")


def with_exact_sums(case: Case) -> Case:
    """The case with activations of 1 and -1 in turn: the sums of a row are integers below 2^24 in every order."""
    literals = {
        name: tuple(1.0 if n % 2 else -1.0 for n in range(spec.numel))
        for name, spec in case.tensors.items()
        if name in ACTIVATIONS
    }
    return dataclasses.replace(case, values="normal", literals=literals)


@pytest.mark.parametrize("op", NORMS)
def test_norms_of_rows_with_exact_sums_equal_the_interpreter_and_one_another(op: str) -> None:
    """A width that is a power of two, so that the mean and the mean square are exact too."""
    cases = []
    for case in drawn(op, 80, seed=1):
        spec = case.tensors["x" if "x" in case.tensors else "q"]
        width = spec.shape[-1]
        if math.log2(width).is_integer() and width > 1:
            cases.append(with_exact_sums(case))
    cases = cases[:5]
    assert len(cases) >= 3
    runs = {target: execute_cases(cases, target) for target in ("sm_80", "sm_90", "sm_100")}
    for n, case in enumerate(cases):
        for target, some in runs.items():
            assert not some[n].violations
            for got, want in zip(some[n].outputs, interpreted(case), strict=True):
                assert same(got, want).all(), (target, case.to_json())


def judged(cases: Sequence[Case]) -> list[tuple[str, str, list[str], int]]:
    """Status, reason, violations and number of launches of each case, as compiled for sm_90."""
    request = json.dumps({"target": "sm_90", "cases": [case.to_json() for case in cases]})
    lines = printed_by("judged", text=request)
    assert len(lines) == len(cases)
    return [tuple(json.loads(line)) for line in lines]


@pytest.mark.parametrize("op", ["scale_shift", "layer_norm_scale_shift", "qk_norm_rope"])
def test_kernels_as_shipped_pass_the_suites_own_judge(op: str) -> None:
    cases = drawn(op, 30, seed=2)
    for case, (status, reason, violations, launches) in zip(cases, judged(cases), strict=True):
        assert status == "PASSED", f"{status}: {reason}\n{case.to_json()}"
        assert not violations
        assert launches >= 1


def beyond_float16(op: str) -> Case:
    """A call with ``casting_mode="input"``, float16 activations and bfloat16 parameters that are no numbers of float16.

    The products and sums are: a weight of 65536 times 0.5, of 2^-26 times 4, a shift of 65536 after -32768.
    """
    heads, modulated = op.startswith("qk"), op == "scale_shift"
    shape, strides = ((1, 2, 1, 8), (16, 8, 8, 1)) if heads else ((1, 2, 8), (16, 8, 1))
    names = ("q", "k") if heads else ("x",)
    values = (-32768.0,) * 8 if modulated else (0.5, -0.5, 0.25, -0.25, 4.0, 0.125, -0.125, 2.0)
    weight = (65536.0,) * 3 + (1.0, 2.0**-26, 1.0, 1.0, 1.0)
    literals: dict[str, tuple[float, ...]] = dict.fromkeys(names, values * 2)
    literals |= {"shift": (65536.0,) * 8, "scale": (0.0,) * 8} if modulated else {}
    literals |= {} if modulated else dict.fromkeys(("q_weight", "k_weight") if heads else ("weight",), weight)
    tensors = {
        name: TensorSpec(shape, "float16", strides, 0, name)
        if name in names
        else TensorSpec((8,), "float16" if name == "scale" else "bfloat16", (1,), 0, name)
        for name in literals
    }
    flags = {"scale_constant": 1.0} if modulated else {"eps": 1e-6}
    more = {"inplace": False} if heads else {}
    return Case(op, tensors, {**flags, "casting_mode": "input", **more}, "normal", 0, literals)


# The compiler made a float16 product of one of a float16 and a bfloat16, both widened to float32, that is rounded to
# float16: with the bfloat16 rounded to float16 before, 65536 was inf and 2^-26 was 0. No interpreter shows it.
@pytest.mark.parametrize("op", ["rms_norm", "qk_norm", "scale_shift"])
def test_a_parameter_beyond_float16_keeps_its_range(op: str) -> None:
    case = beyond_float16(op)
    want = interpreted(case)
    assert want[0].isfinite().all()
    assert (want[0] != 0).all()
    (run,) = execute_cases([case], "sm_90")
    for got, expected in zip(run.outputs, want, strict=True):
        assert torch.equal(got, expected)
    ((status, *_),) = judged([case])
    assert status == "PASSED"


def test_contraction_changes_bits_and_the_kernels_as_shipped_have_none() -> None:
    """A comparison that the two arithmetics could not tell apart would prove nothing."""
    fitting = (c for c in drawn("scale_shift", 60, seed=3) if c.dtype == "float32" and c.values in ("normal", "dit"))
    case = next(c for c in fitting if c.tensors["scale"].numel > 1)
    fused, apart = (execute_cases([case], options={"enable_fp_fusion": on})[0] for on in (True, False))
    assert not same(fused.outputs[0], apart.outputs[0]).all()
    assert same(apart.outputs[0], interpreted(case)[0]).all()
