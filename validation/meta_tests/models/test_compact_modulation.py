"""Modulation as a few distinct rows: the same bits as with one row per token, and no tensor with one row per token."""

from typing import Any

import pytest
import torch
from diffusers import HeliosTransformer3DModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fused_ops
import reference_ops
from reference_ops import IndexedRows
from validation.errors import UsageError
from validation.meta_tests.model_op_sets import reference
from validation.meta_tests.models.test_helios import transformer
from validation.meta_tests.op_arguments import HAS_CASTING_MODE, MODULATION, arguments, same_bits
from validation.models.helios import sites
from validation.models.helios.modulation import DistinctRows
from validation.ops import OpSet, op_set_from

MODULATED = tuple(op for op in reference_ops.OP_NAMES if any(name in arguments(op) for name in MODULATION))
FUSED = op_set_from(fused_ops, "fused_ops", "fused_ops")
WIDTH = 32


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("history", [0, 3])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("op", MODULATED)
def test_every_modulation_op_gives_the_bits_of_the_expanded_form(
    op: str, dtype: torch.dtype, batch: int, history: int
) -> None:
    """Two rows per item, sliced from one float32 table ``[B, 2, 6, D]``, as in Helios' blocks."""
    made = arguments(op, dtype=dtype, B=batch, L=history + 4)
    table = torch.randn(batch, 2, 6, 16, generator=torch.Generator().manual_seed(1))
    index = (torch.arange(history + 4) >= history).int().expand(batch, -1)
    names = [name for name in MODULATION if name in made]
    compact = {name: IndexedRows(table[:, :, part], index) for part, name in enumerate(names)}
    written_out = table[:, index[0].long()]
    expanded = {name: written_out[:, :, part] for part, name in enumerate(names)}
    for mode in ("float32", "input") if op in HAS_CASTING_MODE else (None,):
        options = {} if mode is None else {"casting_mode": mode}
        for package in (reference_ops, fused_ops):
            function = getattr(package, op)
            found, expected = (function(**(made | rows), **options) for rows in (compact, expanded))
            assert same_bits(found, expected), (package.__name__, mode)


def inputs_of(model: HeliosTransformer3DModel, batch: int, history: bool) -> dict[str, Any]:
    inputs = sites.random_inputs(model, batch=batch, history=history, seed=2)
    inputs["timestep"] = torch.tensor([600.0, 37.0])[:batch]
    return inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"guidance_cross_attn": False}, {"zero_history_timestep": False}],
    ids=["defaults", "no_guidance_cross_attn", "one_time_for_all_tokens"],
)
def test_helios_gives_the_bits_of_the_expanded_form(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    model = transformer(dtype, **settings)
    for batch in (1, 2):
        for history in (False, True):
            inputs = inputs_of(model, batch, history)
            untouched = model(**inputs, return_dict=False)[0]
            for names in (sites.SITE_NAMES, ("norm1",), ("gate", "norm_out"), ("qk_norm",)):
                with sites.mount(model, reference(), names, compact=True) as mounted:
                    output = model(**inputs, return_dict=False)[0]
                    again = model(**inputs, return_dict=False)[0]
                assert torch.equal(output, untouched), (batch, history, names)
                assert torch.equal(again, untouched)
                assert mounted.calls == {site.name: 2 * site.calls for site in mounted.sites.values()}
    assert "forward" not in vars(model.condition_embedder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_fused_ops_in_helios_give_the_bits_of_the_expanded_form(dtype: torch.dtype) -> None:
    model = transformer(dtype, num_layers=1)
    for batch in (1, 2):
        inputs = inputs_of(model, batch, history=True)
        outputs = []
        for compact in (False, True):
            with sites.mount(model, FUSED, compact=compact):
                outputs.append(model(**inputs, return_dict=False)[0])
        assert torch.equal(*outputs), batch


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Finds the largest tensor that an operator made, in bytes of its own memory."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in before:
                self.largest = max(self.largest, t.untyped_storage().nbytes())
        return result


def largest_allocation(model: HeliosTransformer3DModel, ops: OpSet, *, compact: bool, batch: int) -> tuple[int, int]:
    """Bytes of the largest tensor that a forward makes, and its count of tokens."""
    inputs = {
        # Twice as high and wide: with fewer tokens diffusers' padding of the history's rotary embedding is the largest.
        name: value.repeat(1, 1, 1, 2, 2) if isinstance(value, Tensor) and value.ndim == 5 else value
        for name, value in inputs_of(model, batch, history=True).items()
    }
    with sites.mount(model, ops, compact=compact) as mounted:
        tokens: list[int] = []
        hook = model.blocks[0].attn1.to_q.register_forward_pre_hook(
            lambda _module, arguments: tokens.append(arguments[0].shape[1])
        )
        with Allocations() as allocations:  # type: ignore[no-untyped-call]
            model(**inputs, return_dict=False)
        hook.remove()
    assert mounted.forwards == 1
    return allocations.largest, batch * tokens[0]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_no_tensor_holds_the_modulation_of_every_token(dtype: torch.dtype, batch: int) -> None:
    """No tensor has two float32 rows per token, far below the six of a block; the widest one left is the FFN's."""
    model = transformer(dtype)
    two_rows = 2 * WIDTH * 4
    for ops in (reference(), FUSED):
        compact, tokens = largest_allocation(model, ops, compact=True, batch=batch)
        assert compact < two_rows * tokens, ops.name
        expanded, _ = largest_allocation(model, ops, compact=False, batch=batch)
        assert expanded >= 6 * WIDTH * 4 * tokens, ops.name


@pytest.mark.usefixtures("forget_proofs")
@pytest.mark.parametrize("planted", ["history takes the current row", "items share a row"])
def test_rows_taken_for_each_other_are_refused(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = DistinctRows.embed

    def embed(self: DistinctRows, *arguments: Any, **options: Any) -> Any:
        time, modulation, text = known(self, *arguments, **options)
        if planted.startswith("history"):
            return time.fill_(1), modulation.fill_(1), text
        if text is not None:
            self.modulation = self.modulation[:1].roll(1, 1).expand_as(self.modulation)
        return time, modulation, text

    monkeypatch.setattr(DistinctRows, "embed", embed)
    with pytest.raises(UsageError, match=r"does not compute what is replaced.*values differ|expected \[0, "):
        sites.mount(transformer(), reference(), compact=True)


def test_a_forward_that_broke_off_leaves_no_row_behind() -> None:
    model = transformer()
    inputs = inputs_of(model, 1, history=True)
    untouched = model(**inputs, return_dict=False)[0]
    with sites.mount(model, reference(), compact=True):
        broken = model.condition_embedder.text_embedder.register_forward_pre_hook(_raise)
        with pytest.raises(RuntimeError, match="broken off"):
            model(**inputs, return_dict=False)
        broken.remove()
        assert torch.equal(model(**inputs, return_dict=False)[0], untouched)


def _raise(*_: Any) -> None:
    raise RuntimeError("broken off")
