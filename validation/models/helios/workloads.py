"""Helios' fused sites at 384x640, as diffusers' `HeliosTransformer3DModel` calls them.

40 heads x 128 = 5120 channels, bfloat16 with float32 modulation, one batch item a forward: a chunk of 9 latent frames
of 24x40 patches, 8640 tokens, behind 2400 tokens of history; the pyramid's first two stages have 540 and 2160 current
tokens.
"""

from functools import partial
from typing import Any

from validation.cases.case import Case, TensorSpec
from validation.cases.workloads import Workload, case_of, chunk, contiguous

WIDTH, HEADS = 5120, 40
HISTORY, TEXT = 2400, 512
STAGES = {"384x640": 8640, "pyramid 192x320": 2160, "pyramid 96x160": 540}

NORM = "layer_norm_scale_shift"


def workloads() -> list[Workload]:
    """Helios' workloads, grouped by resolution."""
    found = []
    for label, full in STAGES.items():

        def tokens(whole: bool, full: int = full) -> tuple[int, int]:
            return (HISTORY, full) if whole else (2, 7)

        def block_norm(whole: bool, tokens: Any = tokens, planes: bool = False) -> Case:
            length = sum(tokens(whole))
            return case_of(
                NORM,
                {
                    "x": contiguous((1, length, WIDTH), "bfloat16", "x"),
                    "shift": chunk(1, length, WIDTH, "float32", "shift", 0, 6, planes=planes),
                    "scale": chunk(1, length, WIDTH, "float32", "scale", 1, 6, planes=planes),
                },
                eps=1e-6,
                casting_mode="float32",
            )

        def current_rows(whole: bool, tokens: Any = tokens) -> TensorSpec:
            history, current = tokens(whole)
            strides = ((history + current) * WIDTH, WIDTH, 1)
            return TensorSpec((1, current, WIDTH), "bfloat16", strides, history * WIDTH, "x")

        def output_norm(whole: bool, tokens: Any = tokens, rows: Any = current_rows) -> Case:
            _, current = tokens(whole)
            return case_of(
                NORM,
                {
                    "x": rows(whole),
                    "shift": chunk(1, current, WIDTH, "float32", "shift", 0, 2),
                    "scale": chunk(1, current, WIDTH, "float32", "scale", 1, 2),
                },
                eps=1e-6,
                casting_mode="float32",
            )

        def affine_norm(whole: bool, rows: Any = current_rows) -> Case:
            row = (WIDTH,)
            tensors = {"x": rows(whole)}
            tensors |= {name: contiguous(row, "float32", name) for name in ("weight", "bias")}
            return case_of("layer_norm", tensors, eps=1e-6)

        def gate(whole: bool, tokens: Any = tokens, planes: bool = False) -> Case:
            length = sum(tokens(whole))
            shape = (1, length, WIDTH)
            tensors = {name: contiguous(shape, "bfloat16", name) for name in ("residual", "x")}
            tensors["gate"] = chunk(1, length, WIDTH, "float32", "gate", 2, 6, planes=planes)
            return case_of("residual_gate_add", tensors, casting_mode="float32")

        def query_norm(whole: bool, tokens: Any = tokens) -> Case:
            shape = (1, sum(tokens(whole)), WIDTH)
            weight = contiguous((WIDTH,), "bfloat16", "weight")
            tensors = {"x": contiguous(shape, "bfloat16", "x"), "weight": weight}
            return case_of("rms_norm", tensors, eps=1e-6, casting_mode="float32")

        def rope(whole: bool, tokens: Any = tokens) -> Case:
            # diffusers' table has each frequency twice, cosines in the first half: every second one is read.
            length, head = sum(tokens(whole)), WIDTH // HEADS
            strides = (length * 2 * head, 2 * head, 2)
            angles = (1, length, head // 2)
            return case_of(
                "rotary_embedding",
                {
                    "x": contiguous((1, length, HEADS, head), "bfloat16", "x"),
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
        shape = (1, TEXT if whole else 5, WIDTH)
        weight = contiguous((WIDTH,), "bfloat16", "weight")
        tensors = {"x": contiguous(shape, "bfloat16", "x"), "weight": weight}
        return case_of("rms_norm", tensors, eps=1e-6, casting_mode="float32")

    return [*found, Workload("helios", "qk_norm text", "rms_norm", text_norm)]
