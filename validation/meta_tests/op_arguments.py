"""A small valid call of every op, for tests that change one thing about it."""

from typing import Any

import torch
from torch import Tensor


def arguments(
    op: str,
    *,
    dtype: torch.dtype = torch.float32,
    other: torch.dtype = torch.float32,
    B: int = 2,
    L: int = 6,
    D: int = 16,
    seed: int = 0,
) -> dict[str, Any]:
    """Keyword arguments of a call: activations in ``dtype``, every other tensor in ``other``.

    ``x`` is ``[B, L, D]``; heads are D wide, three in q and x, two in k; rotations skip two channels
    (except ``split_rotary_embedding``, which cannot). Modulation: shift ``[B, L, D]``, scale ``[B, D]``,
    gate ``[B, 2, 1, D]``.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, as_dtype: torch.dtype = other) -> Tensor:
        return torch.randn(shape, generator=generator).to(as_dtype)

    made: dict[str, Any] = {}
    if op.startswith("qk_norm"):
        made |= {"q": draw(B, L, 3, D, as_dtype=dtype), "k": draw(B, L, 2, D, as_dtype=dtype)}
        made |= {"q_weight": draw(D), "k_weight": draw(D)}
    elif op == "rotary_embedding":
        made["x"] = draw(B, L, 3, D, as_dtype=dtype)
    elif op == "split_rotary_embedding":
        made |= {"x": draw(B, L, 3 * D, as_dtype=dtype), "cos": draw(B, 3, L, D // 2), "sin": draw(B, 3, L, D // 2)}
    else:
        if "residual" in op:
            made["residual"] = draw(B, L, D, as_dtype=dtype)
        made["x"] = draw(B, L, D, as_dtype=dtype)
        if "residual" in op:
            made["gate"] = draw(B, 2, 1, D)
        if "scale_shift" in op:
            made |= {"shift": draw(B, L, D), "scale": draw(B, D)}
        if "norm" in op:
            made["weight"] = draw(D)
        if "layer_norm" in op:
            made["bias"] = draw(D)
    if op in ("rotary_embedding", "qk_norm_rope"):
        made |= {"cos": draw(L, D // 2 - 1), "sin": draw(B, L, D // 2 - 1)}
    return made


MODULATION = ("shift", "scale", "gate")
HAS_CASTING_MODE = (
    "qk_norm",
    "qk_norm_rope",
    "residual_gate_add",
    "rms_norm",
    "rms_norm_scale_shift",
    "layer_norm_scale_shift",
    "scale_residual_layer_norm_scale_shift",
    "scale_residual_rms_norm_scale_shift",
    "scale_shift",
)
HAS_INPLACE = ("qk_norm", "qk_norm_rope", "rotary_embedding")


def tuple_of(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """An op's outputs as a tuple."""
    return result if isinstance(result, tuple) else (result,)


def bits(t: Tensor) -> Tensor:
    """The bits of a tensor; as bits, NaN equals NaN and -0 differs from 0."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
    return t.contiguous().view(integer)


def same_bits(results: Tensor | tuple[Tensor, ...], expected: Tensor | tuple[Tensor, ...]) -> bool:
    """True if two results agree in dtype, shape and every bit."""
    pairs = zip(tuple_of(results), tuple_of(expected), strict=True)
    return all(y.dtype is z.dtype and torch.equal(bits(y), bits(z)) for y, z in pairs)
