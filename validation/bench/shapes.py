"""Shapes for the benchmark beside the models' own: ops that stand at no site of theirs, and widths that they lack.

No entry is a site that is mounted or judged here. Where the sizes come from:

* *width 3072*, 24 heads of 128: the default configuration of diffusers' `FluxTransformer2DModel` (and of
  `HunyuanVideoTransformer3DModel`). 4608 tokens: at 1024 x 1024 pixels 64 x 64 patches and 512 text tokens. bfloat16;
  modulation in bfloat16, one row a batch item, a chunk of six; q and k contiguous; each frequency twice in a row in
  cos and sin, which are float32.
* *head_dim 64*: 16 heads, as Hunyuan3D-2 has them, in as many tokens.
* *widths 1024, 3072 and 5120 with float32 modulation of every token*, slices of ``[B, L, 6, D]``: Helios' form
  (`validation.cases.workloads`), at the three widths for which there is a goal.
* *LTX2*: 32 heads of 128, cos and sin ``[B, S, H, Dh/2]`` in float32 with two dimensions swapped, as diffusers'
  `LTX2VideoTransformer3DModel` with ``rope_type="split"`` makes them; 6144 tokens are 121 frames of 512 x 768 pixels
  behind its autoencoder (8 x 32 x 32), two batch items with guidance.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from validation.cases.case import Case, TensorSpec
from validation.cases.workloads import Workload

GROUP = "shapes"

WIDTHS = {1024: 8192, 3072: 4608, 5120: 8640}  # and tokens
FEW = 7  # tokens where a workload is not whole
NO_MODULATION = ("layer_norm", "rms_norm")
MODULATED = (
    "layer_norm_scale_shift",
    "rms_norm_scale_shift",
    "scale_residual_layer_norm_scale_shift",
    "scale_residual_rms_norm_scale_shift",
    "scale_shift",
    "residual_gate_add",
)
LTX2_TOKENS, LTX2_HEADS = 6144, 32


def shapes(op: str) -> tuple[Workload, ...]:
    """The benchmark's shapes of an op."""
    return tuple(workload for workload in _all() if workload.op == op)


def _contiguous(shape: tuple[int, ...], dtype: str, storage: str) -> TensorSpec:
    strides: list[int] = []
    run = 1
    for size in reversed(shape):
        strides.insert(0, run)
        run *= size
    return TensorSpec(shape, dtype, tuple(strides), 0, storage)


def _norm(op: str, width: int, whole: bool) -> Case:
    tensors = {"x": _contiguous((1, WIDTHS[width] if whole else FEW, width), "bfloat16", "x")}
    tensors["weight"] = _contiguous((width,), "bfloat16", "weight")
    mode = {} if op == "layer_norm" else {"casting_mode": "input"}
    return Case(op, tensors, {"eps": 1e-6, **mode}, "dit", 0)


def _modulated(op: str, width: int, every_token: bool, whole: bool) -> Case:
    tokens = WIDTHS[width] if whole else FEW
    residual = "residual" in op
    names = ("gate",) if op == "residual_gate_add" else (*(("gate",) if residual else ()), "shift", "scale")
    tensors = {
        name: _contiguous((1, tokens, width), "bfloat16", name) for name in (*(("residual",) if residual else ()), "x")
    }
    rows, dtype = (tokens, "float32") if every_token else (1, "bfloat16")
    for part, name in enumerate(names):
        strides = (rows * 6 * width, 6 * width, 1)
        tensors[name] = TensorSpec((1, rows, width), dtype, strides, part * width, f"modulation {name}")
    flags: dict[str, Any] = {"casting_mode": "float32" if every_token else "input"}
    return Case(op, tensors, flags | ({"eps": 1e-6} if "norm" in op else {}), "dit", 0)


def _heads(op: str, heads: int, head: int, whole: bool) -> Case:
    tokens = WIDTHS[3072] if whole else FEW
    shape = (1, tokens, heads, head)
    tensors: dict[str, TensorSpec] = {}
    flags: dict[str, Any] = {"inplace": False}
    if "norm" in op:
        tensors |= {name: _contiguous(shape, "bfloat16", name) for name in ("q", "k")}
        tensors |= {name: _contiguous((head,), "bfloat16", name) for name in ("q_weight", "k_weight")}
        flags |= {"eps": 1e-6, "casting_mode": "input"}
    else:
        tensors["x"] = _contiguous(shape, "bfloat16", "x")
    if op != "qk_norm":
        angles = TensorSpec((tokens, head // 2), "float32", (head, 2), 0, "cos")
        tensors |= {"cos": angles, "sin": TensorSpec(angles.shape, "float32", angles.strides, 0, "sin")}
        flags["interleaved"] = True
    return Case(op, tensors, flags, "dit", 0)


def _split_rotary(head: int, whole: bool) -> Case:
    batch, tokens, heads, half = 2, LTX2_TOKENS if whole else FEW, LTX2_HEADS, head // 2
    angles, strides = (batch, heads, tokens, half), (tokens * heads * half, half, heads * half, 1)
    tensors = {name: TensorSpec(angles, "float32", strides, 0, name) for name in ("cos", "sin")}
    tensors["x"] = _contiguous((batch, tokens, heads * head), "bfloat16", "x")
    return Case("split_rotary_embedding", tensors, {}, "dit", 0)


def _all() -> list[Workload]:
    found: list[Workload] = []

    def add(site: str, op: str, make: Callable[[bool], Case]) -> None:
        found.append(Workload(GROUP, site, op, make))

    for op in NO_MODULATION:
        add("width 3072", op, partial(_norm, op, 3072))
    for op in MODULATED:
        add("width 3072, one row of modulation", op, partial(_modulated, op, 3072, False))
        for width in WIDTHS:
            # At width 5120 the models have these two.
            if width != 5120 or op not in ("layer_norm_scale_shift", "residual_gate_add"):
                add(f"width {width}, float32 modulation [B,L,6,D]", op, partial(_modulated, op, width, True))
    for op in ("qk_norm", "rotary_embedding", "qk_norm_rope"):
        add("24 heads of 128", op, partial(_heads, op, 24, 128))
        add("16 heads of 64", op, partial(_heads, op, 16, 64))
    add("LTX2, 32 heads of 128", "split_rotary_embedding", partial(_split_rotary, 128))
    return found
