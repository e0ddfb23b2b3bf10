"""The interpreter's bfloat16 is repaired, and the check on it fails without the repair."""

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter as triton_interpreter

from validation.cases.case import Case, TensorSpec
from validation.device import interpreter, launches, select
from validation.executor import InProcess
from validation.ops import OpSet
from validation.parity.one_case import judge_case
from validation.verdict import Status

UNREPAIRED = """
import os
os.environ["TRITON_INTERPRET"] = "1"
from triton.runtime.interpreter import InterpreterBuilder as builder
from validation.device import interpreter
repair, own = interpreter.repair, (builder.cast_impl, builder.create_fp_to_fp)
def without_conversions():  # with what saves three quarters of a launch's time
    repair()
    builder.cast_impl, builder.create_fp_to_fp = own
interpreter.repair = without_conversions
from validation import device
problems = device.select(gpu=False).bfloat16_problems
print(len(problems))
from validation import cli
raise SystemExit(cli.main(["parity", "--op", "split_rotary_embedding", "--profile", "quick", "--out", {out!r}]))
"""


def test_repaired_conversions_agree_with_torch_on_every_pattern() -> None:
    assert interpreter.verify_bfloat16() == []


def test_narrowing_agrees_with_torch_on_random_bits() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 2_000_000, dtype=np.uint32)
    values = torch.from_numpy(bits.view(np.float32).copy())
    ours = torch.from_numpy(interpreter.float32_to_bfloat16(bits).view(np.int16)).view(torch.bfloat16)
    expected = values.to(torch.bfloat16)
    same = (ours.view(torch.int16) == expected.view(torch.int16)) | (ours.isnan() & expected.isnan())
    assert bool(same.all())


def test_truncating_conversion_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "float32_to_bfloat16", lambda bits: (bits >> np.uint32(16)).astype(np.uint16))
    problems = interpreter.verify_bfloat16()
    # The check must have noticed every lower half above the tie, and ties on odd numbers.
    assert any("0x8000" in problem for problem in problems)
    assert any("0xffff" in problem for problem in problems)


def test_where_the_repair_is_missing_bfloat16_is_not_judged_and_the_run_fails(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", UNREPAIRED.format(out=str(out))], capture_output=True, text=True)
    assert int(done.stdout.split()[0]) > 0, done.stderr
    assert done.returncode == 1, done.stderr
    assert "BFLOAT16_NOT_JUDGED" in done.stdout
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    dtypes = {record["dtype"] for record in records if record["level"] == "op"}
    assert dtypes == {"float32", "float16"}


def test_fma_rounds_once() -> None:
    from validation.device._interpreter_kernels import fused_multiply_add

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4096, generator=generator)
    z = -(x * y)  # the product's rounding error remains, which two roundings lose
    got = torch.empty(4096)
    fused_multiply_add[(1,)](x, y, z, got, 4096)
    assert torch.equal(got.double(), x.double() * y.double() + z.double())
    assert bool((got != 0).any())


def test_remembered_types_and_tensors_are_what_triton_makes() -> None:
    """Each is made twice, so that the second comes from memory; the originals are below the wrappers."""
    interpreter.enable()
    block, tensor = tl.block_type, tl.tensor
    elements = [tl.float32, tl.bfloat16, tl.int1, tl.int64, tl.pointer_type(tl.float16), tl.pointer_type(tl.float32)]
    for element in elements:
        for shape in ([4], [8, 16], [tl.constexpr(8), 16], tl.tuple([2, 1])):
            for _ in range(2):
                made, plain = block(element, shape), block.__new__(block)
                block.__init__.__wrapped__(plain, element, shape)
                assert str(vars(made)) == str(vars(plain))
                assert made.element_ty is element
                got, wanted = tensor("handle", made), tensor.__new__(tensor)
                tensor.__init__.__wrapped__(wanted, "handle", plain)
                assert vars(got).keys() == vars(wanted).keys()
                assert {name: str(value) for name, value in vars(got).items()} == {
                    name: str(value) for name, value in vars(wanted).items()
                }
                assert got.type is made
        numpy_dtype = triton_interpreter._get_np_dtype
        assert numpy_dtype(element) == numpy_dtype.__wrapped__(element) == numpy_dtype(element)
    with pytest.raises(ValueError, match="power of 2"):
        block(tl.float32, [3])


@triton.jit
def _sum_of_two(x, y):  # type: ignore[no-untyped-def]
    tl.store(y, tl.load(x) + tl.load(x + 1))


def test_an_overflow_wraps_as_it_did_before_its_check_was_left_out() -> None:
    interpreter.enable()
    y = torch.zeros(1, dtype=torch.int32)
    _sum_of_two[(1,)](torch.tensor([2**31 - 1, 2], dtype=torch.int32), y)
    assert y.item() == -(2**31) + 1


def _block_of(x, y, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, at < n) + BLOCK, at < n)


