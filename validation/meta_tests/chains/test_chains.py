"""The chains compute the ops in any arithmetic; an op without a chain is still replayed."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import reference_ops
from reference_ops.contract import expand_modulation
from validation.chains import contract, placement
from validation.chains.arithmetic import Float64Inside
from validation.chains.chain import OPS, Chain
from validation.chains.replay import KINDS, Kind, Replay
from validation.chains.truth import truth
from validation.meta_tests.op_arguments import HAS_CASTING_MODE, arguments, same_bits, tuple_of

MODES = [(op, mode) for op in OPS for mode in ("float32", "input")[: 1 + (op in HAS_CASTING_MODE)]]


def call(function: Any, op: str, made: dict[str, Any], mode: str) -> tuple[Tensor, ...]:
    return tuple_of(function(**made, **({"casting_mode": mode} if op in HAS_CASTING_MODE else {})))


@pytest.mark.parametrize("op", OPS)
def test_a_chain_is_called_as_its_reference_is(op: str) -> None:
    expected = inspect.signature(getattr(reference_ops, op)).parameters.values()
    _, *parameters = inspect.signature(getattr(Chain, op)).parameters.values()
    assert [(p.name, p.kind, p.default) for p in parameters] == [(p.name, p.kind, p.default) for p in expected]


@pytest.mark.parametrize(("op", "mode"), MODES)
def test_a_chain_in_float64_is_the_reference_in_float64(op: str, mode: str) -> None:
    made = {name: t.double() for name, t in arguments(op).items()}
    chain = call(getattr(Float64Inside(), op), op, made, mode)
    for y, expected in zip(chain, call(getattr(reference_ops, op), op, made, mode), strict=True):
        torch.testing.assert_close(y, expected, rtol=0.0, atol=1e-14 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", sorted(placement.PLACEMENTS))
def test_a_chain_rounded_once_is_the_truth(op: str, dtype: torch.dtype) -> None:
    made = arguments(op, dtype=dtype)
    assert same_bits(placement.replay(op, made, placement.ONCE), tuple_of(truth()[op](**made)))


@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("op", "mode"), MODES)
def test_a_tape_replays_an_op_as_its_chain_does(
    op: str, mode: str, other: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = arguments(op, dtype=torch.bfloat16, other=other, L=60, D=32)
    chain = call(Replay("lossless", "a").op_set()[op], op, made, mode)
    reference = call(getattr(reference_ops, op), op, made, mode)
    monkeypatch.setattr("validation.chains.replay.OPS", ())
    taped = call(Replay("lossless", "a").op_set()[op], op, made, mode)
    for y, z in zip(taped, chain, strict=True):
        assert float((y != z).double().mean()) < 0.01
    for y, z in zip(call(Replay("close", "a").op_set()[op], op, made, mode), reference, strict=True):
        assert 0.1 < float((y != z).double().mean()) < 0.35


# An op that only reference_ops has.


def silu_scale(x: Tensor, scale: Any) -> Tensor:
    return (functional.silu(x) * expand_modulation(scale, x)).to(x.dtype)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(reference_ops, "silu_scale", silu_scale, raising=False)
    monkeypatch.setattr(reference_ops, "OP_NAMES", (*OPS, "silu_scale"))
    return "silu_scale"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_an_op_without_a_chain_has_a_truth_and_replays(toy: str, kind: Kind, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, scale = torch.randn(2, 300, 16, generator=generator).to(dtype), torch.randn(16, generator=generator).to(dtype)
    exact = silu_scale(x.double(), scale.double())
    assert same_bits(truth()[toy](x, scale=scale), exact.to(dtype))
    op = Replay(kind, "a").op_set()[toy]
    first, second = op(x, scale), op(x=x, scale=scale)
    assert same_bits(Replay(kind, "a").op_set()[toy](x, scale), first)
    if kind == "close":  # float32 arithmetic decides few bits of a 16-bit result
        assert not same_bits(first, second)
    errors = [float((y.double() - exact).square().mean().sqrt()) for y in (first, silu_scale(x, scale))]
    assert 0.5 * errors[1] < errors[0] < 3 * errors[1]
    if dtype is not torch.float32:
        differ = float((first != silu_scale(x, scale)).double().mean())
        assert (differ < 0.01) if kind == "lossless" else (0.1 < differ < 0.35)


@pytest.mark.usefixtures("toy")
def test_an_op_without_a_chain_has_no_placements_and_its_own_checks() -> None:
    assert "silu_scale" not in placement.PLACEMENTS
    x = torch.ones(1, 2, 4)
    assert same_bits(contract.checked("silu_scale", silu_scale)(x, torch.ones(4)), silu_scale(x, torch.ones(4)))
