"""The judge's parts: memory, NaN and inf, the budget, bias, and the words for what is wrong."""

import ctypes
import dataclasses
import math
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import fused_ops
import reference_ops
from validation import cli, controls
from validation.cases.case import Case, TensorSpec
from validation.cases.tensors import materialise
from validation.chains.bounds import bound
from validation.chains.ulp import ulp
from validation.device import Device, select
from validation.errors import UsageError
from validation.executor import InProcess
from validation.judge import structure, where
from validation.judge.stats import Budget, Errors, bias_threshold, independent_samples
from validation.judge.verdict import STAGES, judge_call
from validation.ops import OpSet, load_op_set, op_set_from
from validation.parity import regressions
from validation.parity.one_case import judge_case
from validation.parity.plan import Plan
from validation.parity.profiles import PROFILES
from validation.parity.refusals import bad_input_record, grad_record
from validation.parity.summary import summary
from validation.parity.sweep import Sweep
from validation.verdict import REPORT_ORDER, Status, Verdict

OP = "layer_norm_scale_shift"


def a_case(
    shape: tuple[int, ...] = (2, 3, 16), dtype: str = "float32", values: str = "normal", mode: str = "float32"
) -> Case:
    strides = (shape[1] * (shape[2] + 4), shape[2] + 4, 1)
    row = TensorSpec(shape[2:], dtype, (1,), 0, "shift")
    return Case(
        OP,
        {
            "x": TensorSpec(shape, dtype, strides, 0, "x"),
            "shift": row,
            "scale": TensorSpec(shape[2:], dtype, (1,), 0, "scale"),
        },
        {"eps": 1e-6, "casting_mode": mode},
        values,
        5,
    )


def right(x: Tensor, shift: Tensor, scale: Tensor, **kwargs: Any) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype)
    y.copy_(reference_ops.layer_norm_scale_shift(x, shift, scale, **kwargs))
    return y


def status_of(candidate: Callable[..., Any], case: Case | None = None) -> Status:
    return judge_call(case or a_case(), candidate, "cpu").status


def test_a_right_candidate_passes() -> None:
    judgement = judge_call(a_case(), right, "cpu")
    assert judgement.status is Status.PASSED
    assert judgement.tier == "bit-exact"


def test_structure_verdicts() -> None:
    assert status_of(lambda **_: None) is Status.INCORRECT_STRUCTURE
    assert status_of(lambda **k: (right(**k), right(**k))) is Status.INCORRECT_STRUCTURE
    assert status_of(lambda **k: right(**k).double()) is Status.INCORRECT_DTYPE
    assert status_of(lambda **k: (right(**k),)) is Status.INCORRECT_STRUCTURE
    assert status_of(lambda **k: right(**k)[:1]) is Status.INCORRECT_SHAPE
    assert status_of(lambda **k: right(**k).to("meta")) is Status.INCORRECT_DEVICE

    def raises(**_: Any) -> Tensor:
        raise RuntimeError("no kernel image")

    judgement = judge_call(a_case(), raises, "cpu")
    assert judgement.status is Status.RUNTIME_ERROR
    assert "no kernel image" in judgement.reason


def test_memory_verdicts() -> None:
    def writes_an_input(**k: Any) -> Tensor:
        y = right(**k)
        k["x"][0, 0, 0] += 1
        return y

    def writes_a_hole_of_an_input(**k: Any) -> Tensor:
        y = right(**k)
        x = k["x"]
        x.as_strided((1,), (1,), x.storage_offset() + 17).fill_(1.0)
        return y

    def returns_its_input(**k: Any) -> Tensor:
        x: Tensor = k["x"]
        return x

    def writes_before(**k: Any) -> Tensor:
        y = right(**k)
        y.as_strided((1,), (1,), y.storage_offset() - 3).fill_(1.0)
        return y

    def writes_after(**k: Any) -> Tensor:
        y = right(**k)
        y.as_strided((1,), (1,), y.storage_offset() + y.numel()).fill_(1.0)
        return y

    def leaves_one_out(**k: Any) -> Tensor:
        y, values = torch.empty(k["x"].shape, dtype=k["x"].dtype), right(**k)
        y.view(-1)[:-1] = values.view(-1)[:-1]
        return y

    assert status_of(writes_an_input) is Status.INPUT_MODIFIED
    assert status_of(writes_a_hole_of_an_input) is Status.OUT_OF_BOUNDS_WRITE
    assert status_of(returns_its_input) is Status.OUTPUT_ALIASES_INPUT
    assert status_of(writes_before) is Status.OUT_OF_BOUNDS_WRITE
    assert status_of(writes_after) is Status.OUT_OF_BOUNDS_WRITE
    assert status_of(leaves_one_out) is Status.NOT_WRITTEN


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("of_output", [False, True])
def test_what_is_read_multiplied_and_written_back_outside_shows(dtype: str, of_output: bool) -> None:
    def scales_what_lies_behind(**k: Any) -> Tensor:
        y = right(**k)
        t = y if of_output else k["x"]
        t.as_strided((1,), (1,), t.storage_offset() + t.stride(0) * t.shape[0]).mul_(0.5)
        return y

    judgement = judge_call(a_case(dtype=dtype), scales_what_lies_behind, "cpu")
    assert judgement.status is Status.OUT_OF_BOUNDS_WRITE, judgement


ALLOCATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "empty": lambda x: torch.empty(x.shape, dtype=x.dtype),
    "empty_like": torch.empty_like,
    "empty_permuted": lambda x: torch.empty_permuted(x.shape, (0, 1, 2), dtype=x.dtype),
    "zeros": lambda x: torch.zeros(x.shape, dtype=x.dtype),
    "zeros_like": torch.zeros_like,
    "ones_like": torch.ones_like,
    "full": lambda x: torch.full(x.shape, 2.0, dtype=x.dtype),
    "new_zeros": lambda x: x.new_zeros(x.shape),
    "clone": lambda x: x.clone(),
    "contiguous": lambda x: x.contiguous(),
    "to": lambda x: x.double().to(x.dtype),
}


@pytest.mark.parametrize("name", ALLOCATIONS)
@pytest.mark.parametrize("after", [False, True])
def test_a_write_beside_an_output_shows_however_it_was_allocated(name: str, after: bool) -> None:
    def writes_beside(**k: Any) -> Tensor:
        y = ALLOCATIONS[name](k["x"]).copy_(right(**k))
        size = 1 + sum((n - 1) * stride for n, stride in zip(y.shape, y.stride(), strict=True))
        at = size if after else -1
        ctypes.memset(y.data_ptr() + at * y.element_size(), 0, y.element_size())
        return y

    assert status_of(writes_beside) is Status.OUT_OF_BOUNDS_WRITE


def test_integers_that_nobody_set_are_not_zero() -> None:
    with structure.GuardedAllocations():
        fresh = [torch.empty(3, dtype=dtype) for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32)]
        flags = torch.empty(3, dtype=torch.bool)
    assert all(bool((t != 0).all()) for t in fresh)
    assert bool(flags.all())


def test_a_stray_read_of_a_hole_shows() -> None:
    def reads_rows_as_if_they_were_packed(**k: Any) -> Tensor:
        x = k["x"]
        return right(**{**k, "x": x.as_strided(x.shape, (48, 16, 1), x.storage_offset())})

    judgement = judge_call(a_case(), reads_rows_as_if_they_were_packed, "cpu")
    assert judgement.status is Status.INCORRECT_NONFINITE, judgement


def test_nan_and_inf_must_stay_where_they_are() -> None:
    case = a_case(shape=(4, 16, 32), values="nonfinite")

    def swallows(**k: Any) -> Tensor:
        return right(**k).nan_to_num()

    def spreads(**k: Any) -> Tensor:
        y = right(**k)
        return torch.where(y.isnan().any(-1).any(-1)[:, None, None], math.nan, y)

    assert status_of(right, case) is Status.PASSED
    assert status_of(swallows, case) is Status.INCORRECT_NONFINITE
    assert status_of(spreads, case) is Status.INCORRECT_NONFINITE


