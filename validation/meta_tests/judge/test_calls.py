"""How cases call their candidate, and the call with parameters that require grad."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import fused_ops
import reference_ops
from validation.cases.case import Case
from validation.cases.errors import good_case
from validation.device import select
from validation.executor import InProcess, Isolated, load
from validation.judge.calls import Call, described
from validation.judge.signature import signature_of
from validation.ops import load_op_set, op_set_from, reference_op_names
from validation.parity.one_case import judge_case
from validation.parity.refusals import grad_record
from validation.record import Level, Record
from validation.verdict import Status

OP = "scale_shift"


def a_case(seed: int, **flags: Any) -> Case:
    good = good_case(signature_of(OP))
    return Case(OP, good.tensors, {"scale_constant": 1.0, "casting_mode": "float32"} | flags, "normal", seed)


def seed_of(*, by_position: bool, defaults_left_out: bool) -> int:
    wanted = Call(OP, by_position, defaults_left_out)
    return next(seed for seed in range(100) if Call.of(a_case(seed)) == wanted)


def test_each_form_gets_its_share_and_a_case_keeps_its_own() -> None:
    forms = Counter(Call.of(a_case(seed)) for seed in range(400))
    assert len(forms) == 4
    assert min(forms.values()) > 70
    assert Call.of(Case.from_json(a_case(5).to_json())) == Call.of(a_case(5))


@pytest.mark.parametrize(
    ("by_position", "defaults_left_out", "text"),
    [
        (False, False, "scale_shift(scale_constant=1.0, casting_mode='float32', x=x, shift=shift, scale=scale)"),
        (False, True, "scale_shift(x=x, shift=shift, scale=scale)"),
        (True, False, "scale_shift(x, shift, scale, 1.0, casting_mode='float32')"),
        (True, True, "scale_shift(x, shift, scale)"),
    ],
)
def test_a_call_in_words(by_position: bool, defaults_left_out: bool, text: str) -> None:
    seed = seed_of(by_position=by_position, defaults_left_out=defaults_left_out)
    call, _, arguments = described(a_case(seed)).partition("(")
    expected, _, wanted = text.partition("(")
    assert call == expected
    assert sorted(arguments[:-1].split(", ")) == sorted(wanted[:-1].split(", "))


def test_what_is_absent_before_what_is_given_is_passed_as_its_default() -> None:
    args, kwargs = Call("layer_norm", True, False).split({"x": 1, "bias": 2, "eps": 1e-6})
    assert (args, kwargs) == ([1, None, 2, 1e-6], {})
    # An argument that differs from its default is never left out.
    args, kwargs = Call("rms_norm", True, True).split({"x": 1, "eps": 1e-5, "casting_mode": "input"})
    assert (args, kwargs) == ([1, None, 1e-5], {"casting_mode": "input"})


def test_a_signature_that_does_not_take_the_call_is_said_so() -> None:
    def keywords_alone(*, x: Tensor, shift: Any, scale: Any, scale_constant: float = 1.0, **_: Any) -> Tensor:
        y: Tensor = reference_ops.scale_shift(x, shift, scale, scale_constant)
        return y

    def named_otherwise(x: Tensor, bias: Any, factor: Any, *_: Any, **__: Any) -> Tensor:
        y: Tensor = reference_ops.scale_shift(x, bias, factor)
        return y

    def judged(candidate: Any, **form: bool) -> Record:
        return judge_case(
            a_case(seed_of(**form)), InProcess(op_set_from({OP: candidate}, "mine", "mine.py"), select(gpu=False))
        )

    assert judged(keywords_alone, by_position=False, defaults_left_out=True).status is Status.PASSED
    record = judged(keywords_alone, by_position=True, defaults_left_out=True)
    assert record.status is Status.RUNTIME_ERROR
    assert record.reason == (
        "raised TypeError: scale_shift(x, shift, scale): too many positional arguments; expected the signature "
        "scale_shift(x, shift, scale, scale_constant=1.0, *, casting_mode='float32')"
    )
    assert judged(named_otherwise, by_position=True, defaults_left_out=True).status is Status.PASSED
    record = judged(named_otherwise, by_position=False, defaults_left_out=True)
    assert "missing a required argument: 'bias'" in record.reason


def test_a_failure_says_how_it_was_called() -> None:
    def swapped(x: Tensor, scale: Any, shift: Any, scale_constant: float = 1.0, *, casting_mode: str = "") -> Tensor:
        del casting_mode
        y: Tensor = reference_ops.scale_shift(x, shift, scale, scale_constant)
        return y

    seed = seed_of(by_position=True, defaults_left_out=True)
    ops = op_set_from({OP: swapped}, "mine", "mine.py")
    record = judge_case(a_case(seed), InProcess(ops, select(gpu=False)))
    assert record.status is Status.INCORRECT_NUMERICAL
    assert "called: scale_shift(x, shift, scale)" in record.message.splitlines()
    by_keyword = seed_of(by_position=False, defaults_left_out=True)
    assert judge_case(a_case(by_keyword), InProcess(ops, select(gpu=False))).status is Status.PASSED


@pytest.mark.parametrize("op", reference_op_names())
def test_our_ops_take_parameters_without_grad_mode(op: str) -> None:
    for ops in (reference_ops, fused_ops):
        record = grad_record(op, InProcess(load_op_set(ops.__name__), select(gpu=False)))
        assert (record.status, record.level) == (Status.PASSED, Level.RUN), record.message


REFUSES = """
import reference_ops

def rms_norm(x, weight=None, *args, **kwargs):
    if weight is not None and weight.requires_grad:
        raise NotImplementedError("weight requires grad")
    return reference_ops.rms_norm(x, weight, *args, **kwargs)
"""


def test_parameters_refused_without_grad_mode_fail(tmp_path: Path) -> None:
    path = tmp_path / "refuses.py"
    path.write_text(REFUSES)
    here, there = (load(str(path), select(gpu=False), isolate=isolate) for isolate in (False, True))
    assert isinstance(there, Isolated)
    for executor in (here, there):
        record = grad_record("rms_norm", executor)
        assert record.status is Status.RUNTIME_ERROR
        assert "tensors that require grad: raised NotImplementedError: weight requires grad" in record.message
    there.close()
