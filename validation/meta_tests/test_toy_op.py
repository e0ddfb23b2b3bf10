"""An op is two files: `silu_scale`, added to a copy of both packages, passes through everything that ops do."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from validation.verdict import Status

ROOT = Path(__file__).resolve().parents[2]

REFERENCE = '''
"""``x * sigmoid(x) * scale``."""

import torch
from reference_ops.contract import check_modulated, compute_dtype, expand_modulation


def silu_scale(x, scale):
    check_modulated("silu_scale", x, {"scale": scale}, "float32", float64=True)
    value = x.to(compute_dtype(x))
    return (value * torch.sigmoid(value) * expand_modulation(scale, x).to(value.dtype)).to(x.dtype)
'''

FUSED = '''
"""``x * sigmoid(x) * scale`` in one launch."""

import triton
import triton.language as tl
from fused_ops._launch import (
    block_columns, contiguous_rows, empty, launch, load, modulation_pointers, modulation_rows,
    require_device, row_pointers, store, tile_for, tile_rows, token_rows,
)
from reference_ops.contract import check_modulated


@triton.jit(do_not_specialize=["rows", "tokens"])
def _silu_scale_kernel(
    x, scale, y, rows, width, tokens,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, ONE_BLOCK: tl.constexpr, WIDE: tl.constexpr,
):
    row, row_mask = tile_rows(tl.program_id(0), rows, BLOCK_R, WIDE)
    x_at, y_at = row_pointers(x, row), row_pointers(y, row)
    scale_at = modulation_pointers(scale, row, rows, tokens)
    stop = BLOCK_D if ONE_BLOCK else width
    for start in range(0, stop, BLOCK_D):
        column = block_columns(start, BLOCK_D, WIDE)
        mask = row_mask & (column < width)
        value = load(x_at, x, column, mask).to(tl.float32)
        factor = load(scale_at, scale, column, mask).to(tl.float32)
        store(y_at, y, column, value * tl.sigmoid(value) * factor, mask)


def silu_scale(x, scale):
    strides = check_modulated("silu_scale", x, {"scale": scale}, "float32", float64=False)
    require_device("silu_scale", "x", x)
    y = empty(x)
    batch, tokens, width = x.shape
    tensors = token_rows(x), modulation_rows(scale, strides["scale"]), contiguous_rows(y)
    launch(_silu_scale_kernel, x, tile_for(width), tensors, (batch * tokens,), (width,), tokens=tokens)
    return y
'''

DRIVER = """
import itertools, json, warnings

warnings.simplefilter("ignore", RuntimeWarning)
import torch
from validation.device import select

device = select(gpu=False)
import fused_ops, reference_ops
from validation import controls
from validation.bench import selection
from validation.chains.replay import KINDS, Replay
from validation.controls.__main__ import judge_control, main
from validation.executor import InProcess
from validation.ops import load_op_set, op_set_from
from validation.parity.profiles import Profile
from validation.parity.sweep import Sweep

name, right = "silu_scale", fused_ops.silu_scale


def told(records, count):
    return [(record.status, record.message) for record in itertools.islice(records, count)]


def sweep(ops, count):
    found = Sweep(InProcess(ops, device), Profile("short", 1, 15), 0, "lossless", shrink=False)
    return told(found.of_op(name), count)


def half_of_the_slope(x, scale):
    return (x.float() * torch.sigmoid(x.float() / 2) * reference_ops.contract.expand_modulation(scale, x)).to(x.dtype)


x, scale = torch.randn(2, 3, 64).bfloat16(), torch.randn(64)
truth = reference_ops.silu_scale(x.double(), scale.double())
replays = {
    f"{kind} {seed} {n}": Replay(kind, seed).op_set()[name](x, scale)
    for kind in KINDS for seed in ("a", "b") for n in range(2)
}
status = main(["torch_native", "pairwise", "--op", name])
print()
print(json.dumps({
    "right": sweep(load_op_set("fused_ops"), 60),
    "wrong": sweep(op_set_from({name: half_of_the_slope}, "wrong", "wrong"), 25),
    "control": told(judge_control(name, controls.op_set("reference"), device, cases=1, seed=0), 30),
    "replays": {key: y.double().sub(truth).abs().div(truth.abs()).max().item() for key, y in replays.items()},
    "repeats": [torch.equal(replays[f"{k} a 0"], replays[f"{k} a 1"]) for k in KINDS],
    "differs": [torch.equal(replays[f"{k} a 0"], replays[f"{k} b 0"]) for k in KINDS],
    "status": status,
    "provided": [control for control in controls.NAMES if name in controls.op_set(control)],
    "workloads": [str(workload.make(False).op) for workload in selection.chosen([name])],
}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The driver's result for the toy op, and all its printed text."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in ("reference_ops", "fused_ops"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "validation").symlink_to(ROOT / "validation")
    (folder / "reference_ops" / "silu_scale.py").write_text(REFERENCE)
    (folder / "fused_ops" / "silu_scale.py").write_text(FUSED)
    run = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(run.stdout.splitlines()[-1]), run.stdout


def test_parity_passes_the_right_one_and_fails_the_wrong_one(found: tuple[dict[str, Any], str]) -> None:
    right, wrong = found[0]["right"], found[0]["wrong"]
    assert [message for status, message in right if Status(status).failed] == []
    assert len(right) == 60
    assert {status for status, _ in wrong} >= {Status.PASSED, Status.INCORRECT_NUMERICAL}


def test_replays_are_legal_roundings_that_repeat_themselves(found: tuple[dict[str, Any], str]) -> None:
    # bfloat16 has 8 bits: lossless rounds to nearest, close to one of the two neighbours.
    worst = {key.split()[0]: error for key, error in found[0]["replays"].items()}
    assert 0 < worst["lossless"] <= 2.0**-8 * 1.001
    assert worst["lossless"] < worst["close"] <= 2.0**-7 * 1.001
    assert found[0]["repeats"] == [True, True]
    assert found[0]["differs"][1] is False


def test_controls_judge_it_where_they_have_it(found: tuple[dict[str, Any], str]) -> None:
    data, text = found
    assert [message for status, message in data["control"] if Status(status).failed] == []
    assert len(data["control"]) == 30
    assert set(data["provided"]) >= {"reference", "fused"}
    # A control without the op has nothing to be flagged for.
    assert data["status"] == 0, text
    assert text.count("not provided") == len(
        [name for name in ("torch_native", "pairwise") if name not in data["provided"]]
    )


def test_it_has_workloads_to_time(found: tuple[dict[str, Any], str]) -> None:
    assert set(found[0]["workloads"]) == {"silu_scale"}
