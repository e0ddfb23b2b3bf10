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

A checkpoint's scheduler says which pipeline samples it: a ``HeliosScheduler`` of one stage `HeliosPipeline`
(Base), of several the pyramid with guidance (Mid), a ``HeliosDMDScheduler`` the distilled pyramid without.

Modulation holds one row for the history's tokens (t = 0) and one for the current tokens, but diffusers repeats
them for every token before it adds each block's table: float32 ``[B, L, 6, D]``, 1.36 GB a block at full size.
Mounted with ``compact=True`` neither is done: ops get `IndexedRows`. The condition embedder then keeps its rows
and hands on their numbers in their place, one channel wide, so that diffusers' own repeating and concatenating
says which token takes which row.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    HeliosDMDScheduler,
    HeliosPipeline,
    HeliosPyramidPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
)
from diffusers.models.transformers.transformer_helios import HeliosTransformerBlock
from torch import Tensor, nn

import reference_ops
from reference_ops import IndexedRows
from reference_ops.contract import Modulation, expand_modulation
from validation.device.threads import one_thread
from validation.errors import UsageError
from validation.models import offload
from validation.models.clock import Clock, peak_memory, reset_peak_memory
from validation.models.mount import Mount, Site, SiteCall, select_sites
from validation.models.prompts import Prompt, embed_prompt, read_json
from validation.models.trajectory import Frames, Trajectory
from validation.ops import OpSet, op_set_from

SITE_NAMES = ("norm1", "rope", "qk_norm", "gate", "norm2", "norm3", "norm_out")
CHUNK_FRAMES = 33  # frames that a pipeline denoises at once: 9 latent frames at a stride of 4

_SCHEDULERS = {"HeliosScheduler": HeliosScheduler, "HeliosDMDScheduler": HeliosDMDScheduler}

_OTHER_BLOCK = re.compile(r"blocks\.[1-9]")
# Which calls a block makes of a site, in order; of the others, one.
_WITHIN_BLOCK = {
    "rope": ("q", "k"),
    "qk_norm": ("self-attention q", "self-attention k", "cross-attention q", "cross-attention k"),
    "gate": ("self-attention", "feed-forward"),
}
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


def place_of(call: SiteCall) -> str:
    """Where in the transformer a site call is, such as ``block 3`` or ``block 3 self-attention q``; or ``output``."""
    if call.site == "norm_out":
        return "output"
    within = _WITHIN_BLOCK.get(call.site, ("",))
    return f"block {call.index // len(within)} {within[call.index % len(within)]}".rstrip()


def mount(
    transformer: HeliosTransformer3DModel, ops: OpSet, sites: Iterable[str] | None = None, *, compact: bool = False
) -> Mount:
    """Mount an op set; by default on every site whose op it provides.

    Args:
        transformer: a Helios transformer in any dtype, with ``scale_shift_table`` in float32 as
            ``from_pretrained`` leaves it.
        ops: the op set.
        sites: names from `SITE_NAMES`.
        compact: give modulation as `IndexedRows`, computed for the distinct rows only; the same bits.

    Raises:
        UsageError: `sites` cannot be mounted, the transformer is none of diffusers' Helios, or the
            installed diffusers does not compute what is to be replaced.
    """
    _require_helios(transformer)
    chosen = select_sites(sites_of(transformer.config), ops, sites)
    dtypes = tuple((name, p.dtype) for name, p in transformer.named_parameters() if not _OTHER_BLOCK.match(name))
    _prove(json.dumps(dict(transformer.config), default=str), dtypes, tuple(site.name for site in chosen), compact)
    return _attach(transformer, ops, chosen, compact)


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