def test_a_hidden_float16_overflow_shows() -> None:
    x = TensorSpec((2, 3, 8), "float16", (24, 8, 1), 0, "x")
    scalar = {name: TensorSpec((), "float32", (), 0, name) for name in ("shift", "scale")}
    big = {"shift": (0.0,), "scale": (60000.0,)}
    case = Case(OP, {"x": x, **scalar}, {"eps": 1e-6, "casting_mode": "float32"}, "normal", 2, big)

    def clamps(**k: Any) -> Tensor:
        return right(**k).clamp(-65504, 65504)

    assert bool(right(**materialise(case).kwargs).isinf().any())
    assert status_of(right, case) is Status.PASSED
    assert status_of(clamps, case) is Status.INCORRECT_NONFINITE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_ulp_is_the_spacing_of_the_dtype(dtype: torch.dtype) -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0)).mul(10).exp().to(dtype)
    values = torch.cat([values[values.isfinite()], torch.tensor([1.0, 2.0, 0.5, 0.0, 3e-40], dtype=dtype)])
    bits = values.view(torch.int32 if dtype is torch.float32 else torch.int16)
    above = (bits + 1).view(dtype).double()
    finite = above.isfinite()
    expected = (above - values.double())[finite]
    assert torch.equal(ulp(values.double()[finite], dtype), expected)


def test_the_bound_holds_the_float32_chain_and_is_not_slack() -> None:
    generator = torch.Generator().manual_seed(3)
    worst = []
    for width in (8, 128, 1024, 5120):
        x = 3.0 + torch.randn(4, 8, width, generator=generator)
        shift, scale = torch.randn(2, width, generator=generator)
        arguments = {"x": x, "shift": shift, "scale": scale, "eps": 1e-6, "casting_mode": "float32"}
        truth = reference_ops.layer_norm_scale_shift(x.double(), shift.double(), scale.double())
        error = (reference_ops.layer_norm_scale_shift(x, shift, scale).double() - truth).abs()
        noise = bound(OP, arguments)[0].noise
        worst.append(float((error / noise).max()))
    assert max(worst) < 1.5
    assert min(worst) > 0.05


def test_declared_roundings_are_a_hard_bound() -> None:
    generator = torch.Generator().manual_seed(4)
    x, shift, scale = (torch.randn(4, 64, 256, generator=generator).bfloat16() for _ in range(3))
    arguments = {"x": x, "shift": shift, "scale": scale, "eps": 1e-6, "casting_mode": "input"}
    truth = reference_ops.layer_norm_scale_shift(x.double(), shift.double(), scale.double())
    got = reference_ops.layer_norm_scale_shift(x, shift, scale, casting_mode="input")
    budget = Budget.of(bound(OP, arguments)[0], x.shape, x.dtype, flush=False)
    used = (got.double() - truth).abs() / budget.allowed
    assert 0.5 < float(used.max()) <= 1.0


def test_the_float64_truth_agrees_with_mpmath() -> None:
    rng = np.random.default_rng(0)
    x, shift, scale = rng.normal(30.0, 1.0, 33), rng.normal(size=33), rng.normal(size=33)
    as_tensors = (torch.from_numpy(x).view(1, 1, -1), torch.from_numpy(shift), torch.from_numpy(scale))
    truth = reference_ops.layer_norm_scale_shift(*as_tensors, eps=1e-6)
    with mpmath.workdps(40):
        values = [mpmath.mpf(v) for v in x]
        mean = sum(values) / 33
        variance = sum((v - mean) ** 2 for v in values) / 33
        exact = [
            (v - mean) / mpmath.sqrt(variance + mpmath.mpf(1e-6)) * (1 + mpmath.mpf(s)) + mpmath.mpf(t)
            for v, s, t in zip(values, scale, shift, strict=True)
        ]
    worst = max(abs(float(e) - float(y)) for e, y in zip(exact, truth.flatten(), strict=True))
    assert worst < 1e-13


def test_truncation_has_a_bias_and_rounding_has_none() -> None:
    truth = torch.randn(50_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 3.0
    unit, finite = ulp(truth, torch.bfloat16), torch.ones(50_000, dtype=torch.bool)
    rounded = truth.bfloat16().double()
    truncated = ((truth.float().view(torch.int32) >> 16) << 16).view(torch.float32).double()
    fair = Errors.of(rounded - truth, truth, unit, finite)
    cut = Errors.of(truncated - truth, truth, unit, finite)
    assert abs(fair.magnitude_bias_ulp) < bias_threshold(fair, 50_000, torch.bfloat16)
    assert cut.magnitude_bias_ulp == pytest.approx(-0.5, abs=0.01)
    assert abs(cut.magnitude_bias_ulp) > bias_threshold(cut, 50_000, torch.bfloat16)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (np.s_[..., 12:], "only columns >= 12 of 16 are wrong: a tail of 4"),
        (np.s_[1:], "only batch items > 0 of 2 are wrong"),
        (np.s_[..., ::4], "every 4th column is wrong, from 0"),
        (np.s_[:, 2], "only token 2 of 5 is wrong"),
        (np.s_[...], "every element is wrong"),
    ],
)
def test_patterns_in_words(index: Any, words: str) -> None:
    wrong = torch.zeros(2, 5, 16, dtype=torch.bool)
    wrong[index] = True
    assert words in where.describe(wrong)


