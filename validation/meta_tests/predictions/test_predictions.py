"""Predictions: what is kept, and what becomes of them where kernel, bits or inputs are others."""

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from validation.cases.case import Case, TensorSpec
from validation.errors import UsageError
from validation.forking.forked import start_call
from validation.forking.server import Order
from validation.meta_tests import in_a_fork
from validation.predictions.confirm import Outcome, compare, table
from validation.predictions.kept import PARTS, Call, Output, Predictions, as_bytes, hash_of, inputs_of

KERNELS = """
import triton
import triton.language as tl
import torch


@triton.jit
def _scaled(x, y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n).to(tl.float32)
    tl.store(y + at, {formula}, mask=at < n)


def scale_shift(x, shift, scale, *args, **kwargs):
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _scaled[(triton.cdiv(x.numel(), 1024),)](x, y, x.numel(), 1024)
    return y
"""
EXACT, OTHER, APPROXIMATE = "value * 3.0 + 1.0", "value * 3.0 + 2.0", "tl.math.rsqrt(value)"
CONFIRM = ("confirm", "mine.json", "--compiled")
NARROW = ("--op", "scale_shift", "--model", "shapes", "--tiny")


def validate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return in_a_fork.run("run_cli", *arguments, folder=folder, interpreted=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an op set and what was predicted of it."""
    folder = tmp_path_factory.mktemp("predictions")
    (folder / "mine.py").write_text(KERNELS.format(formula=EXACT))
    done = validate(folder, "predict", "--ops", "mine.py", *NARROW, "--out", "mine.json")
    assert done.returncode == 0, done.stderr
    assert "4 of 4 calls predicted for sm_90: mine.json" in done.stdout
    return folder


def test_what_was_predicted_holds_when_it_is_executed_again(folder: Path) -> None:
    done = validate(folder, "confirm", "mine.json", "--compiled")
    assert (done.returncode, "\n4 held\n" in done.stdout) == (0, True), done.stdout


def test_the_same_kernel_with_other_bits_differs(folder: Path) -> None:
    order = Order("validation.meta_tests.predictions.wrong_opcode", "main", CONFIRM, str(folder), {})
    done = start_call(order, without=("TRITON_INTERPRET",)).ended()
    assert (done.returncode, "4 differs" in done.stdout) == (1, True), done.stdout + done.stderr
    assert "DIFFERS, scale_shift: output 0: " in done.stdout


def test_another_kernel_with_other_bits_is_told_as_such(folder: Path) -> None:
    (folder / "other.py").write_text(KERNELS.format(formula=OTHER))
    done = validate(folder, "confirm", "mine.json", "--ops", "other.py", "--compiled")
    assert (done.returncode, "4 another kernel" in done.stdout) == (3, True), done.stdout
    assert "ANOTHER KERNEL, scale_shift: output 0: 16 of its 16 parts differ, the first is 1" in done.stdout


def test_another_target_gives_the_same_bits(folder: Path) -> None:
    done = validate(folder, "confirm", "mine.json", "--compiled", "sm_80")
    assert (done.returncode, "held" in done.stdout) == (0, True), done.stdout


def test_what_is_approximate_is_not_predicted(folder: Path) -> None:
    (folder / "approximate.py").write_text(KERNELS.format(formula=APPROXIMATE))
    done = validate(folder, "predict", "--ops", "approximate.py", *NARROW, "--out", "approximate.json")
    assert done.returncode == 1
    assert "scale_shift, shapes width 3072, one row of modulation: not predicted: it has .approx" in done.stdout
    assert "none of 4 calls predicted for sm_90: nothing written" in done.stdout
    assert not (folder / "approximate.json").exists()


AROUND = """
from mine import scale_shift as inner
import torch

def scale_shift(*args, **kwargs):
    {body}
"""


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return torch.empty_like(args[0] if args else kwargs['x'])", "it launches no kernel"),
        ("return inner(*args, **kwargs).float() * 2", "PyTorch computes in it: _to_copy, mul"),
        ("raise ValueError('planted')", "it raised ValueError: planted"),
        ("inner(*args, **kwargs)", "it returned a NoneType"),
    ],
    ids=["no kernel", "torch", "raises", "none"],
)
def test_what_a_gpu_may_do_otherwise_is_not_predicted(folder: Path, body: str, says: str) -> None:
    (folder / "around.py").write_text(AROUND.format(body=body))
    done = validate(folder, "predict", "--ops", "around.py", *NARROW, "--out", "around.json")
    assert (done.returncode, f"not predicted: {says}" in done.stdout) == (1, True), done.stdout + done.stderr


def test_another_result_is_told_as_such(folder: Path) -> None:
    (folder / "around.py").write_text(AROUND.format(body="return inner(*args, **kwargs)[:, :1]"))
    done = validate(folder, "confirm", "mine.json", "--ops", "around.py", "--compiled")
    assert (done.returncode, "4 another result" in done.stdout) == (3, True), done.stdout


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data["versions"].clear(),
        lambda data: data["calls"][0].update(inputs={}),
        lambda data: data["calls"][0].update(inputs=[]),
        lambda data: data["calls"][0].update(op="rms_norm"),
        lambda data: data["calls"][0].update(outputs=[]),
        lambda data: data["calls"][0]["outputs"][0].update(parts=["1"]),
        lambda data: data["calls"][0].update(case={}),
    ],
)
@pytest.mark.unit
def test_a_spoilt_file_is_refused_by_name(tmp_path: Path, spoil: Callable[[Any], None]) -> None:
    data: dict[str, Any] = {"schema": 1, "target": "sm_90", "ops": "mine.py"}
    data |= {"versions": {"torch": "1", "triton": "2", "commit": "3"}}
    data["calls"] = [json.loads(json.dumps(a_call().to_dict()))]
    (tmp_path / "a.json").write_text(json.dumps(data))
    assert Predictions.read(tmp_path / "a.json").calls == [a_call()]
    spoil(data)
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=r"a\.json: .*expected what validate predict wrote"):
        Predictions.read(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("confirm", "mine.json"), "expected --gpu, or --compiled"),
        (("confirm", "nothing.json", "--compiled"), "nothing.json: FileNotFoundError"),
        (("confirm", "mine.py", "--compiled"), "mine.py: JSONDecodeError"),
        (("confirm", "mine.json", "--compiled", "--op", "rms_norm"), "nothing was predicted of 'rms_norm'"),
        (("predict", "--op", "odd", "--out", "a.json"), "unknown op 'odd'"),
        (("predict", "--tiny"), "--out: expected a file"),
        (("predict", "--out", "nowhere/a.json"), "cannot write nowhere/a.json"),
        (
            ("predict", "--ops", "mine.py", "--op", "rms_norm", "--tiny", "--out", "b.json"),
            "has no op of these workloads",
        ),
    ],
)
def test_bad_input_is_one_line(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    done = validate(folder, *arguments)
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr
    assert len(done.stderr.splitlines()) == 1


def a_call() -> Call:
    case = Case("layer_norm", {"x": TensorSpec((3, 5), "float32", (5, 1), 0, "x")}, {}, "normal", 7)
    out = Output.of(torch.arange(64.0).reshape(4, 16))
    return Call("layer_norm", "a site", case, {"x": "1"}, ("k",), (out,))


@pytest.mark.unit
def test_each_outcome_has_its_reason() -> None:
    call = a_call()
    changed = torch.arange(64.0)
    changed[21] = -1.0
    wrong = (Output.of(changed.reshape(4, 16)),)
    for found, outcome, reason in (
        (call, Outcome.HELD, ""),
        (dataclasses.replace(call, kernels=("l",)), Outcome.HELD_OTHERWISE, ""),
        (
            dataclasses.replace(call, outputs=wrong),
            Outcome.DIFFERS,
            "output 0: 1 of its 16 parts differ, the first is 6",
        ),
        (
            dataclasses.replace(call, outputs=wrong, kernels=()),
            Outcome.OTHER_KERNEL,
            "output 0: 1 of its 16 parts differ, the first is 6",
        ),
        (dataclasses.replace(call, inputs={"x": "2"}), Outcome.OTHER_INPUTS, "x of this seed differ here"),
        (dataclasses.replace(call, unknown="mma"), Outcome.FAILED, "mma"),
        (
            dataclasses.replace(call, outputs=(Output.of(torch.zeros(2)),)),
            Outcome.OTHER_RESULT,
            "float32 [2], predicted float32 [4, 16]",
        ),
    ):
        compared = compare(call, found)
        assert (compared.outcome, compared.reason) == (outcome, reason)
        assert outcome in table([compared])


@pytest.mark.unit
def test_what_is_written_is_read(tmp_path: Path) -> None:
    kept = Predictions("sm_90", "mine.py", {"torch": "1", "triton": "2", "commit": "3"}, [a_call()])
    kept.write(tmp_path / "a.json")
    assert Predictions.read(tmp_path / "a.json") == kept
    (tmp_path / "b.json").write_text(json.dumps({"schema": 2}))
    with pytest.raises(UsageError, match="schema 2, expected 1"):
        Predictions.read(tmp_path / "b.json")


@pytest.mark.unit
def test_hashes_are_of_elements_bits_and_instructions() -> None:
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    gaps = torch.full((2, 4), 9.0)
    gaps[:, ::2] = x
    assert inputs_of({"x": x}) == inputs_of({"x": gaps[:, ::2]})
    assert inputs_of({"x": x}) != inputs_of({"x": torch.tensor([[-0.0, 1.0], [2.0, 3.0]])})
    assert len(as_bytes(torch.zeros(1, 5).expand(100, 5))) == 20
    assert len(Output.of(x).parts) == PARTS
    head = ".visible .entry k(\n)\n.reqntid 32\n{{\n\t.reg .b32 %r<2>;\n\t.loc 1 {line} 3\n\t{code}\n\tret;\n}}\n"
    head += '\t.file 1 "{path}"\n'
    one = hash_of(head.format(line=7, code="mov.b32 %r0, 1;", path="/a.py"))
    assert one == hash_of(head.format(line=9, code="mov.b32 %r0, 1;", path="/b.py"))
    assert one != hash_of(head.format(line=7, code="mov.b32 %r0, 2;", path="/a.py"))
    assert hash_of("no kernel").startswith("text ")
