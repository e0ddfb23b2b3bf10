"""Compiled kernels on the CPU: command lines with ``--compiled``, each in a process without the interpreter."""

import json
from pathlib import Path
from typing import Any

import pytest

from validation.meta_tests import in_a_fork
from validation.meta_tests.device import executed_faults

ROOT = Path(__file__).parents[3]

HEAD = """
import torch
import triton
import triton.language as tl

def rms_norm(x, weight=None, eps=1e-6, *, casting_mode="float32"):
    y = torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[-1])
    kernel[(x.shape[0],)](x, weight, y, x.shape[-1], eps, block)
    return y
"""
KERNEL = """
@triton.jit
def kernel(x, weight, y, D, eps, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    inside = column < D
    row = tl.program_id(0) * D + column
    value = tl.load(x + row, mask=inside, other=0.0)
    factor = tl.load(weight + column, mask=inside, other=0.0)
    root = tl.sqrt_rn(tl.sum(value * value, 0) / D + eps)
    tl.store(y + row, tl.div_rn(value, root) * factor, mask=inside)
"""
UNMASKED = KERNEL.replace("tl.load(weight + column, mask=inside, other=0.0)", "tl.load(weight + column)")
# The result of a dot product is not used, and cannot be left out.
DOT = KERNEL.replace(
    "    root =",
    """    ones = tl.full((16, 16), 1.0, tl.float16) * value.to(tl.float16).sum(0)
    factor = factor + tl.dot(ones, ones).sum(0).sum(0) * 0.0
    root =""",
)
ASSERTING = KERNEL.replace("    root =", "    tl.device_assert(value < 1.0, 'too large')\n    root =")
# Neighbours write to one element of y, which is then overwritten: `winner` is 1 if the last of them wins.
CONTESTED = KERNEL.replace(
    "    root =",
    """    tl.debug_barrier()
    tl.store(y + tl.program_id(0) * D + column // 2, (column % 2).to(tl.float32), mask=inside)
    tl.debug_barrier()
    winner = tl.load(y + tl.program_id(0) * D)
    tl.debug_barrier()
    root =""",
)
# The same with an atomic: the last of 100 columns wins.
EXCHANGED = CONTESTED.replace(
    "tl.store(y + tl.program_id(0) * D + column // 2, (column % 2).to(tl.float32), mask=inside)",
    "tl.atomic_xchg(y + tl.program_id(0) * D + column // 128, (column - 98).to(tl.float32), mask=inside)",
)
# 0 where rsqrt gives its correctly rounded result, of 4; next to it, 1e4 times too much.
AMPLIFIED = KERNEL.replace("tl.div_rn(value, root)", "(tl.div_rn(value, root) + 1e4 * (tl.rsqrt(eps * 4e6) - 0.5))")
# A product and a sum that ptxas may contract; Triton's own have a rounding each in their name.
CONTRACTED = KERNEL.replace(
    "tl.div_rn(value, root) * factor",
    "tl.inline_asm_elementwise('{ .reg .f32 t; mul.f32 t, $1, $2; add.f32 $0, t, $3; }', '=f,f,f,f', "
    "[tl.div_rn(value, root), factor, value * 0.0], tl.float32, True, 1)",
)
CONFIGURATIONS = "[triton.Config({'WRONG': wrong}) for wrong in (0, 1)]"
TUNED = KERNEL.replace("@triton.jit", f"@triton.autotune({CONFIGURATIONS}, ['D'])\n@triton.jit")
TUNED = TUNED.replace("BLOCK: tl.constexpr", "BLOCK: tl.constexpr, WRONG: tl.constexpr").replace("/ D", "/ (D - WRONG)")
# No kernel, so that a whole sweep is cheap.
EAGER = """
import triton
from reference_ops import split_rotary_embedding
assert not triton.knobs.runtime.interpret
"""


def case(seed: int = 0, width: int = 100) -> str:
    x = {"shape": [3, width], "dtype": "float32", "strides": [width, 1], "offset": 0, "storage": "x"}
    weight = {"shape": [width], "dtype": "float32", "strides": [1], "offset": 0, "storage": "weight"}
    flags = {"eps": 1e-6, "casting_mode": "float32"}
    tensors = {"x": x, "weight": weight}
    return json.dumps({"op": "rms_norm", "tensors": tensors, "flags": flags, "values": "normal", "seed": seed})


def judged(
    folder: Path, kernel: str, *cases: str, options: tuple[str, ...] = ("--compiled",), head: str = HEAD
) -> tuple[int, str]:
    """Exit status and output of ``validate repro`` on an op file."""
    (folder / "mine.py").write_text(head + kernel)
    arguments = ("repro", *(cases or (case(),)), "--ops", "mine.py", *options)
    done = in_a_fork.run("run_cli", *arguments, folder=folder, interpreted=False)
    return done.returncode, done.stdout + done.stderr


def line_of(kernel: str, text: str) -> int:
    """The number of the line of the op file that holds a text."""
    return next(n for n, line in enumerate((HEAD + kernel).splitlines(), 1) if text in line)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_a_right_kernel_passes(tmp_path: Path, target: str) -> None:
    status, output = judged(tmp_path, KERNEL, options=("--compiled", target))
    assert (status, "PASSED (lossless)" in output) == (0, True), output


def test_a_read_past_the_end_is_told_with_its_python_line(tmp_path: Path) -> None:
    status, output = judged(tmp_path, UNMASKED, options=("--compiled", "--races"))
    assert status == 1
    assert "OUT_OF_BOUNDS_READ in kernel" in output
    assert f"mine.py:{line_of(UNMASKED, 'weight + column')}" in output
    assert "0 bytes behind the end of weight (100,)" in output
    repeat = next(line for line in output.splitlines() if line.startswith("repeat: "))
    assert repeat.endswith("--ops mine.py --compiled sm_90 --races")