@pytest.mark.parametrize(
    ("index", "frames", "words"),
    [
        (np.s_[1:], 0, "only batch items > 0 of 2 are wrong"),
        (np.s_[:, 8:16], 0, "only tokens 8 to 15 of 24 are wrong"),
        (np.s_[:, 8:16], 3, "only frame 1 of 3 is wrong"),
        (np.s_[:, 7::8], 3, "only token of a frame 7 of 8 is wrong: the last"),
        (np.s_[:, ::2], 0, "every 2nd token is wrong, from 0"),
        (np.s_[..., 3::8], 0, "every 8th column is wrong, from 3"),
        # Tiles span the rows of all batch items: 48 rows are one tile of 32 and a ragged one.
        (np.s_[1, 8:], 0, "only rows >= 32 of 48 are wrong: the last, ragged block"),
        (np.s_[:, 23], 0, "only token 23 of 24 is wrong: the last"),
        (
            np.s_[1, 2, 5],
            0,
            "only batch items > 0 of 2 are wrong; only token 2 of 24 is wrong; only column 5 of 32 is wrong",
        ),
    ],
)
def test_patterns_of_batch_items_frames_and_tiles(index: Any, frames: int, words: str) -> None:
    wrong = torch.zeros(2, 24, 32, dtype=torch.bool)
    wrong[index] = True
    assert where.describe(wrong, frames) == words


def test_one_wrong_element_is_placed_once() -> None:
    def one_off(**kwargs: Any) -> Tensor:
        y = right(**kwargs)
        y[1, 2, 5] += 1
        return y

    judgement = judge_call(a_case(), one_off, "cpu")
    assert judgement.lines[:2] == (
        "1 of 96 elements exceed their budget",
        "the worst is in batch item 1 of 2, token 2 of 3, column 5 of 16",
    )
    assert not any(line.startswith("only ") for line in judgement.lines)


def test_a_place_in_words() -> None:
    assert where.place((2, 511, 77), (3, 769, 5120)) == "batch item 2 of 3, token 511 of 769, column 77 of 5120"
    assert where.place((1, 5, 2), (2, 6, 4), 3) == "batch item 1 of 2, frame 2 of 3, token 5 of 6, column 2 of 4"
    assert where.place((0, 1, 2, 3), (1, 2, 3, 4)) == "batch item 0 of 1, token 1 of 2, head 2 of 3, column 3 of 4"
    assert where.place((3,), (9,)) == "column 3 of 9"
    assert where.place((0, 0, 0, 0, 1), (1, 1, 1, 1, 2)).endswith("dimension 3 0 of 1, column 1 of 2")


