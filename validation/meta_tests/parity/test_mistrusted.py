"""Cases whose outputs tell little count for nothing, and an op of which too little was judged has not passed."""

import dataclasses

import pytest
import torch
from torch import Tensor

import reference_ops
from validation.cases import strategies
from validation.cases.pool import draw_cases
from validation.device import select
from validation.executor import InProcess
from validation.judge.signature import signature_of
from validation.ops import Op, OpSet
from validation.parity.one_case import judge_case
from validation.parity.summary import FEWEST_CASES, summary
from validation.record import Record
from validation.report.summary import headline
from validation.verdict import Status

OP = "scale_shift"


def judged(function: Op, values: str, count: int = 3) -> list[Record]:
    """The records of cases of one value regime, all with elements."""
    executor = InProcess(OpSet("one", {OP: function}, "one"), select(gpu=False))
    forced = {"values": values, "size": "frames", "literals": False}
    cases = draw_cases(strategies.cases(signature_of(OP), forced), seed=1, count=count)
    return [judge_case(case, executor) for case in cases]


def zeros(x: Tensor, *_: object, **__: object) -> Tensor:
    return torch.zeros_like(x, memory_format=torch.contiguous_format)


def test_what_a_wrong_op_gets_right_too_counts_for_nothing() -> None:
    # Scale and shift are 0, and scale_constant too in some cases: y is x or 0.
    for record in judged(zeros, "zero_modulation", 12):
        assert record.status in (Status.MISTRUSTED, Status.INCORRECT_NUMERICAL, Status.INCORRECT_NONFINITE)
        assert record.tier is None
    right = judged(reference_ops.scale_shift, "zero_modulation", 12)
    told = [record for record in right if record.status is Status.MISTRUSTED]
    assert told
    assert "0 % of the elements tell something" in told[0].reason
    assert not told[0].status.failed


def test_ordinary_cases_count() -> None:
    assert {record.status for record in judged(reference_ops.scale_shift, "normal")} == {Status.PASSED}


@pytest.mark.parametrize(
    ("passed", "others", "status"),
    [
        (FEWEST_CASES, [], Status.PASSED),
        (FEWEST_CASES - 1, [], Status.INCONCLUSIVE),
        (FEWEST_CASES - 1, [Status.MISTRUSTED] * 50, Status.INCONCLUSIVE),
        (FEWEST_CASES, [Status.NOT_EXPRESSED] * FEWEST_CASES, Status.PASSED),
        (FEWEST_CASES, [Status.NOT_EXPRESSED] * (FEWEST_CASES + 1), Status.INCONCLUSIVE),
    ],
)
def test_an_op_of_which_too_little_was_judged_has_not_passed(passed: int, others: list[Status], status: Status) -> None:
    (one,) = judged(reference_ops.scale_shift, "normal", 1)
    records = [*[one] * passed, *(dataclasses.replace(one, status=other, tier=None) for other in others)]
    whole = summary(OP, OpSet("one", {OP: reference_ops.scale_shift}, "one"), records, (), None, "validate parity")
    assert whole.status is status
    assert whole.numbers["mistrusted"] == others.count(Status.MISTRUSTED)
    assert ("too little judged" in whole.reason) == (status is Status.INCONCLUSIVE)
    verdict, sentence = headline([*records, whole])
    assert (verdict == "PASSED") == (status is Status.PASSED)
    assert ("50 tell too little to count" in sentence) == (Status.MISTRUSTED in others)
