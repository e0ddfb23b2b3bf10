"""Ops of functions that cancel and overflow on the way: the reference itself, other right arithmetic, a wrong one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from validation.verdict import Status

ROOT = Path(__file__).resolve().parents[3]

# An op's chain of x, v, and its modulation, s, in float32: as torch has it, and the same function written out.
FUNCTIONS = {
    "silu_gate": ("v * functional.silu(s)", "v * (s / (1 + torch.exp(-s)))"),
    "silu": ("functional.silu(v) * s", "v * torch.sigmoid(v) * s"),
    "gelu": ("functional.gelu(v) * s", "0.5 * v * (1 + torch.erf(v * 0.7071067811865476)) * s"),
    "gelu_tanh": (
        "functional.gelu(v, approximate='tanh') * s",
        "0.5 * v * (1 + torch.tanh(0.7978845608028654 * (v + 0.044715 * v * v * v))) * s",
    ),
    "softplus": ("functional.softplus(v) * s", "(v.clamp(min=0) + torch.log1p(torch.exp(-v.abs()))) * s"),
    "exp_gate": ("v * torch.exp(s)", "v / torch.exp(-s)"),
    "log": ("torch.log(v.abs() + 1e-6) * s", "torch.log2(v.abs() + 1e-6) * 0.6931471805599453 * s"),
    "tanh_gate": ("v * torch.tanh(s)", "v * torch.sinh(s.clamp(-20, 20)) / torch.cosh(s.clamp(-20, 20))"),
    "division": ("v / (1 + s * s)", "v * (1 / (1 + s * s))"),
    # torch computes these in one operation, whose steps the automatic bound does not know.
    "sinc": ("torch.sinc(v) * s", "torch.sinc(v) * s"),
    "length": ("torch.linalg.vector_norm(v, dim=-1, keepdim=True) * s.expand_as(v)",) * 2,
    "square_root": ("torch.sqrt(v.abs()) * s", "v.abs() * torch.rsqrt(v.abs().clamp(min=1e-38)) * s"),
}

# Rows in which float32 fails torch's own function: silu(-92) is -0 since exp overflows on the way, sinc of a large
# number has the angle's error, and a length overflows in the squares.
BEYOND = {
    "silu_gate": ((1.0, 2.0, -3.0, 0.5), (-92.0, -95.0, -100.0, -89.5)),
    "sinc": ((1000.3, 5000.7, 20000.1, 7.25), (1.0, 2.0, -3.0, 0.5)),
    "length": ((3e25, -4e25, 1e25, 2e25), (1.0, 2.0, -3.0, 0.5)),
}

REFERENCE = '''
"""``{expression}``."""

import torch
from torch.nn import functional
from reference_ops.contract import check_modulated, compute_dtype, expand_modulation


def {name}(x, scale):
    check_modulated("{name}", x, {{"scale": scale}}, "float32", float64=True)
    v = x.to(compute_dtype(x))
    s = expand_modulation(scale, x).to(v.dtype)
    return ({expression}).to(x.dtype)


def written_out(x, scale):
    v = x.to(compute_dtype(x))
    s = expand_modulation(scale, x).to(v.dtype)
    return ({other}).to(x.dtype)
'''

DRIVER = """
import json, sys, warnings

warnings.simplefilter("ignore", RuntimeWarning)
from validation.device import select

device = select(gpu=False)
import importlib
import torch
import reference_ops
from validation.cases.case import Case
from reference_ops import IndexedRows
from validation.cases import strategies
from validation.cases.pool import draw_cases
from validation.executor import InProcess
from validation.judge.signature import signature_of
from validation.ops import op_set_from
from validation.parity.one_case import judge_case

REGIMES = ("normal", "outlier_channels", "large_modulation", "near_max")


def further(right, x, scale, times):
    truth, y = right(x.double(), scale.double()), right(x, scale)
    return torch.where(y.isfinite(), truth + times * (y.double() - truth), 1.0).to(x.dtype)


def double(t):
    return IndexedRows(t.table.double(), t.index) if isinstance(t, IndexedRows) else t.double()


names, beyond = map(json.loads, sys.argv[1:])


