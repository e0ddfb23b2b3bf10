"""Hunyuan3D-2's fused sites: 16 heads x 64 = 1024 channels, float16, both halves of the guidance in one batch.

3072 latents and 1370 context tokens.
"""

from validation.cases.case import Case, TensorSpec
from validation.cases.workloads import Workload, case_of, chunk, contiguous

WIDTH, HEADS = 1024, 16
LATENTS, CONTEXT = 3072, 1370

NORM = "layer_norm_scale_shift"


def workloads() -> list[Workload]:
    """Hunyuan3D-2's workloads, grouped by stream."""
    width, heads = WIDTH, HEADS
    head = width // heads
    found = []

    def row(name: str, part: int, parts: int) -> TensorSpec:
        return chunk(2, 1, width, "float16", name, part, parts)

    def activation(name: str, tokens: int) -> TensorSpec:
        return contiguous((2, tokens, width), "float16", name)

    mode = {"eps": 1e-6, "casting_mode": "input"}
    streams = {"img": LATENTS, "txt": CONTEXT, "single": LATENTS + CONTEXT}
    for stream, full in streams.items():
        parts = 3 if stream == "single" else 6

        def norm(whole: bool, full: int = full, parts: int = parts) -> Case:
            x = activation("x", full if whole else 9)
            tensors = {"x": x, "shift": row("shift", 0, parts), "scale": row("scale", 1, parts)}
            return case_of(NORM, tensors, **mode)

        def residual_norm(whole: bool, full: int = full) -> Case:
            tokens = full if whole else 9
            tensors = {name: activation(name, tokens) for name in ("residual", "x")}
            tensors |= {"gate": row("gate", 2, 6), "shift": row("shift", 3, 6), "scale": row("scale", 4, 6)}
            return case_of("scale_residual_layer_norm_scale_shift", tensors, **mode)

        def gate(whole: bool, full: int = full, parts: int = parts) -> Case:
            tensors = {name: activation(name, full if whole else 9) for name in ("residual", "x")}
            tensors["gate"] = row("gate", parts - 1, parts)
            return case_of("residual_gate_add", tensors, casting_mode="input")

        def packed(whole: bool, full: int = full, stream: str = stream) -> Case:
            # qkv of a token is [3, heads, head_dim]; a single block's projection holds the MLP's input too.
            tokens = full if whole else 9
            token = 3 * width + (4 * width if stream == "single" else 0)
            shape, strides = (2, heads, tokens, head), (tokens * token, head, token, 1)
            tensors = {
                "q": TensorSpec(shape, "float16", strides, 0, "qkv"),
                "k": TensorSpec(shape, "float16", strides, width, "qkv"),
            }
            tensors |= {name: contiguous((head,), "float16", name) for name in ("q_weight", "k_weight")}
            return case_of("qk_norm", tensors, **mode, inplace=True)

        def copied(whole: bool, full: int = full) -> Case:
            shape = (2, heads, full if whole else 9, head)
            tensors = {name: contiguous(shape, "float16", name) for name in ("q", "k")}
            tensors |= {name: contiguous((head,), "float16", name) for name in ("q_weight", "k_weight")}
            return case_of("qk_norm", tensors, **mode, inplace=True)

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
        context, latents = (CONTEXT, LATENTS) if whole else (4, 9)
        strides = ((context + latents) * width, width, 1)
        x = TensorSpec((2, latents, width), "float16", strides, context * width, "x")
        tensors = {"x": x, "shift": row("shift", 0, 2), "scale": row("scale", 1, 2)}
        return case_of(NORM, tensors, **mode)

    return [*found, Workload("hunyuan3d", "norm_final", NORM, final_norm)]
