"""Liger's kernels run as they are compiled: ``rsqrt.approx.ftz``, ``div.full``, branches of libdevice's tanh."""

import importlib.util
import json
from pathlib import Path

import pytest

from validation.forking.forked import start_call
from validation.forking.server import Order

ROOT = Path(__file__).parents[3]
# Float32 arithmetic in rows of 1024, and one rounding to bfloat16 (Liger's RMSNorm rounds twice).
LARGEST = {"float32": 1e-6, "bfloat16": 2.0**-7}


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="needs liger-kernel")
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_ligers_kernels_are_right_whatever_their_approximations_give(target: str) -> None:
    order = Order("validation.meta_tests.compiled.liger_kernels", "main", (target,), str(ROOT), {})
    found = json.loads(start_call(order, without=("TRITON_INTERPRET",)).output().splitlines()[-1])
    assert len(found) == 10
    for name, by_mode in found.items():
        for mode, (error, violations) in by_mode.items():
            assert error < LARGEST[name.split()[1]], (name, mode)
            assert not violations, (name, mode)
    # Another choice within the interval shows in the result: the kernel does approximate.
    assert any(by_mode["low"][0] != by_mode["high"][0] for by_mode in found.values())
