"""The fused ops in ``torch.library`` and under ``torch.compile``."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fused_ops
from reference_ops import IndexedRows
from validation.meta_tests.op_arguments import HAS_CASTING_MODE, HAS_INPLACE, MODULATION, arguments, same_bits, tuple_of

OPS = fused_ops.OP_NAMES
REGISTERED = sorted([*OPS, *(f"{op}_" for op in HAS_INPLACE)])


def registered(name: str) -> Any:
    return getattr(torch.ops.fused_ops, name).default


def registered_arguments(name: str, **changes: Any) -> tuple[Any, ...]:
    """Positional arguments of a registered op, in the order of its schema."""
    op = name.removesuffix("_")
    made = arguments(op, **changes)
    defaults = {"eps": 1e-6, "casting_mode": "input", "scale_constant": 0.5, "interleaved": True}
    schema = registered(name)._schema.arguments
    return tuple(made.get(argument.name, defaults.get(argument.name)) for argument in schema)


def compiled(call: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(call, fullgraph=True, backend="aot_eager")


def test_every_op_is_registered() -> None:
    assert [name for name in REGISTERED if hasattr(torch.ops.fused_ops, name)] == REGISTERED


@pytest.mark.parametrize("name", REGISTERED)
def test_opcheck(name: str) -> None:
    torch.library.opcheck(registered(name), registered_arguments(name, dtype=torch.bfloat16))


@pytest.mark.parametrize("name", REGISTERED)
def test_schema_says_what_is_written(name: str) -> None:
    written = [argument.name for argument in registered(name)._schema.arguments if argument.is_write]
    expected = {"qk_norm_": ["q", "k"], "qk_norm_rope_": ["q", "k"], "rotary_embedding_": ["x"]}
    assert written == expected.get(name, [])


@pytest.mark.parametrize("op", OPS)
def test_compiled_without_a_graph_break_gives_the_same_bits(op: str) -> None:
    function = getattr(fused_ops, op)
    flags = {"casting_mode": "input"} if op in HAS_CASTING_MODE else {}
    made = arguments(op, dtype=torch.bfloat16)
    # A permutation, so that the op meets a strided tensor inside the graph.
    first = "q" if op.startswith("qk_norm") else "x"

    def call(**made: Any) -> Any:
        made[first] = made[first].transpose(0, 1).contiguous().transpose(0, 1)
        return function(**made, **flags)

    expected, results = call(**made), compiled(call)(**made)
    assert same_bits(results, expected)
    assert all(y.is_contiguous() for y in tuple_of(results))


@pytest.mark.parametrize("op", OPS)
def test_the_graph_holds_the_registered_op(op: str) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def record(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    function = getattr(fused_ops, op)
    torch.compile(lambda **made: function(**made), fullgraph=True, backend=record)(**arguments(op))
    assert len(graphs) == 1
    assert [node.target for node in graphs[0].graph.nodes if node.target is registered(op)] == [registered(op)]


@pytest.mark.parametrize("op", [op for op in OPS if "shift" in op or "gate" in op])
def test_indexed_rows_compile(op: str) -> None:
    function, made = getattr(fused_ops, op), arguments(op)
    index = torch.randint(0, 3, (2, 6), generator=torch.Generator().manual_seed(1))
    names = [name for name in MODULATION if name in made]
    tables = {name: torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2)) for name in names}
    rest = {name: value for name, value in made.items() if name not in names}

    def call(index: Tensor, tables: dict[str, Tensor], **rest: Any) -> Any:
        return function(**rest, **{name: IndexedRows(table, index) for name, table in tables.items()})

    assert same_bits(compiled(call)(index, tables, **rest), call(index, tables, **rest))


@pytest.mark.parametrize("op", HAS_INPLACE)
def test_in_place_on_a_packed_buffer_compiles(op: str) -> None:
    function = getattr(fused_ops, op)
    qkv = torch.randn(2, 6, 9, 16, generator=torch.Generator().manual_seed(0))
    rest = {name: value for name, value in arguments(op).items() if name not in ("q", "k", "x")}

    def call(qkv: Tensor, **rest: Tensor) -> Any:
        q, k, v = qkv[:, :, :4], qkv[:, :, 4:7], qkv[:, :, 7:]
        if op == "rotary_embedding":
            result = function(q, **rest, inplace=True)
        else:
            result, k = function(q, k, **rest, inplace=True)
        return result.sum() + k.sum() + v.sum()

    eager, graph = qkv.clone(), qkv.clone()
    expected, total = call(eager, **rest), compiled(call)(graph, **rest)
    assert same_bits(graph, eager)
    assert same_bits(total, expected)
    assert not same_bits(graph, qkv)


def test_sizes_may_be_dynamic() -> None:
    def call(x: Tensor, shift: Tensor, scale: Tensor) -> Any:
        return fused_ops.layer_norm_scale_shift(x, shift, scale)

    torch._dynamo.reset()
    compiled_call = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for B, L in ((2, 6), (3, 5), (1, 7)):
        made = arguments("layer_norm_scale_shift", B=B, L=L)
        tensors = made["x"], made["shift"], made["scale"]
        assert same_bits(compiled_call(*tensors), call(*tensors))


@pytest.mark.parametrize("op", OPS)
def test_an_argument_that_requires_grad_is_refused_when_compiled(op: str) -> None:
    made = arguments(op)
    made[next(iter(made))].requires_grad_()
    function = getattr(fused_ops, op)
    with pytest.raises(Exception, match=f"{op}: .* requires grad"):
        compiled(lambda **made: function(**made))(**made)


def test_a_bad_argument_is_refused_when_compiled() -> None:
    made = arguments("rms_norm") | {"weight": torch.ones(17)}
    with pytest.raises(Exception, match=r"rms_norm: weight has shape \[17\], expected \[16\]"):
        compiled(lambda **made: fused_ops.rms_norm(**made))(**made)


def test_signatures_leave_nothing_out() -> None:
    """The registered op takes what the public function takes: modulation as a table and an index."""
    for op in OPS:
        parameters = set(inspect.signature(getattr(fused_ops, op)).parameters) - {"inplace"}
        names = {argument.name for argument in registered(op)._schema.arguments}
        assert parameters == {name for name in names if not name.endswith("_index")}
        assert {f"{name}_index" for name in parameters & {"shift", "scale", "gate"}} == names - parameters
