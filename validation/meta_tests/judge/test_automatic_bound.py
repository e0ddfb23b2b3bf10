"""The bound made by replay: against the hand-made ones, with wrong ops, and for ops that have no other."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import fused_ops
import reference_ops
from validation.cases.case import Case, TensorSpec
from validation.cases.pool import draw_cases
from validation.cases.strategies import cases
from validation.cases.tensors import Arguments, materialise
from validation.chains import bounds, perturbed
from validation.judge.expected import absent, expect
from validation.judge.signature import signature_of
from validation.judge.stats import Budget
from validation.judge.verdict import judge_call
from validation.ops import reference_op_names
from validation.verdict import Status

ROOT = Path(__file__).resolve().parents[3]

# The automatic budget over the hand-made one, element by element. Measured over 60 cases per op: 0.11 to 2.9.
# Below 1 if errors cancel that a bound of absolute values adds up (rows of one or two elements: an rstd whose error
# is that of the value itself; the extreme is a row with an inf, whose finite elements are only the shift); above 1 if
# PyTorch fuses a product into a sum.
WITHIN = (0.1, 4.0)


def drawn(op: str, count: int, seed: int) -> list[Case]:
    """Cases with rows of two numbers or more: one number is its own mean, and leaves 0.14 of the hand-made budget."""
    return [
        case
        for case in draw_cases(cases(signature_of(op)), seed=seed, count=count)
        if (x := case.tensors["x" if "x" in case.tensors else "q"]).numel and x.shape[-1] > 1
    ]


def budgets(case: Case, arguments: Arguments) -> list[Tensor]:
    """The judge's tolerance for each element of the reference's outputs, where the truth is finite."""
    expected = expect(case, arguments)
    targets = (target for _, target in expected.target(expected.baseline))
    return [target.budget.allowed[target.truth.isfinite()] for target in targets]


def spread(hand: Tensor, automatic: Tensor) -> tuple[float, float]:
    """The least and the largest ratio of two budgets without NaN.

    Only budgets of normal size count: zeros in a row with an inf have a budget of a few smallest subnormal numbers.
    """
    assert not bool((hand.isnan() | automatic.isnan()).any())
    ratio = (automatic / hand)[hand.isfinite() & (hand > torch.finfo(torch.float32).tiny)]
    return (float(ratio.min()), float(ratio.max())) if ratio.numel() else (1.0, 1.0)


@pytest.mark.parametrize("op", reference_op_names())
def test_it_agrees_with_the_hand_made_bound(
    op: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lowest, highest, kinds = 1.0, 1.0, set()
    for case in drawn(op, 60, seed=3):
        # In these both bounds are a few of the smallest subnormal numbers.
        if case.values in ("tiny", "zeros"):
            continue
        arguments = materialise(case)
        arguments.kwargs |= absent(case, arguments.kwargs)
        made = budgets(case, arguments)
        with monkeypatch.context() as patch:
            patch.setattr(bounds, "BOUNDS", frozenset())
            replayed = budgets(case, arguments)
        assert bounds.BOUNDS
        for hand, automatic in zip(made, replayed, strict=True):
            # Infinite if an intermediate float16 may overflow, which the hand-made bound decides more finely.
            may = [spec.dtype for spec in case.tensors.values()].count("float16") and case.casting_mode == "input"
            known = automatic.isfinite() if may else torch.ones_like(automatic, dtype=torch.bool)
            low, high = spread(hand[known], automatic[known])
            lowest, highest = min(lowest, low), max(highest, high)
            kinds.add((case.dtype, case.casting_mode))
    with capsys.disabled():
        print(f"\n{op}: automatic / hand-made budget {lowest:.2f} to {highest:.2f}", end="")
    assert len(kinds) >= 3
    assert WITHIN[0] <= lowest
    assert highest <= WITHIN[1]


def test_a_budget_that_is_no_number_is_no_agreement() -> None:
    hand = torch.tensor([1.0, 2.0, torch.inf])
    assert spread(hand, torch.tensor([2.0, 2.0, torch.inf])) == (1.0, 2.0)
    assert spread(hand, torch.tensor([1.0, torch.inf, 1.0])) == (1.0, torch.inf)
    with pytest.raises(AssertionError):
        spread(hand, torch.tensor([1.0, torch.nan, torch.inf]))


@pytest.mark.parametrize("op", reference_op_names())
def test_what_is_right_stays_inside(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "BOUNDS", frozenset())
    for case in drawn(op, 15, seed=4):
        for ops in (reference_ops, fused_ops):
            judgement = judge_call(case, getattr(ops, op), "cpu")
            assert judgement.status is Status.PASSED, (ops.__name__, judgement.reason, case.to_json())


def a_case(dtype: str, values: str = "normal", mode: str = "float32", width: int = 48) -> Case:
    x = TensorSpec((4, 32, width), dtype, (32 * width, width, 1), 0, "x")
    rows = {name: TensorSpec((width,), dtype, (1,), 0, name) for name in ("shift", "scale")}
    flags = {"eps": 1e-6, "casting_mode": mode}
    return Case("layer_norm_scale_shift", {"x": x, **rows}, flags, values, 3)


def chain(
    x: Tensor, shift: Tensor, scale: Tensor, *, ddof: int = 0, halfway: bool = False, cut: bool = False
) -> Tensor:
    wide = x.float()
    deviation = wide - wide.mean(-1, keepdim=True)
    variance = (deviation * deviation).sum(-1, keepdim=True) / (x.shape[-1] - ddof)
    value = deviation * torch.rsqrt(variance + 1e-6)
    value = value.to(x.dtype).float() if halfway else value
    value = value * (1 + scale.float()) + shift.float()
    if cut:
        value = (value.contiguous().view(torch.int32) >> 16 << 16).view(torch.float32)
    return value.to(x.dtype)


@pytest.mark.parametrize(
    ("wrong", "dtype", "caught"),
    [
        ({"ddof": 1}, "float32", {Status.INCORRECT_NUMERICAL}),
        ({"ddof": 1}, "bfloat16", {Status.INCORRECT_NUMERICAL}),
        ({"halfway": True}, "bfloat16", {Status.INCORRECT_NUMERICAL}),
        ({"cut": True}, "bfloat16", {Status.INCORRECT_NUMERICAL, Status.BIASED}),
    ],
)
def test_what_is_wrong_stays_outside(
    wrong: dict[str, Any], dtype: str, caught: set[Status], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "BOUNDS", frozenset())

    def candidate(**options: Any) -> Callable[..., Tensor]:
        return lambda x, shift, scale, eps, casting_mode: chain(x, shift, scale, **options)  # noqa: ARG005

    assert judge_call(a_case(dtype), candidate(), "cpu").status is Status.PASSED
    assert judge_call(a_case(dtype), candidate(**wrong), "cpu").status in caught


def test_a_declared_rounding_is_a_hard_bound_and_not_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "BOUNDS", frozenset())
    case = a_case("bfloat16", mode="input")
    judgement = judge_call(case, reference_ops.layer_norm_scale_shift, "cpu")
    assert judgement.status is Status.PASSED
    assert 50.0 < float(judgement.numbers["budget_percent"] or 0.0) <= 100.0


@pytest.mark.filterwarnings("ignore:.torch.jit.script.:DeprecationWarning")  # torch's own, on import
# In 16 bits a block has some twenty roundings one after another, and the bound takes all at their worst at once: it is
# safe, but that wide.
@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 1.0001), (torch.bfloat16, 2.0)])
def test_a_block_of_a_model_has_a_bound_too(dtype: torch.dtype, factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(n, 64, generator=generator).div(8).to(dtype) for n in (192, 64, 256)]
    down = torch.randn(64, 256, generator=generator).div(16).to(dtype)

    def block(x: Tensor, qkv: Tensor, out: Tensor, up: Tensor, down: Tensor) -> Tensor:
        q, k, v = functional.linear(functional.layer_norm(x, (64,)), qkv).view(2, 16, 3, 4, 16).permute(2, 0, 3, 1, 4)
        attention = functional.scaled_dot_product_attention(q, k, v)
        x = x + functional.linear(attention.transpose(1, 2).reshape(2, 16, 64), out)
        return x + functional.linear(functional.silu(functional.linear(functional.rms_norm(x, (64,)), up)), down)

    x = torch.randn(2, 16, 64, generator=generator).to(dtype)
    arguments = dict(zip(("x", "qkv", "out", "up", "down"), (x, *weights, down), strict=True))
    with torch.no_grad():
        truth = block(**{name: t.double() for name, t in arguments.items()})
        running = perturbed.bound(block, arguments, (truth,))[0]
        error = (block(**arguments).double() - truth).abs()
    allowed = Budget.of(running, truth.shape, dtype, flush=False).allowed
    used = float((error / allowed).max())
    assert 0.01 < used <= 1.0, used
    with torch.no_grad():
        wrong = (block(**{**arguments, "out": arguments["out"] * factor}).double() - truth).abs()
    assert float((wrong / allowed).max()) > 1.0


REFERENCE = """
from reference_ops.contract import check_norm, check_same
from reference_ops.rms_norm import float32_rms_norm


