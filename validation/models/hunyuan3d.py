"""Hunyuan3D-2's shape model: the denoiser with op sets on its sites, its checkpoints, and sampling.

Sites, and the op that each calls (D double blocks, S single blocks; in one forward):

    norm1       layer_norm_scale_shift                  image and text stream, before attention     2 D
    qk_norm     qk_norm                                 queries and keys, over head_dim             2 D + S
    norm2       scale_residual_layer_norm_scale_shift   attention's gated residual and the norm
                                                        before the feed-forward                     2 D
    gate        residual_gate_add                       after the feed-forward; after a single
                                                        block                                       2 D + S
    pre_norm    layer_norm_scale_shift                  single block                                S
    norm_final  layer_norm_scale_shift                  before the last linear layer                1

Every op is called with ``casting_mode="input"``: with ``reference_ops`` the model is the eager code before
the fusion, bit for bit. The blocks ask a table (`Sites`) for the op of each site, so that `mount` can put
another in its place and count it; there is no second path around a site.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

import reference_ops
from validation.errors import UsageError
from validation.models.flow_matching import (
    ConsistencyFlowMatchEuler,
    FlowMatchEuler,
    Schedule,
    denoise,
    guidance_embedded,
    guided,
)
from validation.models.mount import Mount, Site, SiteCall, select_sites
from validation.models.shape_vae import ShapeVAE, attend
from validation.ops import OpSet, op_set_from
from validation.verdict import Status

SITE_NAMES = ("norm1", "qk_norm", "norm2", "gate", "pre_norm", "norm_final")

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

EPS = 1e-6
TIME_CHANNELS = 256

_OPTIONS: dict[str, dict[str, Any]] = {
    "layer_norm_scale_shift": {"eps": EPS, "casting_mode": "input"},
    "scale_residual_layer_norm_scale_shift": {"eps": EPS, "casting_mode": "input"},
    "qk_norm": {"eps": EPS, "casting_mode": "input", "inplace": True},
    "residual_gate_add": {"casting_mode": "input"},
}
_RETURN_PAIRS = ("scale_residual_layer_norm_scale_shift", "qk_norm")


@dataclasses.dataclass(frozen=True)
class Hunyuan3DDiTConfig:
    """The official configuration's names and, as defaults, the values of ``hunyuan3d-dit-v2-0``.

    Attributes:
        in_channels: channels of a latent. context_in_dim: of a context token (DINOv2 giant's 1536).
        hidden_size: channels inside. mlp_ratio: the feed-forward's width over it. num_heads: of attention.
        depth, depth_single_blocks: numbers of double and of single blocks (16 and 32; mini has 8 and 16).
        axes_dim, theta: of a rotary embedding that the model does not have; official files carry them.
        qkv_bias: bias in the double blocks' q, k, v projection.
        time_factor: the longest period of the time embedding, whatever its name says; see `time_embedding`.
        guidance_embed: the guidance scale is an input (turbo, fast).
    """

    in_channels: int = 64
    context_in_dim: int = 1536
    hidden_size: int = 1024
    mlp_ratio: float = 4.0
    num_heads: int = 16
    depth: int = 16
    depth_single_blocks: int = 32
    axes_dim: tuple[int, ...] = (64,)
    theta: int = 10_000
    qkv_bias: bool = True
    time_factor: float = 1000
    guidance_embed: bool = False

    def __post_init__(self) -> None:
        """ValueError unless hidden_size is a multiple of num_heads."""
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size is {self.hidden_size}, expected a multiple of num_heads = {self.num_heads}")


# The model


class Hunyuan3DDiT(nn.Module):
    """The denoiser: ``Hunyuan3DDiT(**config)``, the names being those of `Hunyuan3DDiTConfig`.

    Made for inference: its parameters do not require grad until ``requires_grad_()`` says so (and to train,
    the ops must be differentiable; ``reference_ops`` and ``fused_ops`` refuse).

    Attributes:
        config: the configuration.
        sites: the op of each site.

    Args:
        ops: a module or an `OpSet` that provides all four ops; `mount` replaces them site by site.
        packed_qk_norm: give the op at ``qk_norm`` views of the packed q, k, v projection, to be normalised
            where they lie, instead of contiguous copies of q and k. The result is the same.
        config: the configuration.

    Raises:
        UsageError: `ops` lacks an op of a site.
        TypeError, ValueError: the configuration has an unknown name, or widths that cannot be divided.
    """

    def __init__(self, *, ops: ModuleType | OpSet = reference_ops, packed_qk_norm: bool = False, **config: Any) -> None:
        super().__init__()
        self.config = c = Hunyuan3DDiTConfig(**config)
        self.sites = Sites(ops, packed_qk_norm)
        self.latent_in = nn.Linear(c.in_channels, c.hidden_size)
        self.cond_in = nn.Linear(c.context_in_dim, c.hidden_size)
        self.time_in = MLPEmbedder(TIME_CHANNELS, c.hidden_size)
        self.guidance_in = MLPEmbedder(TIME_CHANNELS, c.hidden_size) if c.guidance_embed else None
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(c) for _ in range(c.depth))
        self.single_blocks = nn.ModuleList(SingleStreamBlock(c) for _ in range(c.depth_single_blocks))
        self.final_layer = LastLayer(c)
        self.requires_grad_(False)

    def forward(self, latents: Tensor, timestep: Tensor, context: Tensor, guidance: Tensor | None = None) -> Tensor:
        """The velocity at ``latents``.

        Args:
            latents: ``[B, L, in_channels]``, in the parameters' dtype.
            timestep: ``[B]``, floating point, 0 (noise) to 1 (data).
            context: ``[B, T, context_in_dim]``, in the parameters' dtype.
            guidance: ``[B]``, the guidance scale, where the configuration embeds it; else None.

        Returns:
            ``[B, L, in_channels]`` in the latents' dtype.

        Raises:
            ValueError: another shape, or a guidance that the configuration does not have, or none that it has.
        """
        self._check(latents, timestep, context, guidance)
        vec: Tensor = self.time_in(self._embed(timestep).to(latents.dtype))
        if self.guidance_in is not None and guidance is not None:
            vec = vec + self.guidance_in(self._embed(guidance).to(latents.dtype))
        img, txt = self.latent_in(latents), self.cond_in(context)
        for block in self.double_blocks:
            img, txt = block(img, txt, vec, self.sites)
        x = torch.cat([txt, img], dim=1)
        for block in self.single_blocks:
            x = block(x, vec, self.sites)
        y: Tensor = self.final_layer(x[:, txt.shape[1] :], vec, self.sites)
        return y

    def _embed(self, t: Tensor) -> Tensor:
        return time_embedding(t, TIME_CHANNELS, self.config.time_factor)

    def _check(self, latents: Tensor, timestep: Tensor, context: Tensor, guidance: Tensor | None) -> None:
        for name, t, form, last in (
            ("latents", latents, "[B, L, in_channels]", self.config.in_channels),
            ("context", context, "[B, T, context_in_dim]", self.config.context_in_dim),
        ):
            if t.dim() != 3 or t.shape[-1] != last:
                raise ValueError(f"{name} has shape {list(t.shape)}, expected {form} with {last} in the last dimension")
        if (guidance is not None) != self.config.guidance_embed:
            came, expected = ("none", "one") if guidance is None else ("a tensor", "None")
            raise ValueError(f"guidance is {came}, expected {expected}: guidance_embed is {self.config.guidance_embed}")
        batch = len(latents)
        if len(context) != batch:
            raise ValueError(f"context has shape {list(context.shape)}, expected B = {batch} first, as in latents")
        for name, row in (("timestep", timestep), ("guidance", guidance)):
            if row is not None and row.shape != (batch,):
                raise ValueError(f"{name} has shape {list(row.shape)}, expected [{batch}], the latents' B")


def time_embedding(t: Tensor, channels: int, max_period: float, scale: float = 1000.0) -> Tensor:
    """Cosines, then sines, of ``scale * t`` at channels / 2 frequencies from 1 down to nearly 1 / max_period.

    The official code passes the configuration's ``time_factor`` where the maximum period is expected, so
    that the longest period is 1000 and not the customary 10000; the golden vectors say so (with 10000 they
    are missed by 4e-2). It computes in float32 whatever the dtype, and float64 results follow it.

    Args:
        t: ``[B]``, multiplied by `scale` in its own dtype.
        channels: of the result, even.
        max_period: see above.
        scale: of t.

    Returns:
        ``[B, channels]`` in t's dtype.
    """
    half = channels // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = (scale * t).float().unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(t.dtype)


class MLPEmbedder(nn.Module):
    """Two linear layers with SiLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_dim, hidden_dim)
        self.out_layer = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_dim]`` -> ``[B, hidden_dim]``."""
        y: Tensor = self.out_layer(functional.silu(self.in_layer(x)))
        return y


class RMSNorm(nn.Module):
    """The weight of an RMSNorm: ``scale`` in the checkpoint, ``weight`` to those who read it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    @property
    def weight(self) -> nn.Parameter:
        """The parameter `scale`, ``[dim]``."""
        return self.scale


