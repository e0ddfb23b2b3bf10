"""What cases should give, remembered among candidates: equal to what is computed anew, and nobody's to spoil."""

from typing import Any

import pytest
from torch import Tensor

import reference_ops
from validation.cases.case import Case
from validation.cases.errors import good_case
from validation.judge import remembered
from validation.judge.expected import absent, expect
from validation.judge.signature import signature_of
from validation.judge.verdict import judge_call
from validation.ops import reference_op_names
from validation.verdict import Status


def _calls(monkeypatch: Any) -> list[Case]:
    calls: list[Case] = []

    def counted(case: Case, *rest: Any) -> Any:
        calls.append(case)
        return expect(case, *rest)

    monkeypatch.setattr(remembered, "expect", counted)
    monkeypatch.setattr(remembered, "_memory", remembered._Memory())
    return calls


def test_it_is_computed_once_and_only_where_it_is_asked_for(monkeypatch: Any) -> None:
    calls, case = _calls(monkeypatch), good_case(signature_of("rms_norm"))
    with remembered.remembering():
        for _ in range(3):
            assert judge_call(case, reference_ops.rms_norm, "cpu").status is Status.PASSED
        assert len(calls) == 1
    judge_call(case, reference_ops.rms_norm, "cpu")
    judge_call(case, reference_ops.rms_norm, "cpu")
    assert len(calls) == 3


@pytest.mark.parametrize("op", ["rms_norm", "scale_residual_layer_norm_scale_shift"])
def test_a_candidate_that_writes_to_its_arguments_spoils_nothing_for_the_next(op: str, monkeypatch: Any) -> None:
    """A chained op's truth is computed after the call, from arguments that are kept; the baseline's bits are not."""
    _calls(monkeypatch)
    reference = getattr(reference_ops, op)

    def writes(**kwargs: Any) -> Any:
        for tensor in (a for a in kwargs.values() if isinstance(a, Tensor)):
            tensor.fill_(7.0)
        return reference(**kwargs)

    def in_float64(**kwargs: Any) -> Any:
        result = reference(**{n: a.double() if isinstance(a, Tensor) else a for n, a in kwargs.items()})
        return tuple(t.float() for t in result) if isinstance(result, tuple) else result.float()

    case = good_case(signature_of(op))
    with remembered.remembering():
        assert judge_call(case, writes, "cpu").status is Status.INPUT_MODIFIED
        closer = judge_call(case, in_float64, "cpu")
    assert closer.status is Status.PASSED, closer.reason
    assert closer.tier != "bit-exact"


def test_absent_arguments_come_in_the_order_of_the_signature() -> None:
    """In that of a set they followed the process's hashes, and so did messages."""
    for op in reference_op_names():
        case = good_case(signature_of(op))
        names = list(absent(case, {}))
        assert names == [name for name in signature_of(op).names if name in names], op
