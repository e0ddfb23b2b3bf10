"""Helios: diffusers' own transformer, VAE and pipeline, with op sets mounted on the transformer's sites.

Sites, and the op that each calls (L layers; in one forward):

    norm1     layer_norm_scale_shift   before self-attention                                L
    rope      rotary_embedding         self-attention's query and key                       2 L
    qk_norm   rms_norm                 query and key over the full width, both attentions   4 L
    gate      residual_gate_add        after self-attention and after the feed-forward      2 L
    norm2     layer_norm               before cross-attention, affine                       L
    norm3     layer_norm_scale_shift   before the feed-forward                              L
    norm_out  layer_norm_scale_shift   before the output projection                         1

norm1, gate, norm2 and norm3 stand inside the block's ``forward``, so that is replaced; the output norm is
a module of its own; q/k norms are modules too, and RoPE, which comes right after them, is done with them
while the attention itself is told that there is none. Attention, projections, feed-forward and everything
around the blocks stay diffusers' code. `mount` proves on a small random model that the installed diffusers
still computes what is replaced here, bit for bit.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKLWan, HeliosPipeline, HeliosScheduler, HeliosTransformer3DModel
from diffusers.models.transformers.transformer_helios import HeliosTransformerBlock
from torch import Tensor, nn

import reference_ops
from validation.errors import UsageError
from validation.models.mount import Mount, Site, select_sites
from validation.models.prompts import Prompt, embed_prompt, read_json
from validation.models.trajectory import Clock, Trajectory, peak_memory, reset_peak_memory
from validation.ops import OpSet, op_set_from

SITE_NAMES = ("norm1", "rope", "qk_norm", "gate", "norm2", "norm3", "norm_out")
CHUNK_FRAMES = 33  # frames that HeliosPipeline denoises at once: 9 latent frames at a stride of 4

_OTHER_BLOCK = re.compile(r"blocks\.[1-9]")
_SITES_OF_BLOCK = {"norm1", "gate", "norm2", "norm3"}


# Mounting


def sites_of(config: Mapping[str, Any]) -> tuple[Site, ...]:
    """The sites of a Helios transformer of this configuration, with their calls in one forward."""
    layers = config.get("num_layers", 40)
    return (
        Site("norm1", "layer_norm_scale_shift", layers),
        Site("rope", "rotary_embedding", 2 * layers),
        Site("qk_norm", "rms_norm", 4 * layers),
        Site("gate", "residual_gate_add", 2 * layers),
        Site("norm2", "layer_norm", layers if config.get("cross_attn_norm", True) else 0),
        Site("norm3", "layer_norm_scale_shift", layers),
        Site("norm_out", "layer_norm_scale_shift", 1),
    )


def mount(transformer: HeliosTransformer3DModel, ops: OpSet, sites: Iterable[str] | None = None) -> Mount:
    """Mount an op set; by default on every site whose op it provides.

    Args:
        transformer: a Helios transformer in any dtype, with ``scale_shift_table`` in float32 as
            ``from_pretrained`` leaves it.
        ops: the op set.
        sites: names from `SITE_NAMES`.

    Raises:
        UsageError: `sites` cannot be mounted, the transformer is none of diffusers' Helios, or the
            installed diffusers does not compute what is to be replaced.
    """
    _require_helios(transformer)
    chosen = select_sites(sites_of(transformer.config), ops, sites)
    dtypes = tuple((name, p.dtype) for name, p in transformer.named_parameters() if not _OTHER_BLOCK.match(name))
    _prove(json.dumps(dict(transformer.config), default=str), dtypes, tuple(site.name for site in chosen))
    return _attach(transformer, ops, chosen)


def _require_helios(transformer: nn.Module) -> None:
    if type(transformer) is not HeliosTransformer3DModel:
        raise UsageError(f"the transformer is a {type(transformer).__name__}, expected HeliosTransformer3DModel")
    for block in _blocks(transformer):
        if type(block) is not HeliosTransformerBlock:
            raise UsageError(f"a block is a {type(block).__name__}, expected HeliosTransformerBlock")
    tables = {name: p.dtype for name, p in transformer.named_parameters() if name.endswith("scale_shift_table")}
    for name, dtype in tables.items():
        if dtype != torch.float32:
            raise UsageError(
                f"{name} has dtype {str(dtype)[6:]}, expected float32: "
                "load the transformer with from_pretrained(torch_dtype=...), which keeps it"
            )


def _blocks(transformer: nn.Module) -> Any:
    return transformer.blocks


def _attach(transformer: HeliosTransformer3DModel, ops: OpSet, sites: Sequence[Site]) -> Mount:
    mounted = Mount(transformer, ops, sites)
    try:
        for block in _blocks(transformer):
            if _SITES_OF_BLOCK & set(mounted.sites):
                mounted.replace_forward(block, functools.partial(_block_forward, mounted, block))
            if "rope" in mounted or "qk_norm" in mounted:
                _attach_attention(mounted, block.attn1, rope="rope" in mounted)
            if "qk_norm" in mounted:
                _attach_attention(mounted, block.attn2, rope=False)
        if "norm_out" in mounted:
            mounted.replace_forward(
                transformer.norm_out, functools.partial(_norm_out_forward, mounted, transformer.norm_out)
            )
    except BaseException:
        mounted.unmount()
        raise
    return mounted


def _block_forward(
    mounted: Mount,
    block: HeliosTransformerBlock,
    hidden: Tensor,
    text: Tensor,
    modulation: Tensor,
    rotary: Tensor,
    current_length: int,
) -> Tensor:
    """A block's forward: hidden ``[B, L, D]``, history tokens first, the last `current_length` current.

    modulation is ``[B, L, 6, D]`` or ``[B, 6, D]``; its six rows reach the ops as views, never copied. Their
    token stride is D or 6 * D, as the modulation lies in memory (diffusers 0.42: ``[B, 6, L, D]``, so D).
    """
    if modulation.ndim == 4:
        rows = (block.scale_shift_table.unsqueeze(0) + modulation.float()).unbind(2)
    else:
        rows = (block.scale_shift_table + modulation.float()).split(1, dim=1)
    shift1, scale1, gate1, shift3, scale3, gate3 = rows

    def modulated_norm(site: str, norm: Any, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        if site in mounted:
            return mounted.call(site, x, shift, scale, eps=norm.eps)
        y: Tensor = norm(x.float()) * (1 + scale) + shift
        return y.type_as(x)

    def add_gated(residual: Tensor, x: Tensor, gate: Tensor) -> Tensor:
        if "gate" in mounted:
            return mounted.call("gate", residual, x, gate)
        return (residual.float() + x * gate).type_as(residual)

    def affine_norm(x: Tensor) -> Tensor:
        if "norm2" in mounted:
            return mounted.call("norm2", x, block.norm2.weight, block.norm2.bias, eps=block.norm2.eps)
        y: Tensor = block.norm2(x.float())
        return y.type_as(x)

    x = modulated_norm("norm1", block.norm1, hidden, shift1, scale1)
    hidden = add_gated(hidden, block.attn1(x, None, None, rotary, current_length), gate1)

    # Under guidance_cross_attn only the current tokens see the text.
    history, current = hidden[:, :0], hidden
    if block.guidance_cross_attn:
        history, current = hidden.tensor_split([hidden.shape[1] - current_length], dim=1)
    current = current + block.attn2(affine_norm(current), text, None, None, current_length)
    hidden = torch.cat([history, current], dim=1) if history.shape[1] else current

    x = modulated_norm("norm3", block.norm3, hidden, shift3, scale3)
    return add_gated(hidden, block.ffn(x), gate3)


def _norm_out_forward(mounted: Mount, norm_out: Any, hidden: Tensor, time: Tensor, current_length: int) -> Tensor:
    """The output norm: hidden and time are ``[B, L, D]``; only the current tokens come out."""
    rows = norm_out.scale_shift_table.unsqueeze(0) + time[:, -current_length:].unsqueeze(2)
    shift, scale = rows.unbind(2)
    return mounted.call("norm_out", hidden[:, -current_length:], shift, scale, eps=norm_out.norm.eps)


def _attach_attention(mounted: Mount, attention: Any, *, rope: bool) -> None:
    """Mount q/k norm, and RoPE where asked, on an attention's ``norm_q`` and ``norm_k``."""
    rotary: list[Tensor] = []  # the embedding of the call that is running

    def attend(
        hidden: Tensor,
        text: Tensor | None = None,
        mask: Tensor | None = None,
        embedding: Tensor | None = None,
        current_length: int | None = None,
        **options: Any,
    ) -> Any:
        if embedding is not None:
            rotary.append(embedding)
        try:
            # Without an embedding the processor rotates nothing; `normalise` has done it.
            return type(attention).forward(attention, hidden, text, mask, None, current_length, **options)
        finally:
            rotary.clear()

    def normalise(norm: nn.RMSNorm, x: Tensor) -> Tensor:
        if "qk_norm" in mounted:
            y = mounted.call("qk_norm", x, norm.weight, eps=norm.eps)
        else:
            y = type(norm).forward(norm, x)
        for embedding in rotary:
            y = mounted.call("rope", y.reshape(*y.shape[:2], attention.heads, -1), *_cos_sin(embedding)).flatten(2)
        return y

    if rope:
        mounted.replace_forward(attention, attend)
    for norm in (attention.norm_q, attention.norm_k):
        mounted.replace_forward(norm, functools.partial(normalise, norm))