def test_what_is_not_executed_is_named_and_counts_for_nothing(tmp_path: Path) -> None:
    status, output = judged(tmp_path, DOT)
    assert status == 1  # nothing was judged
    assert "rms_norm  mine  NOT_EXECUTED\n" in output
    assert "mma" in output
    assert f"mine.py:{line_of(DOT, 'tl.dot')}" in output


def test_a_false_assertion_is_told_with_its_text_and_its_python_line(tmp_path: Path) -> None:
    debugged = HEAD.replace("eps, block)", "eps, block, debug=True)")
    status, output = judged(tmp_path, ASSERTING, head=debugged)
    assert status == 1
    assert "ASSERTION_FAILED in kernel" in output
    assert f"mine.py:{line_of(ASSERTING, 'device_assert')}" in output
    assert "the assertion 'too large' does not hold" in output


def test_a_fallback_from_what_is_not_executed_is_no_result(tmp_path: Path) -> None:
    launch = "    kernel[(x.shape[0],)](x, weight, y, x.shape[-1], eps, block)\n"
    caught = f"""\
    try:
    {launch}
    except Exception:
        import reference_ops
        return reference_ops.rms_norm(x, weight, eps)
"""
    assert launch in HEAD
    status, output = judged(tmp_path, DOT, head=HEAD.replace(launch, caught))
    assert (status, "rms_norm  mine  NOT_EXECUTED\n" in output) == (1, True), output


@pytest.mark.parametrize("kernel", [CONTESTED, EXCHANGED], ids=["store", "exchange"])
def test_what_the_order_of_threads_leaves_is_a_race_if_the_result_depends_on_it(tmp_path: Path, kernel: str) -> None:
    status, output = judged(tmp_path, kernel)
    assert (status, "PASSED (lossless)" in output) == (0, True), output
    status, output = judged(tmp_path, kernel.replace("* factor, mask", "* factor + (winner - 1.0), mask"))
    assert status == 1
    assert "rms_norm  mine  fp32  RACE" in output
    assert "thread order: with the threads in the other order it gives other bits" in output
    assert "the order shows in " in output


def test_approximations_are_judged_over_their_whole_interval(tmp_path: Path) -> None:
    status, output = judged(tmp_path, AMPLIFIED)
    assert status == 1
    assert "INCORRECT_NUMERICAL" in output
    assert "approximations: with .approx results at the low end of their intervals" in output


def test_what_ptxas_contracts_is_told(tmp_path: Path) -> None:
    status, output = judged(tmp_path, CONTRACTED, options=("--compiled", "--races"))
    assert (status, "PASSED (lossless)" in output) == (0, True), output
    assert "ptxas contracted products and sums of kernel: " in output
    assert "FFMA, expected " in output
    assert "a GPU's bits may be others than those judged" in output
    _, output = judged(tmp_path, KERNEL, options=("--compiled", "--races"))
    assert "ptxas" not in output


def test_each_configuration_of_a_tuned_kernel_has_its_turn(tmp_path: Path) -> None:
    status, output = judged(tmp_path, TUNED, case(0), case(1), case(2), case(3))
    assert status == 1
    assert (output.count("PASSED"), output.count("INCORRECT_NUMERICAL")) == (2, 2), output


@pytest.mark.parametrize(
    ("options", "interpreted", "message"),
    [
        (("--compiled", "--gpu"), False, "--compiled: expected no --gpu with it"),
        (("--compiled", "sm_75"), False, "--compiled: invalid choice: 'sm_75' (choose from"),
        (("--races",), False, "--races: expected --compiled with it"),
        (("--compiled",), True, "--compiled: TRITON_INTERPRET is set, expected it unset"),
    ],
)
def test_usage_errors(tmp_path: Path, options: tuple[str, ...], interpreted: bool, message: str) -> None:
    done = in_a_fork.run("run_cli", "parity", *options, folder=tmp_path, interpreted=interpreted)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not [*tmp_path.iterdir()]


def test_pytest_takes_the_option_too(tmp_path: Path) -> None:
    (tmp_path / "eager.py").write_text(EAGER)
    where = ("-p", "no:cacheprovider", "--rootdir", str(ROOT), str(ROOT / "validation" / "test_parity.py"))
    what = ("--validate-ops", "eager.py", "--validate-profile", "quick", "--validate-out", "run")
    arguments = ("-m", "parity", "--compiled", "sm_80", *what, *where)
    done = in_a_fork.run("run_pytest", *arguments, folder=tmp_path, interpreted=False)
    assert done.returncode == 0, done.stdout
    assert "validation: eager.py on sm_80, profile quick" in done.stdout
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["device"] == "sm_80, executed on the CPU"
    assert environment["options"]["compiled"] == "sm_80"


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    done = in_a_fork.run("run_executed_faults", folder=ROOT, interpreted=False)
    assert done.returncode == 0, done.stderr
    judged: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return judged


@pytest.mark.parametrize("name", executed_faults.NAMES)
def test_a_planted_fault_is_caught_by_a_check_that_names_it(found: dict[str, Any], name: str) -> None:
    status, reason = found[name]
    assert status == "PASSED", reason


def test_the_right_kernels_of_planted_faults_pass(found: dict[str, Any]) -> None:
    # A case that is nearly all zeros is MISTRUSTED: right, and told to count for nothing.
    assert set(found["right"]) <= {"PASSED", "MISTRUSTED"}
    assert found["right"]["PASSED"] >= 10
