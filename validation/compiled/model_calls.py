"""Calls of every op as the real models make them, at their widths, dtypes and strides."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

LAYOUTS = ("aligned", "offset", "odd")


@dataclasses.dataclass(frozen=True)
class Width:
    """The widths and dtypes at which a model calls the ops.

    Attributes:
        model: its name.
        heads, head_dim: their product is the width.
        dtype: the activations' dtype. modulation: the dtype of shift, scale and gate.
        casting_mode: the model's.
    """

    model: str
    heads: int
    head_dim: int
    dtype: torch.dtype
    modulation: torch.dtype
    casting_mode: str


WIDTHS = (
    Width("Helios", 40, 128, torch.bfloat16, torch.float32, "float32"),
    Width("Hunyuan3D-2", 16, 64, torch.float16, torch.float16, "input"),
    Width("FLUX", 24, 128, torch.bfloat16, torch.bfloat16, "input"),
)

MODELS = tuple(width.model for width in WIDTHS)


def calls(width: Width, layout: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Labelled calls of every op as the models make them; some ops in two forms.

    Tensors are uninitialised CPU memory: the compiled kernel depends only on dtypes, shapes, strides and alignment.
    """
    import fused_ops as ops
    from reference_ops import IndexedRows

    # 48 tokens: a multiple of 16, as 11,040 (Helios) and 3072 (Hunyuan3D-2) are.
    B, L, H, offset, odd = 1, 48, width.heads, int(layout == "offset"), int(layout == "odd")
    head_dim = width.head_dim - odd
    D = H * width.head_dim - odd

    def new(*shape: int, dtype: torch.dtype = width.dtype) -> Tensor:
        count = torch.Size(shape).numel()
        return torch.empty(count + offset, dtype=dtype)[offset:].view(shape)

    x, residual = new(B, L, D), new(B, L, D)
    row, bias = new(D), new(D)
    # Helios: [B, L, 6, D] sliced; Hunyuan3D-2: [B, 1, 6 * D] in chunks.
    tokens = L if width.model == "Helios" else 1
    shift, scale, gate = new(B, tokens, 6, D, dtype=width.modulation).unbind(2)[:3]
    compact = IndexedRows(new(B, 2, D, dtype=width.modulation), torch.zeros(B, L, dtype=torch.int64))
    q, k = new(B, L, 3, H, head_dim).unbind(2)[:2]
    q_weight, k_weight = new(head_dim), new(head_dim)
    cos, sin = (new(L, head_dim // 2, dtype=torch.float32) for _ in range(2))
    split = new(B, L, H * (head_dim - odd))
    split_cos, split_sin = (new(B, H, L, head_dim // 2, dtype=torch.float32) for _ in range(2))
    mode = {"casting_mode": width.casting_mode}
    norm = (q, k, q_weight, k_weight)

    yield "layer_norm", lambda: ops.layer_norm(x, row, bias)
    yield "rms_norm", lambda: ops.rms_norm(x, row, **mode)
    yield "layer_norm_scale_shift", lambda: ops.layer_norm_scale_shift(x, shift, scale, **mode)
    yield "layer_norm_scale_shift IndexedRows", lambda: ops.layer_norm_scale_shift(x, compact, compact, **mode)
    yield "rms_norm_scale_shift", lambda: ops.rms_norm_scale_shift(x, shift, scale, row, **mode)
    yield (
        "scale_residual_layer_norm_scale_shift",
        lambda: ops.scale_residual_layer_norm_scale_shift(residual, x, gate, shift, scale, **mode),
    )
    yield (
        "scale_residual_rms_norm_scale_shift",
        lambda: ops.scale_residual_rms_norm_scale_shift(residual, x, gate, shift, scale, row, **mode),
    )
    yield "scale_shift", lambda: ops.scale_shift(x, shift, scale, **mode)
    yield "residual_gate_add", lambda: ops.residual_gate_add(residual, x, gate, **mode)
    yield "qk_norm", lambda: ops.qk_norm(*norm, **mode)
    yield "qk_norm inplace", lambda: ops.qk_norm(*norm, **mode, inplace=True)
    yield "rotary_embedding", lambda: ops.rotary_embedding(q, cos, sin)
    yield "rotary_embedding halves", lambda: ops.rotary_embedding(q, cos, sin, interleaved=False)
    yield "split_rotary_embedding", lambda: ops.split_rotary_embedding(split, split_cos, split_sin)
    yield "qk_norm_rope", lambda: ops.qk_norm_rope(*norm, cos, sin, **mode)
    yield (
        "qk_norm_rope halves inplace",
        lambda: ops.qk_norm_rope(*norm, cos, sin, **mode, interleaved=False, inplace=True),
    )
