"""Every fused site of the real models, with its shapes, dtypes and strides.

Helios at 384x640 (diffusers' `HeliosTransformer3DModel`: 40 heads x 128 = 5120 channels, bfloat16 with
float32 modulation, one batch item a forward): a chunk of 9 latent frames of 24x40 patches, 8640 tokens,
behind 2400 tokens of history; the pyramid's first two stages have 540 and 2160 current tokens.
Hunyuan3D-2 (16 heads x 64 = 1024 channels, float16, both halves of the guidance in one batch): 3072
latents and 1370 context tokens.

On a GPU the workloads are run whole; on the CPU with a few tokens of each kind, same widths, dtypes and
stride patterns.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from validation.cases.case import Case, TensorSpec

HELIOS_WIDTH, HELIOS_HEADS = 5120, 40
HELIOS_HISTORY, HELIOS_TEXT = 2400, 512
HELIOS_STAGES = {"384x640": 8640, "pyramid 192x320": 2160, "pyramid 96x160": 540}

NORM = "layer_norm_scale_shift"

HUNYUAN_WIDTH, HUNYUAN_HEADS = 1024, 16
HUNYUAN_LATENTS, HUNYUAN_CONTEXT = 3072, 1370


@dataclasses.dataclass(frozen=True)
class Workload:
    """A site of a model.

    Attributes:
        model: helios or hunyuan3d.
        site: its name and, where there are several, which resolution or stream.
        op: the op that is computed there.
        make: the case, whole (True) or with a few tokens (False).
    """

    model: str
    site: str
    op: str
    make: Callable[[bool], Case]

    @property
    def name(self) -> str:
        """``helios norm1 384x640``."""
        return f"{self.model} {self.site}"


def workloads(op: str) -> tuple[Workload, ...]:
    """The workloads of an op."""
    return tuple(workload for workload in (*_helios(), *_hunyuan3d()) if workload.op == op)


def _contiguous(shape: tuple[int, ...], dtype: str, storage: str, offset: int = 0) -> TensorSpec:
    strides, run = [], 1
    for size in reversed(shape):
        strides.append(run)
        run *= size
    return TensorSpec(shape, dtype, tuple(reversed(strides)), offset, storage)


def _chunk(
    batch: int, tokens: int, width: int, dtype: str, name: str, part: int, parts: int, *, planes: bool = False
) -> TensorSpec:
    """One of the ``parts`` rows of width ``width`` that a modulation tensor holds for each token.

    The tensor is ``[B, L, parts, D]``, or, with planes, ``[B, parts, L, D]``: what diffusers 0.42.1 makes of
    the permuted time projection, since adding the table to it keeps its strides.
    """
    token, plane = (width, tokens * width) if planes else (parts * width, width)
    strides = (tokens * parts * width, token, 1)
    return TensorSpec((batch, tokens, width), dtype, strides, part * plane, f"modulation {name}")


def _case(op: str, tensors: dict[str, TensorSpec], **flags: Any) -> Case:
    return Case(op, tensors, flags, "dit", 0)


def _helios() -> list[Workload]:
    found = []
    for label, full in HELIOS_STAGES.items():

        def tokens(whole: bool, full: int = full) -> tuple[int, int]:
            return (HELIOS_HISTORY, full) if whole else (2, 7)

        def block_norm(whole: bool, tokens: Any = tokens, planes: bool = False) -> Case:
            length = sum(tokens(whole))
            return _case(
                NORM,
                {
                    "x": _contiguous((1, length, HELIOS_WIDTH), "bfloat16", "x"),
                    "shift": _chunk(1, length, HELIOS_WIDTH, "float32", "shift", 0, 6, planes=planes),
                    "scale": _chunk(1, length, HELIOS_WIDTH, "float32", "scale", 1, 6, planes=planes),
                },
                eps=1e-6,
                casting_mode="float32",
            )

        def current_rows(whole: bool, tokens: Any = tokens) -> TensorSpec:
            history, current = tokens(whole)
            strides = ((history + current) * HELIOS_WIDTH, HELIOS_WIDTH, 1)
            return TensorSpec((1, current, HELIOS_WIDTH), "bfloat16", strides, history * HELIOS_WIDTH, "x")

        def output_norm(whole: bool, tokens: Any = tokens, rows: Any = current_rows) -> Case:
            _, current = tokens(whole)
            return _case(
                NORM,
                {
                    "x": rows(whole),
                    "shift": _chunk(1, current, HELIOS_WIDTH, "float32", "shift", 0, 2),
                    "scale": _chunk(1, current, HELIOS_WIDTH, "float32", "scale", 1, 2),
                },
                eps=1e-6,
                casting_mode="float32",
            )

        def affine_norm(whole: bool, rows: Any = current_rows) -> Case:
            row = (HELIOS_WIDTH,)
            tensors = {"x": rows(whole)}
            tensors |= {name: _contiguous(row, "float32", name) for name in ("weight", "bias")}
            return _case("layer_norm", tensors, eps=1e-6)

        def gate(whole: bool, tokens: Any = tokens, planes: bool = False) -> Case:
            length = sum(tokens(whole))
            shape = (1, length, HELIOS_WIDTH)
            tensors = {name: _contiguous(shape, "bfloat16", name) for name in ("residual", "x")}
            tensors["gate"] = _chunk(1, length, HELIOS_WIDTH, "float32", "gate", 2, 6, planes=planes)
            return _case("residual_gate_add", tensors, casting_mode="float32")

        def query_norm(whole: bool, tokens: Any = tokens) -> Case:
            shape = (1, sum(tokens(whole)), HELIOS_WIDTH)
            weight = _contiguous((HELIOS_WIDTH,), "bfloat16", "weight")
            tensors = {"x": _contiguous(shape, "bfloat16", "x"), "weight": weight}
            return _case("rms_norm", tensors, eps=1e-6, casting_mode="float32")

        def rope(whole: bool, tokens: Any = tokens) -> Case:
            # Each frequency stands twice in diffusers' table, cos in the first half: every second one is read.
            length, head = sum(tokens(whole)), HELIOS_WIDTH // HELIOS_HEADS
            strides = (length * 2 * head, 2 * head, 2)
            angles = (1, length, head // 2)
            return _case(
                "rotary_embedding",
                {
                    "x": _contiguous((1, length, HELIOS_HEADS, head), "bfloat16", "x"),
                    "cos": TensorSpec(angles, "float32", strides, 0, "cos"),
                    "sin": TensorSpec(angles, "float32", strides, head + 1, "sin"),
                },
                interleaved=True,
                inplace=False,
            )

        found += [
            Workload("helios", f"norm1, norm3 {label}, modulation [B,L,6,D]", NORM, block_norm),
            Workload("helios", f"norm1, norm3 {label}, modulation [B,6,L,D]", NORM, partial(block_norm, planes=True)),
            Workload("helios", f"norm_out {label}", NORM, output_norm),
            Workload("helios", f"norm2 {label}", "layer_norm", affine_norm),
            Workload("helios", f"gate {label}, modulation [B,L,6,D]", "residual_gate_add", gate),
            Workload("helios", f"gate {label}, modulation [B,6,L,D]", "residual_gate_add", partial(gate, planes=True)),
            Workload("helios", f"qk_norm {label}", "rms_norm", query_norm),
            Workload("helios", f"rope {label}", "rotary_embedding", rope),
        ]

    def text_norm(whole: bool) -> Case:
        shape = (1, HELIOS_TEXT if whole else 5, HELIOS_WIDTH)
        weight = _contiguous((HELIOS_WIDTH,), "bfloat16", "weight")
        tensors = {"x": _contiguous(shape, "bfloat16", "x"), "weight": weight}
        return _case("rms_norm", tensors, eps=1e-6, casting_mode="float32")

    return [*found, Workload("helios", "qk_norm text", "rms_norm", text_norm)]


def _hunyuan3d() -> list[Workload]:
    width, heads = HUNYUAN_WIDTH, HUNYUAN_HEADS
    head = width // heads
    found = []

    def row(name: str, part: int, parts: int) -> TensorSpec:
        return _chunk(2, 1, width, "float16", name, part, parts)

    def activation(name: str, tokens: int) -> TensorSpec:
        return _contiguous((2, tokens, width), "float16", name)

    mode = {"eps": 1e-6, "casting_mode": "input"}
    streams = {"img": HUNYUAN_LATENTS, "txt": HUNYUAN_CONTEXT, "single": HUNYUAN_LATENTS + HUNYUAN_CONTEXT}
    for stream, full in streams.items():
        parts = 3 if stream == "single" else 6

        def norm(whole: bool, full: int = full, parts: int = parts) -> Case:
            x = activation("x", full if whole else 9)
            tensors = {"x": x, "shift": row("shift", 0, parts), "scale": row("scale", 1, parts)}
            return _case(NORM, tensors, **mode)

        def residual_norm(whole: bool, full: int = full) -> Case:
            tokens = full if whole else 9
            tensors = {name: activation(name, tokens) for name in ("residual", "x")}
            tensors |= {"gate": row("gate", 2, 6), "shift": row("shift", 3, 6), "scale": row("scale", 4, 6)}
            return _case("scale_residual_layer_norm_scale_shift", tensors, **mode)

        def gate(whole: bool, full: int = full, parts: int = parts) -> Case:
            tensors = {name: activation(name, full if whole else 9) for name in ("residual", "x")}
            tensors["gate"] = row("gate", parts - 1, parts)
            return _case("residual_gate_add", tensors, casting_mode="input")

        def packed(whole: bool, full: int = full, stream: str = stream) -> Case:
            # qkv of a token is [3, heads, head_dim]; a single block's projection holds the MLP's input too.
            tokens = full if whole else 9
            token = 3 * width + (4 * width if stream == "single" else 0)
            shape, strides = (2, heads, tokens, head), (tokens * token, head, token, 1)
            tensors = {
                "q": TensorSpec(shape, "float16", strides, 0, "qkv"),
                "k": TensorSpec(shape, "float16", strides, width, "qkv"),
            }
            tensors |= {name: _contiguous((head,), "float16", name) for name in ("q_weight", "k_weight")}
            return _case("qk_norm", tensors, **mode, inplace=True)

        def copied(whole: bool, full: int = full) -> Case:
            shape = (2, heads, full if whole else 9, head)
            tensors = {name: _contiguous(shape, "float16", name) for name in ("q", "k")}
            tensors |= {name: _contiguous((head,), "float16", name) for name in ("q_weight", "k_weight")}
            return _case("qk_norm", tensors, **mode, inplace=True)

        found += [
            Workload("hunyuan3d", f"{'pre_norm' if stream == 'single' else 'norm1'} {stream}", NORM, norm),
            Workload("hunyuan3d", f"gate {stream}", "residual_gate_add", gate),
            Workload("hunyuan3d", f"qk_norm {stream}, packed qkv", "qk_norm", packed),
            Workload("hunyuan3d", f"qk_norm {stream}, contiguous copies", "qk_norm", copied),
        ]
        if stream != "single":
            found.append(
                Workload("hunyuan3d", f"norm2 {stream}", "scale_residual_layer_norm_scale_shift", residual_norm)
            )

    def final_norm(whole: bool) -> Case:
        context, latents = (HUNYUAN_CONTEXT, HUNYUAN_LATENTS) if whole else (4, 9)
        strides = ((context + latents) * width, width, 1)
        x = TensorSpec((2, latents, width), "float16", strides, context * width, "x")
        tensors = {"x": x, "shift": row("shift", 0, 2), "scale": row("scale", 1, 2)}
        return _case(NORM, tensors, **mode)

    return [*found, Workload("hunyuan3d", "norm_final", NORM, final_norm)]
