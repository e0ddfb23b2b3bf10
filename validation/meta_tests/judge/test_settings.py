"""A second call under other settings: the one that an op heeds is named, and what PyTorch does too is no failure."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fused_ops
import reference_ops
from validation.cases.case import Case, TensorSpec
from validation.judge import same_bits
from validation.judge.verdict import judge_call
from validation.verdict import Status, Verdict

OP = "layer_norm"
RIGHT = reference_ops.layer_norm
FIRST = threading.get_ident()


def a_case(seed: int) -> Case:
    return Case(OP, {"x": TensorSpec((4, 32), "float32", (32, 1), 0, "x")}, {"eps": 1e-6}, "normal", seed)


def judged(candidate: Callable[..., Any], dtype: int = 0) -> Verdict:
    """The verdict on a case that is called again under other settings; the seed's parity chooses the default dtype."""
    seeds = (case for case in map(a_case, range(dtype, 1000, 2)) if same_bits.due(case, "cpu") == ("other settings",))
    return judge_call(next(seeds), candidate, "cpu")


def heeding(setting: Callable[[], bool]) -> Callable[..., Tensor]:
    """An op that is right, but an ulp off where a setting holds."""

    def op(*args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = fused_ops.layer_norm(*args, **kwargs)
        return torch.nextafter(y, torch.full_like(y, torch.inf)) if setting() else y

    return op


@pytest.mark.parametrize(
    ("setting", "dtype", "says"),
    [
        (
            lambda: torch.get_default_dtype() is torch.float64,
            0,
            "with float64 as the default dtype it gives other bits",
        ),
        (lambda: torch.get_default_dtype() is torch.bfloat16, 1, "with bfloat16 as the default dtype it gives other"),
        (torch.is_inference_mode_enabled, 0, "in inference mode it gives other bits"),
        (lambda: torch.is_autocast_enabled("cpu"), 0, "under autocast it gives other bits"),
        (lambda: threading.get_ident() != FIRST, 0, "in another thread it gives other bits"),
        (
            lambda: torch.is_autocast_enabled("cpu") and torch.is_inference_mode_enabled(),
            0,
            "all at once (with float64 as the default dtype, with deterministic algorithms, in inference mode, under a",
        ),
    ],
)
def test_the_setting_that_an_op_heeds_is_named(setting: Callable[[], bool], dtype: int, says: str) -> None:
    verdict = judged(heeding(setting), dtype)
    assert (verdict.status, verdict.check) == (Status.NOT_REPRODUCIBLE, "other settings")
    assert verdict.reason.startswith(f"other settings: called under other settings of the process: {says}")


@pytest.mark.parametrize(("change", "status"), [(2.0**-22, Status.PASSED), (2.0**-9, Status.NOT_REPRODUCIBLE)])
def test_deterministic_algorithms_may_be_others_within_the_budget(change: float, status: Status) -> None:
    def op(*args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = fused_ops.layer_norm(*args, **kwargs)
        return y * (1 + change) if torch.are_deterministic_algorithms_enabled() else y

    verdict = judged(op)
    assert verdict.status == status, verdict.reason
    if status.failed:
        assert "process: with deterministic algorithms it gives other bits: 128 of 128" in verdict.reason


def test_what_raises_there_is_named_too() -> None:
    def reads_the_version_counter(x: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        assert x._version >= 0
        y: Tensor = fused_ops.layer_norm(x, *rest, **kwargs)
        return y

    verdict = judged(reads_the_version_counter)
    assert "in inference mode it raised RuntimeError: Inference tensors do not track version counter" in verdict.reason


def test_what_is_right_passes() -> None:
    for dtype in (0, 1):
        assert judged(fused_ops.layer_norm, dtype).status is Status.PASSED


def test_where_the_reference_op_changes_its_bits_too_the_budget_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    def like_torch_on_cuda(*args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = RIGHT(*args, **kwargs)
        return torch.nextafter(y, torch.full_like(y, torch.inf)) if torch.is_autocast_enabled("cpu") else y

    def rounded(*args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = fused_ops.layer_norm(*args, **kwargs)
        return y.bfloat16().float() if torch.is_autocast_enabled("cpu") else y

    monkeypatch.setattr(reference_ops, OP, like_torch_on_cuda)
    assert judged(heeding(lambda: torch.is_autocast_enabled("cpu"))).status is Status.PASSED
    assert judged(rounded).status is Status.NOT_REPRODUCIBLE