def _add_to(x, y, n, BLOCK: tl.constexpr, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if EVEN:
        tl.store(y + at, tl.load(y + at) + tl.load(x + at))
    else:
        tl.store(y + at, tl.load(y + at, at < n) + tl.load(x + at, at < n), at < n)


def _blocks(*sizes: int, **kwargs: Any) -> list[triton.Config]:
    return [triton.Config({"BLOCK": size}, num_warps=2, num_stages=3, **kwargs) for size in sizes]


def _not_smaller_than_the_row(configs: list[triton.Config], named: dict[str, Any], **_: Any) -> list[triton.Config]:
    return [config for config in configs if config.kwargs["BLOCK"] >= named["n"]]


def _asks_for_a_gpu(configs: list[triton.Config], *_: Any, **__: Any) -> list[triton.Config]:
    return configs if triton.runtime.driver.active.get_current_device() else configs[1:]


def _ranks(**_: Any) -> float:
    raise AssertionError("ranked where nothing is timed")


def _launch(kernel: Any, n: int, y: Tensor) -> tuple[Tensor, int]:
    x = torch.arange(float(n))
    with launches.counted() as launched:
        kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](x, y, n)
    return y - x, launched.count


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter.enable()

    def none() -> None:
        raise RuntimeError("0 active drivers ([]). There should only be one.")

    monkeypatch.setattr(triton.runtime.driver, "_active", None)
    monkeypatch.setattr(triton.runtime.driver, "_default", None)
    monkeypatch.setattr(sys.modules["triton.runtime.driver"], "_create_driver", none)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("tuning", "block"),
    [
        ({}, 16),
        ({"prune_configs_by": {"early_config_prune": _not_smaller_than_the_row}}, 64),
        ({"prune_configs_by": {"early_config_prune": _asks_for_a_gpu}}, 16),
        ({"prune_configs_by": {"perf_model": _ranks, "top_k": 1}}, 16),
        ({"reset_to_zero": ["y"], "restore_value": ["x"]}, 16),
        ({"pre_hook": lambda *_, **__: pytest.fail("a hook of timing ran")}, 16),
    ],
)
def test_an_autotuned_kernel_runs_once_with_the_first_configuration_allowed(tuning: dict[str, Any], block: int) -> None:
    kernel = triton.autotune(_blocks(16, 32, 64, 128), ["n"], **tuning)(triton.jit(_block_of))
    for _ in range(2):
        added, count = _launch(kernel, 50, torch.empty(50))
        assert (set(added.tolist()), count) == ({block}, 1)


@pytest.mark.usefixtures("no_gpu")
def test_heuristics_and_the_hook_of_a_configuration_see_what_is_launched() -> None:
    seen = []

    def clears(named: dict[str, Any]) -> None:
        seen.append(named["BLOCK"])
        named["y"].zero_()

    for even in (False, True):
        heuristics = triton.heuristics({"EVEN": lambda named: named["n"] % named["BLOCK"] == 0})
        kernel = triton.autotune(_blocks(16, 32, pre_hook=clears), ["n"])(heuristics(triton.jit(_add_to)))
        added, count = _launch(kernel, 32 if even else 50, torch.full((32 if even else 50,), 3.0))
        assert (set(added.tolist()), count) == ({0.0}, 1)
    assert seen == [16, 16]


@pytest.mark.usefixtures("no_gpu")
def test_no_configuration_left_is_an_error_as_on_a_gpu() -> None:
    pruning = {"early_config_prune": _not_smaller_than_the_row}
    kernel = triton.autotune(_blocks(16, 32), ["n"], prune_configs_by=pruning)(triton.jit(_block_of))
    with pytest.raises(Exception, match="at least one config"):
        _launch(kernel, 50, torch.empty(50))


def _modulate(x, shift, scale, y, n, D, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    factor = tl.load(scale + at % D, inside) + 1.0
    tl.store(y + at, tl.load(x + at, inside) * factor + tl.load(shift + at % D, inside), inside)


@pytest.mark.usefixtures("no_gpu")
def test_an_op_of_an_autotuned_kernel_is_judged() -> None:
    kernel = triton.autotune(_blocks(64, 128), ["n"])(triton.jit(_modulate))

    def scale_shift(x: Tensor, shift: Tensor, scale: Tensor, *_: Any, **__: Any) -> Tensor:
        y = torch.empty_like(x)
        kernel[lambda meta: (triton.cdiv(y.numel(), meta["BLOCK"]),)](x, shift, scale, y, y.numel(), y.shape[-1])
        return y

    rows = {name: TensorSpec((40,), "float32", (1,), 0, name) for name in ("shift", "scale")}
    x = TensorSpec((2, 3, 40), "float32", (120, 40, 1), 0, "x")
    case = Case("scale_shift", {"x": x, **rows}, {"casting_mode": "float32"}, "normal", 0)
    record = judge_case(case, InProcess(OpSet("tuned", {"scale_shift": scale_shift}, "tuned"), select(gpu=False)))
    assert (record.status, record.numbers["launches"]) == (Status.PASSED, 1), record.reason


def test_numpy_says_nothing_of_nan_and_inf_in_a_kernel() -> None:
    import fused_ops

    x = torch.full((1, 2, 16), math.inf)
    x[0, 0, 0] = math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = fused_ops.scale_shift(x, torch.full((16,), -math.inf), torch.zeros(16))
    assert bool(y.isnan().all())