@pytest.mark.parametrize(
    ("axis", "step", "words"),
    [
        (2, -1, "they hold what belongs one column further"),
        (2, 1, "they hold what belongs one column before"),
        (1, 1, "they hold what belongs one token before"),
        (0, -1, "they hold what belongs one batch item further"),
    ],
)
def test_what_stands_one_place_off_is_said_to(axis: int, step: int, words: str) -> None:
    truth = torch.randn(4, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    moved = truth.roll(step, axis).float()
    allowed = torch.full_like(truth, 1e-6)
    wrong = (moved.double() - truth).abs() > allowed
    assert where.displaced(moved, truth, allowed, wrong) == (words,)
    noise = truth.float() + 0.1
    assert where.displaced(noise, truth, allowed, torch.ones_like(wrong)) == ()


def test_a_few_elements_that_hold_a_neighbours_value_may_do_so_by_chance() -> None:
    truth = torch.randn(4, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    allowed = torch.full_like(truth, 1e-6)
    for count, said in ((1, False), (2, False), (3, False), (8, True)):
        output, wrong = truth.float(), torch.zeros(truth.shape, dtype=torch.bool)
        for place in range(count):
            output[0, 0, place] = truth[0, 1, place]
            wrong[0, 0, place] = True
        assert bool(where.displaced(output, truth, allowed, wrong)) == said


@pytest.mark.parametrize("budget", [0.02, 0.2, 1.0])
def test_noise_is_no_displacement(budget: float) -> None:
    generator = torch.Generator().manual_seed(5)
    truth = torch.randn(3, 5, 16, dtype=torch.float64, generator=generator)
    allowed = torch.full_like(truth, budget)
    for _ in range(300):
        noisy = torch.rand(truth.shape, generator=generator) < 0.02
        output = truth + torch.where(noisy, budget + torch.randn(truth.shape, generator=generator), 0.0)
        wrong = (output - truth).abs() > allowed
        if bool(wrong.any()):
            assert where.displaced(output.float(), truth, allowed, wrong) == ()


def per_frame_case(**changes: Any) -> Case:
    x = TensorSpec((3, 8, 64), "bfloat16", (8 * 72, 72, 1), 0, "x")
    scale = TensorSpec((3, 2, 1, 64), "float32", (128, 64, 64, 1), 0, "scale")
    tensors = {"x": x, "shift": TensorSpec((), "bfloat16", (), 0, "shift"), "scale": scale, **changes}
    return Case(OP, tensors, {"eps": 1e-6, "casting_mode": "float32"}, "outlier_channels", 41)


def test_a_failure_reads_as_an_engineer_wants_it() -> None:
    def frame_0_for_all(x: Tensor, shift: Tensor, scale: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = reference_ops.layer_norm_scale_shift(x, shift, scale[:, :1], *args, **kwargs)
        return y

    ops = op_set_from({OP: frame_0_for_all}, "mine", "mine.py")
    record = judge_case(per_frame_case(), InProcess(ops, select(gpu=False)))
    lines = record.message.splitlines()
    assert lines[0] == f"{OP}  mine  bf16  INCORRECT_NUMERICAL"
    assert lines[1] == (
        "x[3, 8, 64] bfloat16 row stride 72, shift scalar, scale [B,F=2,1,D] float32, "
        "eps=1e-06 casting_mode=float32 values=outlier_channels seed=41"
    )
    assert re.fullmatch(
        r"worst \|error\| \S+ is \S+x its budget at y\[\d, \d, \d+\] "
        r"\(got \S+, truth \S+\); rms \S+x the reference path's",
        lines[2],
    )
    assert re.fullmatch(r"the worst is in batch item \d of 3, frame 1 of 2, token \d of 8, column \d+ of 64", lines[4])
    assert lines[5] == "only frames > 0 of 2 are wrong"
    repeat = shlex.split(lines[-1].removeprefix("repeat: "))
    assert repeat[:2] == ["validate", "repro"]
    assert Case.from_json(repeat[2]) == per_frame_case()
    assert repeat[3:] == ["--ops", "mine.py", "--no-isolate"]


def test_what_failed_on_a_gpu_is_repeated_there(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Verdict(Status.INCORRECT_NUMERICAL, "error", "wrong")
    monkeypatch.setattr(InProcess, "judge", lambda *_, **__: wrong)
    monkeypatch.setattr(InProcess, "not_refused", lambda *_: "accepted")
    gpu, ops = Device("a GPU", "cuda"), load_op_set("fused_ops")
    executor = InProcess(ops, gpu)
    sweep = Sweep(executor, PROFILES["quick"], 0)
    corners = Plan.of(OP, gpu, PROFILES["quick"], 0).corners
    records = [
        judge_case(per_frame_case(), executor),
        grad_record(OP, executor),
        bad_input_record(OP, executor),
        summary(OP, ops, [], corners, None, sweep.command(OP)),
    ]
    records.append(sweep._stopped(OP, 1, records[0]))
    for record in records:
        assert record.message.endswith(f"repeat: {record.repro}")
        assert cli._parser().parse_args(shlex.split(record.repro)[1:]).gpu


class Sub(Tensor):
    """A subclass that refuses to be used in computations."""

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        raise RuntimeError("not with me")


def fake(y: Tensor) -> Tensor:
    with FakeTensorMode():
        return torch.empty(y.shape, dtype=y.dtype)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (lambda y: y.as_subclass(Sub), "a validation.meta_tests.judge.test_judge.Sub"),
        (torch.nn.Parameter, "a torch.nn.parameter.Parameter"),
        (fake, "a torch._subclasses.fake_tensor.FakeTensor"),
        (lambda y: y.to_sparse(), "a tensor of layout sparse_coo"),
        (lambda y: y.float().to_mkldnn(), "a tensor of layout _mkldnn"),
        (lambda y: torch.nested.nested_tensor(list(y)), "a nested tensor"),
        (lambda y: torch._neg_view(-y), "a view that negates lazily"),
        (lambda y: y.requires_grad_(), "a tensor that requires grad under torch.no_grad()"),
    ],
)
def test_an_output_is_a_plain_tensor(odd: Callable[[Tensor], Tensor], words: str) -> None:
    """The next kernel takes its address; some of these once ended the whole run."""
    judgement = judge_call(a_case(), lambda **k: odd(right(**k)), "cpu")
    assert judgement.status is Status.INCORRECT_STRUCTURE
    assert judgement.reason == f"output is {words}, expected a plain torch.Tensor"


def test_whatever_is_raised_is_the_candidates_verdict() -> None:
    class OddError(BaseException):
        def __str__(self) -> str:
            raise ValueError

    def raises(**_: Any) -> Tensor:
        raise OddError

    judgement = judge_call(a_case(), raises, "cpu")
    assert judgement.status is Status.RUNTIME_ERROR
    assert judgement.reason.startswith("raised OddError: (no text: its __str__ raised ValueError), in ")


def test_ctrl_c_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: Any) -> Tensor:
        raise KeyboardInterrupt

    # Set here, because a background job of a shell ignores SIGINT from the start.
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        judge_call(a_case(), interrupted, "cpu")
    # As in a process that runs only candidates.
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_IGN)
    assert status_of(interrupted) is Status.RUNTIME_ERROR