def _cos_sin(embedding: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin ``[S, head_dim / 2]`` or ``[B, S, head_dim / 2]``, as views.

    diffusers' embedding is ``[1|B, S, 2 * head_dim]``: cosines, then sines, each written twice in a row.
    """
    cos, sin = embedding.chunk(2, dim=-1)
    if embedding.shape[0] == 1:
        cos, sin = cos[0], sin[0]
    return cos[..., 0::2], sin[..., 1::2]


@functools.cache
def _prove(config: str, dtypes: tuple[tuple[str, torch.dtype], ...], sites: tuple[str, ...]) -> None:
    """Hold the forwards above against the installed diffusers: one small block, random weights, equal bits.

    Everything that changes which code runs comes from the configuration and the parameters' dtypes; only
    the sizes are small. Runs on the CPU in about 20 ms, once for each of its arguments.

    Raises:
        UsageError: diffusers cannot run the configuration, or the outputs differ, or nothing fits together.
    """
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "rope_dim": (8, 4, 4),
        "num_layers": 1,
        "ffn_dim": 32,
        "freq_dim": 16,
        "text_dim": 8,
        "in_channels": 4,
        "out_channels": 4,
        "patch_size": (1, 2, 2),
        "has_multi_term_memory_patch": True,
    }
    settings = {key: value for key, value in json.loads(config).items() if not key.startswith("_")}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            small = HeliosTransformer3DModel(**{**settings, **sizes}).eval()
            dtype_of = dict(dtypes)
            for name, parameter in small.named_parameters():
                parameter.data = parameter.data.to(dtype_of.get(name, dtype_of["proj_out.weight"]))
            inputs = random_inputs(small, batch=2, history=True, seed=0)
            untouched = small(**inputs, return_dict=False)[0]
        except Exception as error:
            raise UsageError(
                f"diffusers {diffusers.__version__} itself cannot run a Helios transformer of this configuration "
                f"and these dtypes: {_one_line(error)}"
            ) from error
        reference = op_set_from(reference_ops, "reference_ops", "reference_ops")
        try:
            with _attach(small, reference, select_sites(sites_of(small.config), reference, sites)):
                mounted = small(**inputs, return_dict=False)[0]
            differ = int((untouched != mounted).sum())
            cause = f"{differ} of {mounted.numel()} values differ" if differ else ""
        except Exception as error:
            cause = _one_line(error)
    if cause:
        raise UsageError(
            f"diffusers {diffusers.__version__} does not compute what is replaced at {', '.join(sites)}: "
            f"reference ops mounted on one block do not repeat its bits ({cause}), expected diffusers 0.42's Helios"
        )


def cast_parameters(transformer: HeliosTransformer3DModel, dtype: torch.dtype) -> None:
    """Cast the parameters in place as ``from_pretrained(torch_dtype=dtype)`` does: some stay float32."""
    kept = set(transformer._keep_in_fp32_modules or ())
    for name, parameter in transformer.named_parameters():
        if not kept & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)


def random_inputs(transformer: HeliosTransformer3DModel, *, batch: int, history: bool, seed: int) -> dict[str, Any]:
    """Random arguments of one forward: 2 latent frames of 4 x 6, and with history 4 + 2 + 2 frames before."""
    generator = torch.Generator().manual_seed(seed)
    config, dtype = transformer.config, transformer.dtype

    def latents(frames: int) -> Tensor:
        return torch.randn(batch, config.in_channels, frames, 4, 6, generator=generator).to(dtype)

    inputs: dict[str, Any] = {
        "hidden_states": latents(2),
        "timestep": torch.full((batch,), 600.0),
        "encoder_hidden_states": torch.randn(batch, 5, config.text_dim, generator=generator).to(dtype),
    }
    if history:
        indices = torch.arange(10).unsqueeze(0)
        inputs |= {
            "latents_history_long": latents(4),
            "latents_history_mid": latents(2),
            "latents_history_short": latents(2),
            "indices_latents_history_long": indices[:, :4],
            "indices_latents_history_mid": indices[:, 4:6],
            "indices_latents_history_short": indices[:, 6:8],
            "indices_hidden_states": indices[:, 8:],
        }
    return inputs


# Loading


def check(checkpoint: Path, ops: OpSet, sites: Iterable[str] | None = None) -> tuple[Site, ...]:
    """The sites that `mount` will choose for a checkpoint; reads its small files only.

    Raises:
        UsageError: a file of the checkpoint is missing, or the sites cannot be mounted.
    """
    _require_files(checkpoint)
    return select_sites(sites_of(read_json(checkpoint / "transformer" / "config.json")), ops, sites)


def load(checkpoint: Path, dtype: torch.dtype, device: torch.device | str) -> HeliosPipeline:
    """A Helios pipeline from a folder in diffusers' format: the transformer in `dtype`, the VAE in float32.

    The folder holds ``transformer/``, ``vae/`` and ``scheduler/``; ``text_encoder/`` and ``tokenizer/``
    may both be left out: prompts are then embedded by `embed_prompt`. Nothing is downloaded.

    Raises:
        UsageError: a file is missing or damaged, holds another class, or lacks weights.
    """
    _require_files(checkpoint)
    transformer = _pretrained(HeliosTransformer3DModel, checkpoint / "transformer", dtype)
    vae = _pretrained(AutoencoderKLWan, checkpoint / "vae", torch.float32)
    scheduler = HeliosScheduler.from_pretrained(checkpoint / "scheduler", local_files_only=True)
    if scheduler.config.stages != 1:
        raise UsageError(
            f"{checkpoint / 'scheduler'} has stages = {scheduler.config.stages}, expected 1: "
            "the pyramid pipeline is not supported"
        )
    tokenizer = text_encoder = None
    if (checkpoint / "text_encoder").is_dir():
        from transformers import AutoTokenizer, UMT5EncoderModel

        try:
            tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer", local_files_only=True)
            text_encoder = UMT5EncoderModel.from_pretrained(
                checkpoint / "text_encoder", dtype=dtype, local_files_only=True
            )
        except Exception as error:
            raise UsageError(f"{checkpoint}: cannot load the text encoder: {_one_line(error)}") from error
        if text_encoder.config.d_model != transformer.config.text_dim:
            raise UsageError(
                f"{checkpoint}: the text encoder is {text_encoder.config.d_model} wide, "
                f"expected {transformer.config.text_dim}, the transformer's text_dim"
            )
    if vae.config.z_dim != transformer.config.in_channels:
        raise UsageError(
            f"{checkpoint}: the VAE has z_dim {vae.config.z_dim}, "
            f"expected {transformer.config.in_channels}, the transformer's in_channels"
        )
    pipeline = HeliosPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, scheduler=scheduler, transformer=transformer
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _require_files(checkpoint: Path) -> None:
    if not checkpoint.is_dir():
        raise UsageError(f"--checkpoint: no folder {checkpoint}, expected a Helios checkpoint in diffusers' format")
    expected_class = {
        "transformer/config.json": "HeliosTransformer3DModel",
        "vae/config.json": "AutoencoderKLWan",
        "scheduler/scheduler_config.json": "HeliosScheduler",
    }
    missing = [name for name in expected_class if not (checkpoint / name).is_file()]
    for part in ("transformer", "vae"):
        missing += [f"{part}/{name}" for name in _missing_weights(checkpoint / part)]
    if (checkpoint / "text_encoder").is_dir() != (checkpoint / "tokenizer").is_dir():
        missing.append("tokenizer/" if (checkpoint / "text_encoder").is_dir() else "text_encoder/")
    if missing:
        raise UsageError(
            f"{checkpoint} lacks {', '.join(missing)}, expected a Helios checkpoint in diffusers' format "
            "(transformer/, vae/, scheduler/, and text_encoder/ with tokenizer/ or neither)"
        )
    for name, class_name in expected_class.items():
        came = read_json(checkpoint / name).get("_class_name")
        if came != class_name:
            raise UsageError(f"{checkpoint / name} is of class {came}, expected {class_name}")


def _missing_weights(part: Path) -> list[str]:
    whole, index = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"
    if (part / whole).is_file():
        return []
    if not (part / index).is_file():
        return [f"{whole} (or {index})"]
    shards = read_json(part / index).get("weight_map", {})
    return [shard for shard in sorted(set(shards.values())) if not (part / shard).is_file()]


def _pretrained(model: Any, folder: Path, dtype: torch.dtype) -> Any:
    try:
        loaded, info = model.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:
        raise UsageError(f"cannot load {folder}: {_one_line(error)}") from error
    # diffusers leaves weights that it does not find at random values, with a warning.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            names = ", ".join(str(key) for key in sorted(info[kind], key=str)[:3])
            raise UsageError(
                f"{folder} has {len(info[kind])} {kind.replace('_', ' ')} ({names}), "
                "expected the weights that its config.json describes"
            )
    return loaded.eval()


def _one_line(error: BaseException) -> str:
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}"


# Sampling


def sample(
    pipeline: HeliosPipeline,
    prompt: Prompt,
    mounted: Mount | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Trajectory:
    """Sample one video. The seed decides everything; the caller's random state is left as it was.

    Args:
        pipeline: from `load`.
        prompt: what to sample.
        mounted: a fresh mount on ``pipeline.transformer``, whose calls are counted.
        progress: called with a few words after each denoising step.

    Raises:
        SiteError: a mounted site failed, or was not called as often as it must be.
    """
    device = pipeline.transformer.device
    clock = Clock(device)
    latents: list[Tensor] = []
    guided = prompt.guidance_scale > 1
    steps = prompt.steps * -(-prompt.frames // CHUNK_FRAMES)

    def after_step(_pipeline: Any, _step: int, _timestep: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        latents.append(values["latents"].float().cpu())
        progress(f"step {len(latents)} of {steps}")
        return {}

    reset_peak_memory(device)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        stack.enter_context(torch.no_grad())
        if device.type == "cpu":
            # One thread: the same bits on any number of cores, and no waiting for a thread that other
            # processes keep from its core (measured on 2 cores at a load of 4: 35 s instead of 76 s).
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        torch.manual_seed(prompt.seed)
        clock.start("encode")
        embeds = _encode(pipeline, prompt.text, device)
        negative = _encode(pipeline, prompt.negative_text, device) if guided else None
        clock.stop("encode")
        decoder = pipeline.vae.decoder
        for hook in (
            decoder.register_forward_pre_hook(lambda *_: clock.start("decode")),
            decoder.register_forward_hook(lambda *_: clock.stop("decode")),
        ):
            stack.callback(hook.remove)
        clock.start("denoise")
        frames = pipeline(
            prompt_embeds=embeds,
            negative_prompt_embeds=negative,
            height=prompt.height,
            width=prompt.width,
            num_frames=prompt.frames,
            num_inference_steps=prompt.steps,
            guidance_scale=prompt.guidance_scale,
            generator=torch.Generator().manual_seed(prompt.seed),
            output_type="np",
            callback_on_step_end=after_step,
        ).frames[0]
        clock.stop("denoise")
    clock.seconds["denoise"] -= clock.seconds["decode"]  # the pipeline decodes each chunk in between
    if mounted:
        mounted.require_forwards(len(latents) * (2 if guided else 1))
    return Trajectory(
        latents=latents,
        frames=np.asarray(frames, dtype=np.float32),
        seconds=clock.seconds,
        peak_bytes=peak_memory(device),
        calls=dict(mounted.calls) if mounted else {},
        forwards=mounted.forwards if mounted else 0,
    )


def _encode(pipeline: HeliosPipeline, text: str, device: torch.device) -> Tensor:
    if pipeline.text_encoder is None:
        return embed_prompt(text, pipeline.transformer.config.text_dim).to(device)
    embeds: Tensor = pipeline.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=512)[0]
    return embeds
