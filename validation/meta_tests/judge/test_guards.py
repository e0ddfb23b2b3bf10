"""The guards around a call's allocations: in ops registered with torch, around resized tensors, next to inputs."""

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

import reference_ops
from validation.cases.case import Case, TensorSpec
from validation.cases.tensors import guard_elements
from validation.device import launches
from validation.judge import structure
from validation.judge.verdict import judge_call
from validation.verdict import Status, Verdict

LIBRARY: Any = torch.library.Library("guards", "FRAGMENT")  # type: ignore[no-untyped-call]
OPS: Any = torch.ops.guards
GRAD_MODES = {"no_grad": torch.no_grad, "grad": torch.enable_grad, "inference_mode": torch.inference_mode}


def write_beside(y: Tensor, element: int) -> None:
    ctypes.memset(y.data_ptr() + element * y.element_size(), 0, y.element_size())


def copied(y: Tensor, fault: str) -> Tensor:
    out = torch.empty_like(y).copy_(y)
    if fault == "past the end":
        write_beside(out, out.numel())
    if fault == "left out":
        out = torch.empty_like(y)
        out.view(-1)[:-1] = y.view(-1)[:-1]
    return out


def registered(
    name: str, key: str, function: Callable[..., Any], schema: str = "(Tensor y, str fault) -> Tensor"
) -> Any:
    LIBRARY.define(f"{name}{schema}")
    LIBRARY.impl(name, function, key)
    return getattr(OPS, name)


@custom_op("guards::custom", mutates_args=())
def custom(y: Tensor, fault: str) -> Tensor:
    return copied(y, fault)


@custom_op("guards::custom_of_cpu", mutates_args=(), device_types="cpu")
def custom_of_cpu(y: Tensor, fault: str) -> Tensor:
    return copied(y, fault)


@custom_op("guards::with_a_formula", mutates_args=())
def with_a_formula(y: Tensor, fault: str) -> Tensor:
    return copied(y, fault)


with_a_formula.register_autograd(lambda _, grad: (grad, None))

FORMS: dict[str, Callable[[Tensor, str], Tensor]] = {
    "custom_op": custom,
    "custom_op of a device": custom_of_cpu,
    "custom_op with autograd": with_a_formula,
    "Library, CPU": registered("of_cpu", "CPU", copied),
    "Library, CompositeExplicitAutograd": registered("explicit", "CompositeExplicitAutograd", copied),
    "Library, CompositeImplicitAutograd": registered("implicit", "CompositeImplicitAutograd", copied),
    "Library, no key": registered("without_key", "", copied),
    "one in another": registered("outer", "CPU", lambda y, fault: OPS.of_cpu(y, fault)),
}


def a_case() -> Case:
    x = TensorSpec((2, 3, 16), "float32", (60, 20, 1), 0, "x")
    rows = {name: TensorSpec((16,), "float32", (1,), 0, name) for name in ("shift", "scale")}
    return Case("layer_norm_scale_shift", {"x": x, **rows}, {"eps": 1e-6, "casting_mode": "float32"}, "normal", 5)


def judged(candidate: Callable[..., Any], case: Case | None = None) -> Verdict:
    return judge_call(case or a_case(), candidate, "cpu")


@pytest.mark.parametrize("mode", GRAD_MODES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("fault", "status"),
    [("", Status.PASSED), ("past the end", Status.OUT_OF_BOUNDS_WRITE), ("left out", Status.NOT_WRITTEN)],
)
def test_what_a_registered_op_allocates_is_guarded(form: str, mode: str, fault: str, status: Status) -> None:
    def candidate(**k: Any) -> Tensor:
        with GRAD_MODES[mode]():
            return FORMS[form](reference_ops.layer_norm_scale_shift(**k), fault)

    judgement = judged(candidate)
    assert judgement.status is status, judgement


def mixed(x: Tensor) -> Tensor:
    return (x.exp() + x).sum(-1)


REGISTERED_MIXED = registered("mixed", "CPU", mixed, "(Tensor x) -> Tensor")
REGISTERED_PRODUCT = registered("product", "CPU", lambda x: x * 2.0, "(Tensor x) -> Tensor")
REGISTERED_MOVE = registered("move", "CPU", lambda x: x.t().contiguous(), "(Tensor x) -> Tensor")