def test_statistics_of_candidate_baseline_and_ideal() -> None:
    def up(**k: Any) -> Tensor:
        y = right(**k)
        return y + torch.finfo(torch.float32).eps * y.abs()

    numbers = judge_call(a_case(shape=(4, 16, 32)), up, "cpu").numbers
    for prefix in ("", "baseline_", "ideal_"):
        for name in ("max_abs", "rms_abs", "bias_abs", "max_ulp", "rms_ulp", "bias_ulp", "magnitude_bias_ulp"):
            assert isinstance(numbers[f"{prefix}{name}"], float), prefix + name
    assert float(numbers["bias_abs"] or 0.0) > 1e-8
    assert 0.9 < float(numbers["bias_ulp"] or 0.0) < 2.0
    assert abs(float(numbers["baseline_bias_ulp"] or 0.0)) < 0.2
    assert float(numbers["ideal_max_ulp"] or 0.0) <= 0.5


def described(**changes: Any) -> str:
    return per_frame_case(**changes).describe()


def test_tensors_are_described_by_form_and_layout() -> None:
    def row(
        shape: tuple[int, ...], strides: tuple[int, ...], dtype: str = "bfloat16", storage: str = "s"
    ) -> TensorSpec:
        return TensorSpec(shape, dtype, strides, 0, storage)

    assert ", scale [D] last stride 2, " in described(scale=row((64,), (2,)))
    assert ", scale [1], " in described(scale=row((1,), (1,)))
    assert ", scale [B,D], " in described(scale=row((3, 64), (64, 1)))
    assert ", scale [1,1,D], " in described(scale=row((1, 1, 64), (64, 64, 1)))
    assert ", scale [B,1,D] row stride 384, " in described(scale=row((3, 1, 64), (384, 384, 1)))
    assert ", scale [1,L,D], " in described(scale=row((1, 8, 64), (512, 64, 1)))
    assert ", scale [B,L,D] stride 0 over dimension 1 row stride 128, " in described(scale=row((3, 8, 64), (128, 0, 1)))
    assert ", scale [B,L,D] strides (64, 192, 1), " in described(scale=row((3, 8, 64), (64, 192, 1)))
    indexed = {"scale.table": row((4, 64), (65, 1), "float32", "t"), "scale.index": row((3, 8), (8, 1), "int64", "i")}
    assert ", scale IndexedRows [n=4,D] float32 int64 index row stride 65, " in described(**indexed)
    packed = {
        name: TensorSpec((2, 3, 2, 8), "float16", (144, 48, 8, 1), at, "qkv") for name, at in (("q", 0), ("k", 16))
    }
    text = Case("qk_norm", packed, {"eps": 1e-6}, "normal", 0).describe()
    assert text.startswith("q[2, 3, 2, 8] float16 strides (144, 48, 8, 1) in one buffer with k, k[2, 3, 2, 8] ")


