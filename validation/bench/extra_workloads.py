"""Workloads of the benchmark alone: ops that are at no site of a model, and widths that the models lack.

They are made from an op's signature (`validation.cases.strategies.Signature`), so that every op has some. Sources of
the sizes:

* *width 3072*, 24 heads of 128: the default configuration of diffusers' `FluxTransformer2DModel` (and of
  `HunyuanVideoTransformer3DModel`). 4608 tokens: at 1024 x 1024 pixels 64 x 64 patches and 512 text tokens. bfloat16;
  modulation in bfloat16, one row for each batch item, a chunk of six; q and k contiguous; cos and sin in float32, each
  frequency twice in a row.
* *head_dim 64*: 16 heads, as in Hunyuan3D-2, with as many tokens.
* *widths 1024, 3072 and 5120 with float32 modulation of every token*, slices of ``[B, L, 6, D]``: Helios' form
  (`validation.cases.workloads`), at the three widths for which there is a goal.
* *LTX2*: 32 heads of 128, cos and sin ``[B, S, H, Dh/2]`` in float32 with two dimensions swapped, as diffusers'
  `LTX2VideoTransformer3DModel` with ``rope_type="split"`` makes them; 6144 tokens are 121 frames of 512 x 768 pixels
  behind its autoencoder (8 x 32 x 32), two batch items with guidance.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from validation.cases.case import Case, TensorSpec
from validation.cases.signature import Signature
from validation.cases.workloads import Workload
from validation.ops import reference_op

GROUP = "shapes"

WIDTHS = {1024: 8192, 3072: 4608, 5120: 8640}  # tokens by width
FEW = 7  # tokens of a workload that is not whole
AT_HELIOS_WIDTH = ("layer_norm_scale_shift", "residual_gate_add")  # with float32 modulation of every token
LTX2_TOKENS, LTX2_HEADS = 6144, 32


def extra_workloads(op: str) -> tuple[Workload, ...]:
    """The benchmark's own workloads of an op.

    Raises:
        UsageError: the name of an argument of the op has no role.
    """
    signature = Signature.of(op, reference_op(op))
    found: dict[str, Callable[[bool], Case]]
    match signature.family:
        case "norm":
            found = {"width 3072": partial(_norm, signature)}
        case "modulated":
            found = {"width 3072, one row of modulation": partial(_modulated, signature, 3072, False)}
            for width in WIDTHS:
                if width != 5120 or op not in AT_HELIOS_WIDTH:
                    made = partial(_modulated, signature, width, True)
                    found[f"width {width}, float32 modulation [B,L,6,D]"] = made
        case "split_rotary":
            found = {"LTX2, 32 heads of 128": partial(_split_rotary, signature)}
        case _:
            found = {f"{n} heads of {head}": partial(_heads, signature, n, head) for n, head in ((24, 128), (16, 64))}
    return tuple(Workload(GROUP, site, op, make) for site, make in found.items())


def _contiguous(shape: tuple[int, ...], name: str) -> TensorSpec:
    return TensorSpec(shape, "bfloat16", torch.empty(shape, device="meta").stride(), 0, name)


def _case(signature: Signature, tensors: dict[str, TensorSpec], mode: str = "input") -> Case:
    flags: dict[str, Any] = {"eps": 1e-6, "casting_mode": mode, "inplace": False, "interleaved": True}
    return Case(signature.op, tensors, {name: flags[name] for name in flags if name in signature}, "dit", 0)


def _norm(signature: Signature, whole: bool) -> Case:
    shapes = {"x": (1, WIDTHS[3072] if whole else FEW, 3072), "weight": (3072,)}
    return _case(signature, {name: _contiguous(shapes[name], name) for name in shapes if name in signature})


def _modulated(signature: Signature, width: int, every_token: bool, whole: bool) -> Case:
    tokens = WIDTHS[width] if whole else FEW
    activations = [name for name in ("residual", "x") if name in signature]
    tensors = {name: _contiguous((1, tokens, width), name) for name in activations}
    rows, dtype = (tokens, "float32") if every_token else (1, "bfloat16")
    strides = (rows * 6 * width, 6 * width, 1)
    for part, name in enumerate(name for name in ("gate", "shift", "scale") if name in signature):
        tensors[name] = TensorSpec((1, rows, width), dtype, strides, part * width, f"modulation {name}")
    return _case(signature, tensors, "float32" if every_token else "input")


def _heads(signature: Signature, heads: int, head: int, whole: bool) -> Case:
    tokens = WIDTHS[3072] if whole else FEW
    shapes = dict.fromkeys(("q", "k", "x"), (1, tokens, heads, head)) | dict.fromkeys(("q_weight", "k_weight"), (head,))
    tensors = {name: _contiguous(shapes[name], name) for name in shapes if name in signature}
    for name in (name for name in ("cos", "sin") if name in signature):
        tensors[name] = TensorSpec((tokens, head // 2), "float32", (head, 2), 0, name)
    return _case(signature, tensors)


def _split_rotary(signature: Signature, whole: bool) -> Case:
    batch, tokens, heads, head = 2, LTX2_TOKENS if whole else FEW, LTX2_HEADS, 128
    half = head // 2
    angles, strides = (batch, heads, tokens, half), (tokens * heads * half, half, heads * half, 1)
    tensors = {name: TensorSpec(angles, "float32", strides, 0, name) for name in ("cos", "sin")}
    tensors["x"] = _contiguous((batch, tokens, heads * head), "x")
    return _case(signature, tensors)
