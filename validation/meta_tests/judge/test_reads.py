"""Loads of interpreted kernels outside of all elements are named; what a kernel may read is not."""

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

import reference_ops
from validation.cases.case import Case, TensorSpec
from validation.device.private import triton_module
from validation.device.reads import watched
from validation.judge.verdict import judge_call
from validation.verdict import Status, Verdict


@triton.jit  # type: ignore[untyped-decorator]
def _peek(source, first, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    lane = tl.arange(0, BLOCK)
    tl.load(source + first + lane, mask=lane < count)


@triton.jit  # type: ignore[untyped-decorator]
def _peek_pointer(source, size, first, BLOCK: tl.constexpr, CHECK: tl.constexpr):  # type: ignore[no-untyped-def]
    block = tl.make_block_ptr(source, (size,), (1,), (0,), (BLOCK,), (0,))
    tl.load(tl.advance(block, (first,)), boundary_check=CHECK)


@triton.jit  # type: ignore[untyped-decorator]
def _peek_descriptor(source, size, first, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.make_tensor_descriptor(source, [size], [1], [BLOCK]).load([first])


@triton.jit  # type: ignore[untyped-decorator]
def _peek_pairs(source, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    lane = tl.arange(0, BLOCK)
    tl.load(source.to(tl.pointer_type(tl.int64)) + lane, mask=lane < count)


@triton.jit  # type: ignore[untyped-decorator]
def _add(counters, at, SWAP: tl.constexpr):  # type: ignore[no-untyped-def]
    if SWAP:
        tl.atomic_cas(counters + at, -1, -1)
    else:
        tl.atomic_add(counters + at, 0)


@triton.jit  # type: ignore[untyped-decorator]
def _select(a, b, na, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    lane = tl.arange(0, BLOCK)
    tl.load(tl.where(lane < na, a + lane, b + lane - na))


def peek(t: Tensor, first: int, count: int) -> None:
    _peek[(1,)](t, first, count, BLOCK=triton.next_power_of_2(max(count, 1)))


def spec(shape: tuple[int, ...], *strides: int, offset: int = 0, storage: str = "") -> TensorSpec:
    return TensorSpec(shape, "float32", strides, offset, storage)


def a_case(**tensors: TensorSpec) -> Case:
    tensors = {"x": spec((2, 3, 16), 60, 20, 1), "weight": spec((16,), 1)} | tensors
    named = {n: TensorSpec(t.shape, t.dtype, t.strides, t.offset, t.storage or n) for n, t in tensors.items()}
    return Case("rms_norm", named, {"eps": 1e-6, "casting_mode": "float32"}, "normal", 5)


def judged(look: Callable[..., Any], case: Case | None = None) -> Verdict:
    """The verdict on a right op that also looks at memory."""

    def candidate(**kwargs: Any) -> Tensor:
        look(SimpleNamespace(**kwargs))
        y: Tensor = reference_ops.rms_norm(**kwargs)
        return y

    return judge_call(case or a_case(), candidate, "cpu")


TABLE = torch.arange(64.0)


def own(_: Any) -> None:
    peek(torch.empty(24), 0, 24)
    grown = torch.empty(0)
    grown.resize_(40)
    peek(grown, 0, 40)


RIGHT: dict[str, Callable[..., Any]] = {
    "all elements of weight": lambda t: peek(t.weight, 0, 16),
    "masked lanes past the end": lambda t: _peek[(1,)](t.weight, 0, 16, BLOCK=1024),
    "x with the holes between its rows": lambda t: peek(t.x, 0, 60 + 2 * 20 + 16),
    "block pointer with boundary_check": lambda t: _peek_pointer[(1,)](t.weight, 16, 8, BLOCK=16, CHECK=(0,)),
    "tensor descriptor": lambda t: _peek_descriptor[(1,)](t.weight, 16, 12, BLOCK=16),
    "pairs of float32": lambda t: _peek_pairs[(1,)](t.weight, 8, BLOCK=8),
    "lanes of two arguments": lambda t: _select[(1,)](t.weight, t.x, 16, BLOCK=32),
    "no lane of nothing": lambda _: _peek[(1,)](torch.empty(0), 0, 0, BLOCK=8),
    "what the call allocates": own,
    "a table of the module": lambda _: peek(TABLE, 0, 64),
    "what torch computes": lambda t: peek(t.x + 1.0, 0, 96),
}


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
@pytest.mark.parametrize("name", RIGHT)
def test_what_a_kernel_may_read_is_not_flagged(name: str) -> None:
    verdict = judged(RIGHT[name])
    assert verdict.status is Status.PASSED, verdict


def no_room(_: Any) -> None:
    peek(torch.empty(24), 20, 8)


WRONG: dict[str, tuple[Callable[..., Any], str]] = {
    "512 past weight": (
        lambda t: peek(t.weight, 0, 528),
        "weight: 512 lanes of loads after its last element (from 1 to 512 after), in ",
    ),
    "one after x": (lambda t: peek(t.x, 60 + 2 * 20 + 16, 1), "x: 1 lane of loads after its last element (1 after)"),
    "before x": (lambda t: peek(t.x, -3, 5), "x: 3 lanes of loads before its first element (from 1 to 3 before)"),
    "in two calls": (
        lambda t: [_peek[(1,)](t.weight, at, at // 10, BLOCK=2) for at in (16, 20)],
        "weight: 3 lanes of loads after its last element (from 1 to 6 after)",
    ),
    "block pointer": (
        lambda t: _peek_pointer[(1,)](t.weight, 16, 8, BLOCK=16, CHECK=()),
        "weight: 8 lanes of loads after its last element (from 1 to 8 after)",
    ),
    "descriptor of a larger shape": (
        lambda t: _peek_descriptor[(1,)](t.weight, 20, 16, BLOCK=16),
        "weight: 4 lanes of loads after its last element (from 1 to 4 after)",
    ),
    "half a pair": (
        lambda t: _peek_pairs[(1,)](t.weight[1:], 8, BLOCK=8),
        "weight: 1 lane of loads after its last element (1 after)",
    ),
    "own allocation": (no_room, "what the call allocated: 4 lanes of loads after its last element"),
    "atomic": (lambda _: _add[(1,)](torch.zeros(2, dtype=torch.int32), 2, SWAP=False), "what the call allocated: 1"),
    "compare and swap": (
        lambda _: _add[(1,)](torch.zeros(2, dtype=torch.int32), -1, SWAP=True),
        "what the call allocated: 1 lane of loads before its first element (1 before)",
    ),
    "nothing at all": (
        lambda _: peek(torch.empty(0), 0, 3),
        "a tensor without elements: 3 lanes of loads after its last element (from 1 to 3 after)",
    ),
    "nothing, by a block pointer": (
        lambda _: _peek_pointer[(1,)](torch.empty(0), 0, 8, BLOCK=16, CHECK=()),
        "a tensor without elements: 16 lanes of loads after its last element (from 9 to 24 after)",
    ),
    "nothing, by an atomic": (
        lambda _: _add[(1,)](torch.zeros(0, dtype=torch.int32), 2, SWAP=False),
        "a tensor without elements: 1 lane of loads after its last element (3 after)",
    ),
    "lanes of two arguments": (
        lambda t: _select[(1,)](t.weight, t.x, 20, BLOCK=32),
        "weight: 4 lanes of loads after its last element (from 1 to 4 after)",
    ),
}


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
@pytest.mark.parametrize("name", WRONG)
def test_a_load_outside_is_named(name: str) -> None:
    look, words = WRONG[name]
    verdict = judged(look)
    assert verdict.status is Status.OUT_OF_BOUNDS_READ, verdict
    assert verdict.reason.startswith(f"read outside: {words}"), verdict.reason
    assert "test_reads.py, line " in verdict.reason


def test_elements_of_expanded_shared_and_empty_arguments() -> None:
    expanded = a_case(x=spec((2, 3, 16), 0, 16, 1))
    assert judged(lambda t: peek(t.x, 0, 48), expanded).status is Status.PASSED
    assert judged(lambda t: peek(t.x, 0, 49), expanded).status is Status.OUT_OF_BOUNDS_READ

    shared = a_case(x=spec((2, 3, 16), 48, 16, 1, storage="s"), weight=spec((16,), 1, offset=96, storage="s"))
    assert judged(lambda t: peek(t.x, 0, 112), shared).status is Status.PASSED
    past = judged(lambda t: peek(t.x, 0, 113), shared)
    assert past.status is Status.OUT_OF_BOUNDS_READ
    assert "weight: 1 lane" in past.reason
    assert "x: 1 lane of loads before" in judged(lambda t: peek(t.weight, -97, 1), shared).reason

    empty = a_case(x=spec((0, 3, 16), 48, 16, 1))  # its address is 0
    assert judged(lambda t: peek(t.x, 0, 0), empty).status is Status.PASSED
    assert judged(lambda _: peek(torch.empty(0, 16).as_strided((1,), (1,)), 0, 1)).status is Status.OUT_OF_BOUNDS_READ

    offset = a_case(weight=spec((16,), 1, offset=5))
    assert judged(lambda t: peek(t.weight, -1, 2), offset).status is Status.OUT_OF_BOUNDS_READ


def test_of_a_tensor_of_no_dimension_there_is_one_element() -> None:
    x, scalar = TensorSpec((1, 2, 8), "float32", (16, 8, 1), 0, "x"), TensorSpec((), "float32", (), 0, "scale")
    tensors = {"x": x, "scale": scalar, "shift": TensorSpec((8,), "float32", (1,), 0, "shift")}
    case = Case("scale_shift", tensors, {"scale_constant": 1.0, "casting_mode": "float32"}, "normal", 5)

    def candidate(lanes: int) -> Callable[..., Any]:
        def call(x: Tensor, scale: Tensor, **kwargs: Any) -> Any:
            peek(scale, 0, lanes)
            return reference_ops.scale_shift(x, scale=scale, **kwargs)

        return call

    assert judge_call(case, candidate(1), "cpu").status is Status.PASSED
    assert judge_call(case, candidate(2), "cpu").reason.startswith("read outside: scale: 1 lane of loads after")


def test_all_is_as_before_after_a_call() -> None:
    interpreter = triton_module("triton.runtime.interpreter")
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    names = ("create_masked_load", "create_atomic_rmw", "create_atomic_cas")

    def hooks() -> list[Any]:
        return [executor.__call__, *(getattr(builder, name) for name in names)]

    before = hooks()
    with contextlib.suppress(ZeroDivisionError), watched(list):
        assert all(now is not then for now, then in zip(hooks(), before, strict=True))
        raise ZeroDivisionError
    assert hooks() == before