def test_failures_are_kept_as_files_and_regressions_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ops = op_set_from({OP: lambda *_, **__: None}, "mine", "mine.py")
    device = select(gpu=False)
    small, large = a_case(shape=(1, 2, 8)), a_case(shape=(3, 2, 8))
    for case in (large, small, large):
        path = regressions.save_failure(tmp_path, judge_case(case, InProcess(ops, device)), ops.origin)
    assert path == tmp_path / "failures" / f"{OP}-incorrect_structure.json"
    assert regressions.read_case(path) == small
    assert cli.main(["repro", str(path), "--ops", "fused_ops"]) == cli.PASSED  # they get it right
    monkeypatch.setattr(regressions, "REGRESSIONS", path.parent)
    assert list(regressions.regressions(OP)) == [small]
    assert list(regressions.regressions("layer_norm")) == []
    records = Sweep(InProcess(ops, device), PROFILES["quick"], 0).of_op(OP)
    assert Case.from_dict(next(records).case) == small


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "case is 'list', expected an object"),
        ('{"case": {"op": "layer_norm"}}', "expected an entry 'tensors'"),
        (dataclasses.replace(a_case(), flags={"casting_mode": "odd"}).to_json(), "casting_mode is 'odd'"),
    ],
)
def test_a_malformed_regression_names_its_file(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.json").write_text(text)
    monkeypatch.setattr(regressions, "REGRESSIONS", tmp_path)
    with pytest.raises(UsageError, match=r"bad\.json") as raised:
        list(regressions.regressions(OP))
    assert words in str(raised.value)
    with pytest.raises(UsageError, match=r"none\.json: No such file"):
        regressions.read_case(tmp_path / "none.json")


def test_guards_survive_views_and_other_allocations() -> None:
    with structure.GuardedAllocations() as guards:
        a = torch.empty(3, 5)
        b = torch.empty_like(a.t())
        c = a.new_empty(7)
        a.zero_(), b.zero_(), c.zero_()
    assert len(guards.allocations) == 3
    assert guards.written_outside() == ""
    assert b.stride() == (1, 5)


@pytest.mark.parametrize("seed", range(3))
def test_the_bias_that_a_correct_float32_chain_has_is_no_alarm(seed: int) -> None:
    row = TensorSpec((4,), "float32", (1,), 0, "weight")
    tensors = {
        "x": TensorSpec((2, 35812, 4), "float32", (143248, 4, 1), 0, "x"),
        "weight": row,
        "bias": dataclasses.replace(row, storage="bias"),
    }
    case = Case("layer_norm", tensors, {"eps": 1e-6}, "normal", 14313 + seed)
    judgement = judge_call(case, fused_ops.layer_norm, "cpu")
    assert judgement.status is Status.PASSED, judgement.reason


def test_what_may_be_zero_times_an_infinity_may_be_anything_but_finite() -> None:
    """The mean is 1 + 2^-25, which is not a float32: if it rounds to 1, x - mean is 0 and 0 * inf is NaN, not -inf."""
    x = torch.ones(1, 2**15)
    x[0, 1] += 2.0**-10
    weight = torch.ones(2**15)
    weight[:2] = torch.inf
    (running,) = bound("layer_norm", {"x": x, "weight": weight, "eps": 1e-6})
    assert running.value[0, :2].tolist() == [-torch.inf, torch.inf]
    assert running.overflow[0, :3].tolist() == [True, False, False]


def test_truths_that_no_rounding_tells_apart_count_once() -> None:
    close = 1.0 + 1e-9 * torch.arange(100, dtype=torch.float64)
    apart = 1.0 + 1e-2 * torch.arange(100, dtype=torch.float64)
    every = torch.ones(100, dtype=torch.bool)
    assert independent_samples(close, every, torch.bfloat16, ()) == 1
    assert independent_samples(apart, every, torch.bfloat16, ()) == 100


def test_the_bias_of_one_rounding_on_a_grid_is_no_alarm() -> None:
    """x is 65504 throughout, which has 11 bits set, times float16 angles: sums lie just below numbers of the grid."""

    def tensor(name: str, *shape: int) -> TensorSpec:
        return TensorSpec(shape, "float16", torch.empty(shape, device="meta").stride(), 0, name)

    tensors = {"x": tensor("x", 2, 200, 2, 64), "cos": tensor("cos", 200, 32), "sin": tensor("sin", 200, 32)}
    case = Case("rotary_embedding", tensors, {"interleaved": False, "inplace": False}, "beyond_float16", 0)
    rounded_once = judge_call(case, controls.op_set("torch_native")["rotary_embedding"], "cpu")
    assert rounded_once.status is Status.PASSED, rounded_once.reason
    assert abs(float(rounded_once.numbers["ideal_magnitude_bias_ulp"] or 0)) > 0.1


def test_the_bias_of_torchs_square_root_is_no_alarm() -> None:
    """Rows of nearly equal numbers have nearly equal roots, which torch rounds up more often than down (on AVX-512)."""

    def divided(x: Tensor, eps: float, **_: Any) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)

    case = Case(
        "rms_norm", {"x": TensorSpec((70_000, 4), "float32", (4, 1), 0, "x")}, {"eps": 1e-6}, "mean_offset", 652340
    )
    judgement = judge_call(case, divided, "cpu")
    assert judgement.status is Status.PASSED, judgement.reason