def add_rms_norm(residual, x, weight=None, eps=1e-6):
    check_norm("add_rms_norm", x, {"weight": weight}, eps, float64=True)
    check_same("add_rms_norm", "residual", residual, x)
    residual_out = (residual.to(float32_rms_norm(x, None, eps).dtype) + x).to(x.dtype)
    return float32_rms_norm(residual_out, weight, eps).to(x.dtype), residual_out
"""

FUSED = """
import triton
import triton.language as tl
from fused_ops._launch import contiguous_rows, empty, launch, require_device, rows_of, tile_for, vector
from fused_ops._norm import norm_rows
from reference_ops.contract import check_modulated_norm


@triton.jit
def _add_rms_norm_kernel(
    residual, x, weight, y, residual_out, rows, width, eps,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, ONE_BLOCK: tl.constexpr, WIDE: tl.constexpr,
):
    norm_rows(
        tl.program_id(0), x, y, rows, width, eps, BLOCK_R, BLOCK_D, ONE_BLOCK, WIDE, False,
        weight=weight, residual=residual, residual_out=residual_out,
    )


def add_rms_norm(residual, x, weight=None, eps=1e-6):
    check_modulated_norm(
        "add_rms_norm", x, {}, {"weight": weight}, eps, "float32", float64=False, like_x={"residual": residual}
    )
    require_device("add_rms_norm", "x", x)
    y, residual_out = empty(x), empty(x)
    tensors = (rows_of(residual), rows_of(x), vector(weight), contiguous_rows(y), contiguous_rows(residual_out))
    width = x.shape[-1]
    rows = x.numel() // width
    launch(_add_rms_norm_kernel, x, tile_for(width), tensors, (rows,), (width,), eps=float(eps))
    return y, residual_out
