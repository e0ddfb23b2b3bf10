"""Launches as libraries make them: autotuned kernels, and arguments that wrap a tensor."""

import json
import math
from typing import Any

import pytest

from validation.compiled.ptx.program import program
from validation.compiled.ptx.sass import machine_code, opcodes_of
from validation.meta_tests.compiled.without_interpreter import printed_by

X = [float(n) for n in range(64)]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    results: dict[str, Any] = json.loads(printed_by("launched_kernels")[-1])
    return results


def test_an_autotuned_kernel_is_launched_with_its_first_configuration(found: dict[str, Any]) -> None:
    assert found["tuned"] == {"factor": 3.0, "right": True, "launches": 1}


def test_an_argument_may_wrap_a_tensor(found: dict[str, Any]) -> None:
    assert found["reinterpreted"] == {"y": X, "violations": []}
    assert found["part"] == {"y": [*X[4:], 0.0, 0.0, 0.0, 0.0], "violations": []}


def test_what_is_read_behind_a_wrapped_tensor_is_out_of_bounds(found: dict[str, Any]) -> None:
    (violation,) = found["beyond the part"]["violations"]
    assert violation.startswith("OUT_OF_BOUNDS_READ in copied")
    assert "0 bytes behind the end of x (64,)" in violation


def test_an_argument_with_the_address_of_no_tensor_is_refused_by_name(found: dict[str, Any]) -> None:
    assert found["unknown"]["refused"] == found["unknown"]["told"]
    assert "x is a validation.meta_tests.compiled.launched_kernels.Address" in found["unknown"]["told"]


def test_bound_kernels_do_not_pile_up() -> None:
    """A process that judges many op sets had kept them all: 18 GB."""
    for kept in (program, opcodes_of, machine_code):
        assert (kept.cache_info().maxsize or math.inf) <= 1000
