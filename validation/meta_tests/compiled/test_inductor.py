"""Kernels of torch.compile for a GPU: made without one, executed, and judged."""

import json
from typing import Any

import pytest

from validation.cases.case import Case, TensorSpec
from validation.meta_tests.compiled.without_interpreter import printed_by
from validation.verdict import Status

OP = "scale_residual_layer_norm_scale_shift"


def found_by(function: str, *arguments: str, text: str = "") -> list[Any]:
    return [json.loads(line) for line in printed_by("compiled_graphs", *arguments, function=function, text=text)]


@pytest.fixture(scope="module")
def on_sm_90() -> list[Any]:
    """What one process prints: Dynamo and Inductor take 5 s to import."""
    spec = TensorSpec((2, 3, 64), "bfloat16", (192, 64, 1), 0, "x")
    names = ("residual", "x", "gate", "shift", "scale")
    tensors = {name: TensorSpec(spec.shape, spec.dtype, spec.strides, 0, name) for name in names}
    case = Case(OP, tensors, {"eps": 1e-6, "casting_mode": "float32"}, "normal", 5)
    return found_by("everything", "sm_90", text=json.dumps(case.to_json()))


@pytest.mark.parametrize(("target", "shapes"), [("sm_80", 1), ("sm_90", 5), ("sm_100", 1)])
def test_every_shape_is_right_whether_its_sizes_are_symbols_or_constants(
    target: str, shapes: int, on_sm_90: list[Any]
) -> None:
    """A size of 1 is a constant of the kernel, yet an argument of its launch: bound wrongly, all is garbage."""
    (found,) = [on_sm_90[1]] if target == "sm_90" else found_by("shapes", target, str(shapes))
    errors, violations, launches, not_executed = found
    assert len(errors) == shapes + 1
    assert max(errors[:-1]) < 2.0**-10  # half an ulp of float16
    assert errors[-1] == 0
    assert (violations, not_executed) == ([], "")
    assert launches >= len(errors)


def test_it_is_the_gpus_code_in_the_configuration_whose_turn_it_is(on_sm_90: list[Any]) -> None:
    launches, of_target = on_sm_90[2]
    assert of_target
    assert len({(tuple(grid), threads) for grid, threads, *_ in launches}) > 1
    # For a GPU Inductor multiplies by the reciprocal of a constant, 1/3; for the CPU it divides.
    assert all(reciprocal for *_, reciprocal in launches)


def test_a_rounding_that_inductor_leaves_out_is_told(on_sm_90: list[Any]) -> None:
    """docs/third-party.md: the norm is then of the gated sum before its rounding."""
    (status, reason), (left_out, why) = on_sm_90[3:]
    assert status == str(Status.PASSED), reason
    assert left_out == str(Status.INCORRECT_NUMERICAL), why


def test_without_execution_it_says_what_is_missing(on_sm_90: list[Any]) -> None:
    assert "no launches are executed in this process" in on_sm_90[0]
