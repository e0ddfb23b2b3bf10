"""Helios' sites: op sets mounted on diffusers' own transformer.

Sites, and the op that each calls (L layers; in one forward):

    norm1     layer_norm_scale_shift   before self-attention                                L
    rope      rotary_embedding         self-attention's query and key                       2 L
    qk_norm   rms_norm                 query and key over the full width, both attentions   4 L
    gate      residual_gate_add        after self-attention and after the feed-forward      2 L
    norm2     layer_norm               before cross-attention, affine                       L
    norm3     layer_norm_scale_shift   before the feed-forward                              L
    norm_out  layer_norm_scale_shift   before the output projection                         1

norm1, gate, norm2 and norm3 are inside the block's ``forward``, so that is replaced; the output norm is
a module of its own; q/k norms are modules too, and RoPE, which comes right after them, is computed with them
while the attention itself gets no embedding. Attention, projections, feed-forward and everything
around the blocks stay diffusers' code. `mount` proves on a small random model that the installed diffusers
still computes the replaced code, bit for bit.

Modulation holds one row for the history's tokens (t = 0) and one for the current tokens, but diffusers repeats
them for every token before it adds each block's table: float32 ``[B, L, 6, D]``, 1.36 GB a block at full size.
``compact=True`` does neither: ops get `IndexedRows`. The condition embedder then keeps its rows and passes on
their indices instead, one channel wide, so that diffusers' own repeating and concatenating assigns a row to each
token.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers import HeliosTransformer3DModel
from diffusers.models.transformers.transformer_helios import HeliosTransformerBlock
from torch import Tensor, nn

import reference_ops
from reference_ops.contract import Modulation, expand_modulation
from validation.errors import UsageError
from validation.models.helios.modulation import DistinctRows, EveryRow
from validation.models.mount import Mount, Site, SiteCall, select_sites
from validation.models.widened import SAME, Widened, apart
from validation.ops import OpSet, op_set_from

SITE_NAMES = ("norm1", "rope", "qk_norm", "gate", "norm2", "norm3", "norm_out")

_OTHER_BLOCK = re.compile(r"blocks\.[1-9]")
# The calls that a block makes of a site, in order; one call for sites not listed.
_WITHIN_BLOCK = {
    "rope": ("q", "k"),
    "qk_norm": ("self-attention q", "self-attention k", "cross-attention q", "cross-attention k"),
    "gate": ("self-attention", "feed-forward"),
}
_SITES_OF_BLOCK = {"norm1", "gate", "norm2", "norm3"}


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
    """Name the place of a site call, such as ``block 3``, ``block 3 self-attention q`` or ``output``."""
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
        UsageError: `sites` cannot be mounted, the transformer is not diffusers' Helios, or the
            installed diffusers does not compute the code to be replaced.
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
    rows: EveryRow | DistinctRows = EveryRow()
    try:
        if compact:
            rows = DistinctRows(transformer)
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


def _block_forward(
    mounted: Mount,
    block: HeliosTransformerBlock,
    rows: EveryRow | DistinctRows,
    hidden: Tensor,
    text: Tensor,
    modulation: Tensor,
    rotary: Tensor,
    current_length: int,
) -> Tensor:
    """A block's forward; hidden is ``[B, L, D]``: history tokens, then `current_length` current ones."""
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
    rows: EveryRow | DistinctRows,
    hidden: Tensor,
    time: Tensor,
    current_length: int,
) -> Tensor:
    """The output norm: hidden and time are ``[B, L, D]``; returns only the current tokens."""
    shift, scale = rows.of_output(norm_out.scale_shift_table, time[:, -current_length:])
    return _modulated_norm(mounted, "norm_out", norm_out.norm, hidden[:, -current_length:], shift, scale)


def _attach_attention(mounted: Mount, attention: Any, *, rope: bool) -> None:
    """Mount q/k norm, and RoPE if `rope`, on an attention's ``norm_q`` and ``norm_k``."""
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
            # Without an embedding the processor does not rotate; `normalise` has already rotated.
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
    """Check the forwards above against the installed diffusers: one small block, random weights, equal bits.

    The configuration and the parameters' dtypes, which decide the code that runs, are the real ones; only
    the sizes are small. Then again in float64 throughout: the truth is what diffusers' own modules compute there. Runs
    on the CPU in about 50 ms, once for each set of arguments.

    Raises:
        UsageError: diffusers cannot run the configuration, the outputs differ, or the code does not fit together.
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
                f"and these dtypes: {one_line(error)}"
            ) from error

        def mounted() -> Tensor:
            reference = op_set_from(reference_ops, "reference_ops", "reference_ops")
            with _attach(small, reference, select_sites(sites_of(small.config), reference, sites), compact):
                output: Tensor = small(**inputs, return_dict=False)[0]
            return output

        try:
            output = mounted()
            differ = int((untouched != output).sum())
            cause = f"{differ} of {output.numel()} values differ" if differ else ""
        except Exception as error:
            cause = one_line(error)
        if cause:
            raise UsageError(
                f"diffusers {diffusers.__version__} does not compute what is replaced at {', '.join(sites)}: "
                f"reference ops mounted on one block do not repeat its bits ({cause}), expected diffusers 0.42's Helios"
            )
        inputs = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
        small.double()
        with Widened():
            untouched = small(**inputs, return_dict=False)[0]
            difference = apart(mounted(), untouched)
        if not difference <= SAME:
            raise UsageError(
                f"in float64, as the truth is computed, the reference ops at {', '.join(sites)} are {difference:.3g} "
                f"from diffusers {diffusers.__version__}'s own modules on one block, expected at most {SAME:.3g}: "
                "a reference op is wrong"
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


def one_line(error: BaseException) -> str:
    """Type and first line of an error."""
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}"
