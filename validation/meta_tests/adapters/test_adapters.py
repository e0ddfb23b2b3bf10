"""Adapters, installed or not; what a library cannot express; op sets by entry point."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import reference_ops
from validation import adapters, cli
from validation.adapters import CannotExpress, required
from validation.cases.case import Case
from validation.cases.pool import draw_cases
from validation.cases.strategies import cases
from validation.device import select
from validation.errors import UsageError
from validation.executor import InProcess
from validation.judge.signature import signature_of
from validation.ops import ENTRY_POINT_GROUP, OpSet, load_op_set, reference_op
from validation.parity.one_case import judge_case
from validation.parity.profiles import PROFILES
from validation.parity.sweep import Sweep
from validation.record import Record
from validation.report import summary
from validation.verdict import Status

# Adapter -> module, package, pip arguments. `make` installs Liger-Kernel; FlagGems pins numpy 1.26, flash-attn asks for
# a CUDA toolkit, vllm-omni for vLLM.
OPTIONAL = {
    "liger": ("liger_kernel", "liger-kernel", "liger-kernel"),
    "flaggems": ("flag_gems", "flag_gems", "--no-deps flag_gems sqlalchemy"),
    "flash_attn": (
        "flash_attn",
        "flash-attn",
        "--no-deps --no-build-isolation flash-attn, with FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE",
    ),
    "vllm_omni": ("vllm_omni", "vllm-omni", "--no-deps vllm-omni"),
}
# The norms of each are right; of those that are installed here.
NORMS = {
    "torch_native": ("layer_norm", "rms_norm"),
    "liger": ("layer_norm", "rms_norm"),
    "flaggems": ("layer_norm", "rms_norm"),
    "flash_attn": ("layer_norm", "rms_norm", "rotary_embedding"),
    "vllm_omni": ("rms_norm_scale_shift",),
}
INSTALLED = [
    (name, op)
    for name, ops in NORMS.items()
    if name not in OPTIONAL or importlib.util.find_spec(OPTIONAL[name][0])
    for op in ops
]


@pytest.mark.parametrize("name", OPTIONAL)
def test_without_its_package_an_adapter_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, package, install = OPTIONAL[name]
    for loaded in [m for m in sys.modules if m.partition(".")[0] == module or m == f"validation.adapters.{name}"]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    select(gpu=False)
    with pytest.raises(UsageError, match=f"^--ops: needs {package}: pip install {install}$"):
        load_op_set(f"validation.adapters.{name}")


def test_a_module_that_an_installed_package_lacks_is_not_called_a_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        required("half_installed", "half-installed")


def _judged(op: str, ops: OpSet, count: int) -> list[Record]:
    drawn = draw_cases(cases(signature_of(op)), seed=0, count=count)
    return [judge_case(case, InProcess(ops, select(gpu=False))) for case in drawn]


@pytest.mark.parametrize(("name", "op"), INSTALLED)
def test_an_adapter_runs_and_is_right_where_it_should_be(name: str, op: str) -> None:
    select(gpu=False)
    statuses = [record.status for record in _judged(op, load_op_set(f"validation.adapters.{name}"), 20)]
    assert Status.PASSED in statuses
    assert set(statuses) <= {Status.PASSED, Status.MISTRUSTED}


def _case(op: str, flags: dict[str, Any], **tensors: tuple[str, list[int], list[int]]) -> Case:
    specs = {
        name: {"shape": shape, "dtype": dtype, "strides": strides, "offset": 0, "storage": name}
        for name, (dtype, shape, strides) in tensors.items()
    }
    return Case.from_dict({"op": op, "tensors": specs, "flags": flags, "values": "normal", "seed": 0})


HALVES: dict[str, Any] = {"interleaved": False, "inplace": True}
ANGLES = ("float32", [1, 2], [2, 1])
# Each was confirmed against plain float64 arithmetic on the same numbers.
FINDINGS = [
    # One token per batch item, in memory of [S, B, H, Dh]: contiguous for torch, whatever the stride of S, which
    # Liger 0.8.5 takes as the distance between rows. The program of batch item 1 stores at elements 16 to 23 of the 16
    # of x: item 1 is unchanged, and the memory behind it is rotated.
    (
        "liger",
        _case("rotary_embedding", HALVES, x=("float32", [2, 1, 2, 4], [8, 16, 4, 1]), cos=ANGLES, sin=ANGLES),
        Status.OUT_OF_BOUNDS_WRITE,
    ),
    # 1 + scale in float16, though x is float32.
    (
        "liger",
        _case(
            "rms_norm_scale_shift",
            {"casting_mode": "float32", "eps": 1e-6},
            x=("float32", [1, 1, 4], [4, 4, 1]),
            shift=("float32", [4], [1]),
            scale=("float16", [4], [1]),
        ),
        Status.INCORRECT_NUMERICAL,
    ),
    (
        "torch_native",
        _case("rotary_embedding", HALVES, x=("float32", [2, 1, 2, 4], [8, 16, 4, 1]), cos=ANGLES, sin=ANGLES),
        Status.PASSED,
    ),
]


@pytest.mark.parametrize(("name", "case", "status"), FINDINGS)
def test_known_findings(name: str, case: Case, status: Status) -> None:
    select(gpu=False)
    assert judge_case(case, InProcess(load_op_set(f"validation.adapters.{name}"), select(gpu=False))).status is status


def _no_bfloat16(x: Tensor, weight: Any = None, bias: Any = None, eps: float = 1e-6) -> Tensor:
    if isinstance(x, Tensor) and x.dtype is torch.bfloat16:
        raise CannotExpress("x of bfloat16: no kernel")
    y: Tensor = reference_op("layer_norm")(x, weight, bias, eps)
    return y


def _nothing(*_: Any, **__: Any) -> Tensor:
    raise CannotExpress("layer_norm: no kernel")


def _swept(function: Any) -> list[Record]:
    ops = OpSet("partial", {"layer_norm": function}, "partial.py")
    return list(Sweep(InProcess(ops, select(gpu=False)), PROFILES["quick"], 0).of_op("layer_norm"))


def test_what_cannot_be_expressed_is_counted_and_does_not_fail() -> None:
    records = _swept(_no_bfloat16)
    unexpressed = [record for record in records if record.status is Status.NOT_EXPRESSED]
    assert unexpressed
    assert {record.dtype for record in unexpressed} == {"bfloat16"}
    assert not any(record.status.failed for record in records)
    last = records[-1]
    assert last.numbers["not_expressed"] == len(unexpressed)
    assert f"{len(unexpressed)} of {last.numbers['cases']} cases cannot be expressed" in last.reason
    assert "x of bfloat16: no kernel" in last.reason
    assert last.tier == "bit-exact", "of the cases that were judged"
    assert last.numbers["corners_missed"] == 0
    assert last.numbers["corners_not_expressed"]
    assert "corners of such cases alone: " in last.reason
    assert "dtype=bfloat16" in last.reason
    verdict, sentence = summary.headline(records)
    assert verdict == "PASSED"
    assert f"{len(unexpressed)} of " in sentence
    assert "not expressed" in sentence
    assert cli.exit_status([record.status for record in records]) == cli.PASSED


def test_an_op_of_which_nothing_is_expressed_is_listed_and_judges_nothing() -> None:
    records = _swept(_nothing)
    assert {record.status for record in records} == {Status.NOT_EXPRESSED}
    assert summary.rows(records)[0].verdict == "NOT_EXPRESSED"
    assert cli.exit_status([record.status for record in records]) == cli.FAILED
    assert summary.headline(records)[0] == "FAILED"
    others = _swept(_no_bfloat16)
    assert cli.exit_status([record.status for record in [*records, *others]]) == cli.PASSED


def test_a_distribution_offers_an_op_set_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_kernels.py").write_text("from reference_ops import rms_norm\n")
    info = tmp_path / "their_kernels-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-kernels\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{ENTRY_POINT_GROUP}]\ntheirs = their_kernels\nbroken = their_kernels_gone\n"
    )
    with pytest.raises(UsageError, match="cannot import theirs"):
        load_op_set("theirs")
    monkeypatch.syspath_prepend(str(tmp_path))
    ops = load_op_set("theirs")
    assert (ops.name, ops.origin, set(ops.functions)) == ("theirs", "theirs", {"rms_norm"})
    assert _judged("rms_norm", ops, 1)[0].status is Status.PASSED
    with pytest.raises(UsageError, match="cannot import broken"):
        load_op_set("broken")


def test_a_norm_makes_the_norm_of_q_and_k() -> None:
    q, k = torch.randn(2, 3, 4, 8, dtype=torch.bfloat16), torch.randn(2, 5, 2, 8, dtype=torch.bfloat16)
    weights = torch.randn(8), None
    qk_norm = adapters.qk_norm_of(reference_ops.rms_norm, "it cannot")
    for mode in ("float32", "input"):
        found, expected = (op(q, k, *weights, casting_mode=mode) for op in (qk_norm, reference_ops.qk_norm))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with pytest.raises(CannotExpress, match="inplace=True: it cannot"):
        qk_norm(q, k, *weights, inplace=True)
