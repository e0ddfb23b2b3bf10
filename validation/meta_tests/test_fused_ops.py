"""The fused ops under the interpreter: equal bits where they can be required, and refused calls.

The sweep of ``validate parity`` judges how far a norm is from the truth. These tests need no tolerance: the
interpreter computes each float32 step as written, so elementwise ops must agree with the reference bit for bit,
and so must norms of rows whose mean and variance are exact.
"""

import itertools
import mmap
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import fused_ops
import reference_ops
from fused_ops import _launch
from reference_ops import IndexedRows
from reference_ops.contract import may_overlap, overlaps_itself
from validation.meta_tests.op_arguments import (
    HAS_CASTING_MODE,
    HAS_INPLACE,
    MODULATION,
    arguments,
    bits,
    same_bits,
    tuple_of,
)

OPS = fused_ops.OP_NAMES
PACKAGES = (fused_ops, reference_ops)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CASTING_MODES = ("float32", "input")
MODULATED = [op for op in OPS if any(name in arguments(op) for name in MODULATION)]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """torch splits a LayerNorm of a few rows among threads, and the handover costs more than the norm."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def modes_of(op: str) -> list[dict[str, str]]:
    return [{"casting_mode": mode} for mode in CASTING_MODES] if op in HAS_CASTING_MODE else [{}]


def in_a_buffer(t: Tensor, layout: str) -> Tensor:
    """The same values in a buffer with NaN between, before and after the elements."""
    shape = t.shape
    match layout:
        case "offset":
            buffer = torch.full((t.numel() + 1,), torch.nan, dtype=t.dtype)
            view = buffer[1:].view(shape)
        case "transposed":
            buffer = torch.full(shape[::-1], torch.nan, dtype=t.dtype)
            view = buffer.permute(*reversed(range(t.dim())))
        case "gapped rows":
            buffer = torch.full((*shape[:-1], shape[-1] + 3), torch.nan, dtype=t.dtype)
            view = buffer[..., 1:-2]
        case "strided columns":
            buffer = torch.full((*shape[:-1], 2 * shape[-1] + 1), torch.nan, dtype=t.dtype)
            view = buffer[..., 1::2]
        case "gapped everywhere":
            buffer = torch.full(tuple(2 * n + 1 for n in shape), torch.nan, dtype=t.dtype)
            view = buffer[tuple(slice(1, None, 2) for _ in shape)]
        case _:
            raise AssertionError(layout)
    return view.copy_(t)


LAYOUTS = ("offset", "transposed", "gapped rows", "strided columns", "gapped everywhere")


# Bits.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["scale_shift", "residual_gate_add"])
def test_elementwise_ops_are_the_reference_bit_for_bit(op: str, dtype: torch.dtype) -> None:
    for seed, other in itertools.product(range(6), DTYPES):
        made = arguments(op, dtype=dtype, other=other, D=random.Random(seed).randint(1, 80), seed=seed)
        for mode in modes_of(op):
            expected = getattr(reference_ops, op)(**made, **mode)
            assert same_bits(getattr(fused_ops, op)(**made, **mode), expected), (seed, other, mode)


def rotated_pair(a: Tensor, b: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """A pair in float32 with two roundings, as in ``addcmul_``: of one product, and of its sum with the other."""

    def one(kept: Tensor, product: Tensor, sign: int) -> Tensor:
        return (kept.double() + sign * product.double() * sin.double()).float()

    return one(a * cos, b, -1), one(b * cos, a, 1)


def turned(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """`fused_ops.rotary_embedding` in float32, without its last rounding."""
    y, cos, sin = x.float(), cos.float().unsqueeze(-2), sin.float().unsqueeze(-2)
    head, rest = y.tensor_split([2 * cos.shape[-1]], -1)
    a, b = head.reshape(*head.shape[:-1], -1, 2).unbind(-1) if interleaved else head.chunk(2, -1)
    pair = rotated_pair(a, b, cos, sin)
    return torch.cat([torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1), rest], -1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotations_are_float32_rounded_once(dtype: torch.dtype) -> None:
    for seed, other in itertools.product(range(6), DTYPES):
        D = 2 * random.Random(seed).randint(2, 40)
        made = arguments("rotary_embedding", dtype=dtype, other=other, D=D, seed=seed)
        for interleaved in (True, False):
            expected = turned(**made, interleaved=interleaved).to(dtype)
            assert same_bits(fused_ops.rotary_embedding(**made, interleaved=interleaved), expected)
            inplace = {**made, "x": made["x"].clone()}
            y = fused_ops.rotary_embedding(**inplace, interleaved=interleaved, inplace=True)
            assert y is inplace["x"]
            assert same_bits(y, expected)

        made = arguments("split_rotary_embedding", dtype=dtype, other=other, D=D, seed=seed)
        heads = made["x"].float().unflatten(2, (3, 2, D // 2)).permute(3, 0, 2, 1, 4)
        cos, sin = (made[name].float() for name in ("cos", "sin"))
        expected = torch.stack(rotated_pair(heads[0], heads[1], cos, sin)).permute(1, 3, 2, 0, 4).flatten(2).to(dtype)
        assert same_bits(fused_ops.split_rotary_embedding(**made), expected)


def exact_rows(dtype: torch.dtype, mean: bool, seed: int, B: int = 2, L: int = 6, D: int = 64) -> tuple[Tensor, Tensor]:
    """Rows ``m +- 2^k`` with as many + as -: mean m, deviation 2^k, all sums exact; and their normalised values."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(B, L, D, generator=generator).argsort(-1)
    signs = torch.where(order < D // 2, 1.0, -1.0)
    k = torch.randint(-2, 4, (B, L, 1), generator=generator)
    m = torch.randint(-4, 5, (B, L, 1), generator=generator) if mean else 0
    return (signs * 2.0**k + m).to(dtype), signs


def affine(value: Tensor, weight: Tensor | None, bias: Tensor | None, mode: str, dtype: torch.dtype) -> Tensor:
    """The chains after the normalised value, as `reference_ops` orders and rounds them."""
    if mode == "input":
        value = value.to(dtype)
        value = value if weight is None else value * weight
        return value if bias is None else value + bias
    value = value if weight is None else value * weight.float()
    return value if bias is None else value + bias.float()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", CASTING_MODES)
def test_norms_round_where_they_say(mode: str, dtype: torch.dtype) -> None:
    for seed, other in itertools.product(range(4), DTYPES):
        generator = torch.Generator().manual_seed(100 + seed)
        weight = None if seed == 1 else torch.randn(64, generator=generator).to(other)
        bias = None if seed == 2 else torch.randn(64, generator=generator).to(DTYPES[seed % 3])
        rows = arguments("scale_residual_layer_norm_scale_shift", dtype=dtype, other=other, D=64, seed=seed)
        shift, scale = rows["shift"].to(DTYPES[seed % 3]), rows["scale"]
        for centred, name in ((True, "layer_norm"), (False, "rms_norm")):
            x, normalised = exact_rows(dtype, centred, seed)
            extra = {"bias": bias} if centred else {}
            value = affine(normalised, weight, bias if centred else None, mode, dtype)
            if mode == "float32":
                expected = value * (1 + scale[:, None].float()) + shift.float()
            else:
                expected = value * (1 + scale[:, None]) + shift
            flags = {"eps": 0.0, "casting_mode": mode}
            y = getattr(fused_ops, f"{name}_scale_shift")(x, shift, scale, weight, **extra, **flags)
            assert same_bits(y, expected.to(dtype)), (seed, other, name)
            if centred and mode == "float32":
                assert same_bits(fused_ops.layer_norm(x, weight, bias, 0.0), value.to(dtype))
            if not centred:
                assert same_bits(fused_ops.rms_norm(x, weight, **flags), value.to(dtype))
                q, k = fused_ops.qk_norm(x, x[:1], weight, None, **flags)
                assert same_bits((q, k), (value.to(dtype), normalised[:1].to(dtype)))

            # A residual to which adding the gated x gives exactly those rows.
            added = torch.randint(-2, 3, x.shape, generator=generator).to(dtype)
            gate = 2.0 ** torch.randint(-1, 2, (2, 2, 1, 64), generator=generator).to(other)
            frames = gate.float().repeat_interleave(3, dim=1).squeeze(2)
            residual = (x.float() - added.float() * frames).to(dtype)
            assert torch.equal(residual.float() + added.float() * frames, x.float())
            op = getattr(fused_ops, f"scale_residual_{name}_scale_shift")
            results = op(residual, added, gate, shift, scale, weight, **extra, **flags)
            assert same_bits(results, (expected.to(dtype), x)), (seed, other, name)


@pytest.mark.parametrize("mode", CASTING_MODES)
def test_qk_norm_rope_rounds_where_it_says(mode: str) -> None:
    for seed, dtype, other in itertools.product(range(2), DTYPES, DTYPES):
        q, normalised = (t.view(2, 6, 3, 64) for t in exact_rows(dtype, False, seed, L=18))
        made = arguments("qk_norm_rope", dtype=dtype, other=other, D=64, seed=seed)
        cos, sin, weight = made["cos"], made["sin"], made["q_weight"]
        for interleaved in (True, False):
            flags: dict[str, Any] = {"interleaved": interleaved, "casting_mode": mode}
            y, _ = fused_ops.qk_norm_rope(q, q, weight, None, cos, sin, 0.0, **flags)
            value = affine(normalised, weight, None, mode, dtype)
            value = value.to(dtype).float() if mode == "input" else value
            expected = turned(value, cos, sin, interleaved=interleaved)
            assert same_bits(y, expected.to(dtype)), (seed, dtype, other, interleaved)


# Forms and layouts: the same numbers in other memory give the same bits.


def in_full(m: Tensor, form: str, B: int, L: int) -> Any:
    """``m [B, L, D]`` restricted to the values that a form can express: in that form, and written out in full."""
    frames = 3
    match form:
        case "[]":
            return m[0, 0, 0], m[:1, :1, :1].expand_as(m)
        case "[1]":
            return m[0, 0, :1], m[:1, :1, :1].expand_as(m)
        case "[D]":
            return m[0, 0], m[:1, :1].expand_as(m)
        case "[B, D]":
            return m[:, 0], m[:, :1].expand_as(m)
        case "[1, 1, D]":
            return m[:1, :1], m[:1, :1].expand_as(m)
        case "[B, 1, D]":
            return m[:, :1], m[:, :1].expand_as(m)
        case "[1, L, D]":
            return m[:1], m[:1].expand_as(m)
        case "[B, L, D]":
            return m, m
        case "[B, F, 1, D]":
            rows = m[:, :: L // frames].unsqueeze(2)
            return rows, rows.squeeze(2).repeat_interleave(L // frames, dim=1)
        case "chunked":
            chunks = torch.full((B, L, 6, m.shape[-1]), torch.nan, dtype=m.dtype)
            chunks[:, :, 4] = m
            return chunks[:, :, 4], m
    batched, dtype = form.startswith("rows [B"), torch.int32 if form.endswith("int32") else torch.int64
    table = m[:, :4] if batched else m[0, :4]
    index = torch.randint(0, 4, (L, B), generator=torch.Generator().manual_seed(B * L)).to(dtype).T
    full = torch.stack([table[b][index[b].long()] if batched else table[index[b].long()] for b in range(B)])

    class Rows(NamedTuple):
        index: Tensor  # type: ignore[assignment]
        table: Tensor

    return Rows(index, table) if batched else IndexedRows(table, index), full


FORMS = (
    "[]",
    "[1]",
    "[D]",
    "[B, D]",
    "[1, 1, D]",
    "[B, 1, D]",
    "[1, L, D]",
    "[B, L, D]",
    "[B, F, 1, D]",
    "chunked",
    "rows [n, D] int32",
    "rows [B, n, D] int64",
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", MODULATED)
def test_every_form_is_what_it_means_written_out(op: str, form: str) -> None:
    function = getattr(fused_ops, op)
    for B, L in ((2, 6), (6, 6)):
        made = arguments(op, dtype=torch.bfloat16, B=B, L=L)
        full = torch.randn(B, L, 16, generator=torch.Generator().manual_seed(5))
        for name, mode in itertools.product([n for n in MODULATION if n in made], modes_of(op)):
            short, written_out = in_full(full.bfloat16() if form == "[]" else full, form, B, L)
            expected = function(**{**made, name: written_out.contiguous()}, **mode)
            assert same_bits(function(**{**made, name: short}, **mode), expected), (B, L, name, mode)


def test_a_gate_of_none_is_one() -> None:
    for op in MODULATED:
        made = arguments(op, dtype=torch.bfloat16)
        if "gate" in made:
            function = getattr(fused_ops, op)
            assert same_bits(function(**{**made, "gate": None}), function(**{**made, "gate": torch.ones(1)}))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_any_strides_give_the_bits_of_contiguous_tensors(op: str, layout: str) -> None:
    function = getattr(fused_ops, op)
    made = arguments(op, dtype=torch.bfloat16)
    for mode in modes_of(op):
        expected = function(**made, **mode)
        for name, value in made.items():
            changed = in_a_buffer(value, layout)
            results = function(**{**made, name: changed}, **mode)
            assert same_bits(results, expected), (name, mode)
            assert all(y.is_contiguous() for y in tuple_of(results))
        results = function(**{name: in_a_buffer(value, layout) for name, value in made.items()}, **mode)
        assert same_bits(results, expected)


def test_leading_dimensions_of_any_number_and_order() -> None:
    base = torch.randn(2, 3, 2, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 7):
        x = base.permute(*order, 5)
        for name in ("layer_norm", "rms_norm"):
            function = getattr(fused_ops, name)
            assert same_bits(function(x), function(x.contiguous()))
        q, k = fused_ops.qk_norm(x, x[0], None, None)
        assert same_bits((q, k), fused_ops.qk_norm(x.contiguous(), x[0].contiguous(), None, None))
    row = base.flatten()[:8]
    assert same_bits(fused_ops.rms_norm(row), fused_ops.rms_norm(row.expand(3, 8))[1])


@pytest.mark.parametrize("op", OPS)
def test_a_row_has_the_same_bits_in_any_batch(op: str) -> None:
    function = getattr(fused_ops, op)
    made = arguments(op, dtype=torch.bfloat16, B=5)
    whole = tuple_of(function(**made))
    for part in (slice(3, 4), slice(1, 5)):
        # Arguments with a batch dimension are sliced along it.
        sliced = {n: v[part] if v.dim() > 1 and v.shape[0] == 5 else v for n, v in made.items()}
        for y, all_rows in zip(tuple_of(function(**sliced)), whole, strict=True):
            assert same_bits(y, all_rows[part])
    assert same_bits(function(**made), whole)


@pytest.mark.parametrize("D", [1, 2, 3, 8191, 8192, 8193, 9000, 65536])
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_every_width_from_one_to_65536(name: str, D: int) -> None:
    # Exact statistics if D is even; for an odd D a row of equal values (and eps, which makes it 0 or 1).
    x, normalised = exact_rows(torch.bfloat16, name == "layer_norm", D, B=1, L=2, D=D - D % 2 or 2)
    if D % 2:
        x, normalised = torch.full((1, 2, D), 2.0), torch.full((1, 2, D), 0.0 if name == "layer_norm" else 1.0)
    eps = 1e-12 if D % 2 and name == "layer_norm" else 0.0
    weight = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(D))
    assert same_bits(getattr(fused_ops, name)(x, weight, eps=eps), (normalised * weight).to(x.dtype))
    shift, scale = torch.randn(2, 1, 1, x.shape[-1], generator=torch.Generator().manual_seed(D + 1)).unbind(0)
    expected = (normalised * weight * (1 + scale) + shift).to(x.dtype)
    y = getattr(fused_ops, f"{name}_scale_shift")(x, shift, scale, weight, eps=eps)
    assert same_bits(y, expected)
    results = getattr(fused_ops, f"scale_residual_{name}_scale_shift")(x, x, 0 * scale, shift, scale, weight, eps=eps)
    assert same_bits(results, (expected, x))
    y = fused_ops.scale_shift(x, shift, scale)
    assert same_bits(y, reference_ops.scale_shift(x, shift, scale))


@pytest.mark.parametrize(("head_dim", "rotated"), [(2, 2), (3, 2), (20000, 20000), (20001, 17000)])
@pytest.mark.parametrize("interleaved", [True, False])
def test_heads_of_every_width(head_dim: int, rotated: int, interleaved: bool) -> None:
    generator = torch.Generator().manual_seed(head_dim)
    x = torch.randn(1, 2, 1, head_dim, generator=generator).bfloat16()
    cos, sin = torch.randn(2, 2, rotated // 2, generator=generator).unbind(0)
    expected = turned(x, cos, sin, interleaved=interleaved).to(x.dtype)
    assert same_bits(fused_ops.rotary_embedding(x, cos, sin, interleaved=interleaved), expected)
    # q of powers of two: the mean square is exact, whichever channels are rotated.
    q = torch.full_like(x, 2.0)
    results = fused_ops.qk_norm_rope(q, 2 * q, None, None, cos, sin, 0.0, interleaved=interleaved)
    expected = turned(q / 2, cos, sin, interleaved=interleaved).to(q.dtype)
    assert same_bits(results, (expected, expected))
    for inplace in (q.clone(), in_a_buffer(q, "strided columns")):
        y, _ = fused_ops.qk_norm_rope(inplace, x.clone(), None, None, cos, sin, 0.0, interleaved=interleaved,
                                      inplace=True)  # fmt: skip
        assert y is inplace
        assert same_bits(y, expected)


def test_more_rows_than_one_grid_axis_takes() -> None:
    x = torch.randn(70_001, 1, generator=torch.Generator().manual_seed(0))
    assert _launch.tile_for(1).programs(2**31 * _launch.TILE - _launch.TILE) < 2**31
    y = fused_ops.rms_norm(x, eps=1.0)
    assert same_bits(y[-1:], fused_ops.rms_norm(x[-1:], eps=1.0))


def sparse_memory(count: int, dtype: torch.dtype) -> Tensor:
    """``count`` elements of address space; memory is used only where it is touched."""
    no_reserve = 0x4000  # Linux' MAP_NORESERVE, which Python's mmap does not name everywhere
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize, flags=flags), dtype=dtype)


@pytest.mark.parametrize("strides", [(2**31 + 8, 3, 1), (6, 2**30 + 8, 1), (4, 1, 2**30 + 8)])
def test_offsets_past_2_to_the_31(strides: tuple[int, int, int]) -> None:
    shape = (2, 4, 3)
    memory = sparse_memory(1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)), torch.bfloat16)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    far = torch.as_strided(memory, shape, strides).copy_(x)
    shift, scale = (arguments("scale_shift", L=4, D=3)[name] for name in ("shift", "scale"))
    assert same_bits(fused_ops.layer_norm(far), fused_ops.layer_norm(x))
    assert same_bits(fused_ops.scale_shift(far, shift, scale), fused_ops.scale_shift(x, shift, scale))
    assert same_bits(fused_ops.scale_shift(x, far, scale), fused_ops.scale_shift(x, x, scale))
    cos, sin = torch.ones(4, 1), torch.zeros(4, 1)
    heads, q = far.unsqueeze(2), x.unsqueeze(2)
    assert same_bits(fused_ops.rotary_embedding(heads, cos, sin), q)
    results = fused_ops.qk_norm_rope(heads, heads, None, None, cos, sin)
    assert same_bits(results, fused_ops.qk_norm(q, q, None, None))


