"""A reference op that raises is told as such, and never against the candidate."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import reference_ops
from validation import cli
from validation.cases.case import Case, TensorSpec
from validation.device import select
from validation.executor import InProcess, Isolated, load
from validation.ops import load_op_set
from validation.parity.one_case import judge_case
from validation.verdict import Status

OP = "residual_gate_add"


def a_case(width: int) -> Case:
    tensors = {
        name: TensorSpec((2, 3, width), "float32", (3 * width, width, 1), 0, name) for name in ("residual", "x", "gate")
    }
    return Case(OP, tensors, {"casting_mode": "float32"}, "normal", 7)


def raising_at(width: int, op: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(op)
    def broken(*args: Any, **kwargs: Any) -> Any:
        if (args[0] if args else kwargs["x"]).shape[-1] == width:
            raise IndexError("no such row")
        return op(*args, **kwargs)

    return broken


def test_it_is_the_references_error(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = InProcess(load_op_set("fused_ops"), select(gpu=False))
    monkeypatch.setattr(reference_ops, OP, raising_at(5, reference_ops.residual_gate_add))
    record = judge_case(a_case(5), executor)
    assert (record.status, record.check) == (Status.REFERENCE_ERROR, "reference")
    assert record.status.failed
    assert record.reason.startswith("the reference op raised IndexError: no such row, in ")
    assert judge_case(a_case(4), executor).status is Status.PASSED


def test_so_it_is_where_the_truth_of_one_output_is_computed_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    op, inner = "scale_residual_rms_norm_scale_shift", "rms_norm_scale_shift"
    (case,) = _cases(op)
    executor = InProcess(load_op_set("fused_ops"), select(gpu=False))
    assert judge_case(case, executor).status is Status.PASSED

    def raises(*_: Any, **__: Any) -> None:
        raise IndexError("no such row")

    monkeypatch.setattr(reference_ops, inner, raises)
    assert judge_case(case, executor).status is Status.REFERENCE_ERROR


def _cases(op: str) -> Iterator[Case]:
    from validation.cases.errors import good_case
    from validation.judge.signature import signature_of

    yield good_case(signature_of(op))


# Imported, it breaks the reference for rows of 5; called with rows of 6, for all rows from then on.
BREAKS = """
import functools

import reference_ops

right = reference_ops.residual_gate_add


def residual_gate_add(residual, x, gate, *, casting_mode="float32"):
    if x.shape[-1] == 6:
        reference_ops.residual_gate_add = None
    return right(residual, x, gate, casting_mode=casting_mode)


@functools.wraps(right)
def broken(residual, x, gate, **flags):
    if x.shape[-1] == 5:
        raise IndexError("no such row")
    return right(residual, x, gate, **flags)


reference_ops.residual_gate_add = broken
"""


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Isolated]:
    monkeypatch.setattr(reference_ops, OP, reference_ops.residual_gate_add)  # put back after the test
    (tmp_path / "breaks.py").write_text(BREAKS)
    executor = load(str(tmp_path / "breaks.py"), select(gpu=False))
    assert isinstance(executor, Isolated)
    yield executor
    executor.close()


def test_in_a_process_of_its_own_too_and_at_no_cost_to_the_candidate(executor: Isolated) -> None:
    assert judge_case(a_case(4), executor).status is Status.PASSED
    for _ in range(2):
        record = judge_case(a_case(5), executor)
        assert record.status is Status.REFERENCE_ERROR
        assert "IndexError: no such row" in record.reason
    assert executor.deaths == 0
    assert judge_case(a_case(4), executor).status is Status.PASSED


def test_a_candidate_that_breaks_the_reference_is_not_excused(executor: Isolated) -> None:
    """The next case is judged in a new process, where the reference is whole."""
    judge_case(a_case(6), executor)
    assert judge_case(a_case(4), executor).status is Status.PASSED


def test_the_exit_status_is_that_of_a_failure() -> None:
    assert cli.exit_status([Status.PASSED, Status.REFERENCE_ERROR]) == cli.FAILED
