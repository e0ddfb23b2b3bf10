"""A second, plain implementation of Hunyuan3D-2's denoiser and shape decoder: eager functions of a state dict.

It is written from the architecture's description and not from `validation.models`, with which it shares no code:
``nn.LayerNorm`` and separate modulation, heads before tokens, no ops. The models must repeat its bits in
every dtype, and ``fixtures/recipes/hunyuan3d_goldens.py`` made the golden vectors' outputs with it.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention, silu

GOLDENS = Path(__file__).resolve().parents[2] / "fixtures" / "goldens"

Weights = Mapping[str, Tensor]


class Golden(NamedTuple):
    """A file of ``fixtures/goldens``."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    rates: Tensor | None


def read_golden(name: str) -> Golden:
    with safe_open(GOLDENS / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
        config = json.loads(file.metadata()["config"])

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}

    return Golden(config, part("weights."), part("input."), part("output."), tensors.get("rates"))


def relative_error(came: Tensor, exact: Tensor) -> float:
    """The greatest error over the greatest value."""
    return float((came.double() - exact).abs().max() / exact.abs().max())


class Part:
    """The weights below a prefix: ``part("qkv", x)`` applies that linear layer, ``part / "norm"`` is a subpart."""

    def __init__(self, weights: Weights, prefix: str = "") -> None:
        self.weights, self.prefix = weights, prefix

    def __truediv__(self, name: str | int) -> "Part":
        return Part(self.weights, f"{self.prefix}{name}.")

    def __call__(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self[f"{name}.weight"], self.weights.get(f"{self.prefix}{name}.bias"))

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[self.prefix + name]

    def layer_norm(self, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
        if f"{self.prefix}{name}.weight" not in self.weights:
            return x
        norm = nn.LayerNorm(x.shape[-1], eps=eps, dtype=x.dtype)
        norm.load_state_dict({"weight": self[f"{name}.weight"], "bias": self[f"{name}.bias"]})
        y: Tensor = norm.requires_grad_(False)(x)
        return y


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    normalised = nn.LayerNorm(x.shape[-1], elementwise_affine=False, eps=1e-6)(x)
    y: Tensor = (1 + scale) * normalised + shift
    return y


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    rstd = torch.rsqrt(torch.mean(x.float() ** 2, dim=-1, keepdim=True) + 1e-6)
    return (x.float() * rstd).to(x.dtype) * scale


def heads_first(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, width = qkv.shape
    q, k, v = qkv.reshape(batch, tokens, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    return q, k, v


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(q), q.shape[2], -1)


def rates(max_period: float) -> Tensor:
    """The frequencies of the time embedding, in float32: a processor's own in the last bit."""
    return torch.exp(-math.log(max_period) * torch.arange(0, 128, dtype=torch.float32) / 128)


def embed(part: Part, t: Tensor, max_period: float, dtype: torch.dtype) -> Tensor:
    angles = (1000 * t).to(torch.float32)[:, None] * rates(max_period)[None]
    waves = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1).to(t.dtype).to(dtype)
    return part("out_layer", silu(part("in_layer", waves)))


def denoiser(
    weights: Weights,
    config: Mapping[str, Any],
    latents: Tensor,
    timestep: Tensor,
    context: Tensor,
    guidance: Tensor | None = None,
) -> Tensor:
    """The result of `Hunyuan3DDiT`, in the dtype of the weights."""
    model, heads, width = Part(weights), config["num_heads"], config["hidden_size"]
    vec = embed(model / "time_in", timestep, config["time_factor"], latents.dtype)
    if guidance is not None:
        vec = vec + embed(model / "guidance_in", guidance, config["time_factor"], latents.dtype)
    streams = {"txt": model("cond_in", context), "img": model("latent_in", latents)}
    tokens = context.shape[1]
    for index in range(config["depth"]):
        block = model / "double_blocks" / index
        rows, qkv = {}, {}
        for name, x in streams.items():
            rows[name] = (block / f"{name}_mod")("lin", silu(vec))[:, None, :].chunk(6, dim=-1)
            shift, scale, *_ = rows[name]
            attn = block / f"{name}_attn"
            q, k, v = heads_first(attn("qkv", modulated(x, shift, scale)), heads)
            norm = attn / "norm"
            qkv[name] = (rms_norm(q, norm["query_norm.scale"]), rms_norm(k, norm["key_norm.scale"]), v)
        joint = attention(*(torch.cat(pair, dim=2) for pair in zip(qkv["txt"], qkv["img"], strict=True)))
        attended = {"txt": joint[:, :tokens], "img": joint[:, tokens:]}
        for name, x in streams.items():
            _, _, gate1, shift2, scale2, gate2 = rows[name]
            x = x + gate1 * (block / f"{name}_attn")("proj", attended[name])
            mlp = block / f"{name}_mlp"
            streams[name] = x + gate2 * mlp("2", gelu(mlp("0", modulated(x, shift2, scale2)), approximate="tanh"))
    x = torch.cat([streams["txt"], streams["img"]], dim=1)
    for index in range(config["depth_single_blocks"]):
        block = model / "single_blocks" / index
        shift, scale, gate = (block / "modulation")("lin", silu(vec))[:, None, :].chunk(3, dim=-1)
        hidden = block("linear1", modulated(x, shift, scale))
        q, k, v = heads_first(hidden[..., : 3 * width], heads)
        norm = block / "norm"
        attended_all = attention(rms_norm(q, norm["query_norm.scale"]), rms_norm(k, norm["key_norm.scale"]), v)
        both = torch.cat([attended_all, gelu(hidden[..., 3 * width :], approximate="tanh")], dim=-1)
        x = x + gate * block("linear2", both)
    last = model / "final_layer"
    shift, scale = last("adaLN_modulation.1", silu(vec)).chunk(2, dim=1)
    return last("linear", modulated(x[:, tokens:], shift[:, None, :], scale[:, None, :]))


def decoded(weights: Weights, config: Mapping[str, Any], latents: Tensor) -> Tensor:
    """The result of `ShapeVAE.decode`."""
    model = Part(weights)
    x = model("post_kl", latents / config["scale_factor"])
    for index in range(config["num_decoder_layers"]):
        block = model / "transformer" / "resblocks" / index
        attn, mlp = block / "attn", block / "mlp"
        packed = attn("c_qkv", block.layer_norm("ln_1", x))
        q, k, v = packed.reshape(*packed.shape[:2], config["heads"], -1).transpose(1, 2).chunk(3, dim=-1)
        norms = attn / "attention"
        x = x + attn("c_proj", attention(norms.layer_norm("q_norm", q), norms.layer_norm("k_norm", k), v))
        x = x + mlp("c_proj", gelu(mlp("c_fc", block.layer_norm("ln_2", x))))
    return x


def logits(weights: Weights, config: Mapping[str, Any], decoded: Tensor, points: Tensor) -> Tensor:
    """The result of `ShapeVAE.query`."""
    model = Part(weights) / "geo_decoder"
    heads = config["heads"] // config.get("geo_decoder_downsample_ratio", 1)
    waves = [points[..., axis, None] * 2.0**octave for axis in range(3) for octave in range(config["num_freqs"])]
    angles = torch.cat(waves, dim=-1)
    if config["include_pi"]:
        octaves = torch.tensor([2.0**octave for octave in range(config["num_freqs"])], dtype=points.dtype) * torch.pi
        angles = (points[..., :, None] * octaves).reshape(*points.shape[:2], -1)
    x = model("query_proj", torch.cat([points, torch.sin(angles), torch.cos(angles)], dim=-1))
    if "geo_decoder.latents_proj.weight" in weights:
        decoded = model("latents_proj", decoded)
    block = model / "cross_attn_decoder"
    attn, mlp = block / "attn", block / "mlp"
    q = attn("c_q", block.layer_norm("ln_1", x)).reshape(*x.shape[:2], heads, -1).transpose(1, 2)
    data = attn("c_kv", block.layer_norm("ln_2", decoded)).reshape(*decoded.shape[:2], heads, -1).transpose(1, 2)
    k, v = data.chunk(2, dim=-1)
    norms = attn / "attention"
    x = x + attn("c_proj", attention(norms.layer_norm("q_norm", q), norms.layer_norm("k_norm", k), v))
    x = x + mlp("c_proj", gelu(mlp("c_fc", block.layer_norm("ln_3", x))))
    return model("output_proj", model.layer_norm("ln_post", x, eps=1e-5))
