"""A second call: forbidden changes are found, and allowed ones are not flagged."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fused_ops
import reference_ops
from validation.adapters import torch_native
from validation.cases.case import Case, TensorSpec
from validation.cases.pool import draw_cases
from validation.cases.strategies import cases
from validation.judge import same_bits
from validation.judge.second_calls import FirstCall
from validation.judge.signature import signature_of
from validation.judge.verdict import judge_call
from validation.ops import reference_op_names
from validation.verdict import Status, Verdict

OP = "layer_norm_scale_shift"


def spec(name: str, shape: tuple[int, ...], dtype: str = "float32", offset: int = 0, step: int = 1) -> TensorSpec:
    strides: list[int] = []
    run = step
    for size in reversed(shape):
        strides.insert(0, run)
        run *= size
    return TensorSpec(shape, dtype, tuple(strides), offset, name)


def a_case(seed: int, *, shift: tuple[int, ...] = (2, 3, 1, 32), step: int = 1, dtype: str = "float32") -> Case:
    tensors = {"x": spec("x", (2, 12, 32), dtype, step=step), "shift": spec("shift", shift)}
    tensors |= {"scale.table": spec("scale.table", (2, 4, 32)), "scale.index": spec("scale.index", (2, 12), "int64")}
    return Case(OP, tensors, {"eps": 1e-6, "casting_mode": "float32"}, "normal", seed)


def case_with(check: str, **changes: Any) -> Case:
    """A case to which ``check`` applies."""
    return next(case for seed in range(1000) if check in same_bits.due(case := a_case(seed, **changes), "cpu"))


def judged(check: str, candidate: Callable[..., Any], **changes: Any) -> Verdict:
    return judge_call(case_with(check, **changes), candidate, "cpu")


def right(**k: Any) -> Tensor:
    y: Tensor = fused_ops.layer_norm_scale_shift(**k)
    return y


def one_ulp_up(y: Tensor) -> Tensor:
    """The tensor with other bits, within any budget."""
    return torch.nextafter(y, torch.tensor(math.inf))


def test_what_depends_on_an_earlier_call() -> None:
    calls: list[int] = []

    def counts(**k: Any) -> Tensor:
        calls.append(1)
        return one_ulp_up(right(**k)) if len(calls) > 1 else right(**k)

    judgement = judged("repeat", counts)
    assert (judgement.status, judgement.check) == (Status.NOT_REPRODUCIBLE, "repeat")
    assert judgement.reason.startswith("repeat: a second call gives other bits: 768 of 768 elements differ")


def test_what_differs_from_run_to_run() -> None:
    noise = torch.Generator().manual_seed(0)

    def atomics(**k: Any) -> Tensor:
        y = right(**k)
        return torch.where(torch.rand(y.shape, generator=noise) < 0.01, one_ulp_up(y), y)

    assert judged("repeat", atomics).check == "repeat"


def test_what_hands_out_one_buffer_twice() -> None:
    buffers: dict[tuple[int, ...], Tensor] = {}

    def keeps_its_output(**k: Any) -> Tensor:
        y = buffers.setdefault(k["x"].shape, torch.empty(k["x"].shape))
        y.copy_(right(**k) if not y.isfinite().all() else one_ulp_up(y))
        return y

    assert judged("repeat", keeps_its_output).check == "repeat"


def test_what_raises_the_second_time() -> None:
    calls: list[int] = []

    def once(**k: Any) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("workspace in use")
        return right(**k)

    judgement = judged("repeat", once)
    assert (judgement.status, judgement.check) == (Status.NOT_REPRODUCIBLE, "repeat")
    assert "workspace in use" in judgement.reason


def test_what_depends_on_the_batch_size() -> None:
    def splits_differently(**k: Any) -> Tensor:
        return one_ulp_up(right(**k)) if k["x"].shape[0] > 1 else right(**k)

    judgement = judged("batch slice", splits_differently)
    assert (judgement.status, judgement.check) == (Status.NOT_REPRODUCIBLE, "batch slice")


def test_what_depends_on_where_a_row_stands() -> None:
    def first_row_of_a_tile(**k: Any) -> Tensor:
        y = right(**k)
        y[0, 0] = one_ulp_up(y[0, 0])
        return y

    judgement = judged("row permutation", first_row_of_a_tile)
    assert (judgement.status, judgement.check) == (Status.NOT_REPRODUCIBLE, "row permutation")
    # Without frames the tokens have another permutation.
    assert judged("row permutation", first_row_of_a_tile, shift=(32,)).check == "row permutation"


def test_what_is_kept_under_an_address() -> None:
    kept: dict[int, Tensor] = {}

    def caches_by_data_ptr(**k: Any) -> Tensor:
        x: Tensor = k["x"]
        mean = kept.setdefault(x.data_ptr(), x.mean(-1, keepdim=True))
        return right(**{**k, "x": x - mean})

    judgement = judged("row permutation", caches_by_data_ptr)
    assert (judgement.status, judgement.check) == (Status.NOT_REPRODUCIBLE, "row permutation")


def test_another_layout_is_held_to_the_bits_of_kernels_and_to_the_budget_elsewhere() -> None:
    case = case_with("layout", step=2)

    def torch_road(**k: Any) -> Tensor:
        # Other arithmetic for strided x, as in torch.mean: here float64.
        if k["x"].stride(-1) == 1:
            return right(**k)
        y: Tensor = reference_ops.layer_norm_scale_shift(**{name: _double(value) for name, value in k.items()})
        return y.float()

    def kernel_road(**k: Any) -> Tensor:
        y = right(**k)
        if k["x"].stride(-1) == 1:
            return y
        one_ulp: Tensor = fused_ops.scale_shift(y, torch.tensor(0.0), torch.tensor(1.2e-7))
        return one_ulp

    assert judge_call(case, torch_road, "cpu").status is Status.PASSED
    judgement = judge_call(case, kernel_road, "cpu")
    assert (judgement.status, judgement.check) == (Status.NOT_REPRODUCIBLE, "layout")


def _double(m: Any) -> Any:
    if hasattr(m, "table"):
        return reference_ops.IndexedRows(m.table.double(), m.index)
    return m.double() if isinstance(m, Tensor) else m


def test_an_eps_that_is_not_scaled_with_the_input() -> None:
    def own_eps(**k: Any) -> Tensor:
        return right(**{**k, "eps": 1e-6})

    judgement = judged("power of two", own_eps)
    assert (judgement.status, judgement.check) == (Status.NOT_REPRODUCIBLE, "power of two")


def test_code_compiled_anew_for_another_eps_may_round_otherwise_within_the_budget() -> None:
    def compiled(ulps: int) -> Callable[..., Tensor]:
        def call(**k: Any) -> Tensor:
            torch.exp(k["x"])  # one of several correct results, as from compiled code
            y: Tensor = reference_ops.layer_norm_scale_shift(**k)
            for _ in range(ulps if k["eps"] != 1e-6 else 0):
                y = one_ulp_up(y)
            return y

        return call

    assert judged("power of two", compiled(1)).status is Status.PASSED
    judgement = judged("power of two", compiled(200))
    assert (judgement.status, judgement.check) == (Status.NOT_REPRODUCIBLE, "power of two")


def gated_case(check: str) -> Case:
    def case(seed: int) -> Case:
        tensors = {name: spec(name, (2, 5, 16), "bfloat16") for name in ("residual", "x")}
        return Case(
            "residual_gate_add",
            {**tensors, "gate": spec("gate", (2, 16))},
            {"casting_mode": "float32"},
            "normal",
            seed,
        )

    return next(case(seed) for seed in range(1000) if check in same_bits.due(case(seed), "cpu"))


def test_a_gate_of_zero_returns_the_residual() -> None:
    def zero_means_no_gate(residual: Tensor, x: Tensor, gate: Tensor, casting_mode: str) -> Tensor:
        gate = torch.ones(()) if not gate.any() else gate
        y: Tensor = fused_ops.residual_gate_add(residual, x, gate, casting_mode=casting_mode)
        return y

    judgement = judge_call(gated_case("zero gate"), zero_means_no_gate, "cpu")
    assert (judgement.status, judgement.check) == (Status.INCORRECT_NUMERICAL, "zero gate")


def test_no_modulation_is_the_plain_norm() -> None:
    def shortcut(**k: Any) -> Tensor:
        return k["x"].clone() if isinstance(k["scale"], Tensor) and not k["scale"].any() else right(**k)

    judgement = judged("zero modulation", shortcut)
    assert (judgement.status, judgement.check) == (Status.INCORRECT_NUMERICAL, "zero modulation")


def test_flags_kept_from_the_call_before() -> None:
    kept: dict[Any, str] = {}

    def by_shape(**k: Any) -> Tensor:
        return right(**{**k, "casting_mode": kept.setdefault(k["x"].shape, k["casting_mode"])})

    case = case_with("other flags", dtype="float16")
    judgement = judge_call(dataclasses.replace(case, flags={**case.flags, "casting_mode": "input"}), by_shape, "cpu")
    assert (judgement.status, judgement.check) == (Status.INCORRECT_NUMERICAL, "other flags")
    assert "called next with casting_mode='float32'" in judgement.reason


def test_every_check_is_reached_and_every_small_case_gets_one() -> None:
    reached = {check for seed in range(200) for check in same_bits.due(a_case(seed), "cpu")}
    reached |= set(same_bits.due(gated_case("zero gate"), "cpu"))
    assert reached == set(same_bits.CHECKS) - {"side stream", "graph replay"}
    assert all(len(same_bits.due(a_case(seed), "cpu")) == 1 for seed in range(50))
    on_cuda = {check for seed in range(400) for check in same_bits.due(a_case(seed), "cuda")}
    assert {"side stream", "graph replay"} <= on_cuda


def test_no_graph_is_captured_where_pytorch_allocates_without_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    on_cuda = {check for seed in range(400) for check in same_bits.due(a_case(seed), "cuda")}
    assert "side stream" in on_cuda
    assert "graph replay" not in on_cuda
    assert all(same_bits.due(a_case(seed), "cuda") for seed in range(50))


def every_check(first: FirstCall) -> Iterator[tuple[str, Any]]:
    for name, check in same_bits.CHECKS.items():
        if same_bits.applies(name, first.case, "cpu"):
            yield name, check(first)


@pytest.mark.parametrize("op", reference_op_names())
def test_no_alarm_on_what_is_right(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # All checks on every case, not the share of them that a run makes.
    alarms: list[tuple[str, str, Any]] = []
    drawn = draw_cases(cases(signature_of(op)), seed=6, count=15)

    def all_of_them(first: FirstCall, _checks: object = None) -> None:
        alarms.extend((first.case.to_json(), name, words) for name, words in every_check(first) if words)

    monkeypatch.setattr(same_bits, "failure", all_of_them)
    for case in drawn:
        if case.tensors["x" if "x" in case.tensors else "q"].numel:
            for ops in (reference_ops, fused_ops, torch_native):
                assert judge_call(case, getattr(ops, op), "cpu").status is Status.PASSED
    assert alarms == []
