"""Correct ops are not flagged, in small numbers of cases; ``python -m validation.controls`` runs large ones."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from validation import controls
from validation.adapters import torch_compile, torch_native
from validation.cases.case import Case, TensorSpec
from validation.cases.pool import draw_cases
from validation.cases.strategies import cases
from validation.chains.arithmetic import ARITHMETIC, Arithmetic
from validation.controls.__main__ import judge_control, main
from validation.device import select
from validation.errors import UsageError
from validation.executor import InProcess
from validation.judge.signature import signature_of
from validation.ops import OpSet, load_op_set, reference_op_names
from validation.parity.one_case import judge_case
from validation.parity.refusals import bad_input_record
from validation.record import Record
from validation.verdict import Status

CHEAP = [name for name in controls.NAMES if name not in ("fused", "torch_compile")]
NORM = "layer_norm_scale_shift"


@pytest.mark.parametrize("name", CHEAP)
def test_a_control_is_never_flagged(name: str) -> None:
    device, ops = select(gpu=False), controls.op_set(name)
    assert not ops.missing
    for op in reference_op_names():
        # Each control has its own seed, so that together they see many cases.
        drawn = draw_cases(cases(signature_of(op)), seed=CHEAP.index(name), count=10)
        records = [judge_case(case, InProcess(ops, device)) for case in drawn]
        assert [record.message for record in records if record.status.failed] == []


def _failures(function: object, op: str) -> set[Status]:
    ops = OpSet("wrong", {op: function}, "wrong")  # type: ignore[dict-item]
    return {r.status for r in judge_control(op, ops, select(gpu=False), cases=1, seed=0) if r.status.failed}


class _OnePass(Arithmetic):
    def moments(self, x: Tensor, *, centred: bool) -> tuple[Tensor, Tensor]:
        mean = self.sum(x) / x.shape[-1] * centred
        return x - mean, self.sum(x * x) / x.shape[-1] - mean * mean


def test_a_control_with_a_fault_is_flagged() -> None:
    assert Status.INCORRECT_NUMERICAL in _failures(getattr(_OnePass(), NORM), NORM)


def test_controls_refuse_bad_input_and_what_lacks_the_checks_does_not() -> None:
    device = select(gpu=False)
    for op in reference_op_names():
        assert bad_input_record(op, InProcess(controls.op_set("torch_native"), device)).status is Status.PASSED
    bare = load_op_set("validation.adapters.torch_native")
    assert bad_input_record(NORM, InProcess(bare, device)).status is Status.BAD_INPUT_ACCEPTED


def _case(op: str, dtype: str, shapes: dict[str, tuple[int, ...]]) -> Case:
    def spec(name: str, shape: tuple[int, ...]) -> dict[str, object]:
        strides = list(torch.empty(shape, device="meta").stride())
        return {"shape": list(shape), "dtype": dtype, "strides": strides, "offset": 0, "storage": name}

    tensors = {name: spec(name, shape) for name, shape in shapes.items()}
    return Case.from_dict({"op": op, "tensors": tensors, "flags": {}, "values": "normal", "seed": 0})


@pytest.fixture(scope="module")
def chained_case() -> Iterator[Case]:
    rows: dict[str, tuple[int, ...]] = dict.fromkeys(("residual", "x"), (1, 5, 64))
    rows |= dict.fromkeys(("shift", "scale", "gate"), (64,))
    yield _case("scale_residual_rms_norm_scale_shift", "bfloat16", rows)
    torch.compiler.reset()


def _judged(function: object, case: Case) -> Record:
    return judge_case(case, InProcess(OpSet("compiled", {case.op: function}, "compiled"), select(gpu=False)))  # type: ignore[dict-item]


def test_compiled_ops_pass_and_the_rounding_that_inductor_drops_is_seen(chained_case: Case) -> None:
    ops = controls.op_set("torch_compile")
    assert not ops.missing
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert judge_case(chained_case, InProcess(ops, select(gpu=False))).status is Status.PASSED
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs, "nothing was compiled"
    loose = torch_compile.compiled(getattr(torch_native, chained_case.op), emulate_precision_casts=False)
    record = _judged(loose, chained_case)
    assert record.status is Status.INCORRECT_NUMERICAL
    assert "at y[" in record.reason, "residual_out is right; y is the norm of another number"


def test_the_chain_in_which_inductor_sums_a_strided_row_is_seen() -> None:
    tensors = {
        "x": TensorSpec((2, 9, 1024), "bfloat16", (18432, 2048, 2), 0, "x"),
        "weight": TensorSpec((1024,), "float16", (1,), 0, "weight"),
    }
    flags = {"eps": 1e-6, "casting_mode": "float32"}
    case = Case("rms_norm", tensors, flags, "near_max", 1200522)
    record = _judged(vars(torch_compile)["rms_norm"], case)
    assert record.status is Status.INCORRECT_NUMERICAL
    assert "3 of 18432 elements exceed their budget" in record.message
    assert judge_case(case, InProcess(controls.op_set("torch_compile"), select(gpu=False))).status is Status.PASSED


@pytest.mark.parametrize("op", ["qk_norm", "rotary_embedding"])
def test_the_compiled_control_works_in_place_on_strided_rows(op: str) -> None:
    forced = {"inplace": True, "qk.layout": "own", "q.layout": "strided_last", "x.layout": "strided_last"}
    forced |= {"size": "frames", "heads": 2, "values": "normal", "k.shape": "same", "dtype": "float32"}
    (case,) = draw_cases(cases(signature_of(op), forced), seed=0, count=1)
    assert judge_case(case, InProcess(controls.op_set("torch_compile"), select(gpu=False))).status is Status.PASSED


def test_what_cannot_be_compiled_is_not_run_uncompiled(chained_case: Case) -> None:
    def breaks_the_graph(residual: Tensor, **_: Tensor) -> tuple[Tensor, Tensor]:
        torch._dynamo.graph_break()
        return residual, residual

    record = _judged(torch_compile.compiled(breaks_the_graph), chained_case)
    assert record.status is Status.RUNTIME_ERROR


def test_a_sweep_makes_more_graphs_than_dynamo_allows_by_default() -> None:
    """`accumulated_recompile_limit` is 256, reached after 373 cases of a control."""
    add = torch_compile.compiled(torch.add)
    with torch._dynamo.config.patch(recompile_limit=1, accumulated_recompile_limit=2):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            two = torch.full((3,), 2, dtype=dtype)
            assert torch.equal(add(two, two), two * 2)
    torch.compiler.reset()


def test_an_unknown_control_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"unknown control 'chunky', expected one of: .*chunked"):
        controls.op_set("chunky")
    assert load_op_set("validation.controls:chunked").name == "control:chunked"


def test_the_command_prints_a_line_an_op_and_counts_alarms(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--cases", "1", "--op", "layer_norm", "--seed", "3"]
    assert main(["fma", *arguments]) == 0
    out = capsys.readouterr().out
    assert "seed 3" in out
    assert "0 alarms" in out
    monkeypatch.setitem(ARITHMETIC, "fma", _OnePass)
    assert main(["fma", *arguments]) == 1
    assert "INCORRECT_NUMERICAL" in capsys.readouterr().out
    assert main(["fma", "--cases", "0"]) == 2
    assert main(["fma", "--op", "softmax"]) == 2
    assert main(["chunky"]) == 2
