"""Where two kernels part: planted differences are named, of the right kernel; what was followed gives its bits."""

import json
from pathlib import Path
from typing import Any

import pytest

from validation.forking.forked import start_call
from validation.forking.server import Order
from validation.meta_tests import in_a_fork

ROOT = Path(__file__).parents[3]
PARTS = "their values part first at "


@pytest.fixture(scope="module")
def found() -> Any:
    """What `explained` prints."""
    order = Order("validation.meta_tests.explain.explained", "main", (), str(ROOT), {})
    return json.loads(start_call(order, without=("TRITON_INTERPRET",)).output().splitlines()[-1])


def lines_of(found: Any, name: str) -> list[str]:
    one = found["explained"][name]
    assert one["differs"], name
    assert one["followed"], name
    return [*one["lines"]]


def first_of(lines: list[str]) -> tuple[str, list[str]]:
    """Where values part first, and what is said there."""
    at = next(n for n, line in enumerate(lines) if line.startswith(PARTS))
    end = next((n for n, line in enumerate(lines) if n > at and not line.startswith("  ")), len(lines))
    return lines[at].removeprefix(PARTS).rstrip(":"), [line.strip() for line in lines[at + 1 : end]]


LANES = "then lanes 16, 8, 4, 2, 1 apart"
WARPS_8 = (
    "a: each of 250 threads adds 4 values one after another (the first one's columns: 0 to 3); "
    f"{LANES}; then warps 4, 2, 1 apart"
)
WARPS_4 = (
    "b: each of 128 threads adds 4 to 8 values one after another (the first one's columns: 0 to 3, 512 to 515); "
    f"{LANES}; then warps 2, 1 apart"
)


@pytest.mark.parametrize(
    ("name", "place", "a", "b"),
    [
        ("warps8", "sum(x²)", WARPS_8, WARPS_4),
        ("chunks", "sum(x²)", "then warps 2, 1 apart; then 2 sums of all threads, one after another", "b: each of 128"),
        ("split", "sum(x²)", "then CTAs 12, 6 apart", "then warps 2, 1 apart"),
        ("fused", "sum(x²)", "a adds 872 of 1,000 products without rounding them (fma at standard.py",
         "b rounds each product to float32, then adds it (mul, then add at standard.py"),
        ("fused, exchanged", "sum(x²)", "a rounds each product to float32, then adds it (mul, then add at standard.py",
         "b adds 872 of 1,000 products without rounding them (fma at standard.py"),
        ("approx", "rstd", "a computes rsqrt.approx.ftz(mean(x²) + eps) (rsqrt.approx.ftz.f32 at op_sets.py",
         "b computes 1 / sqrt(mean(x²) + eps) (div.rn.f32 at op_sets.py"),
        ("early", "x * rstd", "a rounds it to 16 bits once: cvt.rn.bf16.f32 at op_sets.py",
         "b rounds it to 16 bits not at all"),
        ("one_pass", "variance", "a computes div.full(sum(x²), 128) - mean(x)² in one pass",
         "b computes div.full(sum((x - mean(x))²), 128) in two passes"),
    ],
)  # fmt: skip
def test_a_planted_difference_is_where_they_part(found: Any, name: str, place: str, a: str, b: str) -> None:
    lines = lines_of(found, name)
    at, said = first_of(lines)
    assert at == place
    of_a = [line for line in said if line.startswith("a")]
    of_b = [line for line in said if line.startswith("b")]
    assert any(a in line for line in of_a), said
    assert any(b in line for line in of_b), said
    # One thing is planted in each: nothing else may be named.
    assert not [line for line in lines if line.startswith(("after that", "other arithmetic"))]


@pytest.mark.parametrize("name", ["warps8", "chunks", "split", "fused", "approx", "one_pass"])
def test_the_value_at_that_place_makes_the_difference(found: Any, name: str) -> None:
    at, said = first_of(lines_of(found, name))
    assert f"with b's value of {at}, the rest of a gives b's output" in said


def test_both_values_are_held_against_the_exact_one(found: Any) -> None:
    for name in ("fused", "fused, exchanged", "approx"):
        (said,) = [line for line in first_of(lines_of(found, name))[1] if line.startswith("here")]
        a, b, exactly = (float(word.rstrip(":,")) for word in said.split() if word[0].isdigit())
        nearer = "a" if abs(a - exactly) < abs(b - exactly) else "b"
        assert said.endswith(f"{nearer} is nearer")
        assert abs(a - exactly) < 1e-6 * exactly


def test_equal_kernels_do_not_differ(found: Any) -> None:
    assert found["explained"]["plain"] == {"lines": [], "followed": True, "differs": False}


def test_what_pytorch_computes_after_the_kernel_is_told_and_not_followed(found: Any) -> None:
    after = found["explained"]["after"]
    assert not after["followed"]
    assert after["lines"][-1] == (
        "a (after) is not followed: PyTorch's own operators (mul) make this output, after the last kernel"
    )


def test_what_was_followed_gives_our_ops_bits(found: Any) -> None:
    assert found["checked"] == {"rms_norm": 3, "rotary_embedding": 3, "scale_residual_layer_norm_scale_shift": 6}


def test_a_graph_that_is_not_the_kernels_is_refused(found: Any) -> None:
    planted = found["planted"]
    assert planted.pop("nothing") == ""
    assert len(planted) == 4
    for what, said in planted.items():
        assert "the graph is not what the kernel computes" in said, what


def test_the_command_says_what_it_needs(tmp_path: Path) -> None:
    done = in_a_fork.run("run_cli", "explain", "--ops", "fused_ops", folder=tmp_path, interpreted=False)
    assert (done.returncode, "--op: expected an op, or --case with one" in done.stderr) == (2, True)