"""


SWEEPS = """
import json, sys, warnings

warnings.simplefilter("ignore", RuntimeWarning)
from validation.device import select

device = select(gpu=False)
import fused_ops
from validation.executor import InProcess
from validation.ops import load_op_set, op_set_from
from validation.parity.profiles import Profile
from validation.parity.sweep import Sweep

name, right = "add_rms_norm", fused_ops.add_rms_norm


def ten_times_eps(residual, x, weight=None, eps=1e-6):
    return right(residual, x, weight, 10 * eps)


for ops in (load_op_set("fused_ops"), op_set_from({name: ten_times_eps}, "wrong", "wrong")):
    sweep = Sweep(InProcess(ops, device), Profile("short", 1, 15), 0, "lossless", shrink=False)
    records = []
    for record in sweep.of_op(name):
        records.append(record)
        if ops.name == "wrong" and {"PASSED", "INCORRECT_NUMERICAL"} <= {record.status for record in records}:
            break
    print(json.dumps([(record.status, record.check, record.reason, record.message) for record in records]))
"""


def test_a_thirteenth_op_takes_two_files(tmp_path: Path) -> None:
    for package in ("reference_ops", "fused_ops"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "validation").symlink_to(ROOT / "validation")
    (tmp_path / "reference_ops" / "add_rms_norm.py").write_text(REFERENCE)
    (tmp_path / "fused_ops" / "add_rms_norm.py").write_text(FUSED)
    run = subprocess.run(
        [sys.executable, "-c", SWEEPS], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    right, wrong = (json.loads(line) for line in run.stdout.splitlines())
    assert [message for status, _, _, message in right if Status(status).failed] == []
    assert len(right) > 60
    assert {status for status, *_ in wrong} >= {Status.PASSED, Status.INCORRECT_NUMERICAL}
    reasons = [reason for status, _, reason, _ in wrong if status == Status.INCORRECT_NUMERICAL]
    assert any("output 0[" in reason for reason in reasons)
