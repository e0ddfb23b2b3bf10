import math
from typing import Any

import pytest
import torch
from torch import Tensor

import reference_ops
from reference_ops import IndexedRows
from validation.chains.replay import KINDS, Kind, Replay, stochastically_rounded
from validation.chains.truth import bound, exact_outputs, truth
from validation.meta_tests.op_arguments import HAS_CASTING_MODE, HAS_INPLACE, arguments, same_bits, tuple_of

MODES = [(op, mode) for op in reference_ops.OP_NAMES for mode in ("float32", "input")[: 1 + (op in HAS_CASTING_MODE)]]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DIGITS = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def options(op: str, mode: str) -> dict[str, Any]:
    return {"casting_mode": mode} if op in HAS_CASTING_MODE else {}


def call(function: Any, op: str, made: dict[str, Any], mode: str) -> tuple[Tensor, ...]:
    return tuple_of(function(**made, **options(op, mode)))


def in_float64(made: dict[str, Any]) -> dict[str, Any]:
    return {name: t.double() for name, t in made.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "mode"), MODES)
def test_the_truth_is_the_reference_in_float64_rounded_once(op: str, mode: str, dtype: torch.dtype) -> None:
    made = arguments(op, dtype=dtype)
    results = call(truth()[op], op, made, mode)
    exact = tuple_of(getattr(reference_ops, op)(**in_float64(made)))
    if "scale_residual" in op:
        # y is the norm of the residual_out returned with it.
        rest = {name: t for name, t in in_float64(made).items() if name not in ("residual", "x", "gate")}
        norm = getattr(reference_ops, op.removeprefix("scale_residual_"))
        exact = (norm(exact[1].to(dtype).double(), **rest), exact[1])
    assert same_bits(results, tuple(y.to(dtype) for y in exact))


