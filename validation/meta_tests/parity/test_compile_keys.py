"""A sweep compiles few kernels on a GPU: its cases are drawn from a pool of compile keys."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from validation.cases.case import Case
from validation.cases.pool import KEYS, Pool, agree, draw_cases
from validation.cases.signature import Signature
from validation.cases.sizes import size_class
from validation.cases.strategies import cases
from validation.device import select
from validation.forking.forked import start_call
from validation.forking.server import Order
from validation.judge import same_bits
from validation.judge.signature import signature_of
from validation.ops import reference_op_names
from validation.parity import compile_keys
from validation.parity.plan import Plan
from validation.parity.profiles import PROFILES, Profile
from validation.parity.workloads import workloads

# The most kernels that 2000 cases of an op may compile.
MOST_KERNELS = 150

OPS = reference_op_names()


@pytest.fixture(scope="module")
def counts() -> dict[str, compile_keys.Count]:
    return {counted.op: counted for counted in compile_keys.count(free=100, seed=0)}


@pytest.mark.parametrize("op", OPS)
def test_a_sweep_compiles_few_kernels(op: str, counts: dict[str, compile_keys.Count]) -> None:
    counted = counts[op]
    assert counted.cases > 200
    # At most one for each key of the pool, however many cases, and one for each workload of the real models.
    assert KEYS // 3 < counted.first <= KEYS + len(workloads(op))
    assert counted.kernels <= MOST_KERNELS


def test_without_the_pool_a_quarter_of_the_cases_is_over_the_bound() -> None:
    (counted,) = compile_keys.count(["scale_residual_layer_norm_scale_shift"], free=500, seed=0, pool=False)
    assert counted.cases == 500
    assert counted.kernels > MOST_KERNELS


@pytest.mark.parametrize("op", OPS)
def test_a_pool_holds_what_every_corner_asks_for(op: str) -> None:
    plan = Plan.of(op, select(gpu=False), PROFILES["quick"], seed=1)
    assert len(plan.pool.of_corners) + len(plan.pool.free) == KEYS
    for corner in plan.corners:
        for turn in (0, 1) if corner.forced else ():
            key = plan.pool.of_corner(corner, corner.forced, turn)
            assert agree(corner.forced, key), corner.name


def test_a_nightly_has_keys_in_proportion() -> None:
    plan = Plan.of("rms_norm", select(gpu=False), PROFILES["nightly"], seed=0)
    assert len(plan.pool.of_corners) + len(plan.pool.free) == 5 * KEYS


def test_the_seed_decides_the_pool() -> None:
    signature = signature_of("rms_norm")
    wanted = [("dtype=float16", {"dtype": "float16"})]
    one, again, other = (Pool.draw(signature, wanted, seed) for seed in (1, 1, 2))
    assert one == again != other


def _stride_classes(case: Case) -> object:
    """Each tensor's dtype, whether it begins at a multiple of 16 bytes, which strides are 1 or multiples of 16."""
    return {
        name: (
            spec.dtype,
            spec.offset * spec.torch_dtype.itemsize % 16 == 0,
            [(s == 1, size_class(s) in (0, -16)) for s in spec.strides],
        )
        for name, spec in case.tensors.items()
    }


@pytest.mark.parametrize("op", OPS)
def test_cases_of_a_key_differ_in_shape_but_not_in_what_triton_tells_apart(op: str) -> None:
    signature = signature_of(op)
    pool = Pool.draw(signature, [], seed=3)
    shapes = 0
    keys = random.Random(0).sample(pool.free, 20)
    for key in keys:
        drawn = draw_cases(cases(signature, key), seed=0, count=8)
        assert len({repr(_stride_classes(case)) for case in drawn}) == 1, key
        shapes += len({repr([spec.shape for spec in case.tensors.values()]) for case in drawn})
    # With single tokens, empty tensors and a few rare classes a key has little choice.
    assert shapes > 2 * len(keys)


@pytest.mark.parametrize("op", ["layer_norm_scale_shift", "qk_norm", "split_rotary_embedding"])
def test_most_cases_have_a_shape_of_their_own(op: str) -> None:
    plan = Plan.of(op, select(gpu=False), Profile("counted", 1, 300), seed=0)
    shapes = [next(iter(planned.case.tensors.values())).shape for planned in plan.cases() if planned.key][-300:]
    # Measured: 202 to 219. Keys that pinned the shapes of their cases, and were near copies of one another: 69 to 89.
    assert len(set(shapes)) > 150


def test_a_kernel_costs_one_more_at_most_for_the_same_bits_checks() -> None:
    signature: Signature = signature_of("residual_gate_add")
    drawn = draw_cases(cases(signature), seed=0, count=100)
    extra = [same_bits.affordable(case).intersection(same_bits.OTHER_KERNEL) for case in drawn]
    assert {len(names) for names in extra} == {0, 1}
    assert set().union(*extra) == set(same_bits.OTHER_KERNEL)


def test_a_process_that_cannot_count_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"error: .*unknown op 'no_such_op'"):
        compile_keys.count(["no_such_op"], free=1, seed=0)
    with pytest.raises(RuntimeError, match="error: --free: -1, expected an integer >= 0"):
        compile_keys.count(["rms_norm"], free=-1, seed=0)


def test_a_second_process_finds_what_the_first_compiled(tmp_path: Path) -> None:
    request = json.dumps({"target": "sm_90", "models": ["Hunyuan3D-2"], "layouts": ["aligned"], "options": {}})
    cache = {"TRITON_CACHE_DIR": str(tmp_path)}

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.cubin")}

    # The first is forked; the second has hash seeds and addresses of its own.
    order = Order("validation.compiled.forked", "main", (), str(Path.cwd()), cache)
    first = start_call(order, request, without=("TRITON_INTERPRET",)).output()
    compiled = files()
    assert len(compiled) == len(first.splitlines()) > 10
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | cache
    command = [sys.executable, "-m", "validation.compiled.aot"]
    second = subprocess.run(command, env=environment, input=request, capture_output=True, text=True, check=True)
    assert (second.stdout, files()) == (first, compiled)