def _attach(transformer: HeliosTransformer3DModel, ops: OpSet, sites: Sequence[Site], compact: bool) -> Mount:
    mounted = Mount(transformer, ops, sites)
    rows: _EveryRow | _DistinctRows = _EveryRow()
    try:
        if compact:
            rows = _DistinctRows(transformer)
            mounted.replace_forward(transformer.condition_embedder, rows.embed)
        for block in _blocks(transformer):
            if compact or _SITES_OF_BLOCK & set(mounted.sites):
                mounted.replace_forward(block, functools.partial(_block_forward, mounted, block, rows))
            if "rope" in mounted or "qk_norm" in mounted:
                _attach_attention(mounted, block.attn1, rope="rope" in mounted)
            if "qk_norm" in mounted:
                _attach_attention(mounted, block.attn2, rope=False)
        if compact or "norm_out" in mounted:
            mounted.replace_forward(
                transformer.norm_out, functools.partial(_norm_out_forward, mounted, transformer.norm_out, rows)
            )
    except BaseException:
        mounted.unmount()
        raise
    return mounted


class _EveryRow:
    """Modulation as diffusers has it, a row for each token."""

    def of_block(self, table: Tensor, modulation: Tensor) -> Sequence[Modulation]:
        """The six rows of a block: ``[B, L, D]`` each, or ``[B, 1, D]`` where modulation is ``[B, 6, D]``.

        Views, never copied, with a token stride of D or 6 * D, as modulation ``[B, L, 6, D]`` lies in memory
        (diffusers 0.42: ``[B, 6, L, D]``, so D).
        """
        if modulation.ndim == 4:
            return (table.unsqueeze(0) + modulation.float()).unbind(2)
        return (table + modulation.float()).unsqueeze(2).unbind(1)

    def of_output(self, table: Tensor, time: Tensor) -> Sequence[Modulation]:
        """Shift and scale of the output norm, ``[B, L, D]`` as time is."""
        return (table.unsqueeze(0) + time.unsqueeze(2)).unbind(2)