def of_rows(name, x, scale):
    spec = {"dtype": "float32", "offset": 0}
    tensors = {
        "x": {**spec, "shape": [1, 1, 4], "strides": [4, 4, 1], "storage": "x"},
        "scale": {**spec, "shape": [4], "strides": [1], "storage": "scale"},
    }
    literals = {"x": x, "scale": scale}
    return Case.from_dict(
        {"op": name, "tensors": tensors, "flags": {}, "values": "normal", "seed": 0, "literals": literals}
    )


found = {}
for name, rows in beyond.items():
    right = getattr(reference_ops, name)
    candidates = {
        "itself": right,
        "float64 inside": lambda x, scale, right=right: right(x.double(), scale.double()).to(x.dtype),
        "twice as far": lambda x, scale, right=right: further(right, x, scale, 2.5),
        "NaN": lambda x, scale, right=right: torch.full_like(x, float("nan")),
    }
    for label, function in candidates.items():
        record = judge_case(of_rows(name, *rows), InProcess(op_set_from({name: function}, label, label), device))
        found[f"{name} beyond, {label}"] = [(record.status, record.tier, record.message)]
for name in names:
    module = importlib.import_module(f"reference_ops.{name}")
    right = vars(module)[name]
    candidates = {
        "itself": right,
        "float64 inside": lambda x, scale, right=right: right(x.double(), double(scale)).to(x.dtype),
        "written out": module.written_out,
        "wrong": lambda x, scale, right=right: (right(x, scale).float() * (1 + 2.0**-7)).to(x.dtype),
    }
    for label, function in candidates.items():
        executor = InProcess(op_set_from({name: function}, label, label), device)
        cases = [
            case
            for values in REGIMES
            for case in draw_cases(strategies.cases(signature_of(name), {"values": values}), seed=5, count=4)
        ]
        records = [judge_case(case, executor) for case in cases]
        found[f"{name}, {label}"] = [(record.status, record.tier, record.message) for record in records]
print(json.dumps(found))
"""

Judged = dict[str, list[tuple[str, str | None, str]]]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """Each candidate's status, tier and message in 16 cases."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in ("reference_ops", "fused_ops"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "validation").symlink_to(ROOT / "validation")
    for name, (expression, other) in FUNCTIONS.items():
        text = REFERENCE.format(name=name, expression=expression, other=other)
        (folder / "reference_ops" / f"{name}.py").write_text(text)
        (folder / "fused_ops" / f"{name}.py").write_text(
            f"from reference_ops.{name} import {name} as right\n{name} = right\n"
        )
    command = [sys.executable, "-c", DRIVER, json.dumps([*FUNCTIONS]), json.dumps(BEYOND)]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    made: Judged = json.loads(run.stdout.splitlines()[-1])
    return made


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_reference_never_fails_against_itself(name: str, judged: Judged) -> None:
    found = judged[f"{name}, itself"]
    # Near the largest number all may be inf.
    counting = [(status, tier) for status, tier, _ in found if status != Status.MISTRUSTED]
    assert set(counting) == {(Status.PASSED, "bit-exact")}, found
    assert len(counting) >= 8


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("label", ["float64 inside", "written out"])
def test_other_right_arithmetic_passes(name: str, label: str, judged: Judged) -> None:
    assert [message for status, _, message in judged[f"{name}, {label}"] if Status(status).failed] == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_factor_that_is_a_hundredth_off_is_seen(name: str, judged: Judged) -> None:
    failed = [status for status, *_ in judged[f"{name}, wrong"] if Status(status).failed]
    # Of 16: near the largest number most results are inf, right or wrong.
    assert len(failed) >= 8
    assert Status.INCORRECT_NUMERICAL in failed


@pytest.mark.parametrize("name", BEYOND)
def test_no_element_is_held_to_more_than_the_reference_reaches_there(name: str, judged: Judged) -> None:
    """By the bound alone the reference itself fails each of these rows."""
    assert [tuple(row) for row in judged[f"{name} beyond, itself"]] == [(Status.PASSED, "bit-exact", "")]
    ((right, *_),) = judged[f"{name} beyond, float64 inside"]
    assert not Status(right).failed, right
    # But no further from the truth than the reference is, and of no other kind.
    for label in ("twice as far", "NaN"):
        ((wrong, *_),) = judged[f"{name} beyond, {label}"]
        assert Status(wrong).failed, label