@pytest.mark.parametrize("op", OPS)
def test_empty_tensors_give_empty_outputs(op: str) -> None:
    for package, (B, L) in itertools.product(PACKAGES, ((0, 6), (2, 0), (0, 0))):
        made = arguments(op, dtype=torch.bfloat16, B=B, L=L)
        for mode in modes_of(op):
            results = tuple_of(getattr(package, op)(**made, **mode))
            inputs = [made[name] for name in ("q", "k", "x", "residual") if name in made]
            assert all(y.shape == t.shape and y.dtype is t.dtype for y, t in zip(results, inputs, strict=False))


def test_no_heads_give_empty_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, H, 4, generator=generator) for H in (0, 1))
    cos, sin, angles = torch.ones(3, 2), torch.zeros(3, 2), torch.ones(2, 0, 3, 2)
    for package in PACKAGES:
        q_out, k_out = package.qk_norm(q, k, None, None)
        assert q_out.shape == q.shape
        assert same_bits(k_out, package.rms_norm(k))
        q_out, k_out = package.qk_norm_rope(q, k, None, None, cos, sin)
        assert q_out.shape == q.shape
        assert same_bits(k_out, package.qk_norm_rope(k, k, None, None, cos, sin)[0])
        assert package.rotary_embedding(q, cos, sin).shape == q.shape
        assert package.split_rotary_embedding(torch.empty(2, 3, 0), angles, angles).shape == (2, 3, 0)