class _DistinctRows:
    """Modulation as the condition embedder makes it: a row for each call of it in a forward.

    diffusers embeds t = 0 for the history, where the configuration has that, and then the time of the current
    tokens. `embed` takes the place of the embedder's forward, and `of_block` and `of_output` get, as modulation
    ``[B, L, 6, 1]`` and time ``[B, L, 1]``, the number of each token's row.
    """

    def __init__(self, transformer: HeliosTransformer3DModel) -> None:
        self.embedder = transformer.condition_embedder
        self.calls = 2 if transformer.config.zero_history_timestep else 1
        self.found: list[tuple[Tensor, Tensor]] = []
        self.time = self.modulation = self.numbers = self.index = torch.empty(0)

    def embed(
        self, timestep: Tensor, text: Tensor | None = None, is_return_encoder_hidden_states: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Embed a time, and return the number of its row in place of time and modulation."""
        time, modulation, text = type(self.embedder).forward(
            self.embedder, timestep, text, is_return_encoder_hidden_states
        )
        last = is_return_encoder_hidden_states
        if self.calls == 1 or not last:
            self.found.clear()
        number = len(self.found)
        self.found.append((time, modulation.unflatten(-1, (6, -1))))
        if last:
            batch = len(time)
            self.time, modulations = (
                torch.stack([part.expand(batch, *part.shape[1:]) for part in parts], dim=1)
                for parts in zip(*self.found, strict=True)
            )
            self.modulation = modulations.float()
        return time.new_full((len(time), 1), number), modulation.new_full((len(modulation), 6), number), text

    def of_block(self, table: Tensor, modulation: Tensor) -> Sequence[Modulation]:
        """The six rows of a block: tables of ``[B, n, D]``."""
        if modulation is not self.numbers:  # the same tensor for every block
            self.numbers, self.index = modulation, modulation[:, :, 0, 0].to(torch.int32)
        return [IndexedRows(rows, self.index) for rows in (table.unsqueeze(0) + self.modulation).unbind(2)]

    def of_output(self, table: Tensor, time: Tensor) -> Sequence[Modulation]:
        """Shift and scale of the output norm: tables of ``[B, n, D]``."""
        index = time[:, :, 0].to(torch.int32)
        return [IndexedRows(rows, index) for rows in (table.unsqueeze(0) + self.time.unsqueeze(2)).unbind(2)]


def _block_forward(
    mounted: Mount,
    block: HeliosTransformerBlock,
    rows: _EveryRow | _DistinctRows,
    hidden: Tensor,
    text: Tensor,
    modulation: Tensor,
    rotary: Tensor,
    current_length: int,
) -> Tensor:
    """A block's forward: hidden ``[B, L, D]``, history tokens first, the last `current_length` current."""
    shift1, scale1, gate1, shift3, scale3, gate3 = rows.of_block(block.scale_shift_table, modulation)

    def add_gated(residual: Tensor, x: Tensor, gate: Modulation) -> Tensor:
        if "gate" in mounted:
            return mounted.call("gate", residual, x, gate)
        return (residual.float() + x * expand_modulation(gate, x)).type_as(residual)

    def affine_norm(x: Tensor) -> Tensor:
        if "norm2" in mounted:
            return mounted.call("norm2", x, block.norm2.weight, block.norm2.bias, eps=block.norm2.eps)
        y: Tensor = block.norm2(x.float())
        return y.type_as(x)

    x = _modulated_norm(mounted, "norm1", block.norm1, hidden, shift1, scale1)
    hidden = add_gated(hidden, block.attn1(x, None, None, rotary, current_length), gate1)

    # Under guidance_cross_attn only the current tokens see the text.
    history, current = hidden[:, :0], hidden
    if block.guidance_cross_attn:
        history, current = hidden.tensor_split([hidden.shape[1] - current_length], dim=1)
    current = current + block.attn2(affine_norm(current), text, None, None, current_length)
    hidden = torch.cat([history, current], dim=1) if history.shape[1] else current

    x = _modulated_norm(mounted, "norm3", block.norm3, hidden, shift3, scale3)
    return add_gated(hidden, block.ffn(x), gate3)


def _modulated_norm(mounted: Mount, site: str, norm: Any, x: Tensor, shift: Modulation, scale: Modulation) -> Tensor:
    if site in mounted:
        return mounted.call(site, x, shift, scale, eps=norm.eps)
    y: Tensor = norm(x.float()) * (1 + expand_modulation(scale, x)) + expand_modulation(shift, x)
    return y.type_as(x)


def _norm_out_forward(
    mounted: Mount,
    norm_out: Any,
    rows: _EveryRow | _DistinctRows,
    hidden: Tensor,
    time: Tensor,
    current_length: int,
) -> Tensor:
    """The output norm: hidden and time are ``[B, L, D]``; only the current tokens come out."""
    shift, scale = rows.of_output(norm_out.scale_shift_table, time[:, -current_length:])
    return _modulated_norm(mounted, "norm_out", norm_out.norm, hidden[:, -current_length:], shift, scale)


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
def _prove(config: str, dtypes: tuple[tuple[str, torch.dtype], ...], sites: tuple[str, ...], compact: bool) -> None:
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
            with _attach(small, reference, select_sites(sites_of(small.config), reference, sites), compact):
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


def check(
    checkpoint: Path, ops: OpSet, sites: Iterable[str] | None = None, prompts: Iterable[Prompt] = ()
) -> tuple[Site, ...]:
    """The sites that `mount` will choose for a checkpoint; reads its small files only.

    Raises:
        UsageError: a file of the checkpoint is missing, the sites cannot be mounted, or a prompt asks for
            what the checkpoint's pipeline cannot sample.
    """
    _require_files(checkpoint)
    stages, distilled = _pyramid(checkpoint)
    multiple = 16 * 2 ** (stages - 1)
    for prompt in prompts:
        for name in ("height", "width"):
            if getattr(prompt, name) % multiple:
                raise UsageError(
                    f"prompt {prompt.name}: {name} is {getattr(prompt, name)}, expected a multiple of {multiple}: "
                    f"{checkpoint} is a pyramid of {stages} stages"
                )
        if distilled and prompt.guidance_scale > 1:
            raise UsageError(
                f"prompt {prompt.name}: guidance_scale is {prompt.guidance_scale:g}, expected 1: "
                f"{checkpoint} is distilled and takes no guidance"
            )
    return select_sites(sites_of(read_json(checkpoint / "transformer" / "config.json")), ops, sites)


def load(
    checkpoint: Path, dtype: torch.dtype, device: torch.device | str, free_bytes: int | None = None
) -> HeliosPipeline | HeliosPyramidPipeline:
    """A Helios pipeline from a folder in diffusers' format: the transformer in `dtype`, the VAE in float32.

    The folder holds ``transformer/``, ``vae/`` and ``scheduler/``; ``text_encoder/`` and ``tokenizer/``
    may both be left out: prompts are then embedded by `embed_prompt`. Nothing is downloaded.

    Args:
        checkpoint: the folder.
        dtype: of the transformer and the text encoder.
        device: to sample on.
        free_bytes: of the device's memory; None asks it. Where the parts take more than `offload.SHARE` of it, the
            blocks of transformer and text encoder stay in main memory and visit the device one by one.

    Raises:
        UsageError: a file is missing or damaged, holds another class, or lacks weights.
    """
    _require_files(checkpoint)
    stages, distilled = _pyramid(checkpoint)
    transformer = _pretrained(HeliosTransformer3DModel, checkpoint / "transformer", dtype)
    vae = _pretrained(AutoencoderKLWan, checkpoint / "vae", torch.float32)
    scheduler_class = _SCHEDULERS[read_json(checkpoint / "scheduler" / "scheduler_config.json")["_class_name"]]
    scheduler = scheduler_class.from_pretrained(checkpoint / "scheduler", local_files_only=True)
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
    parts = {"tokenizer": tokenizer, "text_encoder": text_encoder, "vae": vae, "transformer": transformer}
    if stages == 1 and not distilled:
        pipeline = HeliosPipeline(**parts, scheduler=scheduler)
    else:
        zero_star = bool(_index(checkpoint).get("is_cfg_zero_star", False))
        pipeline = _Pyramid(**parts, scheduler=scheduler, is_distilled=distilled, is_cfg_zero_star=zero_star)
    pipeline.set_progress_bar_config(disable=True)
    device = torch.device(device)
    free = offload.free_bytes(device) if free_bytes is None else free_bytes
    if (
        free is None
        or offload.bytes_of(part for part in parts.values() if isinstance(part, nn.Module)) <= offload.SHARE * free
    ):
        return pipeline.to(device)
    vae.to(device)
    offload.place_layer_wise(transformer, transformer.blocks, device)
    if text_encoder is not None:
        offload.place_layer_wise(text_encoder, text_encoder.encoder.block, device)
    return pipeline


class _Pyramid(HeliosPyramidPipeline):  # type: ignore[misc]  # diffusers is untyped
    """diffusers' pyramid, with a block noise that can be drawn where the covariance is singular.

    The noise that is added where a stage begins has the covariance (1 + gamma) I - gamma J within each block of n
    latent pixels (J is all ones). Its least eigenvalue 1 + gamma - n gamma is 0 for the published gamma = 1/3 and
    blocks of four, which in float32 comes out as -3e-8, and the Cholesky factorisation that diffusers 0.42.1 asks
    for raises. Its symmetric root is known: the eigenvectors are J's.
    """

    def sample_block_noise(
        self,
        batch_size: int,
        channel: int,
        num_frames: int,
        height: int,
        width: int,
        patch_size: tuple[int, ...] = (1, 2, 2),
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The noise ``[batch_size, channel, num_frames, height, width]``, float32."""
        gamma, (_, rows, columns) = self.scheduler.config.gamma, patch_size
        shape = (batch_size, channel, num_frames, height // rows, rows, width // columns, columns)
        white = torch.randn(shape, generator=generator, device=generator.device if generator else device)
        mean = white.mean(dim=(4, 6), keepdim=True)
        least = max(1 + gamma - rows * columns * gamma, 0.0)
        noise: Tensor = (1 + gamma) ** 0.5 * (white - mean) + least**0.5 * mean
        return noise.reshape(batch_size, channel, num_frames, height, width).to(device)


def _index(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / "model_index.json"
    return read_json(path) if path.is_file() else {}


def _pyramid(checkpoint: Path) -> tuple[int, bool]:
    """Stages of a checkpoint's pyramid (1: none), and whether it is distilled.

    Raises:
        UsageError: ``model_index.json``, where there is one, says otherwise.
    """
    config = read_json(checkpoint / "scheduler" / "scheduler_config.json")
    stages, distilled = int(config.get("stages", 3)), config["_class_name"] == "HeliosDMDScheduler"
    expected = {
        "_class_name": "HeliosPipeline" if stages == 1 and not distilled else "HeliosPyramidPipeline",
        "is_distilled": distilled,
    }
    for name, value in expected.items():
        came = _index(checkpoint).get(name, value)
        if came != value:
            raise UsageError(
                f"{checkpoint / 'model_index.json'}: {name} is {came}, expected {value}, "
                f"as the scheduler is a {config['_class_name']} of {stages} stage{'s' if stages > 1 else ''}"
            )
    return stages, distilled


def _require_files(checkpoint: Path) -> None:
    if not checkpoint.is_dir():
        raise UsageError(f"--checkpoint: no folder {checkpoint}, expected a Helios checkpoint in diffusers' format")
    expected_class = {
        "transformer/config.json": "HeliosTransformer3DModel",
        "vae/config.json": "AutoencoderKLWan",
        "scheduler/scheduler_config.json": " or ".join(_SCHEDULERS),
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
        if came not in class_name.split(" or "):
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


def steps_of(pipeline: Any, prompt: Prompt) -> int:
    """Denoising steps of a prompt's whole video: of all chunks, and of all stages of a pyramid."""
    stages = pipeline.scheduler.config.stages if isinstance(pipeline, HeliosPyramidPipeline) else 1
    chunks = -(-prompt.frames // CHUNK_FRAMES)
    return int(prompt.steps * stages * chunks)


def forwards_per_step(prompt: Prompt) -> int:
    """Forwards of the transformer in a step: with and without the prompt where it is guided."""
    return 2 if prompt.guidance_scale > 1 else 1


def sample(
    pipeline: HeliosPipeline | HeliosPyramidPipeline,
    prompt: Prompt,
    mounted: Mount | None = None,
    progress: Callable[[str], None] = lambda _text: None,
    *,
    decode: bool = True,
) -> Trajectory:
    """Sample one video. The seed decides everything; the caller's random state is left as it was.

    Args:
        pipeline: from `load`.
        prompt: what to sample.
        mounted: a fresh mount on ``pipeline.transformer``, whose calls are counted.
        progress: called with a few words after each denoising step.
        decode: False leaves the VAE out: a trajectory of latents, without frames.

    Raises:
        SiteError: a mounted site failed, or was not called as often as it must be.
    """
    device = pipeline.transformer.device
    clock = Clock(device)
    latents: list[Tensor] = []
    steps = steps_of(pipeline, prompt)
    if isinstance(pipeline, HeliosPyramidPipeline):
        schedule: dict[str, Any] = {
            "pyramid_num_inference_steps_list": [prompt.steps] * pipeline.scheduler.config.stages
        }
    else:
        schedule = {"num_inference_steps": prompt.steps}

    def after_step(_pipeline: Any, _step: int, _timestep: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        latents.append(values["latents"].float().cpu())
        progress(f"step {len(latents)} of {steps}")
        return {}

    reset_peak_memory(device)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_one_thread(device))
        torch.manual_seed(prompt.seed)
        clock.start("encode")
        embeds = _encode(pipeline, prompt.text, device)
        negative = _encode(pipeline, prompt.negative_text, device) if prompt.guidance_scale > 1 else None
        clock.stop("encode")
        decoder = pipeline.vae.decoder
        for hook in (
            decoder.register_forward_pre_hook(lambda *_: clock.start("decode")),
            decoder.register_forward_hook(lambda *_: clock.stop("decode")),
        ):
            stack.callback(hook.remove)
        if not decode:
            # The pipeline decodes each chunk, whatever its output_type; its history is made of latents.
            pipeline.vae.__dict__["decode"] = _decode_nothing
            stack.callback(pipeline.vae.__dict__.pop, "decode")
        clock.start("denoise")
        frames = pipeline(
            prompt_embeds=embeds,
            negative_prompt_embeds=negative,
            height=prompt.height,
            width=prompt.width,
            num_frames=prompt.frames,
            **schedule,
            guidance_scale=prompt.guidance_scale,
            generator=torch.Generator().manual_seed(prompt.seed),
            output_type="np" if decode else "latent",
            callback_on_step_end=after_step,
        ).frames[0]
        clock.stop("denoise")
    clock.seconds["denoise"] -= clock.seconds.get("decode", 0.0)  # the pipeline decodes each chunk in between
    if mounted:
        mounted.require_forwards(len(latents) * forwards_per_step(prompt))
    return Trajectory(
        latents=latents,
        frames=np.asarray(frames, dtype=np.float32) if decode else np.empty((0, 0, 0, 3), np.float32),
        seconds=clock.seconds,
        peak_bytes=peak_memory(device),
        calls=dict(mounted.calls) if mounted else {},
        forwards=mounted.forwards if mounted else 0,
    )


def decode(pipeline: HeliosPipeline | HeliosPyramidPipeline, latents: Sequence[Tensor], frames: int) -> Frames:
    """The video of a trajectory of latents that `sample` made without one: the same bits as with one.

    Args:
        pipeline: that sampled them.
        latents: after each step.
        frames: that were asked for.

    Returns:
        Frames as `Trajectory` has them.
    """
    vae, device = pipeline.vae, pipeline.transformer.device
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean, std = (torch.tensor(values, device=device, dtype=vae.dtype).view(shape)
                 for values in (vae.config.latents_mean, vae.config.latents_std))  # fmt: skip
    per_chunk = len(latents) // -(-frames // CHUNK_FRAMES)
    with _one_thread(device), torch.no_grad():
        # Multiplied and divided as the pipeline does.
        chunks = [
            vae.decode(last.to(device, vae.dtype) / (1.0 / std) + mean, return_dict=False)[0]
            for last in latents[per_chunk - 1 :: per_chunk]
        ]
        video = torch.cat(chunks, dim=2)
        whole = (video.size(2) - 1) // pipeline.vae_scale_factor_temporal * pipeline.vae_scale_factor_temporal + 1
        shown = pipeline.video_processor.postprocess_video(video[:, :, :whole], output_type="np")[0]
    return np.asarray(shown, dtype=np.float32)


def _one_thread(device: torch.device) -> AbstractContextManager[None]:
    """On the CPU one thread: the same bits on any number of cores, and no waiting for a thread that other processes
    keep from its core (measured on 2 cores at a load of 4: 35 s instead of 76 s)."""
    return one_thread() if device.type == "cpu" else nullcontext()


def _decode_nothing(latents: Tensor, **_options: Any) -> tuple[Tensor]:
    return (latents,)


def _encode(pipeline: Any, text: str, device: torch.device) -> Tensor:
    if pipeline.text_encoder is None:
        return embed_prompt(text, pipeline.transformer.config.text_dim).to(device)
    embeds: Tensor = pipeline.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=512)[0]
    return embeds