class QKNorm(nn.Module):
    """The weights of the norms of queries and keys."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(head_dim)
        self.key_norm = RMSNorm(head_dim)


class SelfAttention(nn.Module):
    """The parameters of one stream's attention; `DoubleStreamBlock` computes it for both streams at once."""

    def __init__(self, c: Hunyuan3DDiTConfig) -> None:
        super().__init__()
        self.qkv = nn.Linear(c.hidden_size, 3 * c.hidden_size, bias=c.qkv_bias)
        self.norm = QKNorm(c.hidden_size // c.num_heads)
        self.proj = nn.Linear(c.hidden_size, c.hidden_size)


class ModulationRows(NamedTuple):
    """One row a batch item, each ``[B, 1, hidden_size]``, as strided views."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


class Modulation(nn.Module):
    """Shift, scale, gate, one or two times over, from the embedding of time (and guidance)."""

    def __init__(self, dim: int, *, double: bool) -> None:
        super().__init__()
        self.times = 2 if double else 1
        self.lin = nn.Linear(dim, 3 * self.times * dim)

    def forward(self, vec: Tensor) -> list[ModulationRows]:
        """``[B, dim]`` -> one or two `ModulationRows`."""
        rows = self.lin(functional.silu(vec)).unsqueeze(1).chunk(3 * self.times, dim=-1)
        return [ModulationRows(*rows[i : i + 3]) for i in range(0, len(rows), 3)]


class DoubleStreamBlock(nn.Module):
    """Image (latents) and text (context) with weights of their own, attending to both together."""

    def __init__(self, c: Hunyuan3DDiTConfig) -> None:
        super().__init__()
        self.num_heads = c.num_heads
        self.img_mod = Modulation(c.hidden_size, double=True)
        self.img_attn = SelfAttention(c)
        self.img_mlp = _feed_forward(c)
        self.txt_mod = Modulation(c.hidden_size, double=True)
        self.txt_attn = SelfAttention(c)
        self.txt_mlp = _feed_forward(c)

    def forward(self, img: Tensor, txt: Tensor, vec: Tensor, sites: "Sites") -> tuple[Tensor, Tensor]:
        """``[B, L, D]``, ``[B, T, D]`` and ``[B, D]`` -> the new img and txt."""
        img_mod1, img_mod2 = self.img_mod(vec)
        txt_mod1, txt_mod2 = self.txt_mod(vec)

        img_qkv = self.img_attn.qkv(sites["norm1"](img, img_mod1.shift, img_mod1.scale))
        txt_qkv = self.txt_attn.qkv(sites["norm1"](txt, txt_mod1.shift, txt_mod1.scale))
        img_q, img_k, img_v = sites.normalised_qkv(img_qkv, self.num_heads, self.img_attn.norm)
        txt_q, txt_k, txt_v = sites.normalised_qkv(txt_qkv, self.num_heads, self.txt_attn.norm)
        attended = attend(
            torch.cat([txt_q, img_q], dim=1), torch.cat([txt_k, img_k], dim=1), torch.cat([txt_v, img_v], dim=1)
        )
        txt_attended, img_attended = attended.tensor_split([txt.shape[1]], dim=1)

        x, img = sites["norm2"](img, self.img_attn.proj(img_attended), img_mod1.gate, img_mod2.shift, img_mod2.scale)
        img = sites["gate"](img, self.img_mlp(x), img_mod2.gate)
        x, txt = sites["norm2"](txt, self.txt_attn.proj(txt_attended), txt_mod1.gate, txt_mod2.shift, txt_mod2.scale)
        txt = sites["gate"](txt, self.txt_mlp(x), txt_mod2.gate)
        return img, txt


class SingleStreamBlock(nn.Module):
    """Attention and feed-forward side by side, on text and image in one sequence."""

    def __init__(self, c: Hunyuan3DDiTConfig) -> None:
        super().__init__()
        self.num_heads = c.num_heads
        self.widths = (3 * c.hidden_size, int(c.hidden_size * c.mlp_ratio))
        self.linear1 = nn.Linear(c.hidden_size, sum(self.widths))
        self.linear2 = nn.Linear(c.hidden_size + self.widths[1], c.hidden_size)
        self.norm = QKNorm(c.hidden_size // c.num_heads)
        self.modulation = Modulation(c.hidden_size, double=False)

    def forward(self, x: Tensor, vec: Tensor, sites: "Sites") -> Tensor:
        """``[B, T + L, D]`` and ``[B, D]`` -> the new x."""
        (mod,) = self.modulation(vec)
        qkv, mlp = self.linear1(sites["pre_norm"](x, mod.shift, mod.scale)).split(self.widths, dim=-1)
        attended = attend(*sites.normalised_qkv(qkv, self.num_heads, self.norm))
        output = self.linear2(torch.cat([attended, functional.gelu(mlp, approximate="tanh")], dim=-1))
        y: Tensor = sites["gate"](x, output, mod.gate)
        return y


class LastLayer(nn.Module):
    """Modulated norm and a linear layer back to the latents' channels."""

    def __init__(self, c: Hunyuan3DDiTConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(c.hidden_size, c.in_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(c.hidden_size, 2 * c.hidden_size))

    def forward(self, x: Tensor, vec: Tensor, sites: "Sites") -> Tensor:
        """``[B, L, D]`` and ``[B, D]`` -> ``[B, L, in_channels]``."""
        shift, scale = self.adaLN_modulation(vec).unsqueeze(1).chunk(2, dim=-1)
        y: Tensor = self.linear(sites["norm_final"](x, shift, scale))
        return y


def _feed_forward(c: Hunyuan3DDiTConfig) -> nn.Sequential:
    width = int(c.hidden_size * c.mlp_ratio)
    return nn.Sequential(nn.Linear(c.hidden_size, width), nn.GELU(approximate="tanh"), nn.Linear(width, c.hidden_size))


# Sites


def sites_of(config: Mapping[str, Any]) -> tuple[Site, ...]:
    """The sites of a denoiser of this configuration, with their calls in one forward."""
    c = Hunyuan3DDiTConfig(**config)
    double, single = c.depth, c.depth_single_blocks
    return (
        Site("norm1", "layer_norm_scale_shift", 2 * double),
        Site("qk_norm", "qk_norm", 2 * double + single),
        Site("norm2", "scale_residual_layer_norm_scale_shift", 2 * double),
        Site("gate", "residual_gate_add", 2 * double + single),
        Site("pre_norm", "layer_norm_scale_shift", single),
        Site("norm_final", "layer_norm_scale_shift", 1),
    )


def place_of(call: SiteCall, depth: int) -> str:
    """Where in a denoiser of `depth` double blocks a site call is: ``double block 1 image``, ``single block 0``, or
    ``output``."""
    if call.site == "norm_final":
        return "output"
    if call.site == "pre_norm" or call.index >= 2 * depth:
        return f"single block {call.index if call.site == 'pre_norm' else call.index - 2 * depth}"
    return f"double block {call.index // 2} {('image', 'text')[call.index % 2]}"


class Sites:
    """Which op runs at which site of one model: ``sites[name](...)``, its options filled in.

    Attributes:
        ops: by site, the op called with what the model computes.
        packed_qk_norm: as in `Hunyuan3DDiT`.
    """

    def __init__(self, ops: ModuleType | OpSet, packed_qk_norm: bool) -> None:
        if isinstance(ops, ModuleType):
            ops = op_set_from(ops, ops.__name__, ops.__name__)
        sites = sites_of({})
        lacking = sorted({site.op for site in sites} - set(ops.functions))
        if lacking:
            raise UsageError(
                f"{ops.origin} does not provide {', '.join(lacking)}, expected every op that the model calls "
                "(mount a set that has only some of them)"
            )
        self.ops: dict[str, functools.partial[Any]] = {
            site.name: functools.partial(ops[site.op], **_OPTIONS[site.op]) for site in sites
        }
        self.packed_qk_norm = packed_qk_norm

    def __getitem__(self, site: str) -> functools.partial[Any]:
        return self.ops[site]

    def normalised_qkv(self, qkv: Tensor, num_heads: int, norm: QKNorm) -> tuple[Tensor, Tensor, Tensor]:
        """q, k (normalised) and v, each ``[B, L, H, head_dim]``, from a projection laid out ``[3, H, head_dim]``.

        ``qkv`` is overwritten where the norm is packed. The official norm computes in float32 even for a
        float64 model, and so the golden vectors' float64 was made: there the op normalises float32 copies.
        """
        q, k, v = qkv.view(*qkv.shape[:2], 3, num_heads, -1).unbind(2)
        q_weight, k_weight = norm.query_norm.weight, norm.key_norm.weight
        if q.dtype is torch.float64:
            q, k = self["qk_norm"](q.float(), k.float(), None, None)
            return q * q_weight, k * k_weight, v
        if not self.packed_qk_norm:
            # contiguous() would not copy a single token of a single item, and the op would write to qkv.
            q, k = (t.clone(memory_format=torch.contiguous_format) for t in (q, k))
        q, k = self["qk_norm"](q, k, q_weight, k_weight)
        return q, k, v


class SiteMount(Mount):
    """A `Mount` on the table of a model's sites; two of the ops return a pair of tensors."""

    def replace_op(self, sites: Sites, site: Site) -> None:
        """Let a site call the mounted op until `unmount`."""
        known = sites.ops[site.name]
        call = self.call_pair if site.op in _RETURN_PAIRS else self.call
        sites.ops[site.name] = functools.partial(call, site.name, **_OPTIONS[site.op])
        self._undo.append(lambda: sites.ops.__setitem__(site.name, known))

    def call_pair(self, site: str, first: Tensor, second: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Call an op that returns two tensors like its first two arguments, or in place these two.

        Raises:
            SiteError: the op raised, or returned something else.
        """
        pair = self.run(site, first, second, *rest, **options)
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(y, Tensor) for y in pair)):
            raise self.wrong(Status.INCORRECT_STRUCTURE, site, type(pair).__name__, "a tuple of two tensors")
        for y, like in zip(pair, (first, second), strict=True):
            self.require_like(site, y, like)
            if options.get("inplace") and y is not like:
                raise self.wrong(Status.INCORRECT_STRUCTURE, site, "another tensor", "the one it was given, in place")
        return pair


def mount(model: Hunyuan3DDiT, ops: OpSet, sites: Iterable[str] | None = None) -> SiteMount:
    """Mount an op set; by default on every site whose op it provides. Other sites keep what they run.

    Args:
        model: the denoiser.
        ops: the op set.
        sites: names from `SITE_NAMES`.

    Raises:
        UsageError: `sites` cannot be mounted, or one of them is mounted already.
    """
    chosen = select_sites(sites_of(dataclasses.asdict(model.config)), ops, sites)
    for site in chosen:
        if isinstance(getattr(model.sites.ops[site.name].func, "__self__", None), Mount):
            raise UsageError(f"site {site.name} is mounted already, expected a site without a mount (unmount first)")
    mounted = SiteMount(model, ops, chosen)
    for site in chosen:
        mounted.replace_op(model.sites, site)
    return mounted


# Loading


def load_denoiser(
    folder: Path,
    dtype: torch.dtype = torch.float16,
    device: torch.device | str = "cpu",
    *,
    ops: ModuleType | OpSet = reference_ops,
    packed_qk_norm: bool = False,
) -> Hunyuan3DDiT:
    """The denoiser of a folder in the official layout, such as ``hunyuan3d-dit-v2-0``.

    The folder holds ``config.yaml``, whose ``model`` has a ``target`` (a class name) and ``params`` (the
    configuration), and ``model.fp16.safetensors`` or else ``model.safetensors``. Official files hold the
    whole pipeline: the denoiser's keys begin with ``model.``; a file without such keys is the denoiser's.

    Args:
        folder: see above.
        dtype, device: of the parameters.
        ops, packed_qk_norm: as in `Hunyuan3DDiT`.

    Raises:
        UsageError: a file is missing or damaged, another model, keys missing, too many, or of other shapes.
    """
    params = _section(folder, "model", "Hunyuan3DDiT")
    build = functools.partial(Hunyuan3DDiT, ops=ops, packed_qk_norm=packed_qk_norm)
    return _load(build, params, folder, "model.", dtype, device)


def load_shape_vae(folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> ShapeVAE:
    """The decoder of a folder in the official layout, such as ``hunyuan3d-vae-v2-0``, or of a denoiser's.

    Its ``config.yaml`` has ``target`` and ``params`` at the top and the file the decoder's keys; in a
    denoiser's folder they are under ``vae`` and begin with ``vae.``.

    Raises:
        UsageError: as in `load_denoiser`.
    """
    return _load(ShapeVAE, _section(folder, "vae", "ShapeVAE"), folder, "vae.", dtype, device)


def load_schedule(folder: Path) -> Schedule:
    """The scheduler of a denoiser's folder: under ``scheduler`` in its ``config.yaml``.

    Raises:
        UsageError: no such file or section, another scheduler, an option that it does not have.
    """
    schedules: dict[str, Callable[..., Schedule]] = {
        "FlowMatchEulerDiscreteScheduler": FlowMatchEuler,
        "ConsistencyFlowMatchEulerDiscreteScheduler": ConsistencyFlowMatchEuler,
    }
    name, params = _target(folder, "scheduler")
    if name not in schedules:
        raise UsageError(f"{folder / 'config.yaml'}: scheduler is a {name}, expected one of: {', '.join(schedules)}")
    return _build(schedules[name], params, folder)


def denoiser_params(folder: Path) -> dict[str, Any]:
    """The configuration of the denoiser in a folder, for `Hunyuan3DDiTConfig`; no weights are read.

    Raises:
        UsageError: no such file or section, another model, an option that it does not have.
    """
    params = _section(folder, "model", "Hunyuan3DDiT")
    _build(Hunyuan3DDiTConfig, params, folder)
    return params


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's ``config.yaml``; empty where that holds something else than names and values.

    Raises:
        UsageError: it cannot be read.
    """
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read {path}: {_one_line(error)}, expected the official layout") from error
    return config if isinstance(config, dict) else {}


def _section(folder: Path, section: str, expected: str) -> dict[str, Any]:
    name, params = _target(folder, section)
    if name != expected:
        raise UsageError(f"{folder / 'config.yaml'}: {section} is a {name}, expected {expected}")
    return params


def _target(folder: Path, section: str) -> tuple[str, dict[str, Any]]:
    """The class name, without its module, and the parameters of a section of ``config.yaml``."""
    path = folder / "config.yaml"
    config: Any = read_config(folder)
    if section in config:
        config = config[section]
    elif section != "vae":
        config = None  # the decoder's own folder has its section at the top
    if not isinstance(config, dict) or not isinstance(config.get("target"), str):
        raise UsageError(f"{path} has no {section} with a target, expected the official layout")
    params = config.get("params")
    if params is None:
        params = {}
    if not isinstance(params, dict) or not all(isinstance(key, str) for key in params):
        raise UsageError(f"{path}: the params of {section} are no mapping, expected names and values")
    return config["target"].rpartition(".")[2], params


def _build(build: Callable[..., T], params: Mapping[str, Any], folder: Path) -> T:
    try:
        return build(**params)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise UsageError(f"{folder / 'config.yaml'}: {_one_line(error)}") from error


def _load(
    build: Callable[..., M],
    params: Mapping[str, Any],
    folder: Path,
    prefix: str,
    dtype: torch.dtype,
    device: torch.device | str,
) -> M:
    path = next((p for p in (folder / "model.fp16.safetensors", folder / "model.safetensors") if p.is_file()), None)
    if path is None:
        raise UsageError(f"{folder} lacks model.fp16.safetensors (or model.safetensors), expected the official layout")
    with torch.device("meta"):  # nothing is allocated or drawn for weights that are about to be replaced
        model = _build(build, params, folder)
    expected = model.state_dict()
    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
            if any(key.startswith(prefix) for key in keys):
                names = {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}
            else:
                names = {key: key for key in keys}
            shapes = {name: list(file.get_slice(key).get_shape()) for name, key in names.items()}
            for kind, wrong in (
                ("missing", expected.keys() - names.keys()),
                ("unexpected", names.keys() - expected.keys()),
                ("misshapen", {n for n in expected.keys() & names.keys() if shapes[n] != list(expected[n].shape)}),
            ):
                if wrong:
                    listed = ", ".join(
                        f"{n} {shapes[n]} for {list(expected[n].shape)}" if kind == "misshapen" else n
                        for n in sorted(wrong)[:3]
                    )
                    raise UsageError(
                        f"{path} has {len(wrong)} {kind} keys ({listed}), "
                        "expected the weights that its config.yaml describes"
                    )
            # Always a copy: a file's tensors lie at any address, and on the CPU a float32 matrix product of
            # one row has other bits with weights off a 64-byte boundary (measured: 1.2e-7 in the time embedding).
            weights = {name: file.get_tensor(key).to(device, dtype, copy=True) for name, key in names.items()}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read {path}: {_one_line(error)}") from error
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


# Sampling


def sample(
    model: Hunyuan3DDiT,
    context: Tensor,
    *,
    schedule: Schedule,
    steps: int,
    num_latents: int,
    seed: int,
    guidance_scale: float = 5.0,
    unconditional: Tensor | None = None,
    mounted: Mount | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> list[Tensor]:
    """Sample latents; the seed decides everything, and no random state is read or left behind.

    Args:
        model: the denoiser; in production float16.
        context: ``[B, T, context_in_dim]``, in the model's dtype and on its device.
        schedule: from `load_schedule`.
        steps: 50 in production, for turbo 5.
        num_latents: latents a shape; what the decoder was trained with (`ShapeVAEConfig`).
        seed: of the noise, drawn in float32 on the CPU so that every dtype and device starts alike.
        guidance_scale: classifier-free guidance, or the model's own input where it embeds it.
        unconditional: as in `guided`; not used where the model embeds its guidance.
        mounted: a fresh mount on the model, whose calls are counted.
        progress: called with a few words after each step; an exception that it raises ends the sampling.

    Returns:
        The latents ``[B, num_latents, in_channels]`` after each step, on the CPU, in the model's dtype.

    Raises:
        SiteError: a mounted site failed, or was not called as often as it must be.
        ValueError: a wrong shape, or a number of steps that the schedule does not have.
    """
    sigmas = schedule.sigmas(steps)
    velocity = (
        guidance_embedded(model, context, guidance_scale)
        if model.config.guidance_embed
        else guided(model, context, guidance_scale, unconditional)
    )
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(context), num_latents, model.config.in_channels, generator=generator)
    latents = []
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if context.device.type == "cpu":
            # One thread: the same bits on any number of cores.
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        for x in denoise(velocity, noise.to(context), sigmas, schedule.num_train_timesteps):
            latents.append(x.cpu())
            progress(f"step {len(latents)} of {steps}")
    if mounted is not None:
        mounted.require_forwards(steps)
    return latents