@pytest.mark.parametrize(("units", "status"), [(0.2, Status.PASSED), (0.4, Status.BIASED)])
def test_a_bias_just_above_a_correct_chains_is_seen(units: float, status: Status) -> None:
    """rstd too large by a share of float32's unit roundoff: a mean error of 0.26 and of 0.5 of the RMS error.

    At 0.1 it raised alarms: torch's own sqrt is off by as much.
    """

    def biased(x: Tensor, eps: float, **_: Any) -> Tensor:
        rstd = torch.rsqrt((x * x).mean(-1, keepdim=True) + eps).double() * (1 + units * 2.0**-24)
        return (x.double() * rstd).float()

    case = Case("rms_norm", {"x": TensorSpec((70_000, 4), "float32", (4, 1), 0, "x")}, {"eps": 1e-6}, "normal", 0)
    judgement = judge_call(case, biased, "cpu")
    assert judgement.status is status, judgement.reason


def test_between_two_overflows_any_finite_number_is_judged_by_its_error() -> None:
    """Weight and bias of 6e4 cancel before a scale of 6e4: 17 % of a budget from -inf to inf."""

    def tensor(name: str, dtype: str, *shape: int) -> dict[str, object]:
        strides = list(torch.empty(shape, device="meta").stride())
        return {"shape": list(shape), "dtype": dtype, "strides": strides, "offset": 0, "storage": name}

    tensors = {
        "x": tensor("x", "float16", 3, 1, 571),
        "shift": tensor("shift", "float32", 1),
        "scale": tensor("scale", "bfloat16"),
        "weight": tensor("weight", "bfloat16", 571),
        "bias": tensor("bias", "float16", 571),
    }
    flags = {"eps": 1e-5, "casting_mode": "input"}
    data = {"op": "layer_norm_scale_shift", "tensors": tensors, "flags": flags}
    case = Case.from_dict({**data, "values": "large_modulation", "seed": 2944668})
    device = select(gpu=False)
    record = judge_case(case, InProcess(load_op_set("reference_ops"), device))
    assert record.status is Status.PASSED
    assert 15 < float(record.numbers["budget_percent"] or 0) < 100

    def saturated(*args: object, **kwargs: object) -> Tensor:
        y: Tensor = reference_ops.layer_norm_scale_shift(*args, **kwargs)
        return y.clamp(-65504.0, 65504.0)

    record = judge_case(case, InProcess(OpSet("saturated", {case.op: saturated}, "saturated"), device))
    assert record.status is Status.INCORRECT_NONFINITE


@pytest.mark.parametrize(
    ("compute", "uneven"),
    [
        (lambda x: x * 2.0 + x, False),
        (lambda x: x.mean(-1), True),
        (lambda x: x.sum(-1), True),
        (lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:]), True),
        (fused_ops.layer_norm, False),
    ],
)
def test_pytorchs_own_sums_are_known_by_what_it_runs(compute: Callable[[Tensor], Tensor], uneven: bool) -> None:
    """On CUDA such a sum's bits depend on the number of rows; an op made of kernels must give the same bits there."""
    with torch.no_grad(), structure.GuardedAllocations() as guards:
        compute(torch.randn(3, 64))
    assert guards.uneven_on_cuda is uneven


def test_the_stages_of_the_judge_are_failures_and_reports_list_each_status_once() -> None:
    assert all(status.failed for status in STAGES)
    assert len(set(STAGES)) == len(STAGES)
    assert sorted(REPORT_ORDER) == sorted(Status)
