"""Liger's kernels run as they are compiled: ``rsqrt.approx.ftz``, ``div.full``, branches of libdevice's tanh."""

import json
from typing import Any

import pytest

from validation.meta_tests.compiled.without_interpreter import printed_by

# Float32 arithmetic in rows of 1024, and one rounding to bfloat16 (Liger's RMSNorm rounds twice).
LARGEST = {"float32": 1e-6, "bfloat16": 2.0**-7}
TARGETS = ["sm_80", "sm_90", "sm_100"]


def found_by(function: str, target: str) -> Any:
    return json.loads(printed_by("liger_kernels", target, function=function)[-1])


@pytest.mark.parametrize("target", TARGETS)
def test_ligers_kernels_are_right_whatever_their_approximations_give(target: str) -> None:
    found = found_by("main", target)
    assert len(found) == 10
    for name, by_mode in found.items():
        for mode, (error, violations) in by_mode.items():
            assert error < LARGEST[name.split()[1]], (name, mode)
            assert not violations, (name, mode)
    # Another choice within the interval shows in the result: the kernel does approximate.
    assert any(by_mode["low"][0] != by_mode["high"][0] for by_mode in found.values())


@pytest.mark.parametrize("target", TARGETS)
def test_ligers_rotation_stores_behind_a_q_whose_one_token_has_another_stride(target: str) -> None:
    """docs/third-party.md, 4: the interpreter shows the same stores (test_adapters.py)."""
    found = found_by("one_token_each", target)
    assert not found["dense"]
    outside = [v for v in found["swapped"] if v.startswith("OUT_OF_BOUNDS_WRITE in _triton_rope")]
    first, second = outside  # of the two halves of a head; batch item 1 is CTA 1
    assert "CTA 1 thread 0, 0 bytes behind the end of q_ptr (2, 1, 2, 2) (2 accesses)" in first
    assert "CTA 1 thread 0, 4 bytes behind the end of q_ptr (2, 1, 2, 2) (2 accesses)" in second