# In place.


def packed(layout: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A buffer and views of it as q and k, ``[2, 6, 3, 16]`` and ``[2, 6, 2, 16]``."""
    generator = torch.Generator().manual_seed(0)
    match layout:
        case "heads":  # [q heads, k heads, v heads]
            buffer = torch.randn(2, 6, 7, 16, generator=generator).to(dtype)
            return buffer, buffer[:, :, :3], buffer[:, :, 3:5]
        case "head by head":  # each head its q, k, v
            buffer = torch.randn(2, 6, 3, 48, generator=generator).to(dtype)
            return buffer, buffer[..., :16], buffer[:, :, :2, 16:32]
        case "tokens last":
            buffer = torch.randn(2, 7, 16, 6, generator=generator).to(dtype)
            return buffer, buffer[:, :3].permute(0, 3, 1, 2), buffer[:, 3:5].permute(0, 3, 1, 2)
        case "every other channel":
            buffer = torch.randn(2, 6, 3, 32, generator=generator).to(dtype)
            return buffer, buffer[..., ::2], buffer[:, :, :2, 1::2]
    raise AssertionError(layout)


@pytest.mark.parametrize("layout", ["heads", "head by head", "tokens last", "every other channel"])
@pytest.mark.parametrize("op", ["qk_norm", "qk_norm_rope"])
def test_in_place_on_a_packed_buffer_writes_q_and_k_alone(op: str, layout: str) -> None:
    for package, dtype in itertools.product(PACKAGES, DTYPES):
        for mode in modes_of(op):
            buffer, q, k = packed(layout, dtype)
            rest = {n: v for n, v in arguments(op, dtype=dtype).items() if n not in ("q", "k")}
            before, expected = buffer.clone(), getattr(package, op)(q, k, **rest, **mode)
            results = getattr(package, op)(q, k, **rest, **mode, inplace=True)
            assert results[0] is q
            assert results[1] is k
            assert same_bits(results, expected)
            # Restore the old q and k: then everything must be as before.
            torch.as_strided(before, q.shape, q.stride(), q.storage_offset()).copy_(q)
            torch.as_strided(before, k.shape, k.stride(), k.storage_offset()).copy_(k)
            assert same_bits(buffer, before)


def test_in_place_with_one_token() -> None:
    """With L == 1 the views of a packed buffer are contiguous except for their batch stride."""
    buffer = torch.randn(1, 1, 9, 16, generator=torch.Generator().manual_seed(0))
    before = buffer.clone()
    q, k = buffer[:, :, :3], buffer[:, :, 3:6]
    fused_ops.qk_norm(q, k, None, None, inplace=True)
    assert same_bits(buffer[:, :, 6:], before[:, :, 6:])
    assert same_bits((q, k), fused_ops.qk_norm(before[:, :, :3], before[:, :, 3:6], None, None))


def test_nothing_is_written_but_the_output() -> None:
    for op in OPS:
        made = arguments(op)
        before = {name: value.clone() for name, value in made.items()}
        getattr(fused_ops, op)(**made)
        assert all(same_bits(value, before[name]) for name, value in made.items()), op


def share_an_element(a: Tensor, b: Tensor) -> bool:
    """Whether two views of a buffer overlap, found by numbering the buffer's elements."""
    numbers = torch.arange(a.untyped_storage().nbytes() // a.element_size())
    elements = [
        set(torch.as_strided(numbers, t.shape, t.stride(), t.storage_offset()).flatten().tolist()) for t in (a, b)
    ]
    return bool(elements[0] & elements[1])


def random_slice(draw: random.Random, size: int) -> slice:
    start = draw.randrange(size)
    return slice(start, draw.randint(start + 1, size), draw.randint(1, 2))


def test_overlap_is_what_counting_elements_says() -> None:
    draw, shared = random.Random(0), 0
    for _ in range(4000):
        buffer = torch.empty(draw.randint(1, 4), draw.randint(1, 4), draw.randint(1, 6))
        a, b = (buffer[tuple(random_slice(draw, n) for n in buffer.shape)] for _ in range(2))
        a = a.permute(*draw.sample(range(3), 3))
        assert may_overlap(a, b) == may_overlap(b, a) == share_an_element(a, b)
        shared += share_an_element(a, b)
    assert 1000 < shared < 3000
    for _ in range(500):
        # Strides that slicing cannot give.
        sizes, strides = ([draw.randint(1, most) for _ in range(3)] for most in (4, 40))
        a, b = (
            torch.as_strided(torch.empty(600), sizes, draw.sample(strides, 3), draw.randint(0, 9)) for _ in range(2)
        )
        assert not may_overlap(a, b)  # each in its own memory
        b = torch.as_strided(a, sizes, draw.sample(strides, 3), draw.randint(0, 9))
        assert may_overlap(a, b) == share_an_element(a, b)
    buffer = torch.empty(8)
    assert not may_overlap(buffer[:4], buffer.bfloat16())
    assert may_overlap(buffer[2:4], buffer.view(torch.bfloat16)[6:7])
    assert not may_overlap(buffer[2:4], buffer.view(torch.bfloat16)[8:9])
    assert not may_overlap(buffer[:0], buffer)


def test_views_that_share_an_element_twice_are_seen() -> None:
    x = torch.empty(4, 6)
    assert not overlaps_itself(x)
    assert not overlaps_itself(x.T[::2, 1:])
    assert not overlaps_itself(x.unsqueeze(0).expand(1, 4, 6))
    assert overlaps_itself(x.unsqueeze(0).expand(2, 4, 6))
    assert overlaps_itself(torch.as_strided(x, (4, 4), (2, 1)))
    assert not overlaps_itself(torch.as_strided(x, (0, 4), (2, 1)))


# Refusals.


class Bad(NamedTuple):
    """A call that must be refused: the changed arguments, the error, and the argument that it must name."""

    what: str
    changes: dict[str, Any]
    error: type[Exception]
    named: str


def bad_calls(op: str, *, fused: bool) -> Iterator[Bad]:
    """Every argument of an op made wrong in every way that its type has."""
    made = arguments(op)
    first = "q" if "q" in made else "x"
    for name, value in made.items():
        yield Bad("a list", {name: [1.0]}, TypeError, name)
        yield Bad("integers", {name: value.int()}, TypeError, name)
        yield Bad("complex", {name: value.cfloat()}, TypeError, name)
        if fused:
            yield Bad("float64", {name: value.double()}, TypeError, name)
        yield Bad("requires grad", {name: value.clone().requires_grad_()}, NotImplementedError, name)
        if name != first:
            wider = torch.cat([value, value[..., :1]], -1)
            # The width of x is checked against cos, and that of cos against sin.
            named = {"split": "x", "rotary": "sin", "qk": "sin"}[op.split("_")[0]] if name == "cos" else name
            yield Bad("another width", {name: wider}, ValueError, named)
            yield Bad("another device", {name: value.to("meta")}, ValueError, name)
    for name in (n for n in ("x", "q", "k", "residual", "cos", "sin", "shift", "scale") if n in made):
        yield Bad("None", {name: None}, TypeError, name)
        any_rank = op in ("layer_norm", "rms_norm", "qk_norm")
        shape = () if any_rank else (1, 1, *made[name].shape, 1)
        yield Bad("another rank", {name: torch.ones(shape)}, ValueError, name)
    for name in (n for n in ("weight", "bias", "q_weight", "k_weight") if n in made):
        yield Bad("two dimensions", {name: made[name].expand(2, -1)}, ValueError, name)
    yield from _bad_widths(op, made)
    yield from (bad for name in MODULATION if name in made for bad in _bad_modulation(name))
    yield from _bad_flags(op)
    if op in HAS_INPLACE:
        yield from _bad_targets(made)


def _bad_widths(op: str, made: dict[str, Any]) -> Iterator[Bad]:
    nothing = {name: made[name][..., :0] for name in ("x", "q", "k", "cos", "sin") if name in made}
    if op == "split_rotary_embedding":
        yield Bad("Dh = 0", {name: nothing[name] for name in ("x", "cos")}, ValueError, "cos")
    else:
        yield from (Bad("no channel", {name: empty}, ValueError, name) for name, empty in nothing.items())
    if "residual" in made:
        yield Bad("another length", {"residual": made["residual"][:, 1:]}, ValueError, "residual")
        yield Bad("another dtype", {"residual": made["residual"].half()}, TypeError, "residual")
    for name in (n for n in ("cos", "sin") if n in made):
        angles = made[name]
        yield Bad("another length", {name: angles[..., 1:, :]}, ValueError, name)
        yield Bad("another batch", {name: torch.ones(3, *angles.shape[-3 + (angles.dim() == 2) :])}, ValueError, name)
    if "sin" in made:
        yield Bad("fewer pairs", {"sin": made["sin"][..., :-1]}, ValueError, "sin")
    if "cos" in made and op != "split_rotary_embedding":
        yield Bad("Dr > head_dim", {name: torch.ones(6, 9) for name in ("cos", "sin")}, ValueError, "cos")
    if op == "qk_norm_rope":
        yield Bad("another S", {"k": made["k"][:, 1:]}, ValueError, "cos")


def _bad_modulation(name: str) -> Iterator[Bad]:
    """Bad modulation for x [2, 6, 16]."""
    shapes = {
        "F = 4 does not divide L": (2, 4, 1, 16),
        "F = 0": (2, 0, 1, 16),
        "[L, D]": (6, 16),
        "[2]": (2,),
        "[B, 2, D]": (2, 2, 16),
        "[3, L, D]": (3, 6, 16),
        "[B, F, 2, D]": (2, 2, 2, 16),
        "[1, F, 1, D]": (1, 2, 1, 16),
        "five dimensions": (1, 2, 2, 1, 16),
    }
    yield from (Bad(what, {name: torch.ones(shape)}, ValueError, name) for what, shape in shapes.items())
    table, index = torch.ones(3, 16), torch.zeros(2, 6, dtype=torch.int64)
    for what, bad_index, error in (
        ("floats", index.float(), TypeError),
        ("bytes", index.byte(), TypeError),
        ("None", None, TypeError),
        ("[L, B]", index.T, ValueError),
        ("too large", index + 3, ValueError),
        ("negative", index - 1, ValueError),
        ("elsewhere", index.to("meta"), ValueError),
    ):
        rows = IndexedRows(table, bad_index)  # type: ignore[arg-type]
        yield Bad(f"index: {what}", {name: rows}, error, f"{name}.index")
    for what, bad_table, error in (
        ("[D]", table[0], ValueError),
        ("too wide", torch.ones(3, 17), ValueError),
        ("another batch", torch.ones(3, 3, 16), ValueError),
        ("integers", table.int(), TypeError),
        ("elsewhere", table.to("meta"), ValueError),
    ):
        yield Bad(f"table: {what}", {name: IndexedRows(bad_table, index)}, error, f"{name}.table")
    with_grad = IndexedRows(table.clone().requires_grad_(), index)
    yield Bad("table: requires grad", {name: with_grad}, NotImplementedError, name)


def _bad_flags(op: str) -> Iterator[Bad]:
    if "norm" in op:
        yield from (Bad(f"eps {eps}", {"eps": eps}, ValueError, "eps") for eps in (-1e-6, float("nan"), float("inf")))
        yield from (Bad(f"eps {eps}", {"eps": eps}, TypeError, "eps") for eps in (None, True, "1e-6"))
    if op == "scale_shift":
        yield Bad("a tensor", {"scale_constant": torch.ones(1)}, TypeError, "scale_constant")
    if op in HAS_CASTING_MODE:
        yield from (Bad("unknown", {"casting_mode": m}, ValueError, "casting_mode") for m in ("float16", None, 1))
    if op in HAS_INPLACE:
        yield Bad("1", {"inplace": 1}, TypeError, "inplace")
    if op in ("rotary_embedding", "qk_norm_rope"):
        yield Bad("None", {"interleaved": None}, TypeError, "interleaved")


def _bad_targets(made: dict[str, Any]) -> Iterator[Bad]:
    """Tensors that may not be written in place."""
    target = "q" if "q" in made else "x"
    x = made[target]
    yield Bad("expanded", {target: x[:1].expand_as(x)}, ValueError, target)
    yield Bad("windows", {target: torch.as_strided(x, x.shape, (288, 48, 8, 1))}, ValueError, target)
    if "cos" in made:
        yield Bad("cos is read", {target: x, "cos": x[0, :, 0, :7]}, ValueError, target)
    if target == "q":
        yield Bad("k is q", {"q": x, "k": x}, ValueError, "k")
        yield Bad("k is part of q", {"q": x, "k": x[:, :, 1:]}, ValueError, "k")
        yield Bad("k begins in q", {"q": x, "k": torch.as_strided(x, (2, 6, 2, 16), x.stride(), 8)}, ValueError, "k")
        yield Bad("the weight is read", {"q": x, "q_weight": x[0, 0, 0]}, ValueError, "q")


@pytest.mark.parametrize("package", PACKAGES, ids=["fused_ops", "reference_ops"])
@pytest.mark.parametrize("op", OPS)
def test_bad_arguments_are_named_and_nothing_is_written(op: str, package: Any) -> None:
    function = getattr(package, op)
    count = 0
    for bad in bad_calls(op, fused=package is fused_ops):
        made = arguments(op) | bad.changes
        if op in HAS_INPLACE:
            made = {"inplace": True} | made
        tensors = [value for value in made.values() if isinstance(value, Tensor) and not value.is_meta]
        before = [value.detach().clone() for value in tensors]
        with pytest.raises(bad.error, match=rf"^{op}: {re.escape(bad.named)}\b.*expected") as raised:
            function(**made)
        assert type(raised.value) is bad.error, (bad.what, raised.value)
        assert all(same_bits(value.detach(), old) for value, old in zip(tensors, before, strict=True)), bad.what
        count += 1
    assert count >= 18, f"{op}: {count} bad calls"


@pytest.mark.parametrize("op", OPS)
def test_memory_that_no_kernel_can_reach_is_refused(op: str) -> None:
    made = {name: value.to("meta") for name, value in arguments(op).items()}
    with pytest.raises(ValueError, match=rf"^{op}: [xq] is on meta, expected a GPU tensor"):
        getattr(fused_ops, op)(**made)


@pytest.mark.parametrize("op", OPS)
def test_grad_is_refused_in_grad_mode_alone(op: str) -> None:
    made = {name: value.requires_grad_() for name, value in arguments(op).items()}
    for package in PACKAGES:
        function: Callable[..., Any] = getattr(package, op)
        with pytest.raises(NotImplementedError, match=rf"^{op}: \w+ requires grad"):
            function(**made)
        with torch.no_grad():
            results = tuple_of(function(**made))
        assert not any(y.requires_grad for y in results)
        assert all(torch.equal(bits(value.detach()), bits(arguments(op)[name])) for name, value in made.items())