def spacing(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of neighbours of dtype at a value: 2^(e - digits) for 2^(e-1) <= |value| < 2^e."""
    exponent = torch.frexp(exact.abs().clamp(min=torch.finfo(dtype).smallest_normal))[1]
    return torch.ldexp(torch.ones_like(exact), exponent - DIGITS[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", reference_ops.OP_NAMES)
def test_replays_of_a_float32_chain_round_the_exact_result_to_a_neighbour(op: str, dtype: torch.dtype) -> None:
    made = arguments(op, dtype=dtype, L=60, D=32)
    first, rest = bound(op, (), made)
    # y depends on residual_out, which differs; residual_out itself is rounded from an exact one.
    judged = slice(1, 2) if "scale_residual" in op else slice(None)
    exact = exact_outputs(op, *first, **rest)[judged]
    for kind in KINDS:
        replayed = call(Replay(kind, "a").op_set()[op], op, made, "float32")[judged]
        for y, t in zip(replayed, exact, strict=True):
            error = (y.double() - t) / spacing(t, dtype)
            differ = float((y != t.to(dtype)).double().mean())
            if kind == "lossless":
                # To nearest, except for noise, which counts for more if the result is small by cancellation.
                noise = 2**-21 * float(t.abs().max()) / spacing(t, dtype)
                assert ((error.abs() - 0.5) <= noise).all()
                assert differ < 0.01
            else:
                assert error.abs().max() < 1
                assert 0.2 < differ < 0.3  # half of the distance to the nearest, 1/4 on average
                assert float(error.square().mean()) == pytest.approx(1 / 6, rel=0.15)
                assert abs(float(error.mean())) < 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", [op for op in reference_ops.OP_NAMES if op in HAS_CASTING_MODE])
@pytest.mark.parametrize("other", [torch.float32, None], ids=["float32_modulation", "one_dtype"])
def test_lossless_replays_of_an_input_chain_make_its_declared_roundings(
    op: str, dtype: torch.dtype, other: torch.dtype | None
) -> None:
    made = arguments(op, dtype=dtype, other=other or dtype, L=60, D=32)
    chain = call(getattr(reference_ops, op), op, made, "input")
    replayed = call(Replay("lossless", "a").op_set()[op], op, made, "input")
    once = call(truth()[op], op, made, "input")
    for y, near, z in zip(chain, replayed, once, strict=True):
        assert float((y != near).double().mean()) < 0.01
        if other is None:  # float32 modulation leaves the chain in float32, with fewer intermediate roundings or none
            assert float((y != z).double().mean()) > 0.05


@pytest.mark.parametrize("op", reference_ops.OP_NAMES)
def test_lossless_replays_of_float32_values_keep_to_a_few_float32_roundings(op: str) -> None:
    made = arguments(op, dtype=torch.float32, L=20)
    exact = call(getattr(reference_ops, op), op, in_float64(made), "float32")
    for y, t in zip(call(Replay("lossless", "a").op_set()[op], op, made, "float32"), exact, strict=True):
        largest = float(t.abs().max())
        assert 0 < float((y.double() - t).abs().max()) < 2**-20 * largest


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_a_replay(kind: Kind) -> None:
    made = arguments("layer_norm_scale_shift", dtype=torch.bfloat16, L=500, D=64)

    def replayed(seed: str) -> tuple[Tensor, Tensor]:
        op = Replay(kind, seed).op_set()["layer_norm_scale_shift"]
        return op(**made), op(**made)

    first, second = replayed("a")
    assert same_bits(replayed("a"), (first, second))
    assert same_bits(first, second) is (kind == "lossless")  # a function; one generator, call by call
    assert not same_bits(replayed("b")[0], first)


@pytest.mark.parametrize("op", HAS_INPLACE)
def test_in_place_ops_write_over_their_inputs(op: str) -> None:
    for ops in (truth(), Replay("lossless", "a").op_set(), Replay("close", "a").op_set()):
        made = arguments(op, dtype=torch.bfloat16)
        first, rest = bound(op, (), made)
        expected = tuple_of(ops[op](*(t.clone() for t in first), **rest))
        again = arguments(op, dtype=torch.bfloat16)
        first, rest = bound(op, (), again)
        written = tuple_of(ops[op](*first, **rest, inplace=True))
        assert all(y is x for y, x in zip(written, first, strict=False))
        if ops.name == "truth":
            assert same_bits(written, expected)


def test_indexed_modulation_is_the_modulation_that_it_stands_for() -> None:
    made = arguments("layer_norm_scale_shift", dtype=torch.bfloat16)
    index = torch.arange(12).reshape(2, 6) % 3
    table = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    indexed = made | {"shift": IndexedRows(table, index)}
    expanded = made | {"shift": table[index]}
    for ops in (truth, lambda: Replay("lossless", "a").op_set(), lambda: Replay("close", "a").op_set()):
        assert same_bits(ops()["layer_norm_scale_shift"](**indexed), ops()["layer_norm_scale_shift"](**expanded))


def test_channels_that_a_rotation_passes_through_have_no_noise() -> None:
    made = arguments("rotary_embedding", dtype=torch.float32)
    for kind in KINDS:
        y = Replay(kind, "a").op_set()["rotary_embedding"](**made)
        assert same_bits(y[..., -2:], made["x"][..., -2:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_stochastic_rounding_at_the_edges(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    smallest = info.smallest_normal * info.eps  # subnormal
    kept = [0.0, smallest, -3 * smallest, info.smallest_normal, 1.0, 1 + info.eps, -2.0, info.max, info.min]
    value = torch.tensor([*kept, math.inf, -math.inf, math.nan], dtype=torch.float64)
    for share in (0.0, 0.999):
        y = stochastically_rounded(value, dtype, torch.full_like(value, share))
        assert y.dtype is dtype
        assert same_bits(y, value.to(dtype))
    between = torch.tensor([smallest / 4, 1 + info.eps / 4, -1 - info.eps / 4], dtype=torch.float64)
    down = stochastically_rounded(between, dtype, torch.full_like(between, 0.2)).double().tolist()
    assert down == [0.0, 1.0, -1 - info.eps]  # the share is that of the way up, 1/4 and 3/4
    up = stochastically_rounded(between, dtype, torch.full_like(between, 0.8)).double().tolist()
    assert up == [smallest, 1 + info.eps, -1.0]
