"""What the failing cases of a sweep share is said, with counts, and nothing is said of what shares nothing."""

import dataclasses
import functools
import random

import pytest

from validation import faults
from validation.cases.pool import draw_cases
from validation.cases.strategies import cases
from validation.device import select
from validation.executor import InProcess
from validation.judge import remembered
from validation.judge.signature import signature_of
from validation.meta_tests.op_records import summary_of
from validation.parity.plan import Plan
from validation.parity.profiles import PROFILES
from validation.parity.shared import shared
from validation.parity.sweep import Sweep
from validation.record import Level, Record
from validation.report.terminal import print_table
from validation.verdict import DEFAULT_TIER, Status

# Faults of known cause. "" where the cause is no feature of a case, or nearly all cases show it.
CAUSES = {
    "mean over the padded width": "D is no multiple of 16",
    "first 8192 columns": "D > 8192",
    "column tail not written": "D is no multiple of 8",
    "columns of a narrower row": "D is odd",
    "16-bit row numbers": "the number of rows > ",
    "gate of None is zero": "gate is not given",
    "weight without bias dropped": "weight is given and bias is not given",
    "halves by default": "interleaved=True and defaults are left out of the call",
    "scale_constant always one": "",
    "a tuple of one": "",
}


@functools.cache
def swept(name: str) -> tuple[Record, ...]:
    fault = faults.load()[name]
    executor = InProcess(fault.op_set(), select(gpu=False))
    with remembered.remembering():
        return tuple(Sweep(executor, PROFILES["quick"], 0, DEFAULT_TIER, shrink=False).of_op(fault.op))


@pytest.mark.parametrize("name", CAUSES)
def test_the_cause_of_a_planted_fault_is_named(name: str) -> None:
    records = swept(name)
    summary = summary_of(records)
    said = str(summary.numbers.get("only_where", ""))
    assert said.startswith(f"fails only where {CAUSES[name]}") if CAUSES[name] else said == ""
    assert said in summary.reason


def test_it_is_in_the_terminal_beside_the_failure(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(swept("columns of a narrower row"))
    assert "fails only where D is odd (" in capsys.readouterr().out


def records_of(op: str) -> list[Record]:
    """The records of a sweep's cases, all passed."""
    return [
        Record(Level.OP, op, "mine", Status.PASSED, "bias", "", case=planned.case.to_dict())
        for planned in Plan.of(op, select(gpu=False), PROFILES["quick"], 1).cases()
    ]


def failing(records: list[Record], which: set[int], status: Status = Status.INCORRECT_NUMERICAL) -> list[Record]:
    return [dataclasses.replace(r, status=status) if n in which else r for n, r in enumerate(records)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 20, 100])
def test_cases_at_random_share_nothing(count: int) -> None:
    records, drawn = records_of("qk_norm_rope"), random.Random(count)
    for _ in range(40):
        assert shared(failing(records, set(drawn.sample(range(len(records)), count)))) is None


def test_all_or_none_share_nothing() -> None:
    records = records_of("rms_norm")
    assert shared(records) is None
    assert shared(failing(records, set(range(len(records))))) is None


def test_the_counts_and_the_most_common_status() -> None:
    records = records_of("rms_norm")
    halves = {n for n, r in enumerate(records) if r.case["tensors"]["x"]["dtype"] == "float16"}
    found = shared(failing(records, halves))
    assert found is not None
    assert found.sentence == (
        f"fails only where the dtype is float16 ({len(halves)} of {len(halves)} failing cases and 0 of "
        f"{len(records) - len(halves)} passing ones)"
    )
    # One more that fails in another way: what those of the most common status share.
    other = next(n for n in range(len(records)) if n not in halves)
    found = shared(failing(failing(records, halves), {other}, Status.NOT_REPRODUCIBLE))
    assert found is not None
    assert found.sentence.startswith("INCORRECT_NUMERICAL only where the dtype is float16 (")


def test_every_op_has_features() -> None:
    for op in ("scale_shift", "split_rotary_embedding", "scale_residual_layer_norm_scale_shift"):
        drawn = draw_cases(cases(signature_of(op)), seed=1, count=30)
        records = [Record(Level.OP, op, "mine", Status.PASSED, "bias", "", case=case.to_dict()) for case in drawn]
        assert shared(failing(records, {0, 1})) is None
