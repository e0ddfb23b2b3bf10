"""Where the real models' sites are judged at full size, and the time that such a case has."""

from pathlib import Path

import pytest

from validation.cases.case import Case, TensorSpec
from validation.cases.pool import Pool
from validation.device import select
from validation.device.selection import Device
from validation.executor import Isolated, isolated, load
from validation.judge.signature import signature_of
from validation.ops import reference_op_names
from validation.parity.plan import Plan
from validation.parity.profiles import PROFILES
from validation.parity.workloads import workloads
from validation.verdict import Status

EXECUTED = Device("sm_90, executed on the CPU", "cpu", compiled="sm_90")
INTERPRETED = Device("interpreter", "cpu")


def test_a_nightly_has_every_site_whole_where_ptx_is_executed() -> None:
    """Plans without corners and a pool, which are drawn from: only what is not drawn is looked at."""
    count = 0
    for op in reference_op_names():
        small, whole = ({work.make(size).to_json() for work in workloads(op)} for size in (False, True))
        assert small.isdisjoint(whole)
        for device, profile, sites, others in (
            (EXECUTED, "nightly", whole, small),
            (EXECUTED, "default", small, whole),
            (INTERPRETED, "nightly", small, whole),
        ):
            plan = Plan(signature_of(op), (), (), Pool((), (), {}), device, PROFILES[profile], 0)
            kept = {case.to_json() for case in plan.kept()}
            assert sites <= kept, (op, device.name, profile)
            assert kept.isdisjoint(others), (op, device.name, profile)
        count += len(whole)
    assert count >= 40


SLOW = """
import time


def scale_shift(x, shift, scale, scale_constant=1.0, *, casting_mode="float32"):
    end = time.process_time() + 0.8
    while time.process_time() < end:
        pass
    return x * (scale_constant + scale) + shift
"""


@pytest.mark.parametrize(("elements", "status"), [(2**24, Status.TIMEOUT), (1, Status.PASSED)])
def test_a_large_case_has_more_time(
    elements: int, status: Status, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.setattr(isolated, "LIMIT_ELEMENTS", elements)
    tensors = {name: TensorSpec((1, 8), "float32", (8, 1), 0, name) for name in ("shift", "scale")}
    tensors["x"] = TensorSpec((1, 2, 8), "float32", (16, 8, 1), 0, "x")
    case = Case("scale_shift", tensors, {"scale_constant": 1.0, "casting_mode": "float32"}, "normal", 7)
    executor = load(str(tmp_path / "slow.py"), select(gpu=False), limit=0.4)
    assert isinstance(executor, Isolated)
    try:
        assert executor.judge(case).status is status
    finally:
        executor.close()