@pytest.mark.parametrize(
    ("plain", "op"),
    [
        (mixed, REGISTERED_MIXED),
        (lambda x: x * 2.0, REGISTERED_PRODUCT),
        (lambda x: x.t().contiguous(), REGISTERED_MOVE),
        (lambda x: copied(x, ""), custom),
    ],
)
def test_a_registered_op_is_known_by_what_it_calls(plain: Callable[..., Tensor], op: Callable[..., Tensor]) -> None:
    seen = []
    x = torch.randn(4, 6)
    for call in (plain, (lambda x: op(x, "")) if op is custom else op):
        with torch.no_grad(), structure.GuardedAllocations() as guards:
            call(x)
        seen.append((guards.computed, guards.basic, guards.uneven_on_cuda, len(guards.allocations)))
    assert seen[0] == seen[1]


@triton.jit  # type: ignore[untyped-decorator]
def _double(x, y, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, at < n) * 2, at < n)


@triton_op("guards::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    wrap_triton(_double)[(1,)](x, y, x.numel(), 64)
    return y


def test_of_a_registered_kernel_nothing_is_pytorchs_arithmetic() -> None:
    x = torch.randn(4, 6)
    with torch.no_grad(), structure.GuardedAllocations() as guards, launches.counted() as launched:
        y = doubled(x)
    assert torch.equal(y, 2 * x)
    assert (launched.count, guards.computed, guards.written_outside()) == (1, False, "")


def test_a_kernel_in_cpp_is_guarded_and_counts_as_arithmetic() -> None:
    """oneDNN's kernel, in PyTorch's builds for Linux; allocations in its C++ go through the dispatcher."""
    x = torch.randn(4, 6)
    with torch.no_grad(), structure.GuardedAllocations() as guards:
        y = torch.ops.mkldnn._linear_pointwise(x, x, None, "none", [], "")
    torch.testing.assert_close(y, x @ x.t())
    assert (guards.computed, guards.basic) == (True, False)
    assert len(guards.allocations) == 1
    write_beside(y, y.numel())
    assert guards.written_outside()


def test_a_profilers_mark_is_no_arithmetic() -> None:
    with structure.GuardedAllocations() as guards, torch.profiler.record_function("here"):
        torch.empty(3).zero_()
    assert not guards.computed


def _scaled(tensors: list[Tensor], bias: Tensor | None = None, factor: float = 2.0) -> list[Tensor]:
    return [torch.mul(t, factor) if bias is None else torch.add(bias, t, alpha=factor) for t in tensors]


@custom_op("guards::into", mutates_args=("out",))
def into(x: Tensor, out: Tensor) -> None:
    out.copy_(x * 2)


@custom_op("guards::made", mutates_args=(), device_types="cpu")
def made(n: int, device: torch.device) -> Tensor:
    return torch.empty(n, device=device).fill_(1.0)


TWO = registered("two", "CPU", lambda x: (x * 2, x.new_zeros(3)), "(Tensor x) -> (Tensor, Tensor)")
INPLACE = registered("inplace", "CPU", lambda x: x.mul_(2), "(Tensor(a!) x) -> Tensor(a!)")
LISTS = registered("lists", "CPU", _scaled, "(Tensor[] tensors, Tensor? bias=None, float factor=2.0) -> Tensor[]")
FACTORY = registered("factory", "CompositeExplicitAutograd", lambda n: torch.empty(n).fill_(1.0), "(int n) -> Tensor")
VIEW = registered("view", "CPU", lambda x: x.view(-1), "(Tensor(a) x) -> Tensor(a)")
OF_META = registered("of_meta", "Meta", lambda x: x, "(Tensor x) -> Tensor")


def given_out(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    assert into(x, out) is None
    return out


CALLS: dict[str, Callable[[Tensor], Any]] = {
    "two results": TWO,
    "in place": lambda x: INPLACE(x.detach().clone()),
    "no result": given_out,
    "lists": lambda x: LISTS([x, x + 1], x[0], factor=3.0),
    "defaults": lambda x: LISTS([x]),
    "a factory": lambda _: FACTORY(3),
    "a factory of a device": lambda _: made(3, device=torch.device("cpu")),
    "a view": lambda x: VIEW(x.detach()),
    "autograd's formula": lambda x: with_a_formula(x, ""),
    "a conjugate": lambda x: custom((x + 0j).conj(), ""),
    "no kernel for the device": OF_META,
    "an error": lambda x: LISTS([x, "x"]),
}


def outcome(call: Callable[[Tensor], Any], x: Tensor) -> Any:
    try:
        return [(type(t), t.requires_grad, t.detach().tolist()) for t in tree_leaves(call(x))]
    except (RuntimeError, NotImplementedError) as error:
        return type(error), str(error).splitlines()[0]


@pytest.mark.parametrize("mode", GRAD_MODES)
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_under_guards_a_registered_op_gives_what_it_gives_without(name: str, requires_grad: bool, mode: str) -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_(requires_grad)
    with GRAD_MODES[mode]():
        wanted = outcome(CALLS[name], x)
        with structure.GuardedAllocations() as guards:
            got = outcome(CALLS[name], x)
    assert got == wanted
    assert guards.written_outside() == ""
    assert _get_current_dispatch_mode() is None


def test_autograd_goes_through_a_registered_op_under_guards() -> None:
    x = torch.randn(3, requires_grad=True)
    with structure.GuardedAllocations():
        (with_a_formula(x, "") * 3).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3.0, 3.0, 3.0]


def test_a_tensor_class_with_a_handler_of_its_own_gets_the_op() -> None:
    seen = []

    class Watched(Tensor):
        @classmethod
        def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
            seen.append(func)
            return torch.zeros(2)

    with torch.no_grad(), structure.GuardedAllocations():
        assert custom(Tensor._make_subclass(Watched, torch.ones(2)), "").tolist() == [0.0, 0.0]
    assert OPS.custom.default in seen


def test_what_a_registered_op_compiles_is_compiled_under_guards() -> None:
    """Dynamo compiles no frame under a mode: a body that insists on being compiled would raise."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    fused = torch.compile(lambda x: x * 2.0 + 1.0, fullgraph=True, backend=backend)
    op = registered("compiling", "CPU", lambda x: fused(x).abs(), "(Tensor x) -> Tensor")
    x = torch.randn(4, 6)
    for _ in range(12):  # Dynamo stops at eight graphs of a function
        with torch.no_grad(), structure.GuardedAllocations() as guards:
            y = op(x)
        assert torch.equal(y, (x * 2.0 + 1.0).abs())
        assert (guards.computed, guards.basic) == (True, False)  # the guards do not see compiled code
    assert len(graphs) == 1


def test_compositions_come_apart_in_inference_mode_too() -> None:
    def normalised(x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x.t().contiguous().to(torch.float64), (4,))

    seen, x = [], torch.randn(4, 6)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), structure.GuardedAllocations() as guards:
            normalised(x)
        seen.append((len(guards.allocations), guards.computed, guards.basic, guards.uneven_on_cuda))
    assert seen == [(2, True, True, True)] * 2


def test_a_dtype_that_cannot_be_filled_is_guarded_as_bytes() -> None:
    with structure.GuardedAllocations() as guards:
        packed = torch.empty(4, dtype=torch.float4_e2m1fn_x2)
        packed.view(torch.uint8).zero_()
    assert packed.dtype is torch.float4_e2m1fn_x2
    assert guards.written_outside() == ""
    write_beside(packed, 4)
    assert "1 elements after its last" in guards.written_outside()


def resized(t: Tensor, *shape: int) -> Tensor:
    return t.resize_(shape)


def unbound(x: Tensor) -> list[Tensor]:
    out = [torch.empty(0), torch.empty(0)]
    torch.ops.aten.unbind_copy.int_out(x, out=out)
    return out


X = torch.randn(6, generator=torch.Generator().manual_seed(0))
BEYOND = 5 * guard_elements(1)

RESIZES: dict[str, Callable[[], Tensor]] = {
    "resize_ of nothing": lambda: resized(torch.empty(0), 10).fill_(1.0),
    "resize_": lambda: resized(torch.empty(4), 2, 3).fill_(1.0),
    "resize_ beyond the guard": lambda: resized(torch.empty(4), BEYOND).fill_(1.0),
    "resize_ twice": lambda: resized(resized(torch.empty(4), 40), BEYOND).fill_(1.0),
    "resize_as_": lambda: torch.empty(0).resize_as_(X).fill_(1.0),
    "of zeros": lambda: resized(torch.zeros(4), 6).fill_(1.0),
    "cumsum": lambda: torch.cumsum(X, 0, out=torch.empty(0)),
    "cat": lambda: torch.cat([X, X], out=X.new_empty(0)),
    "cat beyond the guard": lambda: torch.cat([X.repeat(BEYOND)] * 2, out=X.new_empty(0)),
    "mul": lambda: torch.mul(X, 2, out=torch.zeros(0)),
    "of another tensor's memory": lambda: torch.mul(X, 2, out=torch.empty(4)[4:]),
    "sort": lambda: torch.sort(X, out=(torch.empty(0), torch.empty(0, dtype=torch.int64)))[0],
    "a list": lambda: unbound(X.view(2, 3))[1],
    "bytes": lambda: torch.empty(4, dtype=torch.int64).view(torch.uint8).resize_(33).fill_(1),
}


@pytest.mark.parametrize("name", RESIZES)
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_what_pytorch_resizes_stands_between_guards_of_its_size(name: str) -> None:
    with torch.no_grad(), structure.GuardedAllocations() as guards:
        y = RESIZES[name]()
    plain = RESIZES[name]()
    assert torch.equal(y, plain)
    assert guards.written_outside() == ""
    write_beside(y, y.numel() + 7)  # for int64 viewed as bytes, the guard begins there
    assert "1 elements after its last" in guards.written_outside()


@pytest.mark.parametrize("size", [6, BEYOND])
def test_a_view_of_what_is_resized_stays_a_view(size: int) -> None:
    with torch.no_grad(), structure.GuardedAllocations() as guards:
        y = torch.empty(4)
        view = y[:2]
        y[:4] = X[:4]
        y.resize_(size)
        view.fill_(7.0)
    assert y[:4].tolist() == [7.0, 7.0, *X[2:4].tolist()]
    assert structure.unwritten(y).tolist() == [False] * 4 + [True] * (size - 4)
    assert guards.written_outside() == ""


def test_a_tensor_that_is_made_smaller_keeps_its_room() -> None:
    with torch.no_grad(), structure.GuardedAllocations() as guards:
        y = torch.empty(8).fill_(1.0).resize_(2)
        y.resize_(8).fill_(2.0)
    assert guards.written_outside() == ""


def test_a_view_past_the_end_is_no_resize() -> None:
    with torch.no_grad(), structure.GuardedAllocations() as guards:
        y = torch.empty(4).fill_(1.0)
        torch.mul(X, 2, out=y.as_strided((6,), (1,)))
    assert "2 elements after its last" in guards.written_outside()


def test_resizing_is_no_arithmetic() -> None:
    with structure.GuardedAllocations() as guards:
        torch.empty(0).resize_(4).zero_()
    assert not guards.computed


def test_out_of_a_tensor_without_elements_is_right() -> None:
    def candidate(**k: Any) -> Tensor:
        y = reference_ops.layer_norm_scale_shift(**k)
        return torch.neg(y.neg(), out=torch.empty(0, dtype=y.dtype))

    judgement = judged(candidate)
    assert judgement.status is Status.PASSED, judgement


@pytest.mark.parametrize(("left_so", "status"), [(True, Status.INPUT_MODIFIED), (False, Status.PASSED)])
def test_an_input_that_is_left_to_require_grad_is_changed(left_so: bool, status: Status) -> None:
    def candidate(**k: Any) -> Tensor:
        y: Tensor = reference_ops.layer_norm_scale_shift(**k)
        k["x"].requires_grad_()
        k["x"].requires_grad_(left_so)
        return y

    judgement = judged(candidate)
    assert judgement.status is status, judgement
    if left_so:
        assert judgement.reason.endswith("x has requires_grad=True, it had False")
