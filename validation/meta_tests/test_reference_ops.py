"""The reference ops: the eager chains bit for bit, the mathematics in float64, and refused calls.

The chains are the models' own modules if diffusers has them, else copies of their code written here. The
mathematics is evaluated element by element, with mpmath and ``math.fsum``, from the definition in each op's docstring.
"""

import inspect
import math
import random
from collections.abc import Iterator
from typing import Any

import mpmath
import pytest
import torch
from diffusers.models.normalization import AdaLayerNormZero, FP32LayerNorm
from diffusers.models.transformers.transformer_helios import HeliosOutputNorm, apply_rotary_emb_transposed
from diffusers.models.transformers.transformer_ltx2 import apply_split_rotary_emb
from torch import Tensor, nn

import fused_ops
import reference_ops
from reference_ops import IndexedRows

OPS = (
    "layer_norm",
    "layer_norm_scale_shift",
    "qk_norm",
    "qk_norm_rope",
    "residual_gate_add",
    "rms_norm",
    "rms_norm_scale_shift",
    "rotary_embedding",
    "scale_residual_layer_norm_scale_shift",
    "scale_residual_rms_norm_scale_shift",
    "scale_shift",
    "split_rotary_embedding",
)
CASES = 2000  # random cases of each chain; about a second per op
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WORKING_DTYPES = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """torch splits a LayerNorm of a few rows among threads, and the handover costs more than the norm."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_both_packages_hold_the_twelve_ops() -> None:
    assert reference_ops.OP_NAMES == OPS
    assert fused_ops.OP_NAMES == OPS


@pytest.mark.parametrize("op", OPS)
def test_signatures_are_equal(op: str) -> None:
    assert inspect.signature(getattr(fused_ops, op)) == inspect.signature(getattr(reference_ops, op))


class Draw:
    """Random tensors for the chains: small, of every size from 1 up, at several scales."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def size(self, most: int) -> int:
        return self.random.randint(1, most)

    def dtype(self, choice: tuple[torch.dtype, ...] = DTYPES) -> torch.dtype:
        return self.random.choice(choice)

    def tensor(self, *shape: int, dtype: torch.dtype, offset: bool = False) -> Tensor:
        """Normal values at a scale from 2^-4 to 2^4; with ``offset`` about half have a mean far from 0."""
        values = torch.randn(shape, generator=self.generator) * 2.0 ** self.random.randint(-4, 4)
        if offset and self.random.random() < 0.5:
            values = values + 30.0
        return values.to(dtype)

    def modulation(self, B: int, L: int, F: int, D: int, dtype: torch.dtype) -> tuple[Any, Tensor]:
        """A modulation argument in a random form, and the tensor that a model's code would broadcast."""
        match self.random.randrange(8):
            case 0:
                row = self.tensor(1, dtype=dtype)
                return row, row
            case 1:
                row = self.tensor(D, dtype=dtype)
                return row, row
            case 2:
                rows = self.tensor(B, D, dtype=dtype)
                return rows, rows[:, None]
            case 3:
                rows = self.tensor(B, 1, D, dtype=dtype)
                return rows, rows
            case 4:
                rows = self.tensor(1, L, D, dtype=dtype)
                return rows, rows
            case 5:
                rows = self.tensor(B, L, 6, D, dtype=dtype)[:, :, self.random.randrange(6)]
                return rows, rows
            case 6:
                rows = self.tensor(B, F, 1, D, dtype=dtype)
                return rows, rows.repeat_interleave(L // F, dim=1).squeeze(2)
            case _:
                table = self.tensor(B, 2, D, dtype=dtype)
                index = torch.randint(0, 2, (B, L), generator=self.generator)
                return IndexedRows(table, index), torch.stack([table[b, index[b]] for b in range(B)])

    def activation(self, dtype: torch.dtype) -> tuple[int, int, int, int, Tensor]:
        """B, L, F, D and an ``x [B, L, D]``; L is a multiple of F."""
        B, F, D = self.size(3), self.size(3), self.size(70)
        L = F * self.size(3)
        return B, L, F, D, self.tensor(B, L, D, dtype=dtype, offset=True)


def draws(cases: int = CASES) -> Iterator[Draw]:
    return (Draw(seed) for seed in range(cases))


def same(y: Tensor, expected: Tensor) -> bool:
    """Same dtype, shape and bits; -0 and 0 differ, NaN equals NaN."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[y.element_size()]
    return y.dtype is expected.dtype and torch.equal(y.contiguous().view(integer), expected.contiguous().view(integer))


def optional(draw: Draw, *shape: int, dtype: torch.dtype) -> Tensor | None:
    return draw.tensor(*shape, dtype=dtype) if draw.random.random() < 0.5 else None


def fp32_layer_norm(D: int, eps: float, weight: Tensor | None, bias: Tensor | None) -> FP32LayerNorm:
    norm = FP32LayerNorm(D, eps, elementwise_affine=weight is not None, bias=bias is not None)
    if weight is not None:
        norm.weight = nn.Parameter(weight, requires_grad=False)
        norm.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return norm


def torch_rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    norm = nn.RMSNorm(x.shape[-1], eps, elementwise_affine=weight is not None)
    if weight is not None:
        norm.weight = nn.Parameter(weight, requires_grad=False)
    return norm(x)  # type: ignore[no-any-return]


def flux_rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    wide = x.float()
    rrms = torch.rsqrt(torch.mean(wide**2, dim=-1, keepdim=True) + eps)
    normalised = (wide * rrms).to(x.dtype)
    return normalised if weight is None else normalised * weight


def test_layer_norm_is_fp32_layer_norm() -> None:
    for draw in draws():
        dtype = draw.dtype()
        x = draw.activation(dtype)[-1]
        weight = optional(draw, x.shape[-1], dtype=draw.dtype())
        # The module has a bias only together with a weight.
        bias = None if weight is None else optional(draw, x.shape[-1], dtype=draw.dtype())
        eps = draw.random.choice((1e-6, 1e-5, 1e-3))
        expected = fp32_layer_norm(x.shape[-1], eps, weight, bias)(x)
        assert same(reference_ops.layer_norm(x, weight, bias, eps), expected)


def test_layer_norm_takes_a_bias_alone() -> None:
    for draw in draws(200):
        x = draw.activation(torch.bfloat16)[-1]
        bias = draw.tensor(x.shape[-1], dtype=torch.float32)
        expected = nn.functional.layer_norm(x.float(), x.shape[-1:], None, bias, 1e-6).type_as(x)
        assert same(reference_ops.layer_norm(x, bias=bias), expected)


def test_rms_norm_is_torchs() -> None:
    for draw in draws():
        x = draw.activation(draw.dtype())[-1]
        weight = optional(draw, x.shape[-1], dtype=x.dtype)
        assert same(reference_ops.rms_norm(x, weight, 1e-5), torch_rms_norm(x, weight, 1e-5))


def test_rms_norm_in_input_mode_is_that_of_flux() -> None:
    for draw in draws():
        x = draw.activation(draw.dtype())[-1]
        weight = optional(draw, x.shape[-1], dtype=draw.dtype())
        expected = flux_rms_norm(x, weight, 1e-6).to(x.dtype)
        assert same(reference_ops.rms_norm(x, weight, casting_mode="input"), expected)


def test_layer_norm_scale_shift_is_that_of_helios() -> None:
    for draw in draws():
        B, L, F, D, x = draw.activation(draw.dtype())
        (shift, shift_msa), (scale, scale_msa) = (draw.modulation(B, L, F, D, torch.float32) for _ in range(2))
        norm = fp32_layer_norm(D, 1e-6, None, None)
        expected = (norm(x.float()) * (1 + scale_msa) + shift_msa).type_as(x)
        assert same(reference_ops.layer_norm_scale_shift(x, shift, scale), expected)


def test_layer_norm_scale_shift_is_that_of_helios_output_norm() -> None:
    for draw in draws(200):
        B, L, _, D, x = draw.activation(torch.bfloat16)
        module = HeliosOutputNorm(D).requires_grad_(False)
        temb = draw.tensor(B, L, D, dtype=torch.float32)
        shift, scale = (module.scale_shift_table.unsqueeze(0) + temb.unsqueeze(2)).unbind(2)
        assert same(reference_ops.layer_norm_scale_shift(x, shift, scale), module(x, temb, L))


def test_layer_norm_scale_shift_in_input_mode_is_layer_norm_modulated_in_the_working_dtype() -> None:
    for draw in draws():
        B, L, F, D, x = draw.activation(draw.dtype())
        (shift, shift_msa), (scale, scale_msa) = (draw.modulation(B, L, F, D, x.dtype) for _ in range(2))
        norm = nn.LayerNorm(D, eps=1e-6, elementwise_affine=False)
        expected = norm(x) * (1 + scale_msa) + shift_msa
        assert same(reference_ops.layer_norm_scale_shift(x, shift, scale, casting_mode="input"), expected)


def test_layer_norm_scale_shift_in_input_mode_is_that_of_ada_layer_norm_zero() -> None:
    for draw in draws(200):
        B, _, _, D, x = draw.activation(draw.dtype(WORKING_DTYPES))
        module = AdaLayerNormZero(D).requires_grad_(False).to(x.dtype)
        emb = draw.tensor(B, D, dtype=x.dtype)
        shift, scale = module.linear(module.silu(emb)).chunk(6, dim=1)[:2]
        expected = module(x, emb=emb)[0]
        assert same(reference_ops.layer_norm_scale_shift(x, shift, scale, casting_mode="input"), expected)


def test_rms_norm_scale_shift_is_rms_norm_modulated() -> None:
    for draw in draws():
        B, L, F, D, x = draw.activation(draw.dtype())
        weight = optional(draw, D, dtype=draw.dtype())
        (shift, shift_msa), (scale, scale_msa) = (draw.modulation(B, L, F, D, x.dtype) for _ in range(2))
        wide = torch_rms_norm(x.float(), None if weight is None else weight.float(), 1e-6)
        expected = (wide * (1 + scale_msa.float()) + shift_msa.float()).type_as(x)
        assert same(reference_ops.rms_norm_scale_shift(x, shift, scale, weight), expected)
        expected = (flux_rms_norm(x, weight, 1e-6) * (1 + scale_msa) + shift_msa).to(x.dtype)
        assert same(reference_ops.rms_norm_scale_shift(x, shift, scale, weight, casting_mode="input"), expected)


def test_scale_shift_is_the_modulation_written_out() -> None:
    for draw in draws():
        B, L, F, D, x = draw.activation(draw.dtype())
        constant = draw.random.choice((0.0, 1.0, 0.3))
        (shift, b), (scale, a) = (draw.modulation(B, L, F, D, draw.dtype()) for _ in range(2))
        expected = (x.float() * (constant + a.float()) + b.float()).type_as(x)
        assert same(reference_ops.scale_shift(x, shift, scale, constant), expected)
        expected = (x * (a + constant) + b).to(x.dtype)
        assert same(reference_ops.scale_shift(x, shift, scale, constant, casting_mode="input"), expected)


def test_residual_gate_add_is_that_of_helios() -> None:
    for draw in draws():
        B, L, F, D, residual = draw.activation(draw.dtype())
        x = draw.tensor(B, L, D, dtype=residual.dtype)
        gate, gate_msa = draw.modulation(B, L, F, D, torch.float32)
        y = reference_ops.residual_gate_add(residual, x, gate)
        assert same(y, (residual.float() + x * gate_msa).type_as(residual))
        assert same(y, (residual.float() + x.float() * gate_msa).type_as(residual))
        expected = (residual.float() + x.float()).type_as(residual)
        assert same(reference_ops.residual_gate_add(residual, x, None), expected)


def test_residual_gate_add_in_input_mode_is_that_of_the_working_dtype() -> None:
    for draw in draws():
        B, L, F, D, residual = draw.activation(draw.dtype())
        x = draw.tensor(B, L, D, dtype=residual.dtype)
        gate, g = draw.modulation(B, L, F, D, residual.dtype)
        expected = residual + g * x
        assert same(reference_ops.residual_gate_add(residual, x, gate, casting_mode="input"), expected)


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_scale_residual_norms_are_the_two_chains_in_turn(norm: str) -> None:
    fused = getattr(reference_ops, f"scale_residual_{norm}_scale_shift")
    for draw in draws():
        B, L, F, D, residual = draw.activation(draw.dtype())
        x = draw.tensor(B, L, D, dtype=residual.dtype)
        rows = [draw.modulation(B, L, F, D, residual.dtype) for _ in range(3)]
        (gate, g), (shift, b), (scale, a) = rows
        y, residual_out = fused(residual, x, gate, shift, scale)
        hidden = (residual.float() + x.float() * g.float()).type_as(residual)
        wide = (
            fp32_layer_norm(D, 1e-6, None, None)(hidden.float())
            if norm == "layer_norm"
            else torch_rms_norm(hidden.float(), None, 1e-6)
        )
        assert same(residual_out, hidden)
        assert same(y, (wide * (1 + a.float()) + b.float()).type_as(residual))
        y, residual_out = fused(residual, x, gate, shift, scale, casting_mode="input")
        hidden = residual + g * x
        narrow = (
            nn.LayerNorm(D, eps=1e-6, elementwise_affine=False)(hidden)
            if norm == "layer_norm"
            else flux_rms_norm(hidden, None, 1e-6)
        )
        assert same(residual_out, hidden)
        assert same(y, narrow * (1 + a) + b)


def test_qk_norm_is_the_norm_of_each() -> None:
    for draw in draws():
        head_dim = draw.size(64)
        q = draw.tensor(draw.size(3), draw.size(4), head_dim, dtype=draw.dtype())
        k = draw.tensor(draw.size(2), draw.size(3), draw.size(2), head_dim, dtype=q.dtype)
        q_weight, k_weight = (optional(draw, head_dim, dtype=q.dtype) for _ in range(2))
        inplace = draw.random.random() < 0.5
        for mode, norm in (("float32", torch_rms_norm), ("input", flux_rms_norm)):
            expected = norm(q, q_weight, 1e-6), norm(k, k_weight, 1e-6)
            arguments = (q.clone(), k.clone()) if inplace else (q, k)
            results = reference_ops.qk_norm(*arguments, q_weight, k_weight, casting_mode=mode, inplace=inplace)
            for result, argument, value in zip(results, arguments, expected, strict=True):
                assert same(result, value)
                assert (result is argument) == inplace


def angles(draw: Draw, S: int, pairs: int, dtype: torch.dtype, B: int = 1) -> tuple[Tensor, Tensor]:
    turns = torch.rand(B, S, pairs, generator=draw.generator) * 2 * math.pi
    return turns.cos().to(dtype), turns.sin().to(dtype)


def test_rotary_embedding_is_that_of_helios() -> None:
    for draw in draws():
        B, S, H, pairs = draw.size(2), draw.size(4), draw.size(3), draw.size(32)
        x = draw.tensor(B, S, H, 2 * pairs, dtype=draw.dtype())
        cos, sin = angles(draw, S, pairs, draw.dtype(), B)
        # Helios repeats each angle for both channels of its pair.
        freqs = torch.cat([cos.repeat_interleave(2, dim=-1), sin.repeat_interleave(2, dim=-1)], dim=-1)
        expected = apply_rotary_emb_transposed(x, freqs)
        assert same(reference_ops.rotary_embedding(x, cos, sin), expected)
        clone = x.clone()
        assert reference_ops.rotary_embedding(clone, cos, sin, inplace=True) is clone
        assert same(clone, expected)
        if B == 1:
            assert same(reference_ops.rotary_embedding(x, cos[0], sin[0]), expected)


def test_rotary_embedding_of_halves_is_that_of_interleaved_pairs_reordered() -> None:
    for draw in draws():
        B, S, H, pairs, rest = draw.size(2), draw.size(4), draw.size(3), draw.size(32), draw.random.randint(0, 5)
        x = draw.tensor(B, S, H, 2 * pairs + rest, dtype=draw.dtype())
        cos, sin = (t[0] for t in angles(draw, S, pairs, draw.dtype()))
        order = torch.arange(pairs).repeat_interleave(2) + torch.tensor([0, pairs]).repeat(pairs)
        y = reference_ops.rotary_embedding(x, cos, sin, interleaved=False)
        assert same(y[..., order], reference_ops.rotary_embedding(x[..., order], cos, sin))
        assert same(y[..., 2 * pairs :], x[..., 2 * pairs :])
        y = reference_ops.rotary_embedding(x, cos, sin)
        assert same(y[..., : 2 * pairs], reference_ops.rotary_embedding(x[..., : 2 * pairs], cos, sin))
        assert same(y[..., 2 * pairs :], x[..., 2 * pairs :])


def test_split_rotary_embedding_is_that_of_ltx2() -> None:
    for draw in draws():
        B, S, H, pairs = draw.size(2), draw.size(4), draw.size(3), draw.size(32)
        x = draw.tensor(B, S, H * 2 * pairs, dtype=draw.dtype())
        turns = torch.rand(B, H, S, pairs, generator=draw.generator) * 2 * math.pi
        dtype = draw.dtype()
        cos, sin = turns.cos().to(dtype), turns.sin().to(dtype)
        assert same(reference_ops.split_rotary_embedding(x, cos, sin), apply_split_rotary_emb(x, (cos, sin)))


def test_qk_norm_rope_is_the_two_chains_in_turn() -> None:
    for draw in draws():
        B, S, pairs, rest = draw.size(2), draw.size(4), draw.size(32), draw.random.choice((0, 0, 1, 6))
        q, k = (draw.tensor(B, S, draw.size(3), 2 * pairs + rest, dtype=draw.dtype()) for _ in range(2))
        weights = [optional(draw, 2 * pairs + rest, dtype=draw.dtype()) for _ in range(2)]
        cos, sin = (t[0] for t in angles(draw, S, pairs, draw.dtype()))
        interleaved = draw.random.random() < 0.5

        def rotated(x: Tensor, cos: Tensor = cos, sin: Tensor = sin, interleaved: bool = interleaved) -> Any:
            return reference_ops.rotary_embedding(x, cos, sin, interleaved=interleaved)

        results = reference_ops.qk_norm_rope(q, k, *weights, cos, sin, interleaved=interleaved)
        for result, x, weight in zip(results, (q, k), weights, strict=True):
            wide = torch_rms_norm(x.float(), None if weight is None else weight.float(), 1e-6)
            assert same(result, rotated(wide, cos.float(), sin.float()).to(x.dtype))
        results = reference_ops.qk_norm_rope(q, k, *weights, cos, sin, interleaved=interleaved, casting_mode="input")
        for result, x, weight in zip(results, (q, k), weights, strict=True):
            assert same(result, rotated(flux_rms_norm(x, weight, 1e-6).to(x.dtype)))


# The mathematics, element by element, to 50 digits. Inputs are of order 1 and eps is 1e-2 or more, so no number
# in a chain exceeds 1000; a float64 result may be off by the roundings of its own chain, of which there are under 64.
FLOAT64_ERROR = 64 * 2.0**-53 * 1000
mpmath.mp.dps = 50


def floats(t: Tensor | None) -> Any:
    return None if t is None else t.tolist()


def exact_norm(
    row: list[float], weight: list[float] | None, bias: list[float] | None, eps: float, *, centred: bool, lost: int = 0
) -> list[Any]:
    """LayerNorm (centred) or RMSNorm of one row; nonzero ``lost`` degrees of freedom are planted faults."""
    D = len(row)
    mean = mpmath.mpf(math.fsum(row)) / D if centred else mpmath.mpf(0)
    variance = mpmath.fsum((mpmath.mpf(v) - mean) ** 2 for v in row) / (D - lost)
    values = [(mpmath.mpf(v) - mean) / mpmath.sqrt(variance + mpmath.mpf(eps)) for v in row]
    if weight is not None:
        values = [v * w for v, w in zip(values, weight, strict=True)]
    return values if bias is None else [v + b for v, b in zip(values, bias, strict=True)]


def modulation_at(m: Any, b: int, l: int, d: int, L: int) -> float:
    """Element d of the row that token l of batch item b takes, form by form."""
    if m is None:
        return 1.0
    if not isinstance(m, Tensor):
        row = int(m.index[b, l])
        return float(m.table[row, d] if m.table.dim() == 2 else m.table[b, row, d])
    match tuple(m.shape):
        case ():
            return float(m)
        case (1,):
            return float(m[0])
        case (_,):
            return float(m[d])
        case (_, _):
            return float(m[b, d])
        case (batch, tokens, _):
            return float(m[b if batch > 1 else 0, l if tokens > 1 else 0, d])
        case (_, frames, _, _):
            return float(m[b, l // (L // frames), 0, d])
    raise AssertionError(m.shape)


def exact_rotation(values: list[Any], cos: list[float], sin: list[float], *, interleaved: bool) -> list[Any]:
    out = list(values)
    for i, (c, s) in enumerate(zip(cos, sin, strict=True)):
        first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + len(cos))
        out[first] = values[first] * mpmath.mpf(c) - values[second] * mpmath.mpf(s)
        out[second] = values[first] * mpmath.mpf(s) + values[second] * mpmath.mpf(c)
    return out


def close(y: Tensor, expected: list[Any]) -> bool:
    assert max(abs(v) for v in expected) < 1000
    return y.dtype is torch.float64 and all(
        abs(got - want) <= FLOAT64_ERROR for got, want in zip(y.flatten().tolist(), expected, strict=True)
    )


def order_one(draw: Draw, *shape: int) -> Tensor:
    return torch.randn(shape, generator=draw.generator, dtype=torch.float64).clamp(-3, 3)


def forms(draw: Draw, B: int, L: int, F: int, D: int) -> list[Any]:
    index = torch.randint(0, 3, (B, L), generator=draw.generator)
    shapes = ((), (1,), (D,), (B, D), (1, 1, D), (B, 1, D), (1, L, D), (B, L, D), (B, F, 1, D))
    return [
        *(order_one(draw, *shape) for shape in shapes),
        IndexedRows(order_one(draw, 3, D), index),
        IndexedRows(order_one(draw, B, 3, D), index.int()),
    ]


@pytest.mark.parametrize("mode", ["float32", "input"])
def test_modulated_ops_in_float64_are_the_mathematics_in_every_form(mode: str) -> None:
    B = L = 4  # B == L: a [B, D] form must not be taken for one row per token
    F, D, eps, constant = 2, 3, 1e-2, 0.3
    draw = Draw(0)
    x, residual, weight, bias = (order_one(draw, *shape) for shape in ((B, L, D), (B, L, D), (D,), (D,)))
    tokens = [(b, l) for b in range(B) for l in range(L)]
    shifts, scales = forms(draw, B, L, F, D), forms(draw, B, L, F, D)
    for i, gate in enumerate([*forms(draw, B, L, F, D), None]):
        shift, scale = shifts[i % len(shifts)], scales[(i * 3 + 1) % len(scales)]

        def modulated(
            rows: list[list[Any]], constant: float = 1.0, shift: Any = shift, scale: Any = scale
        ) -> list[Any]:
            return [
                v * (mpmath.mpf(constant) + modulation_at(scale, b, l, d, L)) + modulation_at(shift, b, l, d, L)
                for (b, l), row in zip(tokens, rows, strict=True)
                for d, v in enumerate(row)
            ]

        x_rows = x.flatten(0, 1).tolist()
        gated = [
            residual[b, l, d].item() + mpmath.mpf(x[b, l, d].item()) * modulation_at(gate, b, l, d, L)
            for b, l in tokens
            for d in range(D)
        ]
        y = reference_ops.scale_shift(x, shift, scale, constant, casting_mode=mode)
        assert close(y, modulated([[mpmath.mpf(v) for v in row] for row in x_rows], constant))
        assert close(reference_ops.residual_gate_add(residual, x, gate, casting_mode=mode), gated)
        for centred, name in ((True, "layer_norm_scale_shift"), (False, "rms_norm_scale_shift")):
            affine = (weight, bias) if centred else (weight,)
            rows = floats(weight), floats(bias) if centred else None
            y = getattr(reference_ops, name)(x, shift, scale, *affine, eps=eps, casting_mode=mode)
            assert close(y, modulated([exact_norm(row, *rows, eps, centred=centred) for row in x_rows]))
            op = getattr(reference_ops, f"scale_residual_{name}")
            y, residual_out = op(residual, x, gate, shift, scale, *affine, eps=eps, casting_mode=mode)
            assert close(residual_out, gated)
            hidden = residual_out.flatten(0, 1).tolist()
            assert close(y, modulated([exact_norm(row, *rows, eps, centred=centred) for row in hidden]))


@pytest.mark.parametrize("mode", ["float32", "input"])
def test_norms_and_rotations_in_float64_are_the_mathematics(mode: str) -> None:
    for draw in draws(20):
        B, S, H, pairs, rest = draw.size(2), draw.size(3), draw.size(2), draw.size(4), draw.random.randint(0, 3)
        head_dim, eps = 2 * pairs + rest, 1e-2
        q, k = (order_one(draw, B, S, heads, head_dim) for heads in (H, H + 1))
        q_weight, k_weight, bias = (order_one(draw, head_dim) for _ in range(3))
        cos, sin = angles(draw, S, pairs, torch.float64, B)
        interleaved = draw.random.random() < 0.5

        def turned(
            rows: list[list[Any]], heads: int, interleaved: bool, cos: Tensor = cos, sin: Tensor = sin
        ) -> list[Any]:
            where = [(b, t) for b in range(cos.shape[0]) for t in range(cos.shape[1]) for _ in range(heads)]
            return [
                v
                for (b, t), row in zip(where, rows, strict=True)
                for v in exact_rotation(row, floats(cos[b, t]), floats(sin[b, t]), interleaved=interleaved)
            ]

        q_rows, k_rows = q.flatten(0, 2).tolist(), k.flatten(0, 2).tolist()
        expected = [v for row in q_rows for v in exact_norm(row, floats(q_weight), floats(bias), eps, centred=True)]
        assert close(reference_ops.layer_norm(q, q_weight, bias, eps), expected)
        normed = [
            [exact_norm(row, floats(weight), None, eps, centred=False) for row in rows]
            for rows, weight in ((q_rows, q_weight), (k_rows, k_weight))
        ]
        flat = [[v for row in rows for v in row] for rows in normed]
        assert close(reference_ops.rms_norm(q, q_weight, eps, casting_mode=mode), flat[0])
        results = reference_ops.qk_norm(q, k, q_weight, k_weight, eps, casting_mode=mode)
        assert all(close(y, values) for y, values in zip(results, flat, strict=True))
        y = reference_ops.rotary_embedding(q, cos, sin, interleaved=interleaved)
        assert close(y, turned([[mpmath.mpf(v) for v in row] for row in q_rows], H, interleaved))
        results = reference_ops.qk_norm_rope(
            q, k, q_weight, k_weight, cos, sin, eps, interleaved=interleaved, casting_mode=mode
        )
        assert close(results[0], turned(normed[0], H, interleaved))
        assert close(results[1], turned(normed[1], H + 1, interleaved))
        split_cos, split_sin = (t.unsqueeze(1).repeat(1, H, 1, 1) for t in (cos, sin))
        y = reference_ops.split_rotary_embedding(q[..., : 2 * pairs].flatten(2), split_cos, split_sin)
        rows = [[mpmath.mpf(v) for v in row[: 2 * pairs]] for row in q_rows]
        assert close(y, turned(rows, H, interleaved=False))


def test_the_comparisons_above_can_fail() -> None:
    x = torch.tensor([1.0, 0.0])
    assert same(x, x.clone())
    assert not same(x, torch.tensor([1.0, -0.0]))
    assert not same(x, torch.tensor([1.0 + 2.0**-23, 0.0]))
    assert not same(x, x.bfloat16())
    row = order_one(Draw(1), 8)
    expected = exact_norm(row.tolist(), None, None, 1e-2, centred=True)
    assert close(reference_ops.layer_norm(row, eps=1e-2), expected)
    assert not close(reference_ops.layer_norm(row.float(), eps=1e-2).double(), expected)
    assert not close(reference_ops.layer_norm(row, eps=1e-2 * (1 + 1e-9)), expected)
    assert not close(
        reference_ops.layer_norm(row, eps=1e-2), exact_norm(row.tolist(), None, None, 1e-2, centred=True, lost=1)
    )
